"""B-splines in C: native.c, compiled once a machine, and the calls into it.

KAN_COMPILE=0 in the environment forbids it. Letters as in `bases`.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from splines.bases import OUTSIDE, among_all, local_bases, padded_knots, scaled

REALS = {
    torch.float32: "-DREAL=float -DWHOLE=int32_t -DSIZE=4",
    torch.float64: "-DREAL=double -DWHOLE=int64_t -DSIZE=8",
}
LANES = 16  # the widest vector of native.c, in numbers: tables have that much room behind
# Fewer inputs than the first are not worth the calls, and than the second not worth starting a
# compiler that takes a second, once per machine.
COMPILED_FROM, COMPILE_FROM = 1 << 14, 1 << 18
# Up to so many outputs only the bases that differ from zero are multiplied, one input at a time.
NARROW = 64


def compiled(order: int, real: torch.dtype, inputs: int) -> ctypes.CDLL | None:
    """Returns native.c compiled for an order and a type; None if it can't be or isn't worth it."""
    build = _plan(order, real) if inputs >= COMPILED_FROM else None
    if build and (inputs >= COMPILE_FROM or build.library.exists()):
        return _load(build)
    return None


class Build(NamedTuple):
    command: tuple[str, ...]
    source: Path
    library: Path


@functools.cache
def _plan(order: int, real: torch.dtype) -> Build | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if os.environ.get("KAN_COMPILE") == "0" or not compiler:
        return None
    flags = "-O3 -march=native -fPIC -fno-math-errno -fno-trapping-math -fno-strict-aliasing"
    flags += f" -DORDER={order} {REALS[real]}"
    try:
        source = Path(__file__).with_name("native.c")
        key = "\n".join([source.read_text("utf-8"), compiler, flags, _cpu()])
        name = f"kan-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
        return Build((*compiler.split(), *flags.split()), source, _cache_folder() / name)
    except OSError:
        return None


@functools.cache
def _load(build: Build) -> ctypes.CDLL | None:
    try:
        if not build.library.exists():
            _compile(build)
        return ctypes.CDLL(str(build.library))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(build: Build) -> None:
    with tempfile.TemporaryDirectory(dir=build.library.parent) as folder:
        part, whole = Path(folder, "kan.o"), Path(folder, "kan.so")
        # Without -fopenmp at the link, OpenMP is the one torch has loaded: one pool of threads.
        for arguments in (
            [*build.command, "-fopenmp", "-c", str(build.source), "-o", str(part)],
            [build.command[0], "-shared", str(part), "-o", str(whole)],
        ):
            subprocess.run(arguments, check=True, capture_output=True, timeout=120)
        os.replace(whole, build.library)


@functools.cache
def _cache_folder() -> Path:
    """A folder that nobody else can write to: what lies there is run."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        folder = Path(home, "kan-layers")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="kan-layers-"))


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() + platform.machine()


class Knots(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p if n == "at" else ctypes.c_long) for n in
                ("at", "stride", "count", "outside")]  # fmt: skip


class Matrix(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p if n == "at" else ctypes.c_long) for n in
                ("at", "stride", "narrow")]  # fmt: skip


