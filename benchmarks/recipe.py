"""Trains DeiT-Tiny on real photos with one trick more in each row, and shows what each brings.

    python -m benchmarks.recipe run --data flower_photos \\
        --weights deit_tiny_patch16_224.safetensors
    python -m benchmarks.recipe show

After the tables of "Bag of Tricks for Image Classification" (arXiv 1812.01187). The chain begins
with plain AdamW and adds what costs nothing; what a longer run needs (augmentation, averaging,
distillation) is tried one by one on top of it. The rows to beat are the reference's recipe and the
ViT paper's (arXiv 2010.11929, appendix B.1.1).

`run` calls train.py once for each setting and seed and appends a line to benchmarks/recipe.jsonl;
what has a line is skipped and an interrupted run goes on where it stopped. A seed chooses the
split, the order and the augmentation, the same for all settings. `show` prints a table for each
image size and split and draws docs/recipe.png. At 128 pixels a run takes one to six
minutes of processor time; the head's are shorter.
"""

import argparse
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks import runs

RESULTS = Path(__file__).with_suffix(".jsonl")
FIGURE = runs.ROOT / "docs" / "recipe.png"
TEACHER = "the teacher: 224 pixels"


@dataclass(frozen=True)
class Setting:
    """A row of the table: the flags of `parent` and its own, which win."""

    flags: str
    parent: str | None = None
    teacher: bool = False  # learns from the row TEACHER of the same seed, so of the same split


# Everything is written out, so that a later change of train.py's choices does not mix with results.
PLAIN = (
    "--warmup-epochs 0 --layer-decay 1 --label-smoothing 0 --lrf 0.01 --aug basic --amp auto "
    "--decay-all --head-lr-scale 1 --freeze-layers"
)
REFERENCE = "--opt sgd --lr 0.001 --weight-decay 5e-5 --batch-size 8 --clip-grad 0 --amp off"
# The paper's rates are for batches of 512, its zero head is ours, its 500 of 20,000 steps of
# warm-up are a fortieth of the run.
PAPER = "--opt sgd --weight-decay 0 --batch-size 16 --clip-grad 1 --warmup-epochs 0.125"

