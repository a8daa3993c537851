"""The frozen first layers run once: their output for each photo is kept, training goes on from it.

With a frozen backbone only the head (or the last blocks' splines) changes, so every epoch would
compute the same tokens again. `plan` finds how many layers can be skipped, `fill` computes what
comes out of them, and `Tail` is the rest of the model, sharing its parameters.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from my_dataset import Batch, Failed, PhotoLoader, SeededSampler
from parallel.world import ALONE, World
from system.devices import autocast
from system.memory import free_memory, take_room
from training.flags import Options
from training.needs import EVERY_EPOCH
from training.optim import layer_of
from vit_model import HEADS, VisionTransformer


def plan(model: VisionTransformer, trainable: Iterable[str]) -> int:
    """Returns how many blocks come before everything that trains; depth + 1 when only heads do.

    0 or less means that nothing can be skipped.
    """
    depth = len(model.blocks)
    trainable = list(trainable)
    if all(name.startswith(HEADS) for name in trainable):
        return depth + 1
    return min(depth, min(layer_of(name, depth) for name in trainable) - 1)


def run_once(
    model: VisionTransformer, trainable: Iterable[str], options: Options, world: World
) -> int:
    """Returns how many layers (`plan`) run once for each view of a photo, 0 for none.

    They run in every epoch with what `EVERY_EPOCH` names, and for photos that change at random
    where no views are kept. options: --aug may not be chosen yet.
    """
    anew = [name for name in EVERY_EPOCH if name != "fsdp" or world.size > 1]
    changes = options.random and options.cache_views == 1
    if changes or any(getattr(options, name) for name in anew):
        return 0
    return max(0, plan(model, trainable))


class Tail(nn.Module):
    """What comes after the first `skip` blocks (`plan`); parameters are the model's own.

    forward: tokens (B, N, C) after those blocks -> logits; with skip = depth + 1 what the heads
    read, as `VisionTransformer.pool` gives it.
    """

    def __init__(self, model: VisionTransformer, skip: int) -> None:
        super().__init__()
        self.model, self.skip = model, skip

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.skip > len(self.model.blocks):
            return self.model.classify(x)
        return self.model.forward_rest(x, first=self.skip)


def rest_of(model: VisionTransformer, skip: int) -> nn.Module:
    """Returns what takes the loaders' batches: the model, or what follows its `skip` layers."""
    return Tail(model, skip) if skip else model


def run_frozen(model: VisionTransformer, skip: int, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) -> what `Tail` takes."""
    depth = len(model.blocks)
    x = model.forward_blocks(model.embed(images), last=min(skip, depth))
    if skip > depth:
        x = model.pool(model.norm(x))
    return x


class CachedLoader:
    """Serves cached features as a loader serves photos: Batch(features, labels, failed, indices).

    features: (V, M, ...) for V views of M photos; epoch e is served view e mod V.
    failed: the photos that could not be read, by index; they are named in every epoch.
    rows: which photos of `features` are served, all by default; batches count among these.
    """

    def __init__(
        self,
        features: Tensor,
        labels: list[int],
        failed: dict[int, Failed],
        batch_size: int,
        sampler: SeededSampler,
        rows: list[int] | None = None,
    ) -> None:
        self.features, self.labels = features, torch.tensor(labels)
        self.failed, self.batch_size, self.sampler = failed, batch_size, sampler
        self.rows = torch.arange(len(labels)) if rows is None else torch.tensor(rows)

    def part(self, rows: list[int], sampler: SeededSampler) -> "CachedLoader":
        """Returns a loader of some of the photos, which shares the features."""
        failed = {at: self.failed[row]._replace(index=at) for at, row in enumerate(rows)
                  if row in self.failed}  # fmt: skip
        labels = self.labels.tolist()
        return CachedLoader(self.features, labels, failed, self.batch_size, sampler, rows)

    def ordered(self, batch_size: int, sampler: SeededSampler) -> "CachedLoader":
        """Returns a loader of the same photos in another order, which shares the features."""
        return CachedLoader(self.features, self.labels.tolist(), self.failed, batch_size, sampler)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of a photo's features."""
        return tuple(self.features.shape[2:])

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        view = self.features[self.sampler.epoch % len(self.features)]
        order = [index for index, _ in self.sampler]
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            good = torch.tensor([i for i in indices if i not in self.failed], dtype=torch.int64)
            failed = [self.failed[i] for i in indices if i in self.failed]
            rows = self.rows[good]
            yield Batch(view[rows], self.labels[rows], failed, good)


