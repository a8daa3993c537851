"""B-splines in torch alone, on any device and in any type."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from splines.bases import dense_bases, pieces, scaled
from splines.chunked import DEVICE_BYTES, ChunkedSplines
from splines.dense import dense_slopes, dense_values
from splines.interface import Base

BLOCK_BYTES = 1 << 20  # of bases, which with what makes them should stay in the second cache


class PlainSplines(ChunkedSplines):
    """The splines as torch evaluates them, all bases at once; their columns are (K, F)."""

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        grid = self.grid[features]
        out = self.buffer("bases", len(x), self.count * x.shape[1])
        for rows in self._blocks(x):
            out[rows] = self._values(x[rows], grid).flatten(1)
        return out

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        grid, grad = self.grid[features], grad.view(len(x), self.count, x.shape[1])
        for rows in self._blocks(x):
            out[rows] = self._slopes(x[rows], grid).mul_(grad[rows]).sum(1)

    def scaled(self, weight: Tensor, scaler: Tensor | None, features: slice) -> Tensor:
        columns = scaled(weight[:, features], None if scaler is None else scaler[:, features])
        return columns.transpose(1, 2).to(self.dtype).flatten(1)

    def add_gradient(self, out: Tensor, grad: Tensor, bases: Tensor, more: bool) -> None:
        columns = (grad.t() @ bases).unflatten(1, (self.count, -1)).transpose(1, 2)
        out.add_(columns) if more else out.copy_(columns)

    def curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        grid, each = self._of_features(x, coef)
        out = x.new_empty(x.shape, dtype=self.dtype)
        for rows in self._blocks(x):
            splines = self._values(x[rows], grid).mul_(each).sum(1)
            out[rows] = splines + base.of(rows).inputs(x[rows])
        return out

    def curves_backward(
        self, x: Tensor, coef: Tensor, base: Base, grad: Tensor, again: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        grid, each = self._of_features(x, coef)
        out, total = x.new_empty(x.shape), torch.zeros_like(each)
        result = x.new_empty(x.shape, dtype=self.dtype) if again else None
        for rows in self._blocks(x):
            part, g = x[rows], grad[rows].to(self.real)
            values = self._values(part, grid)
            if again:
                result[rows] = (values * each).sum(1) + base.of(rows).inputs(part)
            total += values.mul_(g.unsqueeze(1)).sum(0)
            grad_x = self._slopes(part, grid).mul_(each).sum(1).mul_(g)
            if base.active is None:
                grad_x += base.inputs_backward(part, grad[rows])
            out[rows] = grad_x
        active = None if base.active is None else grad.to(base.active.dtype)
        grad_coef = total.unflatten(1, (len(coef), -1)).sum(-1).t().to(coef.dtype)
        return out, active, grad_coef, result

    def _values(self, x: Tensor, grid: Tensor) -> Tensor:
        out = self._planes(x)
        dense_values(x.to(self.real), grid, self.order, self.outside, self.even, out)
        return out

    def _slopes(self, x: Tensor, grid: Tensor) -> Tensor:
        out = self._planes(x)
        dense_slopes(x.to(self.real), grid, self.order, self.outside, self.even, out)
        return out

    def _planes(self, x: Tensor) -> Tensor:
        """An uninitialised (N, K, F) of x (N, F), which the next one takes the memory of."""
        flat = self.buffer("planes", len(x), self.count * x.shape[1], self.real)
        return flat.view(len(x), self.count, x.shape[1])

    def _of_features(self, x: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
        """The knots (F, G + 2k + 1) and coefficients (K, F) of each feature, not of each group."""
        size = x.shape[1] // len(coef)
        grid, each = (v.to(self.real).repeat_interleave(size, 0) for v in (self.grid, coef))
        return grid, each.t()

    def _blocks(self, x: Tensor) -> Iterator[slice]:
        """Slices of rows whose bases, and what makes them, stay near the processor."""
        most = BLOCK_BYTES if x.device.type == "cpu" else DEVICE_BYTES
        return pieces(len(x), max(1, most // (self.count * x.shape[1] * self.real.itemsize)))


# What autograd can follow, any number of times -------------------------------------------------


def plain_spline(x, weight, scaler, grid, order, outside, dtype) -> Tensor:
    """The spline term of every edge, by operations that torch can trace and differentiate."""
    real = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    bases = dense_bases(x.to(real), grid.to(real), order, outside).flatten(-2)
    return F.linear(bases.to(dtype), scaled(weight, scaler).flatten(1).to(dtype))


def plain_curves(x, base: Base, coef, grid, order, outside, dtype) -> Tensor:
    """activation(x) + one spline for each group of features, by such operations."""
    real = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    size = x.shape[-1] // len(coef)
    grid, coef = (v.to(real).repeat_interleave(size, 0) for v in (grid, coef))
    bases = dense_bases(x.to(real), grid, order, outside)
    return (base.inputs(x) + (bases * coef).sum(-1)).to(dtype)


def plain_layer(form: str, x, base: Base, spline, second, grid, order, outside, dtype) -> Tensor:
    """A layer in one of the forms of `interface.Splines`, by such operations."""
    shape = grid, order, outside, dtype
    if form == "group":
        return _linear(plain_curves(x, base, spline, *shape), base, dtype)
    if form == "low_rank":
        splines = F.linear(plain_spline(x, spline, None, *shape), second.to(dtype))
    else:
        splines = plain_spline(x, spline, second, *shape)
    return splines if base.weight is None else _linear(base.inputs(x), base, dtype) + splines


def _linear(h: Tensor, base: Base, dtype: torch.dtype) -> Tensor:
    bias = None if base.bias is None else base.bias.to(dtype)
    return F.linear(h.to(dtype), base.weight.to(dtype), bias)
