"""Kolmogorov-Arnold layers: a B-spline on every edge, at the cost of their matrix product.

    layer = KANLinear(64, 32)                     # y_o = sum_i [w_oi silu(x_i) + spline_oi(x_i)]
    y = layer(x)                                  # (..., 64) -> (..., 32)
    model = KAN([2, 5, 1], grid_size=5)           # layers in sequence

From "KAN: Kolmogorov-Arnold Networks" (arXiv 2404.19756). That all splines of an input are weighted
sums of the same few bases, so that the layer is one matrix product, is efficient-kan's observation;
its checkpoints load. What is different here:

- Between forward and backward only the input is kept; bases are computed again, chunk by chunk.
- Bases come from the knots as they are stored, uniform or not, by the local Cox-de Boor recursion:
  order + 1 of them per input, and no closed form that would hold for uniform knots only. On a CPU
  with a C compiler kan.c does this (KAN_COMPILE=0 forbids it), else the same lines in torch.
- Second and higher derivatives, forward-mode derivatives, vmap, torch.compile and torch.export take
  a plain path of differentiable torch operations.

Integers as input are converted to the layer's type; NaN gives NaN. Beyond [low, high] and at
infinity a spline does what `outside` says.

Letters in shape comments: N rows (all leading dimensions), I in_features, O out_features,
G grid_size, k spline_order, K = G + k bases of an edge.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

# Beyond [low, high] a spline tapers to zero over the extension, holds its value or goes straight.
OUTSIDE = ("zero", "held", "linear")
INITIALISATIONS = ("power", "glorot", "noise")


# --- Splines in torch ----------------------------------------------------------------------------


def padded_knots(grid: Tensor, order: int) -> Tensor:
    """Grid (I, G + 2k + 1) with k more knots on both sides, so that every cell has 2k neighbours.

    They belong to bases that do not exist: their values are never used, only the room.
    """
    count = torch.arange(1, order + 1, device=grid.device, dtype=grid.dtype)
    left = grid[:, :1] - count.flip(0) * (grid[:, 1:2] - grid[:, :1])
    right = grid[:, -1:] + count * (grid[:, -1:] - grid[:, -2:-1])
    return torch.cat([left, grid, right], 1)


def local_bases(x: Tensor, grid: Tensor, order: int, outside: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the k + 1 bases that differ from zero, their slopes, and the cells.

    x: (..., I), of the grid's type; grid: (I, G + 2k + 1), increasing. Values and slopes are
    (..., I, k + 1); base j of an input in cell c has the number c - k + j, of which only 0 to
    K - 1 exist. Differentiable in x any number of times. The NURBS Book, A2.2 and A2.3.
    """
    first = 0 if outside == "zero" else order
    last = grid.shape[1] - 1 - first
    low, high = grid[:, first], grid[:, last]
    # Knots that repeat the last one begin no cell.
    inner = torch.where(grid < high[:, None], grid, math.inf)[:, first + 1 : last]
    cell = torch.full_like(x, first, dtype=torch.int32)  # (..., I)
    for knot in inner.unbind(1):  # half the time of one comparison with all knots and a sum
        cell = cell + (x.detach() >= knot)
    cell = cell.long()

    # Knots c - k + 1 to c + k of the cell, looked up as rows of a table.
    near = ()
    if order:
        table = padded_knots(grid, order).unfold(1, 2 * order, 1)  # (I, cells + 2, 2k)
        offset = torch.arange(x.shape[-1], device=x.device) * table.shape[1]
        near = F.embedding(cell + 1 + offset, table.flatten(0, 1)).unbind(-1)

    at = torch.clamp(x, low, high)  # NaN stays
    values, slopes = [1 + 0 * at], [0 * at]
    left = [None, *(at - near[order - p] for p in range(1, order + 1))]
    right = [None, *(near[order - 1 + p] - at for p in range(1, order + 1))]
    for p in range(1, order + 1):
        saved, before = 0, 0
        previous, values, slopes = values, [], []
        for r in range(p):
            part = previous[r] / (right[r + 1] + left[p - r])
            values.append(saved + right[r + 1] * part)
            slopes.append(p * (before - part))
            saved, before = left[p - r] * part, part
        values.append(saved)
        slopes.append(p * before)
    values, slopes = torch.stack(values, -1), torch.stack(slopes, -1)
    if outside == "linear":
        # The detour by `at` has slope 0 out there and 1 inside, so derivatives come out right.
        values = values + (x - at).unsqueeze(-1) * slopes
    else:
        beyond = ((x < low) | (x > high)).unsqueeze(-1)
        slopes = slopes.masked_fill(beyond, 0)
        if outside == "zero":
            values = values.masked_fill(beyond, 0)
    return values, slopes, cell


def dense_bases(x: Tensor, grid: Tensor, order: int, outside: str) -> Tensor:
    """Returns all bases, (..., I) -> (..., I, K)."""
    values, _, cell = local_bases(x, grid, order, outside)
    return among_all(values, cell, grid.shape[1] - 1 - order)


def among_all(values: Tensor, cell: Tensor, count: int) -> Tensor:
    """The values of all `count` bases from those of the k + 1 in each cell, (..., I, count)."""
    order = values.shape[-1] - 1
    index = cell.unsqueeze(-1) + torch.arange(order + 1, device=cell.device)
    wide = values.new_zeros(*cell.shape, count + 2 * order)  # room for those that do not exist
    return wide.scatter(-1, index, values)[..., order : order + count]


# --- Splines in C --------------------------------------------------------------------------------

