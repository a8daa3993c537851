"""What a loader serves: photos by index and seed, and in which order.

`MyDataSet` decodes and transforms; `SeededSampler` orders. A photo's random changes depend on the
file, the epoch and the seed alone, so a run is the same with any number of workers and can go on in
the middle of an epoch. `PhotoLoader` decodes them in workers and normalises them where the model
is. Which photos there are is the subject of `imaging/splitting.py`.
"""

import atexit
import contextlib
import os
import random
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imaging.decoding import PhotoError, decoded_size, load_image
from imaging.depth import Reading
from imaging.pixel_cache import ImageCache, open_cache
from imaging.preprocess import Normalise, Preprocess, Transform
from imaging.splitting import prepare_data
from parallel.world import World

LOADERS: weakref.WeakSet = weakref.WeakSet()


def read_split_data(
    root: str | os.PathLike, val_rate: float = 0.2, seed: int = 0
) -> tuple[list[str], list[int], list[str], list[int]]:
    """The reference's function: training paths and labels, validation paths and labels."""
    split = prepare_data(root, val_split=val_rate, seed=seed)
    return *split.train, *split.val


class Failed(NamedTuple):
    """A photo that could not be read when its turn came."""

    path: str
    reason: str
    index: int = -1


class Item(NamedTuple):
    image: Tensor  # (3, H, W)
    label: int
    index: int


class Batch(NamedTuple):
    """B photos that could be read, and the others by name; with none, `images` is empty."""

    images: Tensor  # (B, 3, H, W)
    labels: Tensor  # (B,), int64
    failed: list[Failed]
    indices: Tensor  # (B,), int64: positions in the data set


class MyDataSet(Dataset):
    """Photos as (tensor, label); a photo that cannot be read is a `Failed`, never another one.

    A key is an index, or a pair (index, seed): then the random changes are drawn from a generator
    seeded with `seed`, so the result depends on file and seed alone, in whichever process.
    `min_size` is `load_image`'s; by default, what the transform says it needs, as its `reading`
    always is. With a `cache`, each photo is decoded once (`keep_decoded`).
    """

    cache: ImageCache | None = None

    def __init__(
        self,
        images_path: Sequence[str],
        images_class: Sequence[int],
        transform: Callable | None = None,
        min_size: int | None = None,
    ):
        self.images_path, self.images_class = images_path, images_class
        self.transform = transform
        self.min_size = min_size or getattr(transform, "min_size", None)
        reading = getattr(transform, "reading", Reading())
        self.reading = {} if reading == Reading() else {"reading": reading}

    def __len__(self) -> int:
        return len(self.images_path)

    def __getitem__(self, key: int | tuple[int, int]):
        item = self._item(key)
        return item if isinstance(item, Failed) else (item.image, item.label)

    def __getitems__(self, keys: Sequence) -> list:
        """What a DataLoader calls: the same, with the indices that `collate_fn` passes on."""
        return [self._item(key) for key in keys]

    def _item(self, key) -> Item | Failed:
        index, seed = key if isinstance(key, tuple) else (key, None)
        path = self.images_path[index]
        try:
            image = self.decode(index)
        except PhotoError as error:
            return Failed(path, error.reason, index)
        return Item(self._transformed(image, seed), self.images_class[index], index)

    def decode(self, index: int) -> Image.Image:
        """The photo before anything random: from the cache, or decoded and put there."""
        if self.cache is not None and (kept := self.cache.get(index)) is not None:
            return kept
        image = load_image(self.images_path[index], self.min_size, **self.reading)
        if isinstance(self.transform, Transform):
            image = self.transform.prepare(image)
        if self.cache is not None:
            self.cache.put(index, image)
        return image

    def keep_decoded(self, choice: str, folder: Path, **options) -> str:
        """Opens the cache that `choice` names (see `open_cache`) and returns a line on it.

        Must be called before workers start, since they share what there is then.
        """
        fitted = getattr(self.transform, "prepared_size", None)

        def size_of(path: str) -> tuple[int, int]:
            return fitted or decoded_size(path, self.min_size)

        self.cache, line = open_cache(choice, self.images_path, size_of, folder, **options)
        return line

    def _transformed(self, image: Image.Image, seed: int | None) -> Tensor:
        transform = getattr(self.transform, "finish", self.transform)
        if transform is None:
            return image
        if seed is None:
            return transform(image)
        state = torch.get_rng_state()
        # Not torch.manual_seed, which would seed the GPUs, too, when called in the main process.
        torch.default_generator.manual_seed(seed)
        try:
            return transform(image)
        finally:
            torch.set_rng_state(state)

    @staticmethod
    def collate_fn(items: Iterable[Item | Failed]) -> Batch:
        """Stacks what could be read, names the rest."""
        items = list(items)
        good = [item for item in items if not isinstance(item, Failed)]
        return Batch(
            torch.stack([item.image for item in good]) if good else torch.empty(0),
            torch.tensor([item.label for item in good], dtype=torch.int64),
            [item for item in items if isinstance(item, Failed)],
            torch.tensor([item.index for item in good], dtype=torch.int64),
        )


