"""Times KAN layers against their bare matrix product, nn.Linear and a textbook layer.

    python -m benchmarks.kan_layer                             # layers, two sizes, float32
    python -m benchmarks.kan_layer --dtype bfloat16            # under autocast
    python -m benchmarks.kan_layer --vit                       # training steps of whole KAN-ViTs
    python -m benchmarks.kan_layer --device cuda --dtype bfloat16 --sizes 768x3072 --rows 25216

One step is forward and backward, parameters' and input's gradients. "ratio" is to the bare product
of width I * (1 + G + k) and the same rows, measured in turns with the layer. "kept" is what stays
alive between forward and backward besides parameters. On a CPU that others use too, `--threads 1
--clock cpu` counts the time of the one thread instead of the time that passes.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear
from training.batch_size import resident

GRID, ORDER = 5, 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


class TextbookKAN(nn.Module):
    """The layer as formulas state it: the recursion over all bases, then two products."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        count = GRID + ORDER
        self.base_weight = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)
        self.spline_weight = nn.Parameter(0.01 * torch.randn(out_features, in_features, count))
        self.spline_scaler = nn.Parameter(torch.ones(out_features, in_features))
        knots = torch.arange(-ORDER, GRID + ORDER + 1) * (2 / GRID) - 1
        self.register_buffer("grid", knots.expand(in_features, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape[:-1], x.flatten(0, -2)
        grid, at = self.grid, x.float().unsqueeze(-1)
        b = ((at >= grid[:, :-1]) & (at < grid[:, 1:])).float()
        for p in range(1, ORDER + 1):
            left = (at - grid[:, : -(p + 1)]) / (grid[:, p:-1] - grid[:, : -(p + 1)])
            right = (grid[:, p + 1 :] - at) / (grid[:, p + 1 :] - grid[:, 1:-p])
            b = left * b[..., :-1] + right * b[..., 1:]
        weight = self.spline_weight * self.spline_scaler.unsqueeze(-1)
        y = F.linear(F.silu(x), self.base_weight) + F.linear(b.flatten(1), weight.flatten(1))
        return y.reshape(*shape, -1)


class BareProduct(nn.Linear):
    """What no dense implementation can avoid; its input has the width of all bases."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features * (1 + GRID + ORDER), out_features, bias=False)


def uneven(in_features: int, out_features: int) -> KANLinear:
    """A KANLinear whose knots are not uniform."""
    layer = KANLinear(in_features, out_features)
    layer.grid.copy_((torch.rand_like(layer.grid) + 0.3).cumsum(1) * 0.25 - 1.5)
    return layer


CONTENDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "bare product": BareProduct,
    "KANLinear": KANLinear,
    "KANLinear, no scaler": lambda i, o: KANLinear(i, o, enable_standalone_scale_spline=False),
    "KANLinear, uneven knots": uneven,
    "KANLinear, linear outside": lambda i, o: KANLinear(i, o, outside="linear"),
    "KANLinear, rank 16": lambda i, o: KANLinear(i, o, spline_rank=16),
    "GroupKANLinear": GroupKANLinear,
    "nn.Linear": nn.Linear,
    "textbook": TextbookKAN,
}


def find_peers() -> dict[str, Callable[[int, int], nn.Module]]:
    """Layers of published packages, as far as they are installed."""
    peers = {}
    for package, module, layer in (
        ("efficient-kan", "efficient_kan", "KANLinear"),
        ("fast-kan (Gaussians)", "fastkan", "FastKANLayer"),
    ):
        with contextlib.suppress(ImportError):
            peers[package] = getattr(importlib.import_module(module), layer)
    with contextlib.suppress(ImportError):
        peers["pykan"] = pykan_layer()
    return peers


def pykan_layer() -> Callable[[int, int], nn.Module]:
    """The layer of pykan, whose package is called `kan` as our module is."""
    alias = types.ModuleType("pykan")
    alias.__path__ = [str(importlib.metadata.distribution("pykan").locate_file("kan"))]
    sys.modules["pykan"] = alias
    layer = importlib.import_module("pykan.KANLayer").KANLayer

    class FirstResult(layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    return lambda i, o: FirstResult(i, o, num=GRID, k=ORDER)


class Stopwatch:
    """Times steps of one layer; `args` says where, in which type and by which clock."""

    def __init__(self, layer: nn.Module, shape: tuple, args: argparse.Namespace) -> None:
        self.args = args
        self.layer = layer.to(args.device)
        self.x = torch.randn(shape, device=args.device, requires_grad=True)
        self.grad = None
        self.times: list[float] = []

    def forward(self) -> Tensor:
        enabled = self.args.dtype == torch.bfloat16
        with torch.autocast(self.args.device, torch.bfloat16, enabled=enabled):
            return self.layer(self.x)

    def step(self) -> None:
        clock = CLOCKS[self.args.clock]
        self.synchronise()
        start = clock()
        y = self.forward()
        if self.grad is None:
            self.grad = torch.randn_like(y)
        y.backward(self.grad)
        self.synchronise()
        self.times.append(1000 * (clock() - start))
        self.layer.zero_grad()
        self.x.grad = None

    def synchronise(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()

    def kept_mb(self) -> float:
        own = {
            v.untyped_storage().data_ptr()
            for v in (*self.layer.parameters(), *self.layer.buffers())
        }
        kept = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = self.forward()
        del y
        sizes = (t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
        return sum(sizes) / 1e6


def compare_layers(args: argparse.Namespace) -> None:
    contenders = CONTENDERS | (find_peers() if args.peers else {})
    if args.only:
        contenders = {n: c for n, c in contenders.items() if n in {"bare product", *args.only}}
    for size in args.sizes:
        i, o = (int(n) for n in size.split("x"))
        for rows in args.rows:
            print(f"\n{i} to {o} features, {rows} rows, {args.dtype}\n")
            print("| layer | time, ms | lowest | ratio | kept, MB |\n|---|---|---|---|---|")
            watches = {}
            for name, make in contenders.items():
                width = i * (1 + GRID + ORDER) if make is BareProduct else i
                watches[name] = Stopwatch(make(i, o), (rows, width), args)
            for _ in range(args.steps + 1):  # in turns, so that all share the weather
                for watch in watches.values():
                    watch.step()
            bare = statistics.median(watches["bare product"].times[1:])
            for name, watch in watches.items():
                middle, least = statistics.median(watch.times[1:]), min(watch.times[1:])
                print(
                    f"| {name} | {middle:.1f} | {least:.1f} | {middle / bare:.2f} "
                    f"| {watch.kept_mb():.1f} |"
                )


def textbook_blocks(model: nn.Module) -> nn.Module:
    """Replaces the MLPs of a ViT by two textbook KAN layers."""
    for block in model.blocks:
        hidden, dim = block.mlp.fc1.weight.shape
        block.mlp = nn.Sequential(TextbookKAN(dim, hidden), TextbookKAN(hidden, dim))
    return model


VITS: dict[str, dict] = {
    "ViT": {},
    "KAN-ViT, groups": {"mlp": "gkan"},
    "KAN-ViT, a spline per feature": {"mlp": "gkan", "kan_groups": "feature"},
    "KAN-ViT, rank 16": {"mlp": "kan", "kan_rank": 16},
    "KAN-ViT": {"mlp": "kan"},
    "textbook": {},
}


class Training:
    """Steps (forward and backward) of a whole ViT, and how long they took in ms."""

    def __init__(self, label: str, args: argparse.Namespace) -> None:
        from vit_model import create_model

        self.args = args
        self.model = create_model(args.model, num_classes=5, **VITS[label])
        if label == "textbook":
            self.model = textbook_blocks(self.model)
        self.model.to(args.device).train()
        self.images = torch.randn(args.batch_size, 3, 224, 224, device=args.device)
        self.labels = torch.randint(5, (args.batch_size,), device=args.device)
        self.times: list[float] = []

    def step(self) -> None:
        clock, device = CLOCKS[self.args.clock], self.args.device
        start = clock()
        with torch.autocast(device, torch.bfloat16, enabled=self.args.dtype == torch.bfloat16):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        self.times.append(1000 * (clock() - start))
        self.model.zero_grad()


def peak_gib(label: str, args: argparse.Namespace, answer: multiprocessing.Queue) -> None:
    """Puts the peak memory of a process that makes two steps: the device's, or its own."""
    torch.set_num_threads(args.threads)
    training = Training(label, args)
    for _ in range(2):
        training.step()
    if args.device == "cuda":
        answer.put(torch.cuda.max_memory_allocated() / 2**30)
    else:
        answer.put(resident("VmHWM") / 2**30)


def compare_vits(args: argparse.Namespace) -> None:
    """Training steps of whole ViTs, in turns; each one's memory in a process of its own."""
    print(f"\n{args.model}, batch {args.batch_size}, {args.dtype}, forward and backward\n")
    print("| model | time, ms | lowest | speed to ViT's | by lowest | peak, GiB |")
    print("|---|---|---|---|---|---|")
    labels = [v for v in VITS if not args.only or v in {"ViT", *args.only}]
    trainings = {label: Training(label, args) for label in labels}
    for turn in range(args.steps + 1):
        for label, training in trainings.items():
            if label != "textbook" or turn < 2:  # it takes as long as all others together
                training.step()
    times = {label: training.times[1:] for label, training in trainings.items()}
    del trainings
    spawn = multiprocessing.get_context("spawn")
    for label in labels:
        answer = spawn.Queue()
        process = spawn.Process(target=peak_gib, args=(label, args, answer))
        process.start()
        middle, least = statistics.median(times[label]), min(times[label])
        speed = statistics.median(times["ViT"]) / middle, min(times["ViT"]) / least
        print(
            f"| {label} | {middle:.0f} | {least:.0f} | {speed[0]:.2f} | {speed[1]:.2f} "
            f"| {answer.get():.2f} |",
            flush=True,
        )
        process.join()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["384x1536"], help="IxO (384x1536)")
    parser.add_argument("--rows", nargs="+", type=int, default=[1576], help="rows of input (1576)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each (7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="+", help="these rows of the table beside the baseline")
    parser.add_argument(
        "--peers", action="store_true", help="also published packages, if installed"
    )
    parser.add_argument("--vit", action="store_true", help="whole Vision Transformers")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="the ViT of --vit")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a step of --vit (8)")
    args = parser.parse_args()
    args.dtype = getattr(torch, args.dtype)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    print(f"{where}, {args.threads} threads, {args.clock} clock, torch {torch.__version__}, "
          f"python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    if args.vit:
        compare_vits(args)
    else:
        compare_layers(args)


if __name__ == "__main__":
    main()
