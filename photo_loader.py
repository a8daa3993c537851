"""Batches of photos on the device where the model is, decoded by workers, normalised there."""

import atexit
import contextlib
import signal
import weakref
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from my_dataset import Batch, MyDataSet, SeededSampler
from preprocess import Normalise, Preprocess

LOADERS: weakref.WeakSet = weakref.WeakSet()


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
