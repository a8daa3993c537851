"""B-splines in torch alone, on any device and in any type."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splines.bases import among_all, dense_bases, local_bases, scaled
from splines.interface import Splines


class PlainSplines(Splines):
    """The splines as torch evaluates them."""

    def __init__(self, *shape) -> None:
        super().__init__(*shape)
        self.last: tuple[Tensor, tuple] | None = None

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        values, _, cell = self._local(x, features)
        return among_all(values, cell, self.count).flatten(1).to(self.store)

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

    def curves(self, x: Tensor, coef: Tensor, activation: nn.Module, dtype: torch.dtype) -> Tensor:
        return plain_curves(x, coef, self.grid, self.order, self.outside, activation, dtype)

    def curves_backward(
        self, x: Tensor, coef: Tensor, activation: nn.Module, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = self.grid, self.order, self.outside
        with torch.enable_grad():
            inputs = [v.detach().requires_grad_() for v in (x, coef)]
            result = plain_curves(*inputs, *shape, activation, grad.dtype)
        return torch.autograd.grad(result, inputs, grad)


# What autograd can follow, any number of times -------------------------------------------------


def plain_spline(x, weight, scaler, grid, order, outside, dtype) -> Tensor:
    """What `products.SplineProduct` adds, by operations that torch can trace and differentiate."""
    real = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    bases = dense_bases(x.to(real), grid.to(real), order, outside).flatten(-2)
    return F.linear(bases.to(dtype), scaled(weight, scaler).flatten(1).to(dtype))


def plain_curves(x, coef, grid, order, outside, activation, dtype) -> Tensor:
    """What `products.Curves` computes, by operations that torch can trace and differentiate."""
    real = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    size = x.shape[-1] // len(coef)
    grid, coef = (v.to(real).repeat_interleave(size, 0) for v in (grid, coef))
    bases = dense_bases(x.to(real), grid, order, outside)
    return (activation(x) + (bases * coef).sum(-1)).to(dtype)
