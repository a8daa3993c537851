"""B-splines on a GPU: the kernels of `triton_kernels` and the calls into them.

Triton comes with torch's builds for CUDA, ROCm and XPU. KAN_TRITON in the environment, which is
read at each call: 0 forbids the kernels, 1 demands them, also for tensors on a CPU, where Triton's
interpreter runs them (TRITON_INTERPRET=1, set before the first call).
"""

import contextlib
import functools
import math
import os
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from splines.chunked import ChunkedSplines
from splines.interface import Base, Gradients, Wanted

GPUS = ("cuda", "xpu")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
HIGHEST_ORDER = 5
# Up to so many columns bases are multiplied where they are made, and never stored.
NARROW = 64
ROWS = {"curves": 128, "cubics": 128}  # of a program, 256 in every other kernel
# Sums over the rows of a program are kept until all are added up: in so much memory, about.
PARTS_BYTES = 64 << 20


class KernelError(RuntimeError):
    """A kernel that cannot be compiled or started here."""


def triton_splines(
    x: Tensor, grid: Tensor, order: int, outside: str, dtype: torch.dtype
) -> "TritonSplines | None":
    """Returns the splines in Triton, or None where torch or C is to compute them.

    Raises RuntimeError where KAN_TRITON=1 demands what cannot be; float64 is torch's in any case.
    """
    wish = os.environ.get("KAN_TRITON", "")
    if wish not in ("", "0", "1"):
        raise RuntimeError(f"KAN_TRITON={wish}: it must be 0 (never), 1 (always) or empty")
    double = torch.float64 in (x.dtype, grid.dtype, dtype)
    if double or wish == "0" or not (wish or x.device.type in GPUS):
        return None
    reason = obstacle(x, order, dtype)
    if reason is None:
        return TritonSplines(x, grid, order, outside, dtype)
    go_without(reason)
    return None


def go_without(reason: str) -> None:
    """Warns once that torch takes the kernels' place; raises where that is forbidden."""
    if os.environ.get("KAN_TRITON") == "1":
        raise RuntimeError(f"KAN_TRITON=1 demands Triton's kernels, but {reason}")
    if reason not in told:
        told.add(reason)
        warnings.warn(
            f"KAN layers are slower than they could be: {reason}; torch computes them instead, "
            "without this warning under KAN_TRITON=0",
            stacklevel=2,
        )