class SeededSampler(Sampler):
    """Yields (index, seed) pairs, a function of seed and epoch alone.

    Rank r of `world_size` takes every world_size-th photo, of a permutation with `shuffle`, else in
    order: a batch of each rank together is one large batch of a single process. Every photo is
    taken once; the last ranks may have one less than the first.
    """

    def __init__(
        self, length: int, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ):
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch; `start` samples of this rank are skipped, to resume within it."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, len(range(self.rank, self.length, self.world_size)) - self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        mixed = random.Random(f"{self.seed}/{self.epoch}").getrandbits(63)
        generator = torch.Generator().manual_seed(mixed)
        seeds = torch.randint(2**62, (self.length,), generator=generator)  # one for each photo
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator)
        for index in order[self.rank :: self.world_size][self.start :].tolist():
            yield index, int(seeds[index])


class PhotoLoader(DataLoader):
    """Serves the photos of `dataset` in the order of `sampler` as batches on `device`.

    preprocess: how to normalise the images of a transform made with `as_bytes`, which travel as
        bytes, a quarter of what floats would take; None leaves images as they are.
    """

    def __init__(
        self,
        dataset: MyDataSet,
        batch_size: int,
        sampler: SeededSampler,
        workers: int = 0,
        device: torch.device | str = "cpu",
        preprocess: Preprocess | None = None,
    ) -> None:
        self.device, self.preprocess = torch.device(device), preprocess
        self.normalise = Normalise(preprocess, device) if preprocess else lambda images: images
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=MyDataSet.collate_fn,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",  # so that copies do not wait
            worker_init_fn=ignore_signals,
            # A generator of its own: drawing the workers' seed must not move the model's.
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        LOADERS.add(self)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of an image as the model takes it."""
        return 3, self.preprocess.img_size, self.preprocess.img_size

    def __iter__(self) -> Iterator[Batch]:
        with held_back_signals():
            batches = super().__iter__()
        return map(self.on_device, batches)

    def on_device(self, batch: Batch) -> Batch:
        """Returns the batch as the model takes it."""
        if not len(batch.images):
            return batch
        images = self.normalise(batch.images.to(self.device, non_blocking=True))
        return batch._replace(images=images, labels=batch.labels.to(self.device, non_blocking=True))

    def with_order(self, sampler: SeededSampler, batch_size: int) -> "PhotoLoader":
        """Returns a loader of the same photos in another order."""
        return PhotoLoader(
            self.dataset, batch_size, sampler, self.num_workers, self.device, self.preprocess
        )


@atexit.register
def end_workers() -> None:
    """Ends workers that are still there, held by the traceback of an error, when the program ends.

    Python would send them SIGTERM, which they ignore, and wait for them for ever.
    """
    for loader in list(LOADERS):
        if loader.num_workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()


@contextlib.contextmanager
def held_back_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait while workers start, who inherit this until they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals(_worker: int) -> None:
    """Lets a loader's worker outlive Ctrl-C and SIGTERM to the process group: the run ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def in_step(batches, count: int, shape: tuple[int, ...], world: World) -> Iterator[Batch]:
    """Yields exactly `count` batches, so that no process waits for one that has none left.

    Where a process has no photo, one of zeros of `shape` (3, S, S) takes its place, with empty
    `indices`: it goes through the model and counts nothing. Alone, the batches are as they were.
    """
    if world.size == 1:
        yield from batches
        return
    batches = iter(batches)
    nothing = Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), [], torch.empty(0))
    for _ in range(count):
        batch = next(batches, nothing)
        if not len(batch.images):
            zero = torch.zeros(1, dtype=torch.int64)
            batch = Batch(torch.zeros(1, *shape), zero, batch.failed, zero[:0])
        yield batch
