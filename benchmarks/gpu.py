"""KAN layers, models and runs on a GPU: right first, then how fast; everything in one command.

    python -m benchmarks.gpu                          # under nine minutes on one GPU, no network
    python -m benchmarks.gpu --only layers models     # some parts
    python -m benchmarks.gpu --show gpu.json          # the tables of docs/results.md, made again
    TRITON_INTERPRET=1 python -m benchmarks.gpu --device cpu --tiny      # whether it works at all

correct: every form and gradient through the Triton kernels against float64. layers: one layer's
forward and backward beside nn.Linear, the bare product of the same width and the textbook layer.
models: training steps of ViTs with each form, and with rational functions as KAT has them, beside
timm's ViT, eager and compiled. epochs: what share of a model's speed train.py reaches. resume: a
run that is killed and goes on, bit for bit. Times are medians, of steps taken in turns; what no
longer fits into --seconds is left out and named. Results go to --output as JSON after each part.
"""

import argparse
import contextlib
import csv
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.kan_layer import TextbookKAN
from kan import GroupKANLinear, KANLinear

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2}  # products in TF32 count as float32
FORMS = {
    "ViT": {},
    "groups 8": {"mlp": "gkan"},
    "feature": {"mlp": "gkan", "kan_groups": "feature"},
    "rank 16": {"mlp": "kan", "kan_rank": 16},
    "full": {"mlp": "kan"},
}
COMPILED = ("timm", "ViT", "groups 8", "feature", "rank 16")
AIMS = {"groups 8": 0.95, "feature": 0.95, "rank 16": 0.85}


class Setting(argparse.Namespace):
    """The command line: device, tiny, seconds, and the moment by which all should be done."""

    def late(self, wanted: float) -> bool:
        return time.monotonic() + wanted > self.end


# --- timing --------------------------------------------------------------------------------------


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def in_turns(steps: dict[str, Callable], setting: Setting) -> dict[str, float]:
    """Returns the median seconds of each step, taken in turns after two others."""
    turns: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(4 if setting.tiny else 22):
        for name, step in steps.items():
            wait(setting.device)
            start = time.perf_counter()
            step()
            wait(setting.device)
            if turn > 1:
                turns[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in turns.items()}


def autocast(setting: Setting):
    return torch.autocast(setting.device, torch.bfloat16)


# --- parts ---------------------------------------------------------------------------------------


def correct(setting: Setting) -> list[dict]:
    """The largest relative error of output and gradients, of each form in each type."""
    makers = {
        "full": lambda **o: KANLinear(96, 160, init="glorot", **o),
        "rank 16": lambda **o: KANLinear(96, 160, spline_rank=16, init="glorot", **o),
        "groups 8": lambda **o: GroupKANLinear(96, 160, 8, base_activation=nn.GELU, **o),
        "feature": lambda **o: GroupKANLinear(96, 160, 96, base_activation=nn.GELU, **o),
    }
    rows = []
    for form, make in makers.items():
        for order in (3,) if setting.tiny else range(6):
            for outside in ("linear",) if setting.tiny else ("zero", "held", "linear"):
                for even in (True, False):
                    for dtype, limit in TOLERANCE.items():
                        layer = make(spline_order=order, outside=outside).to(setting.device)
                        if not even:
                            layer.grid += 0.05 * torch.rand_like(layer.grid)
                        error = worst(layer, dtype, setting)
                        right = error < limit
                        rows.append(
                            {"form": form, "order": order, "outside": outside, "even": even}
                            | {"dtype": str(dtype)[6:], "error": error, "right": right}
                        )
    return rows


def worst(layer: nn.Module, dtype: torch.dtype, setting: Setting) -> float:
    def outcome(layer, x, double=False):
        x = x.detach().clone().requires_grad_()
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32 and not double):
            y = layer(x)
        weights = torch.arange(y.numel(), device=y.device, dtype=torch.float64).sin().view(y.shape)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], weights.to(y.dtype))]

    x = 1.3 * torch.randn(37 if setting.tiny else 1013, 96, device=setting.device)
    found = outcome(layer, x)
    right = outcome(layer.double(), x.double(), double=True)
    errors = (
        ((a.double() - b).norm() / b.norm().clamp_min(1e-9)).item()
        for a, b in zip(found, right, strict=True)
    )
    return max(errors)