def obstacle(x: Tensor, order: int, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot compute this."""
    if order > HIGHEST_ORDER:
        return f"they know splines of order 0 to {HIGHEST_ORDER}, not {order}"
    for kind in (x.dtype, dtype):
        if kind not in TYPES:
            return f"they do not know {kind}"
    if isinstance(found := kernels(), str):
        return found
    at_start = "TRITON_INTERPRET=1 from the start of the program"
    if found.TOO_LATE:
        return f"Triton was imported before TRITON_INTERPRET was set; they need {at_start}"
    if x.device.type not in GPUS and not interpreted():
        return f"a tensor on {x.device.type} needs {at_start}"
    return broken.get(x.device)


@functools.cache
def kernels():
    """Returns the module of kernels, or why there is none."""
    try:
        from splines import triton_kernels
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return triton_kernels


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, as was decided when they were imported."""
    return kernels().INTERPRETED.value


# Devices on which a kernel could not be run, with the reason; reasons that were told.
broken: dict[torch.device, str] = {}
told: set[str] = set()


def give_up(device: torch.device, error: KernelError) -> None:
    """Has torch compute on a device from now on."""
    first = str(error).strip().splitlines()[0]
    broken[device] = f"a kernel cannot be run on {device} ({first})"
    go_without(broken[device])


def power_of_two(number: int, least: int = 1) -> int:
    return max(least, 1 << (number - 1).bit_length())


class TritonSplines(ChunkedSplines):
    """The splines as Triton's kernels evaluate them."""

    def __init__(self, *shape) -> None:
        super().__init__(*shape)
        self.grid = self.grid.contiguous()

    # --- all bases ---

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        out = self.buffer("bases", len(x), x.shape[1] * self.count)
        x, tile = self._rows(x), self._tile(2048)
        self._launch(
            "bases", self._blocks(x, tile), x, self.grid[features], out, *x.shape, x.stride(0),
            **self._shape(), **tile,
        )  # fmt: skip
        return out

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        x, tile = self._rows(x), self._tile(2048)
        self._launch(
            "slopes", self._blocks(x, tile), x, self.grid[features], grad, out, *x.shape,
            x.stride(0), out.stride(0), **self._shape(), **tile,
        )  # fmt: skip

    def scaled(self, weight: Tensor, scaler: Tensor | None, features: slice) -> Tensor:
        if scaler is None:
            return super().scaled(weight, scaler, features)
        part, some = weight[:, features], scaler[:, features].unsqueeze(-1)
        out = self.buffer("scaled", len(part), part[0].numel())
        torch.mul(part, some, out=out.view(part.shape))  # and rounded at once
        return out

    # --- few columns ---

    def takes(self, outputs: int) -> bool:
        return outputs <= NARROW

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        z = x.new_empty(len(x), len(weight), dtype=self.dtype)
        self._narrow(x, weight, z, None, None)
        return z

    def product_backward(self, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return self._narrow_backward_of(x, weight, grad, None, None, None)

    def low_rank(self, x: Tensor, base: Base, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        if base.weight is None or not self.takes(len(down)):
            return super().low_rank(x, base, down, up)
        wide = self._wide(x, down)  # [activation(x) | z]: one product serves both terms
        h, z = wide[:, : x.shape[1]], wide[:, x.shape[1] :]
        self._narrow(x, down, z, h, base)
        bias = None if base.bias is None else base.bias.to(self.dtype)
        return F.linear(wide, self._wide_weight(base, up), bias), z.contiguous()

    def low_rank_backward(
        self, grad: Tensor, x: Tensor, base: Base, down: Tensor, up: Tensor, z: Tensor,
        wanted: Wanted,
    ) -> Gradients:  # fmt: skip
        if base.weight is None or not self.takes(len(down)):
            return super().low_rank_backward(grad, x, base, down, up, z, wanted)
        features, gradients = x.shape[1], Gradients()
        wide = self._wide(x, down) if wanted.base_weight else None
        h = None if wide is None else wide[:, :features]
        back = grad @ self._wide_weight(base, up)  # of [activation(x) | z]
        grad_x, grad_down = self._narrow_backward_of(
            x, down, back[:, features:], back[:, :features], h, base
        )
        gradients = Gradients(grad_x, spline=grad_down.to(down.dtype))
        if wanted.active:
            gradients = gradients._replace(active=back[:, :features].to(base.active.dtype))
        if wide is not None:
            wide[:, features:] = z
            both = grad.t() @ wide
            gradients = gradients._replace(
                base_weight=both[:, :features].to(base.weight.dtype),
                second=both[:, features:].to(up.dtype),
            )
        elif wanted.second:
            gradients = gradients._replace(second=(grad.t() @ z).to(up.dtype))
        if wanted.bias:
            gradients = gradients._replace(bias=grad.sum(0, dtype=base.bias.dtype))
        return gradients

    def _wide(self, x: Tensor, down: Tensor) -> Tensor:
        return x.new_empty(len(x), x.shape[1] + len(down), dtype=self.dtype)

    def _wide_weight(self, base: Base, up: Tensor) -> Tensor:
        return torch.cat([base.weight.to(self.dtype), up.to(self.dtype)], 1)

    def _narrow(self, x: Tensor, weight: Tensor, z: Tensor, h: Tensor | None, base) -> None:
        x, tile = self._rows(x), self._tile(4096 if self.even else 2048, least_rows=16)
        active, code = self._active(x, base)
        down = weight.to(self.dtype).contiguous()
        to = z if h is None else h
        self._launch(
            "narrow", (-(-len(x) // tile["BN"]),), x, active, self.grid, down, to, z, *x.shape,
            x.stride(0), active.stride(0), to.stride(0), z.stride(0), len(down),
            **self._shape(), ACT=code, WRITE=h is not None, RP=power_of_two(len(down), 16), **tile,
        )  # fmt: skip

    def _narrow_backward_of(
        self, x: Tensor, weight: Tensor, dz: Tensor, dh: Tensor | None, h: Tensor | None, base
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and of weight (R, I, K); activation(x) goes into h, if there is one."""
        rows, tile = self._rows(x), self._tile(2048, least_rows=16)
        active, code = self._active(x, base)
        down, dz = weight.to(self.dtype).contiguous(), self._rows(dz.to(self.dtype))
        each = self._rows_of("narrow_backward", x, weight.numel(), tile)
        blocks = -(-len(x) // each)
        parts = x.new_empty(blocks, *weight.shape, dtype=torch.float32)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dh_, h_ = (dz if dh is None else dh), (dz if h is None else h)
        self._launch(
            "narrow_backward", (blocks, -(-x.shape[1] // tile["BI"])), rows, active, self.grid,
            down, dh_, dz, out, h_, parts, *x.shape, rows.stride(0), active.stride(0),
            dh_.stride(0), dz.stride(0), h_.stride(0), len(down), **self._shape(), ACT=code,
            WRITE=h is not None, BASE=dh is not None, RP=power_of_two(len(down), 16), ROWS=each,
            **tile,
        )  # fmt: skip
        return out, parts.sum(0)

    # --- curves ---

    def curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        rows, (name, tile, constants) = self._rows(x), self._curve_kernel("")
        active, code = self._active(x, base)
        each = self._rows_of(name, x, 0, tile)
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        self._launch(
            name, (-(-len(x) // each), -(-x.shape[1] // tile["BI"])), rows, active, self.grid,
            coef.float().contiguous(), out, *x.shape, rows.stride(0), active.stride(0),
            out.stride(0), SIZE=x.shape[1] // len(coef), ACT=code, ROWS=each, **constants, **tile,
        )  # fmt: skip
        return out

    def curves_backward(
        self, x: Tensor, coef: Tensor, base: Base, grad: Tensor, again: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        name, tile, constants = self._curve_kernel("_backward")
        rows, g = self._rows(x), self._rows(grad)
        active, code = self._active(x, base)
        groups, size = len(coef), x.shape[1] // len(coef)
        each = self._rows_of(name, x, self.count * x.shape[1], tile)
        blocks = -(-len(x) // each)
        parts = x.new_empty(blocks, self.count, groups, size, dtype=torch.float32)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        result = torch.empty(x.shape, dtype=self.dtype, device=x.device) if again else out
        self._launch(
            name, (blocks, -(-x.shape[1] // tile["BI"])), rows, active, self.grid,
            coef.float().contiguous(), g, out, result, parts, *x.shape, rows.stride(0),
            active.stride(0), g.stride(0), result.stride(0), SIZE=size, ACT=code, AGAIN=again,
            ROWS=each, **constants, **tile,
        )  # fmt: skip
        grad_coef = parts.sum((0, 3)).t().to(coef.dtype)
        active_grad = None if base.active is None else grad.to(base.active.dtype)
        return out, active_grad, grad_coef, result if again else None

    def _curve_kernel(self, suffix: str) -> tuple[str, dict, dict]:
        """The kernel's name, its tile and its constants: the usual curves have one of their own."""
        usual = self.order == 3 and self.count == 8 and self.outside != "zero"
        if self.even and usual:
            tile = {"BN": 8 if suffix else 16, "BI": 64}
            return f"cubics{suffix}", tile, {"OUTSIDE": kernels().OUTSIDE[self.outside]}
        return f"curves{suffix}", self._tile(1024 if suffix else 2048), self._shape()

    # --- calls ---

    def _rows(self, x: Tensor) -> Tensor:
        """x (N, F), or a copy whose rows have no gaps between their numbers."""
        return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()

    def _active(self, x: Tensor, base: Base | None) -> tuple[Tensor, int]:
        """The base function's values, where torch computed them, and its code."""
        codes = kernels().ACTIVATIONS
        if base is None or base.active is None:
            return x, codes["identity" if base is None else base.activation]
        return self._rows(base.active), codes["given"]

    def _shape(self) -> dict:
        """The constants that say what bases there are."""
        return {
            "COUNT": self.count,
            "ORDER": self.order,
            "OUTSIDE": kernels().OUTSIDE[self.outside],
            "UNIFORM": self.even,
            "KP": power_of_two(self.count),
        }

    def _tile(self, bases: int, least_rows: int = 1) -> dict:
        """Rows and features of a tile that has so many bases."""
        padded = power_of_two(self.count)
        features = max(1, 64 // padded)
        rows = max(least_rows, min(64, bases // (features * padded)))
        return {"BN": rows, "BI": features}

    def _rows_of(self, name: str, x: Tensor, sums: int, tile: dict) -> int:
        """Rows of a program, which keeps so many sums of its own."""
        parts = max(1, PARTS_BYTES // (4 * sums)) if sums else math.inf
        least = -(-len(x) // parts) if parts < math.inf else 0
        return power_of_two(max(ROWS.get(name, 256), tile["BN"], int(least)))

    def _blocks(self, x: Tensor, tile: dict) -> tuple[int, int]:
        return -(-len(x) // tile["BN"]), -(-x.shape[1] // tile["BI"])

    def _launch(self, name: str, grid: tuple[int, ...], *arguments, **constants) -> None:
        """Runs a kernel on the device of the splines, in its current stream.

        Raises KernelError where Triton cannot compile or start it.
        """
        if 0 in grid:
            return
        device = self.grid.device
        on_gpu = device.type in GPUS
        with getattr(torch, device.type).device(device) if on_gpu else contextlib.nullcontext():
            try:
                getattr(kernels(), name)[grid](*arguments, **constants)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers of many kinds fail in many ways
                raise KernelError(f"{type(error).__name__}: {error}") from error