SETTINGS: dict[str, Setting] = {
    # All layers train.
    "reference": Setting(f"{PLAIN} false --epochs 5 {REFERENCE}"),
    "ViT paper, 0.03 at batch 512": Setting(f"{PLAIN} false --epochs 5 {PAPER} --lr 9.4e-4"),
    "ViT paper, 0.003 as it is": Setting(f"{PLAIN} false --epochs 5 {PAPER} --lr 3e-3"),
    "AdamW": Setting(
        f"{PLAIN} false --epochs 5 --opt adamw --lr 1e-4 --weight-decay 0.05 --batch-size 16 "
        "--clip-grad 1"
    ),
    "+ warm-up, rate 2e-4": Setting("--warmup-epochs 1 --lr 2e-4", "AdamW"),
    "+ no decay of biases, norms": Setting("--no-decay-all", "+ warm-up, rate 2e-4"),
    "+ label smoothing": Setting("--label-smoothing 0.1", "+ no decay of biases, norms"),
    "+ layer decay": Setting("--layer-decay 0.75", "+ label smoothing"),
    "+ the head's own rate": Setting("--head-lr-scale 15", "+ layer decay"),
    # train.py's choice
    "+ rate 4e-4": Setting("--lr 4e-4 --head-lr-scale 7.5", "+ the head's own rate"),
    # One by one on top of the row before.
    "& rate 5e-4": Setting("--lr 5e-4", "+ layer decay"),
    "& EMA": Setting("--ema 0.998", "+ layer decay"),
    "& mixup, CutMix": Setting("--mixup 0.2 --cutmix 1", "+ layer decay"),
    "& TrivialAugment": Setting("--aug trivial", "+ layer decay"),
    "& RandAugment": Setting("--aug rand", "+ layer decay"),
    "& random erasing": Setting("--reprob 0.25", "+ layer decay"),
    "& drop path": Setting("--drop-path 0.1", "+ layer decay"),
    "& no augmentation": Setting("--aug none", "+ layer decay"),
    TEACHER: Setting("--img-size 224", "+ layer decay"),
    "& distillation": Setting("", "+ layer decay", teacher=True),
    # The same with splines.
    "KAN rank 16": Setting("--mlp kan --kan-rank 16 --kan-lr-scale 1", "+ layer decay"),
    "group KAN": Setting("--mlp gkan --kan-groups 8 --kan-lr-scale 1", "+ layer decay"),
    # Only the head trains. A public probe that reaches 99.0 % on Flowers-102 has a rate some 60
    # times the reference's.
    "head: reference": Setting(f"{PLAIN} true --epochs 10 {REFERENCE}"),
    "head: SGD, rate x 60": Setting(
        "--lr 0.06 --aug none --amp auto --clip-grad 1", "head: reference"
    ),
    "head: AdamW": Setting(
        "--opt adamw --lr 3e-3 --weight-decay 0 --batch-size 32 --clip-grad 1 --aug none "
        "--amp auto",
        "head: reference",
    ),
    "head: & rate 1e-3": Setting("--lr 1e-3", "head: AdamW"),
    "head: & 4 views": Setting("--aug basic --cache-views 4", "head: AdamW"),
    "head: & 10 views": Setting("--aug basic --cache-views 10", "head: AdamW"),
    "head: & label smoothing": Setting("--label-smoothing 0.1", "head: AdamW"),
    "head: & weight decay": Setting("--weight-decay 0.05", "head: AdamW"),
    "head: & 30 epochs": Setting("--epochs 30", "head: AdamW"),
    "head and splines, rank 16": Setting("--mlp kan --kan-rank 16", "head: AdamW"),
}


def flags(name: str) -> list[str]:
    """Returns the flags of a setting, those of its parents first; a later one wins in train.py."""
    setting = SETTINGS[name]
    inherited = flags(setting.parent) if setting.parent else []
    return inherited + setting.flags.split()


def run(args: argparse.Namespace) -> None:
    """Trains every setting with every seed that the results lack."""
    done = {key(result) for result in runs.read_lines(RESULTS)}
    for seed in args.seeds:
        for name in args.only or SETTINGS:
            job = describe(name, seed, args)
            if key(job) in done:
                continue
            teacher = teacher_file(seed, args)
            if SETTINGS[name].teacher and not teacher.exists():
                print(f"{name}, seed {seed}: waits for '{TEACHER}' ({teacher} is not there)")
                continue
            result = job | train(job, args, teacher) | runs.provenance()
            runs.append_line(RESULTS, result)
            last = result["epochs"][-1]
            print(
                f"{name}, seed {seed}: {last['val_acc']:.4f} {last['val_loss']:.4f}, "
                f"{result['cpu_seconds'] or 0:.0f} s of processor time",
                flush=True,
            )


def describe(name: str, seed: int, args: argparse.Namespace) -> dict:
    """Returns what tells a run from all others, and its flags."""
    chosen = f"--img-size {args.img_size} {' '.join(flags(name))} --val-split {args.val_split}"
    if args.epochs:
        chosen += f" --epochs {args.epochs}"
    job = {"setting": name, "seed": seed, "flags": chosen}
    return job | {"img_size": args.img_size, "val_split": args.val_split}


def key(job: dict) -> tuple:
    return job["setting"], job["seed"], job["flags"]


def teacher_file(seed: int, args: argparse.Namespace) -> Path:
    # A teacher has seen the training photos of its split, so it serves no other.
    return args.work / f"teacher-{seed}-{args.val_split}.pth"


