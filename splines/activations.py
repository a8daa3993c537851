"""The base functions that a layer's own code computes, by name; any other is computed by torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten


def _identity(x: Tensor, grad: Tensor | None = None) -> Tensor:
    return x if grad is None else grad


def _gelu(x: Tensor, grad: Tensor | None = None) -> Tensor:
    return F.gelu(x) if grad is None else aten.gelu_backward(grad, x)


def _gelu_tanh(x: Tensor, grad: Tensor | None = None) -> Tensor:
    if grad is None:
        return F.gelu(x, approximate="tanh")
    return aten.gelu_backward(grad, x, approximate="tanh")


def _silu(x: Tensor, grad: Tensor | None = None) -> Tensor:
    return F.silu(x) if grad is None else aten.silu_backward(grad, x)


# name -> function(x), which with the gradient of its result gives that of x
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "identity": _identity,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}


def name_of(module: nn.Module) -> str | None:
    """Returns the name of a base function in `ACTIVATIONS`; None: torch must call it."""
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)):
        return None
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return {nn.Identity: "identity", nn.SiLU: "silu"}.get(type(module))
