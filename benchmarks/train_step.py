"""Training steps of ViTs and KAN-ViTs against timm's model of the same name, under the same loop.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --sizes base --forms ViT --steps 3
    python -m benchmarks.train_step --device cuda --batch 128
    python -m benchmarks.train_step --sizes tiny --forms ViT "LoRA r=4" "spline per feature"
    python -m benchmarks.train_step --against ViT --forms "all layers, spline per feature"

A step is forward, cross-entropy, backward and an AdamW update on random images of 224 pixels. Every
model has a process of its own, so that peak memory is its own, too; ours and timm's take a step in
turns, and the ratio is the median over the turns. KAN forms are set against timm's ViT as well,
since timm has none. Of the forms in FROZEN the head and what the form adds train alone, as with
--freeze-layers true; timm's ViT always trains all of its layers. --against sets the forms against
one of ours. --clock cpu counts the processor's time, for a machine that others use. On a CPU memory
is the process's, with 0.3 GB for Python and torch; on CUDA it is what tensors took.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from benchmarks.forms.table import FEATURE
from training.batch_size import resident
from training.optim import CurveRates, freeze
from vit.adapters import is_adapter
from vit_model import create_model, is_spline

BATCHES = {"tiny": 16, "small": 8, "base": 4}  # on a CPU
FORMS = {
    "ViT": {},
    "KAN rank 16": {"mlp": "kan", "kan_rank": 16},
    "group KAN": {"mlp": "gkan"},
    "KAN full": {"mlp": "kan"},
    "head alone": {},
    "LoRA r=4": {"adapt": "lora", "lora_rank": 4},
    "spline per feature": FEATURE,
    "spline per feature, 4 maps": FEATURE | {"kan_at": "all"},
    "all layers, spline per feature": FEATURE,
    "all layers, spline per feature, 4 maps": FEATURE | {"kan_at": "all"},
}
FROZEN = ("head alone", "LoRA r=4", "spline per feature", "spline per feature, 4 maps")
WARM_UP = 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


# --- one model in its own process ---------------------------------------------------------------


def build(library: str, size: str, form: str) -> torch.nn.Module:
    name = f"vit_{size}_patch16_224"
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=5)
    return create_model(name, num_classes=5, **FORMS[form])


def work(args: argparse.Namespace) -> None:
    """Takes a step for each line on standard input and answers with its seconds, then the peak."""
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    torch.manual_seed(0)
    model = build(args.library, args.size, args.form).to(device).train()
    if args.library == "ours" and args.form in FROZEN:
        freeze(model, [name for name, _ in model.named_parameters() if not is_new(name)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    CurveRates(model, "adamw").watch(optimizer)
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    labels = torch.randint(5, (args.batch,), device=device)
    clock = CLOCKS[args.clock]
    for _ in sys.stdin:
        synchronise(device)
        start = clock()
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(device)
        print(clock() - start, flush=True)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e9)
    else:
        print(resident("VmHWM") / 1e9)


def is_new(name: str) -> bool:
    return is_spline(name) or is_adapter(name)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Worker:
    """A process that trains one model, a step whenever it is told."""

    def __init__(self, **options) -> None:
        words = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "benchmarks.train_step", "work", *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8")

    def step(self) -> float:
        print("step", file=self.process.stdin, flush=True)
        return float(self._answer())

    def peak(self) -> float:
        """Ends the process; returns the gigabytes that it took at most."""
        self.process.stdin.close()
        peak = float(self._answer())
        self.process.wait()
        return peak

    def _answer(self) -> str:
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args[3:]} ended: its words are above")
        return answer


# --- the table ----------------------------------------------------------------------------------


def compare(size: str, form: str, dtype: str, args: argparse.Namespace) -> dict:
    """Returns the figures of a row: ours against timm's ViT or `--against`, taken in turns."""
    batch = args.batch or BATCHES[size]
    options = {"size": size, "dtype": dtype, "batch": batch}
    options |= {"device": args.device, "clock": args.clock}
    library, other = ("timm", form) if args.against == "timm" else ("ours", args.against)
    workers = {
        "base": Worker(library=library, form=other, **options),
        "ours": Worker(library="ours", form=form, **options),
    }
    order, turns = list(workers), []
    for _ in range(WARM_UP + args.steps):
        turns.append({name: workers[name].step() for name in order})
        order.reverse()  # neither is always the one that comes after the other
    del turns[:WARM_UP]
    row = {name: batch / statistics.median(turn[name] for turn in turns) for name in workers}
    ratios = sorted(turn["base"] / turn["ours"] for turn in turns)
    row |= {"ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    return row | {f"{name} peak": worker.peak() for name, worker in workers.items()}


def table(args: argparse.Namespace) -> None:
    import timm

    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    print(
        f"{time.strftime('%Y-%m-%d')}, {machine or platform.machine()}, torch {torch.__version__}, "
        f"timm {timm.__version__}, {torch.get_num_threads()} threads, {args.steps} steps\n"
    )
    base = args.against
    print(
        f"| model | batch | dtype | {base}, img/s | ours, img/s | ours / {base} | bf16 / f32 "
        f"| {base}, GB | ours, GB |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in args.sizes:
        for form in args.forms:
            in_float32 = None
            for dtype in args.dtypes:
                row = compare(size, form, dtype, args)
                gain = f"{row['ours'] / in_float32:.2f}" if in_float32 else ""
                in_float32 = row["ours"] if dtype == "float32" else None
                print(
                    f"| {form}-{size} | {args.batch or BATCHES[size]} | {dtype} "
                    f"| {row['base']:.1f} | {row['ours']:.1f} "
                    f"| {row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) | {gain} "
                    f"| {row['base peak']:.2f} | {row['ours peak']:.2f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["table", "work"], default="table")
    parser.add_argument("--sizes", nargs="+", choices=BATCHES, default=["tiny", "small", "base"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--steps", type=int, default=5, help="that are timed, after two others")
    parser.add_argument("--batch", type=int, help="(default on a CPU: 16, 8 and 4)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--against", choices=["timm", *FORMS], default="timm")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    for name in ("library", "size", "form", "dtype"):  # of a worker
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    {"table": table, "work": work}[args.command](args)


if __name__ == "__main__":
    main()
