"""Accuracy after minutes of training: train.py beside the loops that its user would pick instead.

    python -m benchmarks.peers --data flower_photos --weights deit_tiny_patch16_224.safetensors
    taskset -c 0 python -m benchmarks.peers ... --splits 0 --only timm "torchvision reference"
    python -m benchmarks.peers --show

The same weights, 800 photos in, judged on the other 200 in each of five splits, on all cores that
the process may use, which stand in each line: bound to one core each, two loops run side by side.
Peers are Hugging Face's Trainer, timm's parts and torchvision's, with the settings of their own
scripts (`PEERS` says which) but for the epochs: as many as a loop of batches of 32 has in the last
of `--minutes`, so that a rate that falls is lowest there. The Trainer is there with other rates as
well, in float32 as every peer. Their clocks stand still while they are judged; train.py has its own
number of epochs, and its clock runs from the start of the command to the end of an epoch, with
everything. A line a run in benchmarks/peers.jsonl: runs that have one are not made again. Nothing
else may run meanwhile: a run of a peer takes 22 minutes.
"""

import argparse
import contextlib
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks import runs
from formats.reading import read_weights
from imaging.splitting import prepare_data

RESULTS = Path(__file__).with_suffix(".jsonl")
MODEL = "deit_tiny_patch16_224"
WORKERS = 1
MINUTES = (1, 2, 5, 10, 20)
OURS = {
    "train.py, head alone": "",
    "train.py, --mlp gkan": "--mlp gkan",
    "train.py, all layers": "--freeze-layers false",
    "train.py, all layers, --mlp gkan": "--freeze-layers false --mlp gkan",
    "train.py, all layers, 6 epochs": "--freeze-layers false --epochs 6",  # a third of 20 minutes
    "train.py, all layers, rate 2e-4": "--freeze-layers false --lr 2e-4",
    "train.py, all layers, head at 1e-3": "--freeze-layers false --head-lr-scale 2.5",
}


class Over(Exception):
    """The last minute is over."""


@dataclass
class Judge:
    """Counts the seconds of training and judges the model as each mark passes.

    marks: in minutes. found: {minutes: accuracy}.
    """

    photos: Dataset
    marks: list[float]
    found: dict[float, float] = field(default_factory=dict)
    started: float = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def minutes(self) -> float:
        return (time.perf_counter() - self.started) / 60

    def look(self, model: nn.Module) -> None:
        """Called after every step; raises Over after the last mark."""
        while len(self.found) < len(self.marks):
            mark = self.marks[len(self.found)]
            if self.minutes < mark:
                return
            before = time.perf_counter()
            self.found[mark] = accuracy(model, self.photos)
            self.started += time.perf_counter() - before
        raise Over

    def end(self, model: nn.Module) -> dict[float, float]:
        """Returns what was found; a loop that has ended before keeps its last accuracy."""
        last = accuracy(model, self.photos) if len(self.found) < len(self.marks) else 0.0
        return {mark: self.found.get(mark, last) for mark in self.marks}


@torch.inference_mode()
def accuracy(model: nn.Module, photos: Dataset) -> float:
    was_training = model.training
    model.eval()
    right = 0
    for images, labels in DataLoader(photos, 50, num_workers=WORKERS):
        right += int((model(images).argmax(1) == labels).sum())
    model.train(was_training)
    return right / len(photos)


@dataclass(frozen=True)
class Task:
    """One split: folders of class folders, and how the weights normalise."""

    root: Path
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    marks: list[float]

    def model(self) -> nn.Module:
        """timm's model of these weights with a new head."""
        import timm

        state = read_weights(self.weights).state
        model = timm.create_model(MODEL, num_classes=len(os.listdir(self.root / "train")))
        heads = {k: v for k, v in model.state_dict().items() if k.startswith("head")}
        model.load_state_dict({k: v for k, v in state.items() if k not in heads} | heads)
        return model

    def photos(self, part: str, *steps) -> ImageFolder:
        steps = [*steps, T.ToTensor(), T.Normalize(self.mean, self.std)]
        return ImageFolder(str(self.root / part), T.Compose(steps))

    def judge(self, *steps) -> Judge:
        return Judge(self.photos("val", *steps), self.marks)


# --- the peers ----------------------------------------------------------------------------------


