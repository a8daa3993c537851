"""Photos per second of the loader alone, and what decoding a JPEG at reduced scale gains.

    python -m benchmarks.loader --data-path flower_photos

First table: a folder of class folders through `MyDataSet`, for training and for evaluation, with
0, 1 and 2 workers, next to the plain way (Pillow's open and torchvision's transforms); "kept" is
as train.py loads: decoded in an earlier epoch, handed on as bytes to be normalised later. Second:
one process, some photos enlarged to 12 megapixels as from a camera, decoded in full and at the
scale that the transforms allow. Median of the repeats after a first pass that is not counted.
"""

import argparse
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from imaging.decoding import load_image
from imaging.preprocess import Preprocess, eval_transform, train_transform
from imaging.scanning import scan_classes
from my_dataset import MyDataSet, SeededSampler

CAMERA = (4000, 3000)
NOISE = 8  # standard deviation, of 255
PREPROCESS = Preprocess()


class Plain(Dataset):
    """What a short script would do: no orientation, no other mode than RGB."""

    def __init__(self, paths: list[str], train: bool):
        scale = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
        if not train:
            scale = [v2.Resize(256), v2.CenterCrop(224)]
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*scale, *to_tensor, v2.Normalize([0.5] * 3, [0.5] * 3)])
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), 0


def photo_paths(folder: str, limit: int) -> list[str]:
    classes = scan_classes(folder, problems=[])
    paths = [file.path for files in classes.values() for file in files]
    return paths[:: max(1, len(paths) // limit)][:limit]


def per_second(count: int, work: Callable[[], None], repeats: int) -> str:
    """Items per second: the median, and the lowest and highest of the repeats."""
    work()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - start))
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def loader_rate(dataset: Dataset, workers: int, repeats: int) -> str:
    ours = isinstance(dataset, MyDataSet)
    loader = DataLoader(
        dataset,
        batch_size=32,
        sampler=SeededSampler(len(dataset), seed=0) if ours else None,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dataset.collate_fn if ours else None,
    )
    return per_second(len(dataset), lambda: [None for _ in loader], repeats)


def cpu_ms(dataset: Dataset, repeats: int) -> str:
    """Processor time per photo in one thread: hardly changed by what else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        for index in range(len(dataset)):
            dataset[index]
        times.append(1000 * (time.process_time() - start) / len(dataset))
    torch.set_num_threads(threads)
    del times[0]  # the warm-up
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


def loader_table(paths: list[str], repeats: int) -> None:
    print("| loader | CPU, ms a photo | 0 workers | 1 worker | 2 workers |\n|---|---|---|---|---|")
    labels = [0] * len(paths)
    datasets = {
        "training, plain": Plain(paths, train=True),
        "training, ours": MyDataSet(paths, labels, train_transform(PREPROCESS)),
        "evaluation, plain": Plain(paths, train=False),
        "evaluation, ours": MyDataSet(paths, labels, eval_transform(PREPROCESS)),
        "training, kept": MyDataSet(paths, labels, train_transform(PREPROCESS, as_bytes=True)),
        "evaluation, kept": MyDataSet(paths, labels, eval_transform(PREPROCESS, as_bytes=True)),
    }
    for name, dataset in datasets.items():
        if name.endswith("kept"):
            dataset.keep_decoded("ram", Path())
    for name, dataset in datasets.items():
        rates = [loader_rate(dataset, workers, repeats) for workers in (0, 1, 2)]
        rates.insert(0, cpu_ms(dataset, repeats))
        print(f"| {name} | {' | '.join(rates)} |", flush=True)


def camera_photos(paths: list[str]) -> list[bytes]:
    """The photos as JPEG files of 12 megapixels, with noise to give them a camera's file size."""
    rng, files = np.random.default_rng(0), []
    for path in paths:
        pixels = np.asarray(load_image(path).resize(CAMERA, Image.Resampling.BICUBIC))
        noisy = pixels + NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def draft_table(files: list[bytes], repeats: int) -> None:
    megabytes = sum(map(len, files)) / len(files) / 1e6
    print(f"\nPhotos of {CAMERA[0]} x {CAMERA[1]} pixels, {megabytes:.1f} MB each\n")
    print("| transform | decoded in full | at reduced scale |\n|---|---|---|")
    for name, transform in {
        "evaluation": eval_transform(PREPROCESS),
        "training": train_transform(PREPROCESS),
    }.items():
        rates = []
        for min_size in (None, transform.min_size):

            def work(transform=transform, min_size=min_size):
                for content in files:
                    transform(load_image(io.BytesIO(content), min_size))

            rates.append(per_second(len(files), work, repeats))
        print(f"| {name} | {' | '.join(rates)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-path", required=True, help="folder of class folders")
    parser.add_argument("--photos", type=int, default=500, help="photos to use (default 500)")
    parser.add_argument("--camera-photos", type=int, default=20, help="enlarged ones (default 20)")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes (default 3)")
    args = parser.parse_args()
    paths = photo_paths(args.data_path, args.photos)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, Pillow {PIL.__version__}; {len(paths)} photos; photos per "
        "second, median (lowest to highest)\n"
    )
    loader_table(paths, args.repeats)
    draft_table(camera_photos(paths[:: len(paths) // args.camera_photos]), args.repeats)


if __name__ == "__main__":
    main()
