"""B-splines in C: the calls into native.c, which `compiler` compiles. Letters as in `bases`."""

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from splines.activations import ACTIVATIONS
from splines.bases import OUTSIDE, ends, padded_knots
from splines.chunked import ChunkedSplines
from splines.compiler import load, plan
from splines.interface import Base, real_type

EVEN_ROWS = 14  # of native.c's table of even curves
LANES = 16  # the widest vector of native.c, in numbers: tables have that much room behind
# Fewer inputs than the first are not worth the calls, and than the second not worth starting a
# compiler that takes a second, once per machine.
COMPILED_FROM, COMPILE_FROM = 1 << 14, 1 << 18
# Up to so many outputs only the bases that differ from zero are multiplied, one input at a time.
NARROW = 64


def native_splines(
    x: Tensor, grid: Tensor, order: int, outside: str, dtype: torch.dtype
) -> "NativeSplines | None":
    """Returns the splines in C, or None where they cannot be had or are not worth it."""
    real = real_type(x, grid)
    if x.device.type != "cpu" or dtype not in (real, torch.bfloat16):
        return None
    library = compiled(order, real, x.numel())
    return library and NativeSplines(library, x, grid, order, outside, dtype)


def compiled(order: int, real: torch.dtype, inputs: int) -> ctypes.CDLL | None:
    """Returns native.c compiled for an order and a type; None if it can't be or isn't worth it."""
    build = plan(order, real) if inputs >= COMPILED_FROM else None
    if build and (inputs >= COMPILE_FROM or build.library.exists()):
        return load(build)
    return None


class Knots(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p if n == "at" else ctypes.c_int64) for n in
                ("at", "stride", "count", "outside", "even")]  # fmt: skip


class Matrix(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p if n == "at" else ctypes.c_int64) for n in
                ("at", "stride", "narrow")]  # fmt: skip


