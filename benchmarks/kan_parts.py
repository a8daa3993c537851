"""What the parts of a KAN layer cost on this processor, beside the least that they could.

    python -m benchmarks.kan_parts [--dtype bfloat16] [--threads 1]

Nanoseconds for each of 1,576 x 768 values, the least of 15, and gigabytes a second of what a part
must read and write; "copy" is what the memory gives. A curve reads its input and writes its result;
its backward reads input and gradient and writes the input's gradient and the result once more.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from kan import GroupKANLinear, KANLinear
from splines.interface import Base
from splines.ops import splines_for

ROWS, FEATURES, OUTPUTS, RANK = 1576, 768, 192, 16
GELU, IDENTITY = Base("gelu", None, None, None), Base("identity", None, None, None)


def least(function: Callable) -> float:
    """Returns the least seconds of 15, on the clock of this thread if there is one alone."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(18):
        start = clock()
        function()
        seconds.append(clock() - start)
    return min(seconds[3:])


def parts(dtype: torch.dtype) -> dict[str, tuple[Callable, int]]:
    """Returns what to time, and how many numbers of a value each has to move."""
    x, grad = (torch.randn(ROWS, FEATURES).to(dtype) for _ in range(2))
    weight, narrow = torch.randn(OUTPUTS, FEATURES).to(dtype), torch.randn(ROWS, RANK)
    groups = GroupKANLinear(FEATURES, OUTPUTS, FEATURES, grid_range=(-3, 3))
    low = KANLinear(FEATURES, OUTPUTS, spline_rank=RANK, grid_range=(-3, 3), outside="linear")
    coef, down = groups.spline_weight.detach(), low.spline_down.detach()
    curves = splines_for(x, groups.grid, 3, "linear", dtype)
    bases = splines_for(x, low.grid, 3, "linear", dtype)
    return {
        "copy": (x.clone, 2),
        "GELU": (lambda: F.gelu(x), 2),
        "GELU, backward": (lambda: torch.ops.aten.gelu_backward(grad, x), 3),
        "curve": (lambda: curves.curves(x, coef, IDENTITY), 2),
        "curve and GELU": (lambda: curves.curves(x, coef, GELU), 2),
        "curve, backward": (lambda: curves.curves_backward(x, coef, IDENTITY, grad, False), 3),
        "curve and GELU, backward": (
            lambda: curves.curves_backward(x, coef, GELU, grad, True),
            4,
        ),
        "product with 192 outputs": (lambda: F.linear(x, weight), 1),
        "bases times 16 columns": (lambda: bases.product(x, down), 1),
        "and backward": (lambda: bases.product_backward(x, down, narrow), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, torch "
        f"{torch.__version__}, {args.threads} threads, {args.dtype}\n"
    )
    print("| part | ns a value | GB/s |\n|---|---|---|")
    for name, (function, moved) in parts(dtype).items():
        each = least(function) / (ROWS * FEATURES)
        print(f"| {name} | {1e9 * each:.2f} | {moved * dtype.itemsize / each / 1e9:.1f} |")


if __name__ == "__main__":
    main()
