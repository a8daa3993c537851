"""Part e: ViT, KAN-ViT and group-KAN-ViT on photos, from nothing and from the same pretrained ViT.

From nothing: the small model for 64-pixel photos, trained by train.py; the KAN-ViT's blocks are so
narrow that all three have as many parameters. The rate is chosen for each with a seed of its own.
From the pretrained ViT: the lines of benchmarks/kan_vit.jsonl, which benchmarks/kan_vit.py writes.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .store import SEEDS, TUNING_SEED, Store, spread, table

ROOT = Path(__file__).resolve().parent.parent.parent
PRETRAINED = ROOT / "benchmarks" / "kan_vit.jsonl"
MODELS = {
    "ViT": "",
    "KAN-ViT": "--mlp kan --kan-hidden match",
    "group-KAN-ViT": "--mlp gkan --kan-groups 8 --kan-hidden match",
}
FINE_TUNED = ("ViT", "KAN rank 16", "KAN full", "GKAN")  # settings of benchmarks/kan_vit.py
COLOURS = {"ViT": "#2c5f8a", "KAN-ViT": "#c0392b", "KAN rank 16": "#c0392b", "KAN full": "#e08e45"}
COLOURS |= {"group-KAN-ViT": "#5f8a2c", "GKAN": "#5f8a2c"}
RATES = (1e-3, 3e-3)
EPOCHS = {"quick": (2, 5), "full": (40, 100)}  # of tuning and of the runs that count
COMMON = (
    "--model vit_micro_patch8_64 --val-split 0.5 --batch-size 32 --opt adamw --weight-decay 0.05 "
    "--warmup-epochs 1 --label-smoothing 0.1 --aug basic --workers 0"
)


def train(model: str, rate: float, seed: int, epochs: int, device: str, data: str) -> dict:
    """Accuracy after each epoch of a run of train.py."""
    folder = Path(tempfile.mkdtemp(prefix="kan-claims-"))
    command = [sys.executable, "train.py", "--data-path", data, "--weights", "", *COMMON.split()]
    command += [*MODELS[model].split(), "--lr", str(rate), "--seed", str(seed)]
    command += ["--epochs", str(epochs), "--device", device, "--output", str(folder / "run")]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"train.py failed: {done.stderr[-2000:]}")
        with (folder / "run" / "metrics.csv").open() as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    finally:
        shutil.rmtree(folder)
    found = re.search(r"([\d,]+) parameters", done.stdout + done.stderr)
    return {
        "accuracy": [row["val_acc"] for row in rows],
        "loss": [row["val_loss"] for row in rows],
        "seconds": [row["seconds"] for row in rows],
        "parameters": int(found[1].replace(",", "")),
    }


def run(store: Store, device: torch.device, data: str) -> None:
    short, epochs = EPOCHS[store.scale]
    for model in MODELS:
        for rate in RATES:
            store.once(
                {"part": "e", "role": "tuning", "model": model, "rate": rate},
                lambda m=model, r=rate: train(m, r, TUNING_SEED, short, str(device), data),
            )
    for seed in SEEDS:
        for model in MODELS:
            rate = chosen(store, model)
            store.once(
                {"part": "e", "role": "test", "model": model, "rate": rate, "seed": seed},
                lambda m=model, r=rate, s=seed: train(m, r, s, epochs, str(device), data),
            )


def chosen(store: Store, model: str) -> float:
    """The rate with the lowest validation loss at the end of tuning."""
    rows = store.rows(part="e", role="tuning", model=model)
    return min(rows, key=lambda row: row["loss"][-1])["piece"]["rate"]


# --- What came of it -----------------------------------------------------------------------------


def tables(store: Store) -> str:
    rows = []
    for model in MODELS:
        found = store.rows(part="e", role="test", model=model)
        if found:
            rows.append([
                model, "nothing", f"{found[0]['parameters']:,}", f"{found[0]['piece']['rate']:g}",
                len(found), len(found[0]["accuracy"]),
                spread([r["accuracy"][-1] for r in found], ".3f"),
                spread([r["loss"][-1] for r in found], ".3f"),
            ])  # fmt: skip
    for setting, found in fine_tuned().items():
        last = [row["epochs"][-1] for row in found]
        rows.append([
            setting, "DeiT-Tiny", "see results.md", "0.0002", len(found), len(found[0]["epochs"]),
            spread([e["val_acc"] for e in last], ".3f"),
            spread([e["val_loss"] for e in last], ".3f"),
        ])  # fmt: skip
    header = [
        "model", "start", "parameters", "rate", "seeds", "epochs", "accuracy, last epoch",
        "loss, last epoch",
    ]  # fmt: skip
    return table(header, rows)


def fine_tuned() -> dict[str, list[dict]]:
    """The runs from the pretrained ViT by setting, as far as they were measured."""
    if not PRETRAINED.exists():
        return {}
    rows = [json.loads(line) for line in PRETRAINED.read_text().splitlines()]
    found = {setting: [r for r in rows if r["setting"] == setting] for setting in FINE_TUNED}
    return {setting: some for setting, some in found.items() if some}


def draw(store: Store, plt) -> object:
    """Accuracy over epochs, a line per seed: from nothing and, where measured, pretrained."""
    runs = {model: store.rows(part="e", role="test", model=model) for model in MODELS}
    tuned = {s: [[e["val_acc"] for e in r["epochs"]] for r in rs] for s, rs in fine_tuned().items()}
    starts = {
        "from nothing, 64 pixels": {m: [r["accuracy"] for r in rs] for m, rs in runs.items() if rs},
        "from DeiT-Tiny, 128 pixels": tuned,
    }
    starts = {title: curves for title, curves in starts.items() if curves}
    if not starts:
        return None
    figure, axes = plt.subplots(
        1, len(starts), figsize=(5.5 * len(starts), 4), layout="constrained", squeeze=False
    )
    for panel, (title, curves) in zip(axes[0], starts.items(), strict=True):
        for name, seeds in curves.items():
            colour = COLOURS[name]
            for number, accuracies in enumerate(seeds):
                epochs = range(1, len(accuracies) + 1)
                label = None if number else name
                panel.plot(epochs, accuracies, "o-", color=colour, markersize=3, label=label)
        panel.set(title=title, xlabel="epoch", ylabel="validation accuracy")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
