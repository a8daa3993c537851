"""Photos as a frozen model sees them, computed once and kept, and a head trained on some of them.

What the benchmarks share that train a head hundreds of times, their command line included.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from formats.fitting import load_into
from formats.reading import read_weights
from imaging.preprocess import Preprocess, eval_transform
from imaging.scanning import scan_classes
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from training.choices import Case, choose
from training.feature_cache import run_frozen
from training.trainer import goodness
from vit_model import create_model

EPOCHS, BATCH, RATE = 10, 32, 3e-3  # what train.py chooses for a head alone


@dataclass
class Pool:
    """Photos of one data set: features (N, C), labels (N,), and how many classes."""

    name: str
    features: Tensor
    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.labels)


def pool(roots: list[str], weights: str, keep: Path) -> Pool:
    """Returns the photos of class folders in all of `roots`, from a file in `keep` if there."""
    name = Path(roots[0]).name if len(roots) == 1 else Path(roots[0]).parent.name
    kept = keep / f"{name}.pt"
    if not kept.exists():
        found = [scan_classes(root, []) for root in roots]
        classes = sorted({label for one in found for label in one})
        pairs = [(f.path, label) for one in found for label in one for f in one[label]]
        paths, labels = [path for path, _ in pairs], [classes.index(label) for _, label in pairs]
        keep.mkdir(parents=True, exist_ok=True)
        features = features_of(paths, labels, weights)
        torch.save({"features": features, "labels": torch.tensor(labels)}, kept)
    told = torch.load(kept, weights_only=True)
    return Pool(name, told["features"], told["labels"], int(told["labels"].max()) + 1)


def parser_for(about: str) -> argparse.ArgumentParser:
    """Returns the command line of a benchmark with that docstring."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--weights", required=True, help="of the frozen model")
    parser.add_argument(
        "--data", action="append", required=True, nargs="+", help="folders of class folders"
    )
    parser.add_argument("--keep", type=Path, default=Path("weights/features"), help="for features")
    return parser


def asked_for(options: argparse.Namespace) -> Iterator[Pool]:
    """Yields the photos that a command line names; from here on one thread computes."""
    torch.set_num_threads(1)
    return (pool(roots, options.weights, options.keep) for roots in options.data)


@torch.inference_mode()
def features_of(paths: list[str], labels: list[int], weights: str) -> Tensor:
    """Returns what the head of a frozen model would read of each photo (N, C)."""
    file = read_weights(weights)
    model = create_model(**file.config | {"num_classes": 2}).eval()
    load_into(model, file, ["a", "b"])
    preprocess = Preprocess(model.sizes.img_size, mean=tuple(file.mean), std=tuple(file.std))
    dataset = MyDataSet(paths, labels, eval_transform(preprocess))
    loader = PhotoLoader(dataset, BATCH, SeededSampler(len(paths), 0, shuffle=False))
    skip = len(model.blocks) + 1
    return torch.cat([run_frozen(model, skip, batch.images)[:, 0] for batch in loader])


def answers(
    pool: Pool, trained: Tensor, seed: int, rate: float = RATE, size: int = BATCH
) -> Tensor:
    """Trains a head on some photos, by index; returns each epoch's logits for all (E, N, K).

    rate: the peak. size: of a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(pool.classes, pool.features.shape[1], requires_grad=True)
    bias = torch.zeros(pool.classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=rate, weight_decay=0.0)
    steps = EPOCHS * math.ceil(len(trained) / size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.01 * rate)
    found = []
    for _ in range(EPOCHS):
        order = trained[torch.randperm(len(trained), generator=generator)]
        for batch in order.split(size):
            logits = F.linear(pool.features[batch], weight, bias)
            optimizer.zero_grad()
            F.cross_entropy(logits, pool.labels[batch]).backward()
            optimizer.step()
            cosine.step()
        found.append(F.linear(pool.features, weight, bias).detach())
    return torch.stack(found)


def best_epoch(logits: Tensor, labels: Tensor, rows: Tensor, best_by: str | None = None) -> int:
    """Returns the epoch whose head train.py would keep, of logits (E, N, K).

    rows: the validation photos. best_by: as `--best-by`; None is what it chooses for so many.
    """
    case = Case("head", len(labels) - len(rows), EPOCHS, val_images=len(rows))
    best_by = best_by or choose(case, {})["best_by"][0]

    def row(one: Tensor) -> dict[str, float]:
        logits, truth = one[rows].double(), labels[rows]
        own = logits.softmax(-1).gather(1, truth[:, None])
        return {
            "val_acc": (logits.argmax(1) == truth).double().mean().item(),
            "val_loss": F.cross_entropy(logits, truth).item(),
            "val_probability": own.mean().item(),
        }

    metrics = [row(one) for one in logits]
    return max(range(len(logits)), key=lambda epoch: goodness(metrics[epoch], best_by))


def probabilities(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(-1).numpy()
