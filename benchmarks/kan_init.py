"""Compares the initialisations of KANLinear: on functions, and on photos.

    python -m benchmarks.kan_init
    python -m benchmarks.kan_init --data flower_photos --weights deit_tiny_patch16_224.safetensors

The first fits functions on [-1, 1]^d and prints the root mean square error on new points, the
geometric mean over seeds. The second trains a KAN on the features that a frozen pretrained ViT has
of photos, half of which are kept apart, and prints how many of these it gets right. Adam with a
cosine schedule in both.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from imaging.preprocess import eval_transform
from imaging.splitting import prepare_data
from kan import INITIALISATIONS, KAN, calibrate
from my_dataset import MyDataSet
from pretrained import load_model

FUNCTIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "exp(sin(pi x) + y^2)": (2, lambda x: torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2)),
    "x y": (2, lambda x: x[:, 0] * x[:, 1]),
    "sin(4 pi x) cos(2 pi y)": (
        2,
        lambda x: torch.sin(4 * math.pi * x[:, 0]) * torch.cos(2 * math.pi * x[:, 1]),
    ),
    "mean of tanh(3 x_i)^2": (8, lambda x: torch.tanh(3 * x).square().mean(1)),
}


def compare_on_functions(args: argparse.Namespace) -> None:
    print_header("function")
    for name, (inputs, function) in FUNCTIONS.items():
        for hidden in ([8], [32, 32]):

            def error(init: str, seed: int, sizes=(inputs, *hidden, 1), function=function) -> float:
                torch.manual_seed(seed)
                x, new = torch.rand(1000, sizes[0]) * 2 - 1, torch.rand(1000, sizes[0]) * 2 - 1
                model = fit(KAN(list(sizes), init=init), x, function(x)[:, None], F.mse_loss, args)
                with torch.no_grad():
                    return F.mse_loss(model(new), function(new)[:, None]).sqrt().item()

            print_row(name, hidden, error, statistics.geometric_mean, ".2e", args)


def compare_on_photos(args: argparse.Namespace) -> None:
    features, labels = photo_features(args)
    print_header("photos")
    for hidden in ([], [32], [64, 64]):

        def accuracy(init: str, seed: int, hidden=hidden) -> float:
            torch.manual_seed(seed)
            order = torch.randperm(len(features))
            x, y = features[order], labels[order]
            half = len(x) // 2
            model = KAN([x.shape[1], *hidden, int(labels.max()) + 1], init=init)
            calibrate(model, [x[:half]])
            fit(model, x[:half], y[:half], F.cross_entropy, args)
            with torch.no_grad():
                return (model(x[half:]).argmax(1) == y[half:]).float().mean().item()

        print_row(Path(args.data).name, hidden, accuracy, statistics.fmean, ".3f", args)


@torch.inference_mode()
def photo_features(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Returns the class tokens (N, D) of all photos, and their labels (N,)."""
    loaded = load_model(args.weights)
    split = prepare_data(args.data)
    paths, classes = split.train.paths + split.val.paths, split.train.labels + split.val.labels
    data = MyDataSet(paths, classes, eval_transform(loaded.preprocess))
    batches = list(DataLoader(data, 32, collate_fn=MyDataSet.collate_fn))
    features = torch.cat([loaded.model.forward_features(b.images)[:, 0] for b in batches])
    return features.clone(), torch.cat([b.labels for b in batches])


def fit(model: KAN, x: Tensor, y: Tensor, loss: Callable, args: argparse.Namespace) -> KAN:
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model


def print_header(what: str) -> None:
    print(f"\n| {what} | hidden | " + " | ".join(INITIALISATIONS) + " |")
    print("|---|---|" + "---|" * len(INITIALISATIONS))


def print_row(name: str, hidden: list[int], measure, mean: Callable, form: str, args) -> None:
    """One row: the mean over seeds of measure(init, seed) for each initialisation."""
    cells = [
        f"{mean([measure(init, seed) for seed in range(args.seeds)]):{form}}"
        for init in INITIALISATIONS
    ]
    print(f"| {name} | {', '.join(map(str, hidden)) or '-'} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of class folders: compare on its photos")
    parser.add_argument("--weights", help="the pretrained ViT for --data")
    parser.add_argument("--seeds", type=int, default=3, help="(3)")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam (300)")
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate (0.01)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compare_on_photos(args) if args.data else compare_on_functions(args)


if __name__ == "__main__":
    main()