def layers(setting: Setting) -> list[dict]:
    """Milliseconds of forward and backward under autocast, and MiB kept between the two."""
    rows, inputs, outputs = (64, 48, 64) if setting.tiny else (25216, 768, 3072)
    makers = {
        "nn.Linear": lambda: nn.Linear(inputs, outputs),
        "bare product": lambda: nn.Linear(9 * inputs, outputs, bias=False),
        "textbook": lambda: TextbookKAN(inputs, outputs),
        "full": lambda: KANLinear(inputs, outputs, enable_standalone_scale_spline=False),
        "full, uneven knots": lambda: uneven(KANLinear(inputs, outputs)),
        "rank 16": lambda: KANLinear(inputs, outputs, spline_rank=16),
        "groups 8": lambda: GroupKANLinear(inputs, outputs, 8),
        "feature": lambda: GroupKANLinear(inputs, outputs, inputs),
        "feature, uneven knots": lambda: uneven(GroupKANLinear(inputs, outputs, inputs)),
    }
    with contextlib.suppress(ImportError):
        from benchmarks.rational import GroupRational

        makers["rational"] = lambda: nn.Sequential(GroupRational(), nn.Linear(inputs, outputs))
    narrow, wide = (
        torch.randn(rows, n * inputs, device=setting.device).requires_grad_() for n in (1, 9)
    )
    table = []
    for name, make in makers.items():
        layer = make().to(setting.device)
        x = wide if name == "bare product" else narrow
        step, kept = layer_step(layer, x, setting)
        seconds = in_turns({name: step}, setting)[name]
        table.append({"layer": name, "ms": 1e3 * seconds, "kept MiB": kept})
        release(setting)
    return table


def uneven(layer: nn.Module) -> nn.Module:
    layer.grid += 0.05 * torch.rand_like(layer.grid)
    return layer


def layer_step(layer: nn.Module, x: Tensor, setting: Setting) -> tuple[Callable, float]:
    """Returns one step, and MiB that autograd keeps beside input and parameters."""
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast(setting):
        y = layer(x)
    grad = torch.randn_like(y)

    def step():
        with autocast(setting):
            y = layer(x)
        torch.autograd.grad(y, [x, *layer.parameters()], grad)

    return step, sum(kept.values()) / 2**20


def release(setting: Setting) -> None:
    torch.compiler.reset()
    gc.collect()
    if setting.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def models(setting: Setting) -> list[dict]:
    """Images a second in training, and GiB, of each form beside timm's ViT in turns with it."""
    sizes = {"tiny": 2} if setting.tiny else {"base": 128, "small": 256, "tiny": 512}
    table = []
    for compiled in (False, True):
        for size, batch in sizes.items():
            if compiled and (size != "base" or setting.tiny):
                continue  # compiling takes half a minute a model
            for form in [*FORMS, "rational"]:
                row = {"size": size, "form": form, "batch": batch, "compiled": compiled}
                if compiled and form not in COMPILED:
                    continue
                if setting.late(60 if compiled else 20):
                    table.append(row | {"left out": "no time"})
                    continue
                table.append(row | beside_timm(size, form, batch, compiled, setting))
                release(setting)
    return table


def beside_timm(size: str, form: str, batch: int, compiled: bool, setting: Setting) -> dict:
    images = torch.randn(batch, 3, 224, 224, device=setting.device)
    labels = torch.randint(5, (batch,), device=setting.device)
    steps, peaks = {}, {}
    for library in ("timm", "ours"):
        release(setting)
        before = 0 if setting.device == "cpu" else torch.cuda.memory_allocated()
        model = build(library, size, form).to(setting.device).train()
        run = torch.compile(model) if compiled else model
        steps[library] = model_step(run, model, images, labels, setting)
        steps[library]()
        if setting.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            steps[library]()
            peaks[library] = torch.cuda.max_memory_allocated() - before
    seconds = in_turns(steps, setting)
    found = {f"{name}, img/s": batch / s for name, s in seconds.items()}
    found["ratio"] = seconds["timm"] / seconds["ours"]
    found |= {f"{name}, GiB": peak / 2**30 for name, peak in peaks.items()}
    return found


def build(library: str, size: str, form: str) -> nn.Module:
    name = f"vit_{size}_patch16_224"
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=5)
    from vit_model import create_model

    model = create_model(name, num_classes=5, **FORMS.get(form, {}))
    if form == "rational":
        from benchmarks.rational import RationalMlp

        for block in model.blocks:
            block.mlp = RationalMlp(model.embed_dim, block.mlp.fc1.out_features)
    return model


def model_step(run: Callable, model: nn.Module, images, labels, setting: Setting) -> Callable:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=setting.device != "cpu")

    def step():
        with autocast(setting):
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- runs of train.py ----------------------------------------------------------------------------


def train(folder: Path, *words: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), "--data-path", str(folder / "photos"),
        "--freeze-layers", "false", "--weights", "", *words,
    ]  # fmt: skip


