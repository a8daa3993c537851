"""B-splines in torch alone, on any device and in any type."""

import torch
import torch.nn.functional as F
from torch import Tensor

from splines.bases import among_all, dense_bases, local_bases, scaled
from splines.chunked import ChunkedSplines
from splines.interface import Base


class PlainSplines(ChunkedSplines):
    """The splines as torch evaluates them."""

    def __init__(self, *shape) -> None:
        super().__init__(*shape)
        self.last: tuple[Tensor, tuple] | None = None

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        values, _, cell = self._local(x, features)
        return among_all(values, cell, self.count).flatten(1).to(self.dtype)

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        _, slopes, cell = self._local(x, features)
        grad = F.pad(grad.to(self.real).unflatten(1, (x.shape[1], -1)), (self.order,) * 2)
        index = cell.unsqueeze(-1) + torch.arange(self.order + 1, device=x.device)
        out.copy_((grad.gather(-1, index) * slopes).sum(-1))

    def _local(self, x: Tensor, features: slice) -> tuple[Tensor, Tensor, Tensor]:
        """As `local_bases`; remembered, as backward asks for values and then for slopes."""
        if self.last is None or self.last[0] is not x:
            grid = self.grid[features]
            self.last = x, local_bases(x.to(self.real), grid, self.order, self.outside)
        return self.last[1]

    def curves(self, x: Tensor, coef: Tensor, base: Base) -> Tensor:
        shape = self.grid, self.order, self.outside
        return plain_curves(x, base, coef, *shape, self.dtype)

    def curves_backward(
        self, x: Tensor, coef: Tensor, base: Base, grad: Tensor, again: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        shape = self.grid, self.order, self.outside
        inputs = [x, coef] if base.active is None else [x, coef, base.active]
        with torch.enable_grad():
            inputs = [v.detach().requires_grad_() for v in inputs]
            base = base._replace(active=inputs[2] if len(inputs) > 2 else None)
            result = plain_curves(inputs[0], base, inputs[1], *shape, self.dtype)
        grad_x, grad_coef, *active = torch.autograd.grad(result, inputs, grad)
        once_more = result.detach() if again else None
        return grad_x, active[0] if active else None, grad_coef, once_more


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