class NativeSplines(ChunkedSplines):
    """The splines as native.c evaluates them, on a CPU."""

    def __init__(self, library: ctypes.CDLL, *shape) -> None:
        super().__init__(*shape)
        self.library = library
        self.threads = torch.get_num_threads()

    @functools.cached_property
    def knots(self) -> Tensor:
        """The table of knots that native.c wants, (knots, I + LANES)."""
        knots = padded_knots(self.grid, self.order).t()
        if self.even:
            cells = self.grid.shape[1] - 1
            inverse = cells / (self.grid[:, -1] - self.grid[:, 0]).double()
            knots = torch.cat([knots, inverse.to(knots).unsqueeze(0)])
        return F.pad(knots, (0, LANES)).contiguous()

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        out = self.buffer("bases", len(x), x.shape[1] * self.count)
        self._call("bases", x, features, self._matrix(out), self.count)
        return out

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        if self._fits(out):
            self._call("slopes", x, features, self._matrix(grad), self.count, self._matrix(out))
        else:
            part = out.new_empty(out.shape, dtype=self.real)
            self.slopes(x, grad, part, features)
            out.copy_(part)

    # --- few outputs ---

    def takes(self, outputs: int) -> bool:
        return outputs <= NARROW

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        table, wide = self._narrow_table(weight)
        out = self.grid.new_empty(len(x), table.shape[-1])
        self._call("product", x, slice(None), table, table.shape[1], out, wide)
        return out[:, : len(weight)]

    def product_backward(self, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows = 8192  # in a part, which is as large as the weights
        table, wide = self._narrow_table(weight)
        grad = F.pad(grad.to(self.real), (0, table.shape[-1] - len(weight))).contiguous()
        out = self._like(x)
        parts = self.grid.new_zeros(-(-len(x) // rows), *table.shape)
        self._call(
            "product_backward", x, slice(None), table, table.shape[1], grad, wide,
            self._matrix(out), parts, rows,
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

    # --- a scale for each edge, which torch is slow to broadcast over so short an axis ---

    def scaled(self, weight: Tensor, scaler: Tensor | None, features: slice) -> Tensor:
        if scaler is None or not self._can_scale(weight, scaler):
            return super().scaled(weight, scaler, features)
        part = weight[:, features]
        out = self.buffer("scaled", len(part), part[0].numel())
        extent = len(part), part.shape[1], *weight.shape[1:]
        self._run("scale", part, scaler[:, features], *extent, self._matrix(out))
        return out

    def scaled_backward(self, weight, scaler, features: slice, grad, grad_scaler) -> None:
        if not self._can_scale(weight, scaler):
            super().scaled_backward(weight, scaler, features, grad, grad_scaler)
            return
        part, g = weight[:, features], grad[:, features]
        to = torch.empty_like(scaler) if grad_scaler is None else grad_scaler
        extent = len(part), part.shape[1], *weight.shape[1:]
        self._run("scale_backward", part, scaler[:, features], *extent, g, to[:, features])

    def _can_scale(self, weight: Tensor, scaler: Tensor) -> bool:
        """native.c wants one type and no gaps."""
        fits = weight.dtype == scaler.dtype == self.real
        return fits and weight.is_contiguous() and scaler.is_contiguous()

    # --- curves: polynomials in each cell ---

    def curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        run = self._even_curves if self.usual else self._curves
        return run(x, coef, base).to(self.dtype)

    @property
    def usual(self) -> bool:
        """Whether curves are those for which native.c knows a form without cells."""
        shape = self.order == 3 and self.count == 8 and self.outside != "zero"
        return shape and self.even and self.real == torch.float32

    def _curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        dtype = self.dtype if self.dtype == torch.bfloat16 else self.real
        out = torch.empty(x.shape, dtype=dtype)
        table, cells, _ = self._curve_table(coef, x.shape[1])
        matrices = self._matrix(base.inputs(x)), self._matrix(out)
        self._run_curves("curves", x, table, cells, *matrices)
        return out

    def curves_backward(
        self, x: Tensor, coef: Tensor, base: Base, grad: Tensor, again: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        if self.usual:
            return self._even_curves_backward(x, coef, base, grad, again)
        groups, count = coef.shape
        back = torch.zeros_like(x) if base.active is not None else base.inputs_backward(x, grad)
        table, cells, basis = self._curve_table(coef, x.shape[1])
        # Rows in a part: equal parts for every thread, so few parts that adding them is little.
        rows = -(-max(len(x), 1) // (8 * (1 + len(x) // 8192)))
        out, parts = self._like(x), -(-len(x) // rows)
        moments = table.new_zeros(parts, groups, x.shape[1] // groups, cells, self.order + 1)
        matrices = (self._matrix(m) for m in (grad, back, out))
        self._run_curves("curves_backward", x, table, cells, *matrices, moments, rows)
        each = torch.einsum("gcp,gcjp->gcj", moments.sum((0, 2)).double(), basis)
        total = each.new_zeros(groups, count + 2 * self.order)
        first, _ = ends(self.grid, self.order, self.outside)
        for j in range(self.order + 1):
            total[:, first + j : first + j + cells] += each[..., j]
        active = None if base.active is None else grad.to(base.active.dtype)
        result = self.curves(x, coef, base) if again else None
        grad_coef = total[:, self.order : self.order + count].to(coef.dtype)
        return out.to(x.dtype), active, grad_coef, result

    def _even_curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        out, (active, code) = self._results(x), self._active(x, base)
        self._run_even("even_curves", x, coef, code, self._matrix(active), self._matrix(out))
        return out

    def _even_curves_backward(
        self, x: Tensor, coef: Tensor, base: Base, grad: Tensor, again: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        out, (active, code) = self._like(x), self._active(x, base)
        result = out
        if again:  # in the place of the gradient, which has had its turn
            here = base.active is None and grad.dtype == self.dtype and self._fits(grad)
            result = grad if here else self._results(x)
        # Rows in a part: equal parts for every thread, so few parts that adding them is little.
        rows = -(-max(len(x), 1) // (8 * (1 + len(x) // 8192)))
        sums = self.grid.new_zeros(-(-len(x) // rows), 8, x.shape[1] + LANES)
        matrices = (self._matrix(m) for m in (active, grad, out))
        self._run_even(
            "even_curves_backward", x, coef, code, *matrices, int(again), self._matrix(result),
            sums, rows,
        )  # fmt: skip
        grad_coef = torch.empty(coef.shape)
        size = x.shape[1] // len(coef)
        self._run("even_coefficients", sums, *sums.shape[::2], len(coef), size, grad_coef)
        grad_active = None if base.active is None else grad.to(base.active.dtype)
        return (
            out.to(x.dtype),
            grad_active,
            grad_coef.to(coef.dtype),
            result.to(self.dtype) if again else None,
        )

    def _results(self, x: Tensor) -> Tensor:
        dtype = self.dtype if self.dtype == torch.bfloat16 else self.real
        return torch.empty(x.shape, dtype=dtype)

    def _active(self, x: Tensor, base: Base) -> tuple[Tensor, int]:
        """The base function's values, where torch computed them, and its number in native.c."""
        names = ("", *ACTIVATIONS)
        return (x, names.index(base.activation)) if base.active is None else (base.active, 0)

    def _run_even(self, name: str, x: Tensor, coef: Tensor, code: int, *arguments) -> None:
        """Calls a function of native.c with its table for `usual` curves."""
        table = torch.empty(EVEN_ROWS, x.shape[1] + LANES)
        grid, coef = (v.to(self.real).contiguous() for v in (self.grid, coef))
        groups = len(coef), x.shape[1] // len(coef)
        self._run("even_table", grid, coef, *groups, table, table.shape[1])
        shape = *x.shape, table, table.shape[1], OUTSIDE.index(self.outside), code
        self._run(name, self._matrix(x), *shape, *arguments)

    def _curve_table(self, coef: Tensor, features: int) -> tuple[Tensor, int, Tensor]:
        """Returns a polynomial for each cell as native.c wants it, the cells, and their bases."""
        (groups, count), order, room = coef.shape, self.order, features + LANES
        first, last = ends(self.grid, order, self.outside)
        cells = last - first
        table = self.grid.new_empty(cells * (order + 3) + 1, room)
        basis = coef.new_empty(groups, cells, order + 1, order + 1, dtype=torch.float64)
        self._run(
            "curve_table", self.grid.contiguous(), coef.to(self.real).contiguous(), groups,
            features // groups, count, OUTSIDE.index(self.outside), table, room, basis,
        )  # fmt: skip
        return table, cells, basis

    # --- calls ---

    def _fits(self, x: Tensor) -> bool:
        """Whether native.c can read and write x (N, F) in place."""
        return x.dtype in (self.real, torch.bfloat16) and x.stride(-1) == 1

    def _like(self, x: Tensor) -> Tensor:
        """An uninitialised matrix for results, of x's shape and, where it can be, of its type."""
        dtype = x.dtype if x.dtype == torch.bfloat16 else self.real
        return x.new_empty(x.shape, dtype=dtype)

    def _matrix(self, x: Tensor) -> Matrix:
        """x (N, F), or a copy that fits, for native.c to read; what it writes fits at once."""
        x = x if self._fits(x) else x.to(self.real).contiguous()
        matrix = Matrix(x.data_ptr(), x.stride(0), x.dtype == torch.bfloat16)
        matrix.numbers = x  # they must live as long
        return matrix

    def _call(self, name: str, x: Tensor, features: slice, *arguments) -> None:
        """Calls a function of native.c that takes inputs x (N, F) and the knots of `features`."""
        outside = OUTSIDE.index(self.outside)
        at = self.knots[:, features].data_ptr()
        knots = Knots(at, self.knots.shape[1], self.grid.shape[1] - 1, outside, self.even)
        self._run(name, self._matrix(x), *x.shape, knots, *arguments)

    def _run_curves(self, name: str, x: Tensor, table: Tensor, cells: int, *arguments) -> None:
        outside = OUTSIDE.index(self.outside)
        self._run(
            name, self._matrix(x), *x.shape, table, table.shape[1], cells, outside, *arguments
        )

    def _run(self, name: str, *arguments: Tensor | int | ctypes.Structure) -> None:
        """Calls a function of native.c."""

        def passed(a):
            if isinstance(a, Tensor):
                return ctypes.c_void_p(a.data_ptr())
            return ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_int64(a)

        getattr(self.library, name)(*(passed(a) for a in (*arguments, self.threads)))