def hugging_face(task: Task, epochs: int, rate: float = 2e-5) -> dict[float, float]:
    """transformers' Trainer, as its image-classification example is called in its README."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    train = task.photos("train", T.RandomResizedCrop(224), T.RandomHorizontalFlip())
    judge = task.judge(T.Resize(224), T.CenterCrop(224))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.model()

        def forward(self, pixel_values, labels):
            logits = self.net(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **rest):
            judge.look(model.net)

    def collate(pairs):
        images, labels = zip(*pairs, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=8, learning_rate=rate, num_train_epochs=epochs,
            dataloader_num_workers=WORKERS, save_strategy="no", report_to=[], use_cpu=True,
            remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        model = Wrapped()
        trainer = Trainer(model, arguments, collate, train, callbacks=[Look()])
        return timed(judge, model.net, trainer.train)


def timed(judge: Judge, model: nn.Module, fit: Callable) -> dict[float, float]:
    judge.start()
    with contextlib.suppress(Over):
        fit()
    return judge.end(model)


def with_timm(task: Task, epochs: int) -> dict[float, float]:
    """timm's transforms, optimiser and schedule, as its train.py has them by default.

    They are made for random weights and many more photos.
    """
    from timm.data import create_transform
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    shared = {"input_size": 224, "mean": task.mean, "std": task.std, "interpolation": "bicubic"}
    train = ImageFolder(
        str(task.root / "train"), create_transform(**shared, is_training=True, color_jitter=0.4)
    )
    val = ImageFolder(str(task.root / "val"), create_transform(**shared, crop_pct=0.9))
    model = task.model()
    batch = 128
    rate = 0.1 * batch / 256
    optimiser = create_optimizer_v2(model, "sgd", lr=rate, weight_decay=2e-5, momentum=0.9)
    scheduler = CosineLRScheduler(
        optimiser, epochs, warmup_t=min(5, epochs // 4), warmup_lr_init=1e-5, warmup_prefix=False
    )
    loop = Loop(train, batch, LabelSmoothingCrossEntropy(0.1), drop_last=True)
    judge = Judge(val, task.marks)
    scheduler.step(0)
    return timed(judge, model, lambda: loop.run(model, optimiser, scheduler.step, epochs, judge))


def with_torchvision(task: Task, epochs: int) -> dict[float, float]:
    """torchvision's classification reference by default, which is made for random weights.

    SGD at 0.1, batches of 32, a tenth of the rate at each third.
    """
    return by_steps(task, epochs, max(1, epochs // 3), batch=32, lr=0.1, weight_decay=1e-4)


def with_tutorial(task: Task, epochs: int) -> dict[float, float]:
    """PyTorch's transfer-learning tutorial: SGD at 0.001, batches of 4, a tenth after 7 epochs."""
    return by_steps(task, 25, 7, batch=4, lr=1e-3)


def by_steps(task: Task, epochs: int, step: int, batch: int, **sgd: float) -> dict[float, float]:
    """SGD whose rate falls to a tenth after each `step` epochs."""
    train = task.photos("train", T.RandomResizedCrop(224), T.RandomHorizontalFlip())
    judge = task.judge(T.Resize(256), T.CenterCrop(224))
    model = task.model()
    optimiser = torch.optim.SGD(model.parameters(), momentum=0.9, **sgd)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, step, 0.1)
    loop = Loop(train, batch, nn.CrossEntropyLoss())
    return timed(
        judge, model, lambda: loop.run(model, optimiser, lambda _: scheduler.step(), epochs, judge)
    )


@dataclass
class Loop:
    """The plain loop that timm's and torchvision's scripts have."""

    photos: Dataset
    batch: int
    criterion: nn.Module
    drop_last: bool = False

    def run(self, model, optimiser, after_epoch, epochs: int, judge: Judge) -> None:
        loader = DataLoader(
            self.photos, self.batch, shuffle=True, num_workers=WORKERS, drop_last=self.drop_last
        )
        model.train()
        for epoch in range(epochs):
            for images, labels in loader:
                loss = self.criterion(model(images), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                judge.look(model)
            after_epoch(epoch + 1)


PEERS = {
    "Hugging Face Trainer": hugging_face,
    "Hugging Face Trainer, rate 5e-5": partial(hugging_face, rate=5e-5),
    "Hugging Face Trainer, rate 1e-4": partial(hugging_face, rate=1e-4),
    "timm": with_timm,
    "torchvision reference": with_torchvision,
    "torchvision tutorial": with_tutorial,
}


# --- ours ---------------------------------------------------------------------------------------


def ours(name: str, task: Task) -> dict:
    """Runs train.py; returns when its epochs ended, in seconds, and the accuracies of each."""
    flags = f"{OURS[name]} --workers {WORKERS}".split()
    with tempfile.TemporaryDirectory() as folder:
        data = "--data-path", str(task.root), "--weights", task.weights
        result = runs.train("run", [*data, *flags], Path(folder))
    ended, found = result["ended"], [round(row["val_acc"], 4) for row in result["epochs"]]
    by_epoch = {"ended": [round(at, 1) for at in ended], "val_acc": found}
    return by_epoch | {"accuracy": at_marks(ended, found, task.marks)}


def at_marks(ended: list[float], accuracies: list[float], marks: list[float]) -> dict[float, float]:
    """Returns the accuracy of the last epoch that had ended by each mark, 0 where none had.

    ended: seconds to the end of each epoch. marks: in minutes.
    """
    before = {
        mark: [a for at, a in zip(ended, accuracies, strict=True) if at <= 60 * mark]
        for mark in marks
    }
    return {mark: found[-1] if found else 0.0 for mark, found in before.items()}


# --- all of them --------------------------------------------------------------------------------


def linked(split, root: Path) -> Path:
    """Lays the photos of a split out as links, train/CLASS/N and val/CLASS/N; returns `root`."""
    for part, side in (("train", split.train), ("val", split.val)):
        for i, (path, label) in enumerate(zip(*side, strict=True)):
            folder = root / part / split.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}{Path(path).suffix}").symlink_to(Path(path).resolve())
    return root


