"""How the head alone is best trained: recipes on features of the frozen backbone, over many splits.

    python -m benchmarks.head --data flower_photos --weights deit_tiny_patch16_224.safetensors

The backbone runs once for each photo and view (two minutes of a slow core for 1,000 photos); a head
on its features then trains in a second, so that small differences can be told from luck. Views are
the plain one of prediction, its mirror image, and `--crops` random crops, which the reference draws
anew in each epoch. `best` looks at the validation photos to choose the epoch, `last` does not.
"""

import argparse
import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from formats.fitting import load_into
from formats.reading import read_weights
from imaging.preprocess import Preprocess, eval_transform, train_transform
from imaging.splitting import DataSplit, prepare_data
from my_dataset import MyDataSet
from training.feature_cache import run_frozen
from training.optim import create_lr_scheduler, create_optimizer
from vit_model import create_model

EPOCHS, LRF = 10, 0.01
Sides = tuple[Tensor, ...]  # indices of the photos that train and of those that judge
PLAIN, MIRROR, CROPS = ("plain",), ("plain", "mirror"), ("crops",)


@dataclass(frozen=True)
class Recipe:
    """An epoch takes one of `views`, in turns."""

    views: tuple[str, ...] = PLAIN
    opt: str = "adamw"
    lr: float = 3e-3
    batch: int = 32
    weight_decay: float = 0.0
    smoothing: float = 0.0
    clip: float = 1.0
    epochs: int = EPOCHS


SGD = {"opt": "sgd", "lr": 1e-3, "batch": 8, "weight_decay": 5e-5, "clip": 0.0}
RECIPES = {
    "the reference's values, random crops": Recipe(CROPS, **SGD),
    "the reference's values, plain view": Recipe(**SGD),
    "train.py's choice": Recipe(),
    "& its mirror image": Recipe(MIRROR),
    "& random crops instead": Recipe(CROPS),
    "& rate 1e-3": Recipe(lr=1e-3),
    "& rate 1e-2": Recipe(lr=1e-2),
    "& label smoothing": Recipe(smoothing=0.1),
    "& weight decay": Recipe(weight_decay=0.5),
    "& 30 epochs": Recipe(epochs=30),
    "& SGD, rate 0.01": Recipe(opt="sgd", lr=1e-2),
}


@torch.inference_mode()
def features(data: DataSplit, args: argparse.Namespace) -> tuple[dict[str, Tensor], Tensor]:
    """Returns {view: (V, photos, C)} and the labels, of the training photos, then the others."""
    weights = read_weights(args.weights)
    model = create_model(**weights.config | {"num_classes": len(data.classes)}).eval()
    load_into(model, weights)
    paths, labels = (a + b for a, b in zip(data.train, data.val, strict=True))
    preprocess = Preprocess(model.sizes.img_size, mean=weights.mean, std=weights.std)
    plain = MyDataSet(paths, labels, eval_transform(preprocess))
    crops = MyDataSet(paths, labels, train_transform(preprocess, "basic"))
    bar = tqdm(total=len(paths) * (2 + args.crops), unit="photo", desc="frozen layers")

    def run(dataset: MyDataSet, epoch: int = 0, mirror: bool = False) -> Tensor:
        parts = []
        for start in range(0, len(paths), 32):
            end = min(start + 32, len(paths))
            keys = [(i, epoch * len(paths) + i) for i in range(start, end)]  # photo, seed
            images = dataset.collate_fn(dataset.__getitems__(keys)).images
            images = images.flip(-1) if mirror else images
            parts.append(run_frozen(model, len(model.blocks) + 1, images)[:, 0])
            bar.update(len(keys))
        return torch.cat(parts)

    views = {"plain": run(plain)[None], "mirror": run(plain, mirror=True)[None]}
    views["crops"] = torch.stack([run(crops, epoch) for epoch in range(args.crops)])
    bar.close()
    return views, torch.tensor(labels)


def train(recipe: Recipe, views: dict[str, Tensor], labels: Tensor, sides: Sides) -> tuple:
    """Returns the accuracy after the last epoch, the best one, and the last loss."""
    torch.manual_seed(0)
    ours, theirs = sides
    served = torch.cat([views[name] for name in recipe.views])[:, ours]
    judged, answers = views["plain"][0, theirs], labels[theirs]
    head = nn.Linear(judged.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    group = {"params": list(head.parameters()), "lr": recipe.lr}
    optimizer = create_optimizer(recipe.opt, [group | {"weight_decay": recipe.weight_decay}])
    steps = recipe.epochs * -(-len(ours) // recipe.batch)
    scheduler = create_lr_scheduler(optimizer, steps, 0, LRF)
    accuracies, loss = [], 0.0
    for epoch in range(recipe.epochs):
        view = served[epoch % len(served)]
        for batch in torch.randperm(len(ours)).split(recipe.batch):
            logits = head(view[batch])
            F.cross_entropy(
                logits, labels[ours[batch]], label_smoothing=recipe.smoothing
            ).backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(head.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        with torch.inference_mode():
            logits = head(judged)
            accuracies.append((logits.argmax(1) == answers).float().mean().item())
            loss = F.cross_entropy(logits, answers).item()
    return accuracies[-1], max(accuracies), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--weights", required=True, help="the pretrained model")
    parser.add_argument("--crops", type=int, default=4, help="random crops (default: 4)")
    parser.add_argument("--splits", type=int, default=10, help="(default: 10)")
    args = parser.parse_args()
    splits = [prepare_data(args.data, seed=seed) for seed in range(args.splits)]
    views, labels = features(splits[0], args)
    place = {path: i for i, path in enumerate(splits[0].train.paths + splits[0].val.paths)}
    sides = [
        tuple(torch.tensor([place[path] for path in side.paths]) for side in (data.train, data.val))
        for data in splits
    ]
    print("\n| recipe | last epoch | best epoch | loss |\n|---|---|---|---|")
    for name, recipe in RECIPES.items():
        found = [train(recipe, views, labels, each) for each in sides]
        last, best, loss = (statistics.fmean(column) for column in zip(*found, strict=True))
        print(f"| {name} | {last:.4f} | {best:.4f} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main()
