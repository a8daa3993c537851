"""The terms of a KAN layer as functions of autograd that keep only their input for backward."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from splines.bases import pieces, scaled
from splines.interface import Splines, activation_backward
from splines.native import native_splines
from splines.plain import PlainSplines, plain_curves, plain_spline

# A chunk of bases should stay in the last cache, yet be wide enough for an efficient product.
CHUNK_BYTES = 16 << 20
CHUNK_ROWS = 2048

Wanted = tuple[bool, bool, bool]  # whether x, weight and scaler need gradients
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # theirs


def splines_for(*shape) -> Splines:
    """Returns who evaluates the splines of `interface.Splines`' arguments: the best there is."""
    return native_splines(*shape) or PlainSplines(*shape)


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


def differentiable(function: Callable, inputs: tuple, grad: Tensor) -> list[Tensor | None]:
    """Gradients of function(*inputs), with a graph of their own for higher derivatives."""
    # Aliases cut off what the inputs may have to do with each other.
    with torch.enable_grad():
        inputs = [v.view_as(v) if v is not None else None for v in inputs]
        wanted = [v for v in inputs if v is not None and v.requires_grad]
        result = function(*inputs)
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
    return [next(found) if v is not None and v.requires_grad else None for v in inputs]


# --- The spline term of every edge ---------------------------------------------------------------


class SplineProduct(torch.autograd.Function):
    """Adds the spline term to `out` in place: out_no += sum_ij B_j(x_ni) scaler_oi weight_oij.

    out (N, O), x (N, I), weight (O, I, K), scaler (O, I) or None. Keeps x and the parameters.
    """

    @staticmethod
    def forward(ctx, out, x, weight, scaler, grid, order, outside):
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, weight, scaler, grid)
        ctx.order, ctx.outside, ctx.dtype = order, outside, out.dtype
        splines = splines_for(x, grid, order, outside, out.dtype)
        if splines.takes(len(weight)):
            return out.add_(splines.product(x, scaled(weight, scaler)))
        return add_in_chunks(out, splines, x, weight, scaler)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scaler, grid = ctx.saved_tensors
        shape = grid, ctx.order, ctx.outside, ctx.dtype
        if torch.is_grad_enabled():

            def plain(x, weight, scaler):
                return plain_spline(x, weight, scaler, *shape)

            gradients = differentiable(plain, (x, weight, scaler), grad)
        else:
            splines, wanted = splines_for(x, *shape), ctx.needs_input_grad[1:4]
            whole = not splines.takes(len(weight))
            compute = gradients_in_chunks if whole else narrow_gradients
            gradients = compute(splines, x, weight, scaler, grad, wanted)
        return grad, *gradients, None, None, None


def chunks(x: Tensor, bytes_per_input: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yields slices of features with the slices of rows to go through for each."""
    rows = list(pieces(len(x), CHUNK_ROWS))
    most = CHUNK_BYTES // (bytes_per_input * (rows[0].stop if rows else 1))
    for features in pieces(x.shape[1], max(16, most)):
        yield features, rows


def add_in_chunks(out: Tensor, splines: Splines, x: Tensor, weight, scaler) -> Tensor:
    """Adds the spline term to `out` by one product of matrices a chunk."""
    for features, rows in chunks(x, splines.count * out.element_size()):
        columns = splines.scaled(weight, scaler, features)
        for row in rows:
            out[row].addmm_(splines.bases(x[row, features], features), columns.t())
    return out


def narrow_gradients(splines, x, weight, scaler, grad, wanted: Wanted) -> Gradients:
    """The gradients of `splines.product`, of which all come at once."""
    grad_x, grad_weight = splines.product_backward(x, scaled(weight, scaler), grad)
    grad_x, grad_weight, grad_scaler = grad_x.to(x.dtype), grad_weight.to(weight.dtype), None
    if scaler is not None:
        grad_scaler = (grad_weight * weight).sum(-1)
        grad_weight = grad_weight * scaler.unsqueeze(-1)
    return grad_x, grad_weight, grad_scaler


def gradients_in_chunks(splines, x, weight, scaler, grad, wanted: Wanted) -> Gradients:
    """The gradients of `add_in_chunks`, in whose chunks the bases are computed again."""
    want_x, want_weight, want_scaler = wanted
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
    return grad_x, grad_weight if want_weight else None, grad_scaler


def add_product(out: Tensor, a: Tensor, b: Tensor, more: bool) -> None:
    """out = a @ b, or out += a @ b if there is `more` than the first part, in out's type."""
    if out.dtype != a.dtype:
        product = a @ b
        out.add_(product) if more else out.copy_(product)
    elif more:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


# --- The base term -------------------------------------------------------------------------------


class BaseProduct(torch.autograd.Function):
    """linear(activation(x), weight, bias) that keeps x and not the activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, activation, dtype):
        ctx.save_for_backward(x, weight, bias)
        ctx.activation, ctx.dtype = activation, dtype
        return plain_base(x, weight, bias, activation, dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x, weight, bias):
                return plain_base(x, weight, bias, ctx.activation, ctx.dtype)

            return *differentiable(plain, (x, weight, bias), grad), None, None
        want_x, want_weight, want_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if want_x:
            grad_x = activation_backward(ctx.activation, x, grad @ weight.to(ctx.dtype))
        if want_weight:
            grad_weight = (grad.t() @ ctx.activation(x).to(ctx.dtype)).to(weight)
        grad_bias = grad.sum(0, dtype=bias.dtype) if want_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def plain_base(x, weight, bias, activation: nn.Module, dtype: torch.dtype) -> Tensor:
    bias = bias if bias is None else bias.to(dtype)
    return F.linear(activation(x).to(dtype), weight.to(dtype), bias)


# --- Splines that many outputs share -------------------------------------------------------------


class Curves(torch.autograd.Function):
    """activation(x) + one spline for each group of features, x (N, I), coef (groups, K).

    Keeps x and coef.
    """

    @staticmethod
    def forward(ctx, x, coef, grid, order, outside, activation, dtype):
        ctx.save_for_backward(x, coef, grid)
        ctx.order, ctx.outside, ctx.activation, ctx.dtype = order, outside, activation, dtype
        return Curves._splines(ctx, x, grid).curves(x, coef, activation, dtype)

    @staticmethod
    def backward(ctx, grad):
        x, coef, grid = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x, coef):
                shape = grid, ctx.order, ctx.outside
                return plain_curves(x, coef, *shape, ctx.activation, ctx.dtype)

            gradients = differentiable(plain, (x, coef), grad)
        else:
            splines = Curves._splines(ctx, x, grid)
            gradients = splines.curves_backward(x, coef, ctx.activation, grad)
        return *gradients, *[None] * 5

    @staticmethod
    def _splines(ctx, x, grid) -> Splines:
        """No bases are stored, so that any type serves that all can have."""
        return splines_for(x, grid, ctx.order, ctx.outside, torch.bfloat16)