REALS = {
    torch.float32: "-DREAL=float -DWHOLE=int32_t -DSIZE=4",
    torch.float64: "-DREAL=double -DWHOLE=int64_t -DSIZE=8",
}
LANES = 16  # the widest vector of kan.c, in numbers: tables have this much room behind them
# Fewer inputs than the first are not worth the calls, and than the second not worth starting a
# compiler that takes a second, once per machine.
COMPILED_FROM, COMPILE_FROM = 1 << 14, 1 << 18


def compiled(order: int, real: torch.dtype, inputs: int) -> ctypes.CDLL | None:
    """Returns kan.c compiled for an order and a type; None if that can't be, or isn't worth it."""
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
        source = Path(__file__).with_name("kan.c")
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
        """The table of knots that kan.c wants."""
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
        """torch is slow to broadcast over so short an axis; kan.c wants one type and no gaps."""
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
        """Whether kan.c can read and write x (N, F) in place."""
        return x.dtype in (self.real, torch.bfloat16) and x.stride(-1) == 1

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised matrix for results, of x's shape and, where it can be, of its type."""
        dtype = x.dtype if x.dtype == torch.bfloat16 else self.real
        return x.new_empty(x.shape, dtype=dtype)

    def matrix(self, x: Tensor) -> Matrix:
        """x (N, F), or a copy that fits, for kan.c to read; what it writes fits from the start."""
        x = x if self.fits(x) else x.to(self.real).contiguous()
        matrix = Matrix(x.data_ptr(), x.stride(0), x.dtype == torch.bfloat16)
        matrix.numbers = x  # they must live as long
        return matrix

    def _call(self, name: str, x: Tensor, features: slice, *arguments) -> None:
        """Calls a function of kan.c that takes inputs x (N, F) and the knots of `features`."""
        outside = OUTSIDE.index(self.outside)
        at = self.knots[:, features].data_ptr()
        knots = Knots(at, self.knots.shape[1], self.grid.shape[1] - 1, outside)
        self.call(name, self.matrix(x), *x.shape, knots, *arguments)

    def call(self, name: str, *arguments: Tensor | int | ctypes.Structure) -> None:
        """Calls a function of kan.c."""

        def passed(a):
            if isinstance(a, Tensor):
                return ctypes.c_void_p(a.data_ptr())
            return ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_long(a)

        getattr(self.library, name)(*(passed(a) for a in (*arguments, self.threads)))


# --- Products that keep only their input ---------------------------------------------------------

# A chunk of bases should stay in the last cache, yet be wide enough for an efficient product.
CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 2048
# Up to so many outputs only the bases that differ from zero are multiplied, one input at a time.
NARROW = 64