def draw(folder: Path, count: int) -> None:
    words = [
        "-m",
        "imaging.sample_flowers",
        "--output",
        str(folder / "photos"),
        "--per-class",
        str(count),
    ]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def epochs(setting: Setting) -> list[dict]:
    """Images a second of the first and a later epoch, and the share of the model's own speed."""
    table, own = [], {}
    cases = [(size, cache) for size in ("base", "tiny") for cache in ("ram", "off")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, 4 if setting.tiny else 200)
        for size, cache in cases[-2:] if setting.tiny else cases:
            row = {"size": size, "kept pixels": cache}
            if setting.late(60):
                table.append(row | {"left out": "no time"})
                continue
            output = folder / f"{size}-{cache}"
            words = train(
                folder, "--model", f"vit_{size}_patch16_224", "--epochs", "3", "--batch-size",
                "2" if setting.tiny else "64", "--cache-images", cache, "--output", str(output),
                "--device", setting.device, "--aug", "basic",
            )  # fmt: skip
            subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            with (output / "metrics.csv").open(encoding="utf-8") as file:
                speeds = [float(line["images_per_second"]) for line in csv.DictReader(file)]
            if size not in own:
                own[size] = beside_timm(size, "ViT", 2 if setting.tiny else 64, False, setting)
            alone = own[size]["ours, img/s"]
            row |= {"first, img/s": speeds[0], "later, img/s": speeds[-1], "model, img/s": alone}
            table.append(row | {"share": speeds[-1] / alone})
            release(setting)
    return table


def resume(setting: Setting) -> list[dict]:
    """Whether last.pth of a run killed on its way equals that of one that was not."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, 4 if setting.tiny else 40)
        for flags in (["--deterministic"], []):
            if setting.late(60):
                table.append({"flags": " ".join(flags), "left out": "no time"})
                continue
            table.append({"flags": " ".join(flags) or "none"} | killed(folder, flags, setting))
    return table


def killed(folder: Path, flags: list[str], setting: Setting) -> dict:
    common = [
        "--model", "vit_micro_patch8_64" if setting.tiny else "vit_tiny_patch16_224", "--mlp",
        "gkan", "--epochs", "3", "--batch-size", "8", "--save-steps", "2", "--device",
        setting.device, *flags,
    ]  # fmt: skip
    whole, parts = (folder / f"{name}{len(flags)}" for name in ("whole", "parts"))
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL}
    start = time.monotonic()
    subprocess.run(train(folder, *common, "--output", str(whole)), check=True, **quiet)
    seconds = time.monotonic() - start
    process = subprocess.Popen(train(folder, *common, "--output", str(parts)), **quiet)
    while process.poll() is None and not (parts / "last.pth").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    again = [sys.executable, str(ROOT / "train.py"), "--resume", str(parts)]
    subprocess.run(again, check=True, **quiet)
    a, b = (torch.load(run / "last.pth", weights_only=True)["model"] for run in (whole, parts))
    different = [key for key in a if not torch.equal(a[key], b[key])]
    most = max((float((a[key] - b[key]).abs().max()) for key in different), default=0.0)
    return {
        "seconds": seconds,
        "tensors": len(a),
        "different": len(different),
        "largest difference": most,
    }


# --- tables --------------------------------------------------------------------------------------


def cell(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def show(results: dict) -> None:
    """Prints each part as a table."""
    print(results["machine"])
    for part, rows in results["parts"].items():
        print(f"\n{part}\n")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(cell(row.get(column)) for column in columns)} |")
    wrong = [row for row in results["parts"].get("correct", ()) if not row["right"]]
    print(f"\n{len(wrong)} of the forms are wrong" if wrong else "")
    for row in results["parts"].get("models", ()):
        if (aim := AIMS.get(row["form"])) and "ratio" in row:
            missed = "reached" if row["ratio"] >= aim else "missed"
            print(f"{row['form']}-{row['size']}: {row['ratio']:.2f} of timm's ViT, {missed} {aim}")


def machine(device: str) -> str:
    name = platform.processor() or platform.machine()
    return (
        f"{time.strftime('%Y-%m-%d')}, {name if device == 'cpu' else torch.cuda.get_device_name()},"
        f" torch {torch.__version__}, python {platform.python_version()}"
    )


PARTS = {part.__name__: part for part in (correct, layers, models, resume, epochs)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=520, help="after which parts are left out")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--show", type=Path, metavar="JSON", help="print its tables and stop")
    parser.add_argument("--tiny", action="store_true", help="sizes that prove nothing but that")
    setting = parser.parse_args(namespace=Setting())
    if setting.show:
        show(json.loads(setting.show.read_text("utf-8")))
        return 0
    if setting.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --tiny tries the script")
    os.environ["KAN_TRITON"] = "1"
    torch.manual_seed(0)
    setting.end = time.monotonic() + setting.seconds
    results = {"machine": machine(setting.device), "parts": {}}
    for part in setting.only:
        if part in ("epochs", "resume"):
            os.environ["KAN_TRITON"] = "1" if setting.device == "cuda" else ""
        print(f"{part} ...", file=sys.stderr, flush=True)
        results["parts"][part] = PARTS[part](setting)
        setting.output.write_text(json.dumps(results, indent=1), "utf-8")
    show(results)
    return int(any(not row["right"] for row in results["parts"].get("correct", ())))


if __name__ == "__main__":
    sys.exit(main())