@torch.inference_mode()
def fill(
    model: VisionTransformer,
    skip: int,
    loader: PhotoLoader,
    views: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    folder: Path,
    world: World = ALONE,
    progress: Callable[[int], None] = lambda done: None,
) -> CachedLoader:
    """Runs the frozen layers over every photo of `loader`, `views` times, and returns the results.

    The order and size of the batches are fixed, so that a resumed run fills the same bits. What
    does not fit in memory becomes a memory-mapped file in `folder` (see `remove`). Of several
    processes each runs over its part of the photos, and all get the whole.
    """
    was_training, dataset = model.training, loader.dataset
    model.eval()

    def run(images: Tensor) -> Tensor:
        with autocast(device, amp_dtype):
            return run_frozen(model, skip, images.to(device))

    size = model.sizes.img_size
    sample = run(torch.zeros(1, model.sizes.in_chans, size, size))[0]
    kept = sample.dtype if skip > len(model.blocks) else amp_dtype or sample.dtype
    features = allocate((views, len(dataset), *sample.shape), kept, folder, world)
    failed = _fill(features, run, loader, world, progress)
    model.train(was_training)
    failed = {failure.index: failure for failure in world.joined(failed)}
    if len(failed) == len(dataset):
        raise ValueError(f"no photo could be read: {next(iter(failed.values())).reason}")
    exchange(features, device, world)
    return CachedLoader(features, dataset.images_class, failed, loader.batch_size, loader.sampler)


def _fill(features: Tensor, run: Callable, loader: PhotoLoader, world: World, progress) -> list:
    """Puts what `run` makes of this process's photos into `features`; returns those that failed."""
    dataset, seed = loader.dataset, loader.sampler.seed
    in_order = SeededSampler(len(dataset), seed, False, world.rank, world.size)
    batches = loader.with_order(in_order, batch_size=32)
    failed: list[Failed] = []
    for view in range(len(features)):
        in_order.set_epoch(view)
        for batch in batches:
            failed += batch.failed
            if len(batch.images):
                features[view, batch.indices] = run(batch.images).to(features.dtype).cpu()
            progress(len(batch.images) + len(batch.failed))
    return failed


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, folder: Path, world: World = ALONE
) -> Tensor:
    """Returns zeros of `shape`, in memory if a quarter of what is free holds them, else mapped."""
    count = torch.Size(shape).numel()
    if count * dtype.itemsize <= free_memory() / (4 * world.local_size):
        return torch.zeros(shape, dtype=dtype)
    number = len(list(folder.glob(f".features-{world.rank}-*.tmp")))
    path = folder / f".features-{world.rank}-{number}.tmp"
    with open(path, "wb") as file:
        take_room(file.fileno(), count * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)


def exchange(features: Tensor, device: torch.device, world: World) -> None:
    """Fills what other processes computed into `features`, where each has zeros for the others'."""
    if world.size == 1:
        return
    for view in features:
        for photos in view.split(256):
            # As bytes, which every backend can add: only one process has others than zero.
            photos.copy_(world.total(photos.view(torch.uint8).to(device)).view(photos.dtype))


def remove(folder: Path) -> None:
    """Removes the memory-mapped files of a finished or killed run."""
    for path in folder.glob(".features-[0-9]*-[0-9]*.tmp"):
        path.unlink(missing_ok=True)
