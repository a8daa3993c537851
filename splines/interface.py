"""What a layer asks of its splines, whoever computes them: torch, C or another."""

import torch
from torch import Tensor, nn

from splines.bases import scaled


class Splines:
    """The splines of some features on one grid, evaluated chunk by chunk; no part of any graph.

    x: inputs (N, I), as a sample of what will come; grid: (curves, G + 2k + 1). store: the type in
    which bases are multiplied. They are computed in `real`: float32, or float64 where the input or
    the grid is.

    A subclass computes `bases`, `slopes`, `curves` and `curves_backward`; it may take narrow
    products (`takes`) and scales of edges out of torch's hands.
    """

    def __init__(self, x: Tensor, grid: Tensor, order: int, outside: str, store: torch.dtype):
        self.order, self.outside, self.store = order, outside, store
        self.real = real_type(x, grid)
        self.grid = grid.to(self.real)
        self.count = grid.shape[1] - 1 - order
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, rows: int, columns: int) -> Tensor:
        """An uninitialised (rows, columns): the same memory each time, as fresh pages cost time."""
        size, found = rows * columns, self.buffers.get(name)
        if found is None or found.numel() < size:
            found = torch.empty(size, dtype=self.store, device=self.grid.device)
            self.buffers[name] = found
        return found[:size].view(rows, columns)

    def bases(self, x: Tensor, features: slice = slice(None)) -> Tensor:
        """(N, F) -> (N, F * K), where the F columns of x are `features`."""
        raise NotImplementedError

    def slopes(self, x: Tensor, grad: Tensor, out: Tensor, features: slice = slice(None)) -> None:
        """Puts the gradient of x (N, F) into `out`, from that of the bases (N, F * K)."""
        raise NotImplementedError

    def takes(self, outputs: int) -> bool:
        """Whether `product` serves for so many outputs, faster than multiplying all the zeros."""
        return False

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product of all bases at x (N, I) and weight (O, I, K), (N, O), for few outputs."""
        raise NotImplementedError

    def product_backward(self, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x (N, I) and weight (O, I, K) from that of `product`'s result (N, O)."""
        raise NotImplementedError

    def scaled(self, weight: Tensor, scaler: Tensor | None, features: slice) -> Tensor:
        """Weights (O, I, K) times scaler (O, I) of some features, (O, F * K)."""
        some = None if scaler is None else scaler[:, features]
        return scaled(weight[:, features], some).flatten(1).to(self.store)

    def scaled_backward(self, weight, scaler, features: slice, grad, grad_scaler) -> None:
        """Turns the gradient of the product in grad[:, features] into that of the weights.

        grad_scaler (O, I) receives that of the scaler where it is wanted.
        """
        part, g = weight[:, features], grad[:, features]
        if grad_scaler is not None:
            grad_scaler[:, features] = (g * part).sum(-1)
        g.mul_(scaler[:, features].unsqueeze(-1))

    def curves(self, x: Tensor, coef: Tensor, activation: nn.Module, dtype: torch.dtype) -> Tensor:
        """activation(x) + one spline for each group of features, (N, I); coef (groups, K)."""
        raise NotImplementedError

    def curves_backward(
        self, x: Tensor, coef: Tensor, activation: nn.Module, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x (N, I) and coef (groups, K) from that of `curves`' result."""
        raise NotImplementedError


def real_type(x: Tensor, grid: Tensor) -> torch.dtype:
    """The type in which the bases at x are computed."""
    return torch.float64 if torch.float64 in (x.dtype, grid.dtype) else torch.float32


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
