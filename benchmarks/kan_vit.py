"""Fine-tunes the same pretrained ViT as it is and as a KAN-ViT, and compares what comes of it.

    python -m benchmarks.kan_vit run --data flower_photos \\
        --weights deit_tiny_patch16_224.safetensors
    python -m benchmarks.kan_vit speed --weights deit_tiny_patch16_224.safetensors
    python -m benchmarks.kan_vit show

`run` calls train.py once for each setting and seed and appends a line to benchmarks/kan_vit.jsonl;
settings that have a line are skipped and an interrupted one goes on where it stopped, so it can be
killed and started again. All settings of a seed see the same photos in the same order from the same
starting logits. `speed` times one training step of each; `show` prints the table and draws
docs/kan_vit.png. A setting takes 1 to 5 minutes on two quiet cores.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks import runs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_suffix(".jsonl")
FIGURE = ROOT / "docs" / "kan_vit.png"

# Half of the photos train and half judge: with 200 to judge by, one photo would be half a percent.
# At 128 pixels a run takes a third of the time that it takes at 224.
# Everything is written out, so that a later change of train.py's choices does not mix with results.
COMMON = (
    "--img-size 128 --val-split 0.5 --epochs 5 --batch-size 16 --amp bf16 --aug basic --opt adamw "
)
ALL = (
    "--freeze-layers false --lr 2e-4 --weight-decay 0.05 --layer-decay 0.75 --warmup-epochs 1 "
    "--label-smoothing 0.1 "
)
FROZEN = (
    "--freeze-layers true --lr 2e-3 --weight-decay 0 --layer-decay 1 --warmup-epochs 0 "
    "--label-smoothing 0 "
)


def kan(rank: str | int, rate: float, more: str = "") -> str:
    """Returns the flags of a KAN-ViT whose splines learn at `rate` times the rate of the rest."""
    return f"--mlp kan --kan-rank {rank} --kan-lr-scale {rate} {more}"


def gkan(rate: float) -> str:
    return f"--mlp gkan --kan-groups 8 --kan-lr-scale {rate}"


# What the rates of the splines were chosen by: a seed that is in none of the results.
TUNING_SEED = 3
TUNING: dict[str, str] = {
    **{f"KAN rank 16, rate x {r}": ALL + kan(16, r) for r in (0.3, 1, 3)},
    **{f"KAN full, rate x {r}": ALL + kan("full", r) for r in (0.03, 0.1, 0.3)},
    **{f"GKAN, rate x {r}": ALL + gkan(r) for r in (1, 10)},
    **{f"KAN rank 16, rate x {r}, frozen": FROZEN + kan(16, r) for r in (0.1, 0.3, 1)},
    **{f"KAN full, rate x {r}, frozen": FROZEN + kan("full", r) for r in (0.003, 0.01, 0.03)},
    **{f"GKAN, rate x {r}, frozen": FROZEN + gkan(r) for r in (0.3, 1, 3)},
}

# The most telling comparisons come first.
SETTINGS: dict[str, str] = {
    "ViT": ALL,
    "KAN rank 16": ALL + kan(16, 1),
    "GKAN": ALL + gkan(1),
    "ViT, frozen": FROZEN,
    "KAN rank 16, frozen": FROZEN + kan(16, 1),
    "GKAN, frozen": FROZEN + gkan(1),
    "KAN full": ALL + kan("full", 0.1),
    "KAN full, frozen": FROZEN + kan("full", 0.01),
    "KAN rank 4": ALL + kan(4, 1),
    "KAN rank 32": ALL + kan(32, 1),
    "KAN rank 4, frozen": FROZEN + kan(4, 1),
    "KAN rank 32, frozen": FROZEN + kan(32, 1),
    "KAN rank 16, last 4 blocks": ALL + kan(16, 1, "--kan-blocks last:4"),
    "KAN rank 16, grid 10": ALL + kan(16, 1, "--kan-grid 10"),
    "KAN rank 16, order 2": ALL + kan(16, 1, "--kan-order 2"),
    "KAN rank 16, regularised": ALL + kan(16, 1, "--kan-reg 1e-4"),
}


def run(args: argparse.Namespace) -> None:
    """Trains every setting with every seed that the results lack."""
    done = {(r["setting"], r["seed"]) for r in runs.read_lines(RESULTS)}
    for seed in [TUNING_SEED] if args.tuning else args.seeds:
        for setting, flags in (TUNING if args.tuning else SETTINGS).items():
            if (setting, seed) in done or (args.only and setting not in args.only):
                continue
            result = train(setting, seed, flags, args)
            runs.append_line(RESULTS, result)
            last = result["epochs"][-1]
            print(
                f"{setting}, seed {seed}: {last['val_acc']:.4f} {last['val_loss']:.4f}", flush=True
            )


def train(setting: str, seed: int, flags: str, args: argparse.Namespace) -> dict:
    """Returns the metrics of one run of train.py, its peak memory and how it was made."""
    name = f"{setting.replace(' ', '-').replace(',', '')}-{seed}"
    data = ["--data-path", args.data, "--weights", args.weights]
    result = runs.train(name, [*data, *f"{COMMON}{flags} --seed {seed}".split()], args.work)
    how = {"setting": setting, "seed": seed, "flags": f"{COMMON}{flags}".strip()}
    return how | result | runs.provenance()


def speed(args: argparse.Namespace) -> None:
    """Prints the median time of a training step in bfloat16, forward, backward and update."""
    from formats.fitting import load_into
    from formats.reading import read_weights
    from training.flags import parse_args
    from training.optim import create_optimizer, freeze, param_groups
    from vit_model import create_model

    weights = read_weights(args.weights)
    images, labels = torch.randn(16, 3, 128, 128), torch.randint(5, (16,))
    print(f"{'setting':<28} {'parameters':>11} {'trained':>11} {'ms a step':>10}")
    for setting in args.only or list(SETTINGS)[:10]:
        flags = parse_args(
            ["--data-path", ".", "--weights", args.weights, *SETTINGS[setting].split()]
        )
        kan = {"mlp": flags.mlp, "kan_rank": flags.kan_rank, "kan_blocks": flags.kan_blocks}
        model = create_model(**weights.config | {"num_classes": 5, "img_size": 128} | kan).train()
        report = load_into(model, weights)
        freeze(model, report.from_file if flags.freeze_layers else ())
        optimizer = create_optimizer("adamw", param_groups(model, 1e-4, 0.0, 1.0, 1.0))
        times = []
        for _ in range(args.steps):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
        counts = [sum(p.numel() for p in ps) for ps in (model.parameters(), trained(model))]
        milliseconds = statistics.median(times[1:]) * 1000
        print(f"{setting:<28} {counts[0]:>11,} {counts[1]:>11,} {milliseconds:>10.0f}", flush=True)


def trained(model: torch.nn.Module):
    return (p for p in model.parameters() if p.requires_grad)


def show(_: argparse.Namespace) -> None:
    """Prints tables of all results as Markdown and draws the curves of validation."""
    by_setting = defaultdict(list)
    for result in runs.read_lines(RESULTS):
        by_setting[result["setting"]].append(result)
    for settings in (SETTINGS, TUNING):
        print(
            "| setting | seeds | accuracy | loss | accuracy to the ViT's | best accuracy "
            "| processor, s | peak, MB |\n|---|---|---|---|---|---|---|---|"
        )
        for setting in settings:
            if setting in by_setting:
                print(row(setting, by_setting))
        print()
    draw({setting: by_setting[setting] for setting in SETTINGS if setting in by_setting})


def row(setting: str, by_setting: dict[str, list[dict]]) -> str:
    """Means (lowest to highest) over seeds, of the last epoch where nothing else is said.

    The difference to the ViT is that of the same seed, which has the same photos and order.
    """
    results = by_setting[setting]
    last = [r["epochs"][-1] for r in results]
    best = [max(e["val_acc"] for e in r["epochs"]) for r in results]
    base = "ViT, frozen" if setting.endswith("frozen") else "ViT"
    vit = {r["seed"]: r["epochs"][-1]["val_acc"] for r in by_setting[base]}
    gains = [
        100 * (r["epochs"][-1]["val_acc"] - vit[r["seed"]]) for r in results if r["seed"] in vit
    ]
    seconds = [r["cpu_seconds"] for r in results if r["cpu_seconds"]]  # not of a resumed run
    cells = [
        setting,
        len(results),
        runs.spread([e["val_acc"] for e in last], 3),
        runs.spread([e["val_loss"] for e in last], 3),
        runs.spread(gains, 1) if gains and setting != base else "",
        runs.spread(best, 3),
        f"{statistics.fmean(seconds):.0f}" if seconds else "",
        f"{max(r['peak_mb'] for r in results):.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def draw(by_setting: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for panel, frozen in zip(panels, (False, True), strict=True):
        for setting, results in by_setting.items():
            if setting.endswith("frozen") is frozen:
                seeds = [[e["val_acc"] for e in r["epochs"]] for r in results]
                means = [statistics.fmean(epoch) for epoch in zip(*seeds, strict=True)]
                panel.plot(range(1, len(means) + 1), means, marker="o", label=setting)
        panel.set_title("head and splines train" if frozen else "all layers train")
        panel.set_xlabel("epoch")
        panel.set_ylabel("validation accuracy")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(FIGURE, dpi=120)
    print(f"\nwrote {FIGURE.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "speed", "show"])
    parser.add_argument("--data", help="folder of class folders")
    parser.add_argument("--weights", help="the pretrained ViT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", choices=SETTINGS | TUNING, help="these settings (default: all)"
    )
    parser.add_argument(
        "--tuning", action="store_true", help=f"the rates of the splines, with seed {TUNING_SEED}"
    )
    parser.add_argument("--steps", type=int, default=6, help="steps that `speed` times")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs", help="where runs and logs are kept meanwhile"
    )
    args = parser.parse_args()
    {"run": run, "speed": speed, "show": show}[args.command](args)


if __name__ == "__main__":
    main()
