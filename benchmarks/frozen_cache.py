"""What running the frozen layers once saves, against the reference's way of training the head.

    python -m benchmarks.frozen_cache --data flower_photos --photos 16
    python -m benchmarks.frozen_cache --data flower_photos --rows head \\
        --weights deit_tiny_patch16_224.safetensors --reference-epochs 10

The reference's way is written out here (`reference`): float32, batches of 8, new random crops and a
pass through the whole frozen model at every step, SGD with a rate of 0.001 on a cosine, validation
after each epoch. It is timed for --reference-epochs and counted for --epochs, for all its epochs do
the same; its accuracy stands only where it ran them all. Ours is train.py with its own choices and
the row's flags. Times are from the first photo decoded to the last epoch validated,
checkpoints included, without the start of Python. Without --weights a ViT-B/16 of random numbers is
timed and no accuracy given.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import train
from formats.fitting import load_into
from formats.reading import read_weights
from imaging.splitting import prepare_data
from parallel.world import World
from system.devices import default_workers, seed_everything
from training.flags import parse_args
from training.optim import freeze
from vit_model import VisionTransformer, create_model

ROWS = {
    "head": "",
    "KAN rank 16 in the last two blocks": "--mlp kan --kan-rank 16 --kan-blocks last:2",
}
BATCH = "--batch-size 32"  # what train.py chooses for 256 photos or more, here for few, too


class Photos(Dataset):
    """What the reference serves: a photo decoded in full, cropped at random, normalised."""

    def __init__(self, samples, weights, train: bool) -> None:
        resize = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
        if not train:
            resize = [v2.Resize(256), v2.CenterCrop(224)]
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*resize, *to_tensor, v2.Normalize(weights.mean, weights.std)])
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples.paths)

    def __getitem__(self, index: int):
        with Image.open(self.samples.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.samples.labels[index]


def reference(data, weights, epochs: int, epochs_run: int) -> tuple[float, float]:
    """Trains the head in the reference's way; returns seconds an epoch and the last accuracy."""
    model = create_model(**weights.config | {"num_classes": len(data.classes)})
    freeze(model, load_into(model, weights).from_file)
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(head, lr=0.001, momentum=0.9, weight_decay=5e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.01 + 0.99 * (1 + math.cos(math.pi * epoch / epochs)) / 2
    )
    loaders = [
        DataLoader(Photos(samples, weights, train), 8, shuffle=train, num_workers=default_workers())
        for samples, train in ((data.train, True), (data.val, False))
    ]
    start, accuracy = time.perf_counter(), 0.0
    for _ in range(epochs_run):
        model.train()
        for images, labels in loaders[0]:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()
        accuracy = validate(model, loaders[1])
    return (time.perf_counter() - start) / epochs_run, accuracy


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    hits = sum((model(images).argmax(1) == labels).sum().item() for images, labels in loader)
    return hits / len(loader.dataset)


def ours(folder: Path, weights: Path, flags: str, args: argparse.Namespace) -> tuple[float, dict]:
    """Trains as `train.py --weights` does; returns the seconds and the last epoch's metrics."""
    words = ["--data-path", str(folder), "--weights", str(weights), "--epochs", str(args.epochs)]
    words += ["--seed", str(args.seed), *BATCH.split(), *flags.split()]
    with tempfile.TemporaryDirectory() as output:
        options, typed = parse_args([*words, "--output", output])
        options.workers = default_workers()
        seed_everything(args.seed)
        trainer = train.start(options, typed, World())
        start = time.perf_counter()
        trainer.fit(None)
        return time.perf_counter() - start, trainer.history[-1]


def some_photos(data: str, count: int | None, folder: Path) -> Path:
    """Returns a folder of links to the first `count` photos of each class, or `data`."""
    if count is None:
        return Path(data)
    for photos in filter(Path.is_dir, Path(data).iterdir()):
        (folder / photos.name).mkdir()
        for path in sorted(photos.glob("*.jpg"))[:count]:
            (folder / photos.name / path.name).symlink_to(path.resolve())
    return folder


def random_model(folder: Path) -> Path:
    path = folder / "vit_base_patch16_224.pth"
    model: VisionTransformer = create_model("vit_base_patch16_224", num_classes=1000)
    torch.save(model.state_dict(), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--weights", type=Path, help="(default: a ViT-B/16 of random numbers)")
    parser.add_argument("--photos", type=int, help="of each class (default: all)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--reference-epochs", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = some_photos(args.data, args.photos, Path(scratch))
        with tempfile.TemporaryDirectory() as place:
            path = args.weights or random_model(Path(place))
            lines = measure(folder, path, args)
    print("\n| | seconds | of the reference's | accuracy |\n|---|---|---|---|", *lines, sep="\n")


def measure(folder: Path, path: Path, args: argparse.Namespace) -> list[str]:
    """Returns the table's rows."""

    def shown(accuracy: float) -> str:
        complete = args.weights and args.reference_epochs == args.epochs
        return f"{accuracy:.4f}" if complete else "-"

    data, weights = prepare_data(folder, seed=args.seed), read_weights(str(path))
    per_epoch, accuracy = reference(data, weights, args.epochs, args.reference_epochs)
    whole = per_epoch * args.epochs
    lines = [f"| the reference's way, head | {whole:.1f} | 1 | {shown(accuracy)} |"]
    for row in args.rows:
        seconds, last = ours(folder, path, ROWS[row], args)
        share = seconds / whole
        lines.append(f"| ours, {row} | {seconds:.1f} | {share:.3f} | {shown(last['val_acc'])} |")
    return lines


if __name__ == "__main__":
    main()