def seconds_an_epoch(task: Task) -> float:
    """Returns how long a plain loop takes for the training photos, from some steps."""
    photos, model = task.photos("train", T.RandomResizedCrop(224)), task.model()
    optimiser = torch.optim.SGD(model.parameters(), 0.0)
    some = torch.utils.data.Subset(photos, range(min(160, len(photos))))
    judge = Judge(photos, [math.inf])
    judge.start()
    Loop(some, 32, nn.CrossEntropyLoss()).run(model, optimiser, lambda _: None, 1, judge)
    return 60 * judge.minutes * len(photos) / len(some)


def measure(args: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    same = "peer", "split", "cores", "set", "minutes"
    lines = runs.read_lines(args.results)
    for seed, name in itertools.product(args.splits, args.only):
        values = name, seed, cores, Path(args.data).name, args.minutes
        line = dict(zip(same, values, strict=True))
        if any(line == {key: found[key] for key in same} for found in lines):
            continue
        line |= run(name, seed, args) | runs.provenance() | versions()
        runs.append_line(args.results, line)
        print(name, seed, line["accuracy"], flush=True)


def run(name: str, seed: int, args: argparse.Namespace) -> dict:
    """Runs one loop on one split; returns {minutes: accuracy} and what is known of its epochs."""
    weights = read_weights(args.weights)
    with tempfile.TemporaryDirectory() as folder:
        root = linked(prepare_data(args.data, seed=seed), Path(folder))
        file = str(Path(args.weights).resolve())
        task = Task(root, file, tuple(weights.mean), tuple(weights.std), args.minutes)
        if name in OURS:
            return ours(name, task)
        epochs = max(1, int(60 * args.minutes[-1] / seconds_an_epoch(task)))
        torch.manual_seed(seed)
        return {"epochs": epochs, "accuracy": PEERS[name](task, epochs)}


def versions() -> dict[str, str]:
    import timm
    import torchvision
    import transformers

    return {m.__name__: m.__version__ for m in (timm, torchvision, transformers)}


def show(args: argparse.Namespace) -> None:
    """Prints a table for each set of splits that the same loops have passed on as many cores."""
    print(tables(runs.read_lines(args.results)))


def tables(lines: list[dict]) -> str:
    """Returns a table of means for the loops that have passed the same splits on so many cores.

    So no mean stands beside one of other photos. Accuracy 0: no epoch had ended.
    """
    splits: dict[tuple, set[int]] = {}
    for line in lines:
        where = line["set"], tuple(line["minutes"]), line["cores"], line["peer"]
        splits.setdefault(where, set()).add(line["split"])
    told = []
    for shared in sorted({(*where[:3], tuple(sorted(found))) for where, found in splits.items()}):
        told += ["", *table(lines, *shared)]
    return "\n".join(told)


def table(
    lines: list[dict], name: str, marks: tuple[float, ...], cores: int, splits: tuple[int, ...]
) -> list[str]:
    """Returns the lines of the table of every loop that has passed at least these splits."""
    rows = [f"| loop; {name}, cores: {cores}, splits: {', '.join(map(str, splits))} |"]
    rows[0] += "".join(f" {mark:g} min |" for mark in marks)
    rows += [f"|{'---|' * (1 + len(marks))}"]
    for peer in [*OURS, *PEERS]:
        same = {"peer": peer, "set": name, "minutes": list(marks), "cores": cores}
        mine = {line["split"]: line for line in lines if same.items() <= line.items()}
        if mine.keys() >= set(splits):
            found = [list(mine[split]["accuracy"].values()) for split in splits]
            means = [statistics.fmean(of) for of in zip(*found, strict=True)]
            rows.append(f"| {peer} |" + "".join(f" {x:.3f} |" if x else " |" for x in means))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of class folders")
    parser.add_argument("--weights", help=f"the weights of {MODEL}")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, nargs="+", default=list(MINUTES))
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the table of what was measured")
    args = parser.parse_args()
    if not args.show:
        measure(args)
    show(args)


if __name__ == "__main__":
    main()
