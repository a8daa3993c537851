"""The terms of a KAN layer as functions of autograd that keep only their input for backward.

Letters as in `bases`.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from splines.bases import dense_bases, pieces, scaled
from splines.native import Groups, Splines

# A chunk of bases should stay in the last cache, yet be wide enough for an efficient product.
CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 2048


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