def train(job: dict, args: argparse.Namespace, teacher: Path) -> dict:
    words = "".join(c if c.isalnum() else "-" for c in job["setting"])
    name = f"recipe-{words}-{args.img_size}-{args.val_split}-{args.epochs or ''}-{job['seed']}"
    command = ["--data-path", args.data, "--weights", args.weights, "--seed", str(job["seed"])]
    command += job["flags"].split()
    if SETTINGS[job["setting"]].teacher:
        command += ["--teacher", str(teacher)]
    return runs.train(name, command, args.work, teacher if job["setting"] == TEACHER else None)


def show(_: argparse.Namespace) -> None:
    """Prints a table for each image size, split and length of the runs; draws the largest."""
    tables: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for result in runs.read_lines(RESULTS):
        shortened = result["flags"].endswith(f"--val-split {result['val_split']}")
        epochs = None if shortened else result["flags"].split()[-1]
        table = tables[result["img_size"], result["val_split"], epochs]
        table[result["setting"]].append(result)
    for (size, split, epochs), table in tables.items():
        print(f"\n{size} pixels, {split:.0%} of the photos for validation", end="")
        print(f", {epochs} epochs\n" if epochs else "\n")
        print_table(table)
    draw(max(tables.values(), key=lambda table: sum(map(len, table.values()))))


def print_table(table: dict[str, list]) -> None:
    print("| setting | seeds | accuracy, last epoch | against | loss | CPU, s | peak, MB |")
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in SETTINGS if name in table]:
        results, parent = table[name], SETTINGS[name].parent
        last = [r["epochs"][-1] for r in results]
        accuracy = runs.spread([row["val_acc"] for row in last], 4)
        loss = runs.spread([row["val_loss"] for row in last], 3)
        times = [r["cpu_seconds"] for r in results if r["cpu_seconds"]]
        print(
            f"| {name} | {len(results)} | {accuracy} | {difference(table, name, parent)} | {loss} "
            f"| {f'{statistics.median(times):.0f}' if times else '-'} "
            f"| {max(r['peak_mb'] for r in results):.0f} |"
        )


def difference(table: dict[str, list], name: str, parent: str | None) -> str:
    """Returns the mean gain over the parent in points, seed by seed, and the parent's name."""
    if parent not in table:
        return ""
    before = {r["seed"]: r["epochs"][-1]["val_acc"] for r in table[parent]}
    gains = [
        100 * (r["epochs"][-1]["val_acc"] - before[r["seed"]])
        for r in table[name]
        if r["seed"] in before
    ]
    return f"{statistics.fmean(gains):+.1f} to {parent}" if gains else ""


def draw(table: dict[str, list]) -> None:
    """Draws a dot for each seed and a line at the mean, rows from top to bottom as in the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in SETTINGS if name in table]
    figure, panel = plt.subplots(figsize=(8, 0.8 + 0.27 * len(names)), layout="constrained")
    for row, name in enumerate(names):
        accuracies = [result["epochs"][-1]["val_acc"] for result in table[name]]
        colour = "tab:orange" if name.startswith("head") else "tab:blue"
        panel.plot(accuracies, [row] * len(accuracies), "o", alpha=0.5, color=colour)
        panel.plot(statistics.fmean(accuracies), row, "|", markersize=14, color=colour)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlabel("validation accuracy after the last epoch (a dot for each seed, | the mean)")
    panel.grid(alpha=0.3)
    figure.savefig(FIGURE, dpi=120)
    print(f"\nwrote {FIGURE.relative_to(runs.ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "show"])
    parser.add_argument("--data", help="folder of class folders")
    parser.add_argument("--weights", help="the pretrained DeiT-Tiny")
    parser.add_argument("--img-size", type=int, choices=(128, 224), default=128)
    parser.add_argument("--val-split", type=float, default=0.5, help="share that judges")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, help="these settings (default: all)")
    parser.add_argument("--epochs", type=int, help="for all settings (default: 5, the head's 10)")
    parser.add_argument(
        "--work", type=Path, default=runs.ROOT / "runs", help="where runs and logs are kept"
    )
    args = parser.parse_args()
    {"run": run, "show": show}[args.command](args)


if __name__ == "__main__":
    main()