def pieces(length: int, most: int) -> Iterator[slice]:
    """Cuts range(length) into the fewest slices of at most `most` each, nearly equal."""
    size = -(-length // max(1, -(-length // max(1, most))))
    for start in range(0, length, max(1, size)):
        yield slice(start, min(start + size, length))


def chunks(x: Tensor, bytes_per_input: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yields slices of features with the slices of rows to go through for each."""
    rows = list(pieces(len(x), CHUNK_ROWS))
    most = CHUNK_BYTES // (bytes_per_input * (rows[0].stop if rows else 1))
    for features in pieces(x.shape[1], max(16, most)):
        yield features, rows


def wants_plain_path(x: Tensor) -> bool:
    """Whether something traces or transforms what we do, which only torch operations allow."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or x.is_meta
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type in which autocast or, without it, the weights want to be multiplied."""
    if x.is_meta or weight.dtype == torch.float64:
        return weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype


def plain_spline(x, weight, scaler, grid, order, outside, dtype) -> Tensor:
    """What `SplineProduct` computes, by operations that torch can trace and differentiate."""
    real = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    bases = dense_bases(x.to(real), grid.to(real), order, outside).flatten(-2)
    return F.linear(bases.to(dtype), scaled(weight, scaler).flatten(1).to(dtype))


def scaled(weight: Tensor, scaler: Tensor | None) -> Tensor:
    """Coefficients (O, I, K) times one factor (O, I) per edge, where there is one."""
    return weight if scaler is None else weight * scaler.unsqueeze(-1)


def differentiable(function: Callable, inputs: tuple, grad: Tensor) -> list[Tensor | None]:
    """Gradients of function(*inputs); a graph of their own where higher derivatives are wanted."""
    higher = torch.is_grad_enabled()
    # Aliases cut off what the inputs may have to do with each other.
    with torch.enable_grad():
        inputs = [v.view_as(v) if v is not None else None for v in inputs]
        wanted = [v for v in inputs if v is not None and v.requires_grad]
        result = function(*inputs)
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=higher))
    return [next(found) if v is not None and v.requires_grad else None for v in inputs]


class SplineProduct(torch.autograd.Function):
    """Adds the spline term to `out` in place: out_no += sum_ij B_j(x_ni) scaler_oi weight_oij.

    out (N, O), x (N, I), weight (O, I, K), scaler (O, I) or None. Keeps x and the parameters.
    """

    @staticmethod
    def forward(ctx, out, x, weight, scaler, grid, order, outside):
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, weight, scaler, grid)
        ctx.order, ctx.outside, ctx.dtype = order, outside, out.dtype
        splines = Splines(x, grid, order, outside, out.dtype)
        if splines.takes(len(weight)):
            return out.add_(splines.product(x, scaled(weight, scaler)))
        for features, rows in chunks(x, splines.count * out.element_size()):
            columns = splines.scaled(weight, scaler, features)
            for row in rows:
                out[row].addmm_(splines.bases(x[row, features], features), columns.t())
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, scaler, grid = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x, weight, scaler):
                return plain_spline(x, weight, scaler, grid, ctx.order, ctx.outside, ctx.dtype)

            return grad, *differentiable(plain, (x, weight, scaler), grad), None, None, None
        splines = Splines(x, grid, ctx.order, ctx.outside, ctx.dtype)
        _, want_x, want_weight, want_scaler, *_ = ctx.needs_input_grad
        if splines.takes(len(weight)):
            grad_x, grad_weight = splines.product_backward(x, scaled(weight, scaler), grad)
            grad_weight, grad_scaler = grad_weight.to(weight.dtype), None
            if scaler is not None:
                grad_scaler = (grad_weight * weight).sum(-1)
                grad_weight = grad_weight * scaler.unsqueeze(-1)
            return grad, grad_x.to(x.dtype), grad_weight, grad_scaler, None, None, None
        # Not empty_like, which would keep the strides of something transposed.
        grad_x = x.new_empty(x.shape) if want_x else None
        grad_weight = weight.new_empty(weight.shape) if want_weight or want_scaler else None
        grad_scaler = scaler.new_empty(scaler.shape) if want_scaler else None
        for features, rows in chunks(x, splines.count * grad.element_size()):
            columns = splines.scaled(weight, scaler, features)
            for number, row in enumerate(rows):
                g, part = grad[row], x[row, features]
                if grad_weight is not None:
                    bases = splines.bases(part, features)
                    add_product(grad_weight[:, features].flatten(1), g.t(), bases, number > 0)
                if want_x:
                    # In the place of the bases, which have had their turn.
                    to = splines.buffer("bases", len(g), columns.shape[1])
                    torch.mm(g, columns, out=to)
                    splines.slopes(part, to, grad_x[row, features], features)
            if scaler is not None and grad_weight is not None:
                splines.scaled_backward(weight, scaler, features, grad_weight, grad_scaler)
        return grad, grad_x, grad_weight if want_weight else None, grad_scaler, None, None, None


def add_product(out: Tensor, a: Tensor, b: Tensor, more: bool) -> None:
    """out = a @ b, or out += a @ b if there is `more` than the first part, in out's type."""
    if out.dtype != a.dtype:
        product = a @ b
        out.add_(product) if more else out.copy_(product)
    elif more:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


class BaseProduct(torch.autograd.Function):
    """linear(activation(x), weight, bias) that keeps x and not the activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, activation, dtype):
        ctx.save_for_backward(x, weight, bias)
        ctx.activation, ctx.dtype = activation, dtype
        bias = bias if bias is None else bias.to(dtype)
        return F.linear(activation(x).to(dtype), weight.to(dtype), bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x, weight, bias):
                bias = bias if bias is None else bias.to(ctx.dtype)
                return F.linear(ctx.activation(x).to(ctx.dtype), weight.to(ctx.dtype), bias)

            return *differentiable(plain, (x, weight, bias), grad), None, None
        want_x, want_weight, want_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if want_x:
            grad_x = activation_backward(ctx.activation, x, grad @ weight.to(ctx.dtype))
        if want_weight:
            grad_weight = (grad.t() @ ctx.activation(x).to(ctx.dtype)).to(weight)
        grad_bias = grad.sum(0, dtype=bias.dtype) if want_bias else None
        return grad_x, grad_weight, grad_bias, None, None


class Curves(torch.autograd.Function):
    """activation(x) + one spline for each group of features, x (N, I), coef (groups, K).

    Keeps x and coef.
    """

    @staticmethod
    def forward(ctx, x, coef, grid, order, outside, activation, dtype):
        ctx.save_for_backward(x, coef, grid)
        ctx.order, ctx.outside, ctx.activation, ctx.dtype = order, outside, activation, dtype
        groups = Groups(x, coef, grid, order, outside)
        if groups.library is None:
            return plain_curves(x, coef, grid, order, outside, activation, dtype)
        return groups.curves(activation(x), dtype)

    @staticmethod
    def backward(ctx, grad):
        x, coef, grid = ctx.saved_tensors
        groups = Groups(x, coef, grid, ctx.order, ctx.outside)
        if torch.is_grad_enabled() or groups.library is None:

            def plain(x, coef):
                shape = grid, ctx.order, ctx.outside
                return plain_curves(x, coef, *shape, ctx.activation, ctx.dtype)

            return *differentiable(plain, (x, coef), grad), *[None] * 5
        return *groups.backward(grad, activation_backward(ctx.activation, x, grad)), *[None] * 5


class Groups:
    """The curves of `Curves` as kan.c computes them: polynomials in each cell."""

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


def plain_curves(x, coef, grid, order, outside, activation, dtype) -> Tensor:
    """What `Curves` computes, by operations that torch can trace and differentiate."""
    real = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    size = x.shape[-1] // len(coef)
    grid, coef = (v.to(real).repeat_interleave(size, 0) for v in (grid, coef))
    bases = dense_bases(x.to(real), grid, order, outside)
    return (activation(x) + (bases * coef).sum(-1)).to(dtype)


def activation_backward(activation: nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x from that of activation(x), without computing this again where possible."""
    if isinstance(activation, nn.Identity):
        return grad
    grad = grad.to(x.dtype)
    if type(activation) is nn.GELU:
        return torch.ops.aten.gelu_backward(grad, x, approximate=activation.approximate)
    if type(activation) is nn.SiLU:
        return torch.ops.aten.silu_backward(grad, x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(activation(x), x, grad)[0]


# --- Layers --------------------------------------------------------------------------------------


class SplineLayer(nn.Module):
    """What KANLinear and GroupKANLinear share: a grid of knots per curve, and a base function.

    grid: (curves, G + 2k + 1), float32 or float64 also where the weights are narrower.
    """

    def __init__(
        self, in_features, out_features, curves, grid_size, spline_order, base_activation,
        grid_range, bias, scale_noise, outside,
    ) -> None:  # fmt: skip
        super().__init__()
        positive = {"in_features": in_features, "out_features": out_features}
        for name, value in (positive | {"grid_size": grid_size}).items():
            if value != int(value) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, got {value}")
        if spline_order != int(spline_order) or spline_order < 0:
            raise ValueError(f"spline_order must be a whole number from 0 on, got {spline_order}")
        if len(grid_range) != 2 or not grid_range[0] < grid_range[1]:
            raise ValueError(f"grid_range must be (low, high), low below high, got {grid_range}")
        if not math.isfinite(grid_range[1] - grid_range[0]):
            raise ValueError(f"grid_range must be finite, got {grid_range}")
        if outside not in OUTSIDE:
            raise ValueError(f"outside must be one of {', '.join(OUTSIDE)}, got {outside!r}")
        if scale_noise < 0:
            raise ValueError(f"scale_noise must not be negative, got {scale_noise}")
        self.in_features, self.out_features, self.curves = in_features, out_features, curves
        self.grid_size, self.spline_order = grid_size, spline_order
        self.grid_range, self.outside = tuple(grid_range), outside
        self.scale_noise = scale_noise
        self.base_activation = base_activation()
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.register_buffer("grid", self.build_grid())

    @property
    def bases_per_edge(self) -> int:
        return self.grid_size + self.spline_order

    def build_grid(self, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Returns uniform knots on [low, high] (curves,), default `grid_range`, and k beyond."""
        if low is None:
            real = torch.promote_types(torch.get_default_dtype(), torch.float32)
            low, high = (torch.full((self.curves,), float(v), dtype=real) for v in self.grid_range)
        k, g = self.spline_order, self.grid_size
        if low.is_meta:  # torch would import its compiler (2 s) to compute nothing
            return low.new_empty(self.curves, g + 2 * k + 1)
        steps = torch.arange(-k, g + k + 1, dtype=torch.float64) / g  # on the CPU: MPS has none
        first, last = low.cpu().unsqueeze(1), high.cpu().unsqueeze(1)
        # This form gives low and high exactly, where low + step * (high - low) / g may not.
        return (first * (1 - steps) + last * steps).to(low)

    @property
    def low(self) -> Tensor:
        return self.grid[:, self.spline_order]

    @property
    def high(self) -> Tensor:
        return self.grid[:, self.grid_size + self.spline_order]

    def spline_parameters(self) -> Iterator[Tensor]:
        """The parameters whose last axis counts bases, and on which a change of grid acts."""
        raise NotImplementedError

    def per_curve(self, x: Tensor) -> Tensor:
        """(..., I) -> (N, curves): the inputs of each curve, one below the other."""
        raise NotImplementedError

    @property
    def splines_are_zero(self) -> bool:
        return not any(bool(p.any()) for p in self.spline_parameters())

    def checked(self, x: Tensor) -> Tensor:
        """The input as the layer can use it. Raises ValueError for another number of features."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the layer takes {self.in_features} features in the last dimension, got an input "
                f"of shape {tuple(x.shape)}"
            )
        return x if x.is_floating_point() else x.to(self.base_weight.dtype)

    def may_fuse(self, x: Tensor) -> bool:
        """Whether functions of our own may compute the base function, and again for backward."""
        return not wants_plain_path(x) and next(self.base_activation.parameters(), None) is None

    def linear(self, x: Tensor) -> Tensor:
        """The base term (N, I) -> (N, O)."""
        if self.may_fuse(x) and not isinstance(self.base_activation, nn.Identity):
            dtype = product_dtype(x, self.base_weight)
            return BaseProduct.apply(x, self.base_weight, self.bias, self.base_activation, dtype)
        return F.linear(self.base_activation(x), self.base_weight, self.bias)

    @torch.no_grad()
    def coverage(self, x: Tensor) -> float:
        """The share of the values of x (..., I) that lie within [low, high] of their feature."""
        x = self.per_curve(self.checked(x))
        return ((x >= self.low) & (x <= self.high)).sum().item() / max(1, x.numel())

    @torch.no_grad()
    def set_range(self, low: Tensor | float, high: Tensor | float) -> None:
        """Sets uniform knots on [low, high], numbers or one for each curve.

        The splines keep their values where the new grid can represent them.
        Raises ValueError where low is not below high.
        """
        low, high = (
            torch.as_tensor(v, dtype=self.grid.dtype, device=self.grid.device).expand(self.curves)
            for v in (low, high)
        )
        if not bool((low < high).all()) or not bool(torch.isfinite(high - low).all()):
            raise ValueError(
                "set_range: low must be below high, and both finite, for every feature"
            )
        self._regrid(self.build_grid(low, high))

    @torch.no_grad()
    def refine(self, grid_size: int) -> None:
        """Grid extension: the same function on [low, high] with `grid_size` cells.

        Exact where the new knots contain the old ones (grid_size a multiple of the old one), the
        best approximation elsewhere. New knots divide the old cells as evenly as the old ones did.
        """
        if grid_size != int(grid_size) or grid_size < 1:
            raise ValueError(f"grid_size must be a whole number from 1 on, got {grid_size}")
        k, old = self.spline_order, self.grid.double()
        inner = old[:, k : k + self.grid_size + 1]
        position = torch.arange(grid_size + 1, device=old.device) * self.grid_size
        cell = (position // grid_size).clamp(max=self.grid_size - 1)
        part = (position - cell * grid_size) / grid_size
        inner = inner[:, cell] * (1 - part) + inner[:, cell + 1] * part
        self._regrid(padded_knots(inner, k).to(self.grid.dtype))

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        """Moves the knots to where the inputs x (..., I) are and keeps the function.

        Knots follow the quantiles of x, mixed with `grid_eps` of uniform ones, on a range `margin`
        wider than that of x. In a distributed run the samples of all processes count.
        """
        x = _everywhere(self.per_curve(self.checked(x)).to(self.grid.dtype))
        x = x[torch.isfinite(x).all(1)]
        if not len(x):
            return
        ranked = x.double().sort(0).values
        low, high = ranked[0], ranked[-1]
        # A constant feature still needs knots that its type can tell apart.
        room = torch.maximum(torch.full_like(low, margin), 1e-3 * torch.maximum(-low, high).abs())
        room = torch.where((high - low) > 2e-3 * torch.maximum(-low, high).abs(), margin, room)
        low, high = low - room.clamp_min(1e-6), high + room.clamp_min(1e-6)
        share = torch.linspace(0, 1, self.grid_size + 1, device=x.device, dtype=torch.float64)
        place = share * (len(x) - 1)
        below = place.long()
        part = (place - below)[:, None]
        above = (below + 1).clamp(max=len(x) - 1)
        adaptive = ranked[below] * (1 - part) + ranked[above] * part  # (G + 1, curves)
        adaptive[0], adaptive[-1] = low, high
        uniform = low + share[:, None] * (high - low)
        inner = self.grid_eps * uniform + (1 - self.grid_eps) * adaptive
        step = (high - low) / self.grid_size
        count = torch.arange(1, self.spline_order + 1, device=x.device)[:, None]
        grid = torch.cat([low - count.flip(0) * step, inner, high + count * step])
        self._regrid(grid.t().to(self.grid.dtype).contiguous(), x)

    def _regrid(self, grid: Tensor, samples: Tensor | None = None) -> None:
        """Puts another grid in place and carries the splines over."""
        size = grid.shape[1] - 1 - 2 * self.spline_order
        if not self.splines_are_zero:
            change = change_of_grid(self.grid, grid, self.spline_order, self.outside, samples)
            for p in self.spline_parameters():
                moved = torch.einsum("cnk,...ck->...cn", change, p.double())
                p.data = moved.to(p.dtype).contiguous()  # LBFGS takes views of gradients
        elif size != self.grid_size:
            for p in self.spline_parameters():
                # Of low rank only `spline_up` is zero: with both factors zero neither would ever
                # get a gradient, so the other one is drawn anew in the size that it had.
                deviation = p.square().mean().sqrt().item()
                p.data = p.new_empty(*p.shape[:-1], size + self.spline_order).normal_(0, deviation)
        self.grid_size = size
        if grid.shape == self.grid.shape:
            self.grid.copy_(grid)
        else:
            self.grid = grid

    def _apply(self, fn, recurse=True):
        grid = self.grid
        super()._apply(fn, recurse)
        if self.grid.dtype not in (torch.float32, torch.float64):  # .to(bfloat16) spares the knots
            self.grid = grid.to(self.grid.device, torch.promote_types(grid.dtype, torch.float32))
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Takes over the grid size of what is loaded."""
        grid = state_dict.get(f"{prefix}grid")
        if grid is not None and grid.ndim == 2 and grid.shape != self.grid.shape:
            size = grid.shape[1] - 1 - 2 * self.spline_order
            if size >= 1 and len(grid) == len(self.grid):
                self.grid = self.grid.new_empty(grid.shape)
                for p in self.spline_parameters():
                    p.data = p.new_empty(*p.shape[:-1], size + self.spline_order)
                self.grid_size = size
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"grid_size={self.grid_size}, spline_order={self.spline_order}, "
            f"outside={self.outside!r}, bias={self.bias is not None}"
        )


def change_of_grid(
    old: Tensor, new: Tensor, order: int, outside: str, samples: Tensor | None = None
) -> Tensor:
    """Returns matrices (curves, K_new, K_old) that carry coefficients from one grid to another.

    The least-squares fit of the old bases by the new ones at k + 1 points in each new cell, which
    determine it, and at samples (N, curves), which weigh far more. It depends on no coefficient,
    so that one small matrix serves all edges of an input; and is exact where the old splines are
    also splines on the new grid.
    """
    old, new = old.double(), new.double()
    inner = new[:, order : new.shape[1] - order]
    part = (torch.arange(order + 1, device=new.device, dtype=torch.float64) + 0.5) / (order + 1)
    points = inner[:, :-1, None] * (1 - part) + inner[:, 1:, None] * part  # (curves, G, k + 1)
    points = points.flatten(1).t()

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = dense_bases(x, new, order, outside), dense_bases(x, old, order, outside)
        return torch.einsum("ncj,nck->cjk", a, a), torch.einsum("ncj,nck->cjk", a, b)

    gram, mixed = moments(points)
    if samples is not None:
        weight = 1e6 * len(points) / len(samples)
        for rows in pieces(len(samples), 1024):
            more = moments(samples[rows].double())
            gram, mixed = gram + weight * more[0], mixed + weight * more[1]
    return torch.linalg.solve(gram, mixed)


def _everywhere(x: Tensor) -> Tensor:
    """x (N, C) of all processes of a distributed run, one below the other."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, x.cpu())
    return torch.cat(parts).to(x.device)


def penalty(coefficients: Tensor, activation: float, entropy: float) -> Tensor:
    """Weighted L1 norm and entropy of curves with coefficients (..., K); finite at zero."""
    size = coefficients.abs().mean(-1)
    total = size.sum()
    tiny = torch.finfo(size.dtype).tiny
    share = size / total.clamp_min(1e-12)
    return activation * total - entropy * (share * share.clamp_min(tiny).log()).sum()


class KANLinear(SplineLayer):
    """y_o = b_o + sum_i [base_oi activation(x_i) + scaler_oi sum_j spline_oij B_j(x_i)].

    in_features, out_features: sizes of the last dimension, input and output.
    grid_size: cells of [low, high]; spline_order: degree of the splines, 0 to 5 and beyond.
    scale_base, scale_spline: factors on the initial size of the two terms.
    enable_standalone_scale_spline: one more learned factor per edge (`spline_scaler`).
    grid_eps: share of uniform knots that `update_grid` mixes in. grid_range: (low, high).
    scale_noise: size of the initial splines of the "noise" scheme; 0 makes splines zero in all.
    spline_rank: R makes the coefficients `spline_up` (O, R) times `spline_down` (R, I, K).
    outside: "zero", "held" or "linear", what a spline does beyond [low, high].
    init: the scheme of `initialize_weights`.

    Raises ValueError for sizes below 1, an order below 0 and an empty range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: tuple[float, float] = (-1, 1),
        *,
        scale_noise: float = 0.1,
        bias: bool = False,
        spline_rank: int | None = None,
        outside: str = "zero",
        init: str = INITIALISATIONS[0],
    ) -> None:
        super().__init__(
            in_features, out_features, in_features, grid_size, spline_order, base_activation,
            grid_range, bias, scale_noise, outside,
        )  # fmt: skip
        if not 0 < grid_eps <= 1:
            raise ValueError(f"grid_eps must lie in (0, 1], got {grid_eps}")
        if init not in INITIALISATIONS:
            raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, got {init!r}")
        if spline_rank is not None and (spline_rank != int(spline_rank) or spline_rank < 1):
            raise ValueError(f"spline_rank must be None or from 1 on, got {spline_rank}")
        self.scale_base, self.scale_spline = scale_base, scale_spline
        self.grid_eps, self.init, self.spline_rank = grid_eps, init, spline_rank
        coefficients = (in_features, self.bases_per_edge)
        if spline_rank is None:
            self.spline_weight = nn.Parameter(torch.empty(out_features, *coefficients))
        else:  # a factor per edge would undo the rank
            self.spline_up = nn.Parameter(torch.empty(out_features, spline_rank))
            self.spline_down = nn.Parameter(torch.empty(spline_rank, *coefficients))
        scaler = None
        if enable_standalone_scale_spline and spline_rank is None:
            scaler = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("spline_scaler", scaler)
        self.initialize_weights()

    @property
    def enable_standalone_scale_spline(self) -> bool:
        return self.spline_scaler is not None

    def spline_parameters(self) -> Iterator[Tensor]:
        yield self.spline_weight if self.spline_rank is None else self.spline_down

    @property
    def splines_are_zero(self) -> bool:
        matters = self.spline_weight if self.spline_rank is None else self.spline_up
        return not bool(matters.any())

    def per_curve(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.in_features)

    def reset_parameters(self) -> None:
        """Knots and weights anew, for instance after construction on the meta device."""
        self.grid.copy_(self.build_grid().to(self.grid))
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draws the weights by the scheme `init`.

        noise: the KAN paper's, base weights as those of nn.Linear and splines through noise of
            size scale_noise / G at the knots.
        glorot: all K + 1 terms of an edge carry the same share of a variance that is kept forward
            and backward (arXiv 2509.03417, eq. 9).
        power: coefficients (I (K + 1))^-1.75, the power law of the same paper; base weights that
            keep the variance. The paper's (I (K + 1))^-0.25 does so for widths near 64 only.
        """
        if self.base_weight.is_meta:
            return
        if self.bias is not None:
            self.bias.zero_()
        base, spline = self._standard_deviations()
        self.base_weight.normal_(0, self.scale_base * base)
        scale = self.scale_spline if self.scale_noise else 0.0
        if self.spline_scaler is not None:
            self.spline_scaler.fill_(self.scale_spline)
            scale = 1.0 if self.scale_noise else 0.0
        if self.spline_rank is not None:
            # The rank-wide result has unit size; `spline_up` alone sets the splines'.
            self.spline_down.normal_(0, self.in_features**-0.5)
            self.spline_up.normal_(0, scale * spline * (self.in_features / self.spline_rank) ** 0.5)
        elif self.init == "noise":
            self.spline_weight.copy_(scale * self._noise())
        else:
            self.spline_weight.normal_(0, scale * spline)

    def _standard_deviations(self) -> tuple[float, float]:
        """Of base weights and coefficients, for inputs of a standard normal distribution."""
        terms = self.bases_per_edge + 1
        if self.init == "noise":
            return (3 * self.in_features) ** -0.5, 0.3 * self.scale_noise / self.grid_size
        grid = self.grid[:1].cpu().double()
        z = torch.linspace(0, 1, 1002, dtype=torch.float64, device="cpu")[1:-1, None]
        z = math.sqrt(2) * torch.erfinv(2 * z - 1)  # quantiles of the normal distribution
        bases, slopes, _ = local_bases(z, grid, self.spline_order, self.outside)
        with torch.enable_grad():
            z.requires_grad_()
            active = self.base_activation(z)
            (rise,) = torch.autograd.grad(active.sum(), z)

        def deviation(value: Tensor, slope: Tensor, number: int) -> float:
            forward = self.in_features * value.square().sum().item() / number / len(z)
            backward = self.out_features * slope.square().sum().item() / number / len(z)
            return (2 / terms / (forward + backward)) ** 0.5

        if self.init == "power":
            keeping = (self.in_features * active.square().mean().item()) ** -0.5
            return keeping, (self.in_features * terms) ** -1.75
        return deviation(active, rise, 1), deviation(bases, slopes, self.bases_per_edge)

    def _noise(self) -> Tensor:
        """Coefficients of splines through noise at the G + 1 inner knots, (O, I, K)."""
        grid = self.grid[:1].double()
        k, g = self.spline_order, self.grid_size
        bases = dense_bases(grid[:, k : k + g + 1].t(), grid, k, self.outside)[:, 0]  # (G + 1, K)
        solution = torch.linalg.pinv(bases).to(self.spline_weight.dtype)  # one for all edges
        noise = self.spline_weight.new_empty(*self.spline_weight.shape[:2], g + 1)
        return noise.uniform_(-0.5, 0.5) * (self.scale_noise / g) @ solution.t()

    def b_splines(self, x: Tensor) -> Tensor:
        """Returns all bases at x, (..., I) -> (..., I, K), in float32 or float64."""
        x = self.checked(x)
        real = torch.promote_types(torch.promote_types(x.dtype, self.grid.dtype), torch.float32)
        return dense_bases(x.to(real), self.grid.to(real), self.spline_order, self.outside)

    calculate_b_spline_bases = b_splines

    @torch.no_grad()
    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """Least-squares coefficients (O, I, K) of curves through y (N, I, O) at x (N, I).

        Of all solutions the smallest, where samples repeat or are too few.
        """
        bases = self.b_splines(x).double()
        gram = torch.einsum("nij,nik->ijk", bases, bases)
        right = torch.einsum("nij,nio->ijo", bases, y.double())
        solution = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ right  # (I, K, O)
        return solution.permute(2, 0, 1).to(y.dtype).contiguous()

    @property
    def scaled_spline_weight(self) -> Tensor:
        """The coefficients of all edges, (O, I, K), whatever they are made of."""
        if self.spline_rank is not None:
            return torch.einsum("or,rij->oij", self.spline_up, self.spline_down)
        return scaled(self.spline_weight, self.spline_scaler)

    def compute_base_output(self, x: Tensor) -> Tensor:
        """The base term with bias, (..., I) -> (..., O)."""
        x = self.checked(x)
        return self.linear(x.reshape(-1, self.in_features)).reshape(
            *x.shape[:-1], self.out_features
        )

    def compute_spline_output(self, x: Tensor) -> Tensor:
        """The spline term, (..., I) -> (..., O)."""
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)
        dtype = product_dtype(x, self.base_weight)
        out = rows.new_zeros(rows.shape[0], self.out_features, dtype=dtype)
        return self._add_splines(out, rows).reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)  # (..., I) -> (N, I)
        return self._add_splines(self.linear(rows), rows).reshape(*x.shape[:-1], self.out_features)

    def _add_splines(self, out: Tensor, x: Tensor) -> Tensor:
        """out + the spline term; out (N, O) may be overwritten."""
        if self.spline_rank is None:
            return self._add_product(out, x, self.spline_weight, self.spline_scaler)
        inner = out.new_zeros(x.shape[0], self.spline_rank)
        inner = self._add_product(inner, x, self.spline_down, None)  # (N, R)
        return torch.addmm(out, inner, self.spline_up.t().to(inner.dtype))

    def _add_product(self, out, x, weight, scaler) -> Tensor:
        shape = self.grid, self.spline_order, self.outside
        if wants_plain_path(x):
            return out + plain_spline(x, weight, scaler, *shape, out.dtype)
        return SplineProduct.apply(out, x, weight, scaler, *shape)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """L1 and entropy of the edges (arXiv 2404.19756, eqs. 2.17 to 2.20) from weights alone.

        The paper takes the mean |spline| over samples; the mean |coefficient| bounds it from above.
        """
        return penalty(self.scaled_spline_weight, regularize_activation, regularize_entropy)

    def edge_activations(self, x: Tensor) -> Tensor:
        """Each edge's own output, (..., I) -> (..., O, I); summed over I, the layer's without bias.

        Needs no more memory than its result: features are worked on in groups.
        """
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)
        result = []
        for features in pieces(self.in_features, max(1, CHUNK_BYTES // (4 * len(rows) + 1) // 8)):
            grid = self.grid[features]
            bases = dense_bases(
                rows[:, features].to(grid.dtype), grid, self.spline_order, self.outside
            )
            weight = self.scaled_spline_weight[:, features]
            result.append(torch.einsum("nij,oij->noi", bases.to(weight.dtype), weight))
        base = self.base_activation(rows).unsqueeze(1) * self.base_weight
        return (base + torch.cat(result, -1)).reshape(*x.shape[:-1], *self.base_weight.shape)

    @torch.no_grad()
    def compress(self, rank: int) -> tuple["KANLinear", float]:
        """Returns the layer with coefficients of rank `rank`, and the relative error of these.

        The error is that of the best approximation (Eckart and Young), in the Frobenius norm.
        """
        low_rank = KANLinear(
            self.in_features, self.out_features, self.grid_size, self.spline_order,
            self.scale_base, self.scale_spline, False, lambda: self.base_activation, self.grid_eps,
            self.grid_range, bias=self.bias is not None, spline_rank=rank, outside=self.outside,
        ).to(self.base_weight)  # fmt: skip
        weight = self.scaled_spline_weight.double().flatten(1)  # (O, I * K)
        # Eigenvectors of the small Gram matrix are the left singular vectors, at a small price.
        _, vectors = torch.linalg.eigh(weight @ weight.t())
        up = vectors.flip(1)[:, :rank]
        down = up.t() @ weight
        low_rank.grid = self.grid.clone()
        low_rank.base_weight.copy_(self.base_weight)
        if self.bias is not None:
            low_rank.bias.copy_(self.bias)
        low_rank.spline_up.zero_()[:, : up.shape[1]] = up
        low_rank.spline_down.zero_()[: len(down)] = down.unflatten(1, (self.in_features, -1))
        error = (weight - up @ down).norm() / weight.norm().clamp_min(1e-300)
        return low_rank, error.item()


class GroupKANLinear(SplineLayer):
    """y = base_weight (activation(x) + spline_group(x)) + bias: one spline per group of features.

    Features are divided into `groups` runs of equal length; `spline_weight` (groups, K) and `grid`
    (groups, G + 2k + 1) belong to the groups. The idea of the Kolmogorov-Arnold Transformer (arXiv
    2409.10594) with B-splines in place of rational functions, at about the cost of nn.Linear.
    Raises ValueError where `groups` does not divide in_features.
    """

    grid_eps = 0.02

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 8,
        grid_size: int = 5,
        spline_order: int = 3,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_range: tuple[float, float] = (-1, 1),
        *,
        bias: bool = True,
        scale_noise: float = 0.1,
        outside: str = "linear",
    ) -> None:
        if groups < 1 or in_features % groups:
            raise ValueError(f"groups must divide in_features {in_features}, got {groups}")
        super().__init__(
            in_features, out_features, groups, grid_size, spline_order, base_activation, grid_range,
            bias, scale_noise, outside,
        )  # fmt: skip
        self.groups = groups
        self.spline_weight = nn.Parameter(torch.empty(groups, self.bases_per_edge))
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Base weights and bias as nn.Linear's, coefficients of deviation `scale_noise`."""
        if self.base_weight.is_meta:
            return
        bound = self.in_features**-0.5
        self.base_weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)
        self.spline_weight.normal_(0, self.scale_noise)

    def reset_parameters(self) -> None:
        """Knots and weights anew, for instance after construction on the meta device."""
        self.grid.copy_(self.build_grid().to(self.grid))
        self.initialize_weights()

    def spline_parameters(self) -> Iterator[Tensor]:
        yield self.spline_weight

    def per_curve(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.groups, -1)).transpose(-1, -2).reshape(-1, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        rows = x.reshape(-1, self.in_features)  # (..., I) -> (N, I)
        curves = Curves.apply if self.may_fuse(x) else plain_curves
        dtype = product_dtype(x, self.base_weight)
        shape = self.grid, self.spline_order, self.outside
        rows = curves(rows, self.spline_weight, *shape, self.base_activation, dtype)
        return F.linear(rows, self.base_weight, self.bias).reshape(*x.shape[:-1], self.out_features)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """As `KANLinear.regularization_loss`, with groups in the place of edges."""
        return penalty(self.spline_weight, regularize_activation, regularize_entropy)


class KAN(nn.Module):
    """KANLinear layers in sequence: KAN([2, 5, 1]) has two. `options` go to every layer."""

    def __init__(self, layers_hidden: list[int], **options) -> None:
        super().__init__()
        if len(layers_hidden) < 2:
            raise ValueError(f"layers_hidden must name two sizes or more, got {layers_hidden}")
        self.layers = self.build_layers(layers_hidden, **options)

    @staticmethod
    def build_layers(layers_hidden: list[int], **options) -> nn.ModuleList:
        return nn.ModuleList(
            KANLinear(before, after, **options) for before, after in pairwise(layers_hidden)
        )

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """(..., first size) -> (..., last size); `update_grid` moves the knots first."""
        for layer in self.layers:
            if update_grid:
                layer.update_grid(x.detach())
            x = layer(x)
        return x

    def refine(self, grid_size: int) -> None:
        """Grid extension of every layer."""
        for layer in self.layers:
            layer.refine(grid_size)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        return sum(
            layer.regularization_loss(regularize_activation, regularize_entropy)
            for layer in self.layers
        )


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable, outside_share: float = 0.01
) -> dict[str, tuple[float, float]]:
    """Sets the range of every KAN layer in `model` so that at most `outside_share` lies outside.

    batches: inputs of `model`, a few. Returns the lowest low and highest high of each layer by its
    name. While all splines are zero no range changes what the model computes, and one pass
    measures all layers; else each layer is measured after those before it were set.
    """
    batches = list(batches)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SplineLayer)}
    if all(layer.splines_are_zero for layer in layers.values()):
        rounds = [layers]
    else:
        rounds = [{name: layer} for name, layer in layers.items()]
    for some in rounds:
        for name, (low, high) in measure_ranges(model, some, batches, outside_share).items():
            layers[name].set_range(low, high)
    return {n: (m.low.min().item(), m.high.max().item()) for n, m in layers.items()}


def measure_ranges(
    model: nn.Module, layers: dict[str, SplineLayer], batches: list, outside_share: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns (low, high), each (curves,), that in no batch leave more than the share outside."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(name: str, layer: SplineLayer, x: Tensor) -> None:
        ranked = layer.per_curve(x).to(layer.grid.dtype).t().sort(-1).values  # (curves, N)
        skip = int(outside_share / 2 * ranked.shape[1])
        low, high = ranked[:, skip], ranked[:, -1 - skip]
        # A feature that hardly varies still needs knots that its type can tell apart.
        room = 1e-3 * torch.maximum(low.abs(), high.abs()).clamp_min(1e-3) - (high - low)
        low, high = low - room.clamp_min(0) / 2, high + room.clamp_min(0) / 2
        if name in ranges:
            low = torch.minimum(low, ranges[name][0])
            high = torch.maximum(high, ranges[name][1])
        ranges[name] = low, high

    hooks = [
        layer.register_forward_pre_hook(lambda m, args, n=name: measure(n, m, args[0]))
        for name, layer in layers.items()
    ]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return ranges