class Splines:
    """The bases of some features, ready to be evaluated chunk by chunk; no part of any graph.

    x: (N, I); store: the type in which bases are multiplied. They are computed in float32, or in
    float64 where the input or the grid is.
    """

    def __init__(self, x: Tensor, grid: Tensor, order: int, outside: str, store: torch.dtype):
        self.order, self.outside, self.store = order, outside, store
        double = torch.float64 in (x.dtype, grid.dtype)
        self.real = torch.float64 if double else torch.float32
        self.grid = grid.to(self.real)
        self.count = grid.shape[1] - 1 - order
        self.library = None
        if x.device.type == "cpu" and store in (self.real, torch.bfloat16):
            self.library = compiled(order, self.real, x.numel())
        self.threads = torch.get_num_threads()
        self.buffers: dict[str, Tensor] = {}
        self.last: tuple[Tensor, tuple] | None = None

    @functools.cached_property
    def knots(self) -> Tensor:
        """The table of knots that native.c wants."""
        return self._table(padded_knots(self.grid, self.order))

    def buffer(self, name: str, rows: int, columns: int) -> Tensor:
        """An uninitialised (rows, columns): the same memory each time, as fresh pages cost time."""
        size, found = rows * columns, self.buffers.get(name)
        if found is None or found.numel() < size:
            found = self.buffers[name] = torch.empty(
                size, dtype=self.store, device=self.grid.device
            )
        return found[:size].view(rows, columns)

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        """(N, F) -> (N, F * K), where the F columns of x are `features`."""
        if self.library is None:
            values, _, cell = self._local(x, features)
            return among_all(values, cell, self.count).flatten(1).to(self.store)
        out = self.buffer("bases", len(x), x.shape[1] * self.count)
        self._call("bases", x, features, self.matrix(out), self.count)
        return out

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        """Puts the gradient of x (N, F) into `out`, from that of the bases (N, F * K)."""
        if self.library is None:
            _, slopes, cell = self._local(x, features)
            grad = F.pad(grad.to(self.real).unflatten(1, (x.shape[1], -1)), (self.order,) * 2)
            index = cell.unsqueeze(-1) + torch.arange(self.order + 1, device=x.device)
            out.copy_((grad.gather(-1, index) * slopes).sum(-1))
        elif self.fits(out):
            self._call("slopes", x, features, self.matrix(grad), self.count, self.matrix(out))
        else:
            part = out.new_empty(out.shape, dtype=self.real)
            self.slopes(x, grad, part, features)
            out.copy_(part)

    def _local(self, x: Tensor, features: slice) -> tuple[Tensor, Tensor, Tensor]:
        """As `local_bases`; remembered, as backward asks for values and then for slopes."""
        if self.last is None or self.last[0] is not x:
            grid = self.grid[features]
            self.last = x, local_bases(x.to(self.real), grid, self.order, self.outside)
        return self.last[1]

    def takes(self, outputs: int) -> bool:
        """Whether `product` serves for so many outputs: faster than multiplying all the zeros."""
        return self.library is not None and outputs <= NARROW

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product of all bases at x (N, I) and weight (O, I, K), (N, O), for few outputs."""
        table, wide = self._narrow_table(weight)
        out = self.grid.new_empty(len(x), table.shape[-1])
        self._call("product", x, slice(None), table, table.shape[1], out, wide)
        return out[:, : len(weight)]

    def product_backward(self, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x (N, I) and weight (O, I, K) from that of `product`'s result (N, O)."""
        rows = 8192  # in a part, which is as large as the weights
        table, wide = self._narrow_table(weight)
        grad = F.pad(grad.to(self.real), (0, table.shape[-1] - len(weight))).contiguous()
        out = self.like(x)
        parts = self.grid.new_zeros(-(-len(x) // rows), *table.shape)
        self._call(
            "product_backward", x, slice(None), table, table.shape[1], grad, wide,
            self.matrix(out), parts, rows,
        )  # fmt: skip
        total = parts[0] if len(parts) == 1 else parts.sum(0)
        bases = slice(self.order, self.order + self.count)
        return out, total[:, bases, : len(weight)].permute(2, 0, 1)

    def _narrow_table(self, weight: Tensor) -> tuple[Tensor, int]:
        """Weights (O, I, K) as (I, K + 2k, O rounded up to whole vectors), and vectors in a row."""
        lanes = self.library.width()
        wide = -(-len(weight) // lanes)
        room = 0, wide * lanes - len(weight), self.order, self.order
        return F.pad(weight.to(self.real).permute(1, 2, 0), room).contiguous(), wide

    def scaled(self, weight: Tensor, scaler: Tensor | None, features: slice) -> Tensor:
        """Weights (O, I, K) times scaler (O, I) of some features, (O, F * K)."""
        part = weight[:, features]
        if scaler is None:
            return part.flatten(1).to(self.store)
        if not self._can_scale(weight, scaler):
            return scaled(part, scaler[:, features]).flatten(1).to(self.store)
        out = self.buffer("scaled", len(part), part[0].numel())
        extent = self._extent(part, weight)
        self.call("scale", part, scaler[:, features], *extent, self.matrix(out))
        return out

    def scaled_backward(self, weight, scaler, features: slice, grad, grad_scaler) -> None:
        """Turns the gradient of the product in grad[:, features] into that of the weights.

        grad_scaler (O, I) receives that of the scaler where it is wanted.
        """
        part, g = weight[:, features], grad[:, features]
        if not self._can_scale(weight, scaler):
            if grad_scaler is not None:
                grad_scaler[:, features] = (g * part).sum(-1)
            g.mul_(scaler[:, features].unsqueeze(-1))
            return
        to = torch.empty_like(scaler) if grad_scaler is None else grad_scaler
        extent = self._extent(part, weight)
        self.call("scale_backward", part, scaler[:, features], *extent, g, to[:, features])

    def _can_scale(self, weight: Tensor, scaler: Tensor) -> bool:
        """torch is slow to broadcast over so short an axis; native.c wants one type and no gaps."""
        fits = weight.dtype == scaler.dtype == self.real
        return bool(self.library and fits and weight.is_contiguous() and scaler.is_contiguous())

    @staticmethod
    def _extent(part: Tensor, whole: Tensor) -> tuple[int, ...]:
        return len(part), part.shape[1], whole.shape[1], whole.shape[2]

    @staticmethod
    def _table(rows: Tensor) -> Tensor:
        """(I, M) -> (M, I + LANES)"""
        return F.pad(rows.t(), (0, LANES)).contiguous()

    def fits(self, x: Tensor) -> bool:
        """Whether native.c can read and write x (N, F) in place."""
        return x.dtype in (self.real, torch.bfloat16) and x.stride(-1) == 1

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised matrix for results, of x's shape and, where it can be, of its type."""
        dtype = x.dtype if x.dtype == torch.bfloat16 else self.real
        return x.new_empty(x.shape, dtype=dtype)

    def matrix(self, x: Tensor) -> Matrix:
        """x (N, F), or a copy that fits, for native.c to read; what it writes fits at once."""
        x = x if self.fits(x) else x.to(self.real).contiguous()
        matrix = Matrix(x.data_ptr(), x.stride(0), x.dtype == torch.bfloat16)
        matrix.numbers = x  # they must live as long
        return matrix

    def _call(self, name: str, x: Tensor, features: slice, *arguments) -> None:
        """Calls a function of native.c that takes inputs x (N, F) and the knots of `features`."""
        outside = OUTSIDE.index(self.outside)
        at = self.knots[:, features].data_ptr()
        knots = Knots(at, self.knots.shape[1], self.grid.shape[1] - 1, outside)
        self.call(name, self.matrix(x), *x.shape, knots, *arguments)

    def call(self, name: str, *arguments: Tensor | int | ctypes.Structure) -> None:
        """Calls a function of native.c."""

        def passed(a):
            if isinstance(a, Tensor):
                return ctypes.c_void_p(a.data_ptr())
            return ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_long(a)

        getattr(self.library, name)(*(passed(a) for a in (*arguments, self.threads)))


class Groups:
    """The curves of `Curves` as native.c computes them: polynomials in each cell."""

    def __init__(self, x: Tensor, coef: Tensor, grid: Tensor, order: int, outside: str) -> None:
        self.splines = splines = Splines(x, grid, order, outside, torch.bfloat16)
        self.x, self.coef, self.library = x, coef, splines.library
        if self.library is None:
            return
        (groups, count), features = coef.shape, x.shape[1]
        self.cells = count + order if outside == "zero" else count - order
        room = features + LANES
        self.table = splines.grid.new_empty(self.cells * (order + 3) + 1, room)
        self.basis = coef.new_empty(groups, self.cells, order + 1, order + 1, dtype=torch.float64)
        splines.call(
            "curve_table", splines.grid.contiguous(), coef.to(splines.real).contiguous(), groups,
            features // groups, count, OUTSIDE.index(outside), self.table, room, self.basis,
        )  # fmt: skip

    def curves(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        """base (N, I) + the curves at x, in `dtype`."""
        real = dtype if dtype == torch.bfloat16 else self.splines.real
        out = torch.empty(self.x.shape, dtype=real)
        self._call("curves", self.splines.matrix(base), self.splines.matrix(out))
        return out.to(dtype)

    def backward(self, grad: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x, to which `base` (N, I) is added, and of coef, from that of `curves`."""
        splines, order = self.splines, self.splines.order
        # Rows in a part: equal parts for every thread, so few parts that adding them is little.
        rows = -(-max(len(self.x), 1) // (8 * (1 + len(self.x) // 8192)))
        out = splines.like(self.x)
        (groups, count), parts = self.coef.shape, -(-len(out) // rows)
        moments = self.table.new_zeros(parts, groups, out.shape[1] // groups, self.cells, order + 1)
        matrices = (splines.matrix(m) for m in (grad, base, out))
        self._call("curves_backward", *matrices, moments, rows)
        each = torch.einsum("gcp,gcjp->gcj", moments.sum((0, 2)).double(), self.basis)
        total = each.new_zeros(groups, count + 2 * order)
        first = 0 if splines.outside == "zero" else order
        for j in range(order + 1):
            total[:, first + j : first + j + self.cells] += each[..., j]
        return out.to(self.x.dtype), total[:, order : order + count].to(self.coef.dtype)

    def _call(self, name: str, *arguments) -> None:
        splines = self.splines
        outside = OUTSIDE.index(splines.outside)
        shape = *self.x.shape, self.table, self.table.shape[1], self.cells, outside
        splines.call(name, splines.matrix(self.x), *shape, *arguments)
