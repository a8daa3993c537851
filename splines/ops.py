"""A KAN layer as one operator of torch, which keeps only its input for backward: `kan::layer`.

Registered with torch.library, so that torch.compile takes it as it is, in one graph with what is
around it. What derives it twice, transforms or exports it gets plain operations instead.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from splines.interface import Base, Splines, Wanted
from splines.native import native_splines
from splines.plain import PlainSplines, plain_layer
from splines.triton_splines import KernelError, give_up, triton_splines

library = torch.library.Library("kan", "DEF")
INPUTS = "Tensor x, Tensor? active, Tensor? base_weight, Tensor? bias, Tensor spline, "
INPUTS += "Tensor? second, Tensor grid, str form, str activation, int order, str outside, "
INPUTS += "ScalarType dtype"
library.define(f"layer({INPUTS}) -> (Tensor, Tensor)")
library.define(f"layer_backward(Tensor grad, Tensor kept, bool[] wanted, {INPUTS}) -> Tensor[]")


class Call(NamedTuple):
    """The operator's inputs in their order; the forms are those of `interface.Splines`."""

    x: Tensor  # (N, I)
    active: Tensor | None  # of `interface.Base`, as the next two
    base_weight: Tensor | None
    bias: Tensor | None
    spline: Tensor  # weight, down or coef of the form
    second: Tensor | None  # scaler or up
    grid: Tensor
    form: str  # dense, low_rank or group
    activation: str
    order: int
    outside: str
    dtype: torch.dtype  # of products and of the result

    @property
    def base(self) -> Base:
        return Base(self.activation, self.active, self.base_weight, self.bias)

    def by(self, run: Callable) -> Any:
        """run(splines), where `splines` is who computes this call."""
        shape = self.x, self.grid, self.order, self.outside, self.dtype
        try:
            return run(splines_for(*shape))
        except KernelError as error:
            give_up(self.x.device, error)
            return run(splines_for(*shape))

    def plain(self) -> Tensor:
        """The result by operations that torch can trace and differentiate."""
        shape = self.grid, self.order, self.outside, self.dtype
        return plain_layer(self.form, self.x, self.base, self.spline, self.second, *shape)


DIFFERENTIABLE = 6  # of the inputs, the first


def layer(
    form: str, x: Tensor, base: Base, spline: Tensor, second: Tensor | None, grid: Tensor,
    order: int, outside: str,
) -> Tensor:  # fmt: skip
    """Returns a layer's output (N, O); the arguments are explained in `Call`."""
    settings = form, base.activation, order, outside, product_dtype(x, spline)
    call = Call(x, base.active, base.weight, base.bias, spline, second, grid, *settings)
    if wants_plain_path(x):
        return call.plain()
    run = torch.ops.kan.layer if torch.compiler.is_compiling() else Layer.apply
    return run(*call)[0]


def wants_plain_path(x: Tensor) -> bool:
    """Whether something exports or transforms what we do, which only torch operations allow."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return (
        type(x) not in (Tensor, nn.Parameter)
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


def splines_for(x: Tensor, grid: Tensor, order: int, outside: str, dtype: torch.dtype) -> Splines:
    """Returns who evaluates the splines of `interface.Splines`' arguments: the best there is."""
    shape = x, grid, order, outside, dtype
    return triton_splines(*shape) or native_splines(*shape) or PlainSplines(*shape)


# --- what the operator does ----------------------------------------------------------------------


def compute(*inputs) -> tuple[Tensor, Tensor]:
    """Returns the layer's output, and what its backward wants back (nothing: empty)."""
    call = Call(*inputs)
    x, base = call.x, call.base
    if call.form == "low_rank":
        return call.by(lambda splines: splines.low_rank(x, base, call.spline, call.second))
    if call.form == "group":
        result = call.by(lambda splines: splines.group(x, base, call.spline))
    else:
        result = call.by(lambda splines: splines.dense(x, base, call.spline, call.second))
    return result, x.new_empty(0, dtype=call.dtype)


def compute_backward(grad: Tensor, kept: Tensor, wanted: list[bool], *inputs) -> list[Tensor]:
    """Returns the gradients of the first inputs, empty where they are not wanted."""
    call, which = Call(*inputs), Wanted(*wanted)
    known = grad, call.x, call.base, call.spline
    if call.form == "low_rank":
        gradients = call.by(lambda s: s.low_rank_backward(*known, call.second, kept, which))
    elif call.form == "group":
        gradients = call.by(lambda s: s.group_backward(*known, which))
    else:
        gradients = call.by(lambda s: s.dense_backward(*known, call.second, which))
    pairs = zip(gradients, wanted, strict=True)
    return [g.contiguous() if w else grad.new_empty(0) for g, w in pairs]


def fake(*inputs) -> tuple[Tensor, Tensor]:
    """What `compute` returns, without its numbers."""
    call = Call(*inputs)
    rows, kept = call.x.shape[0], (0,)
    outputs = call.spline.shape[0]
    if call.form == "group":
        outputs = call.base_weight.shape[0]
    if call.form == "low_rank":
        outputs, kept = call.second.shape[0], (rows, outputs)
    make = functools.partial(call.x.new_empty, dtype=call.dtype)
    return make((rows, outputs)), make(kept)


def fake_backward(grad: Tensor, kept: Tensor, wanted: list[bool], *inputs) -> list[Tensor]:
    shapes = zip(inputs[:DIFFERENTIABLE], wanted, strict=True)
    return [v.new_empty(v.shape) if w else grad.new_empty(0) for v, w in shapes]


class Layer(torch.autograd.Function):
    """The operator and its derivative."""

    @staticmethod
    def forward(ctx, *inputs):
        call = Call(*inputs)
        if type(call.x) in (Tensor, nn.Parameter):
            result, kept = compute(*inputs)
        else:  # torch.compile looks on: the operator itself is to be seen
            with torch._C._AutoDispatchBelowAutograd():
                result, kept = torch.ops.kan.layer(*inputs)
        ctx.mark_non_differentiable(kept)
        tensors = inputs[: DIFFERENTIABLE + 1]
        ctx.save_for_backward(kept, *tensors)
        ctx.settings = inputs[len(tensors) :]
        return result, kept

    @staticmethod
    def backward(ctx, grad, _):
        kept, *tensors = ctx.saved_tensors
        inputs, wanted = (*tensors, *ctx.settings), ctx.needs_input_grad[:DIFFERENTIABLE]
        if torch.is_grad_enabled():
            gradients = twice_differentiable(grad, *inputs)
        else:
            run = compute_backward
            if type(grad) is not Tensor:
                run = torch.ops.kan.layer_backward
            gradients = run(grad, kept, wanted, *inputs)
        found = [g if w else None for g, w in zip(gradients, wanted, strict=True)]
        return *found, *[None] * (len(inputs) - DIFFERENTIABLE)


def twice_differentiable(grad: Tensor, *inputs) -> list[Tensor | None]:
    """The gradients, with a graph of their own for higher derivatives."""
    # Aliases cut off what the inputs may have to do with each other.
    with torch.enable_grad():
        alias = [v if v is None else v.view_as(v) for v in inputs[:DIFFERENTIABLE]]
        result = Call(*alias, *inputs[DIFFERENTIABLE:]).plain()
    wanted = [v for v in alias if v is not None and v.requires_grad]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
    return [next(found) if v is not None and v.requires_grad else None for v in alias]


for name, function, shapes in (
    ("layer", compute, fake),
    ("layer_backward", compute_backward, fake_backward),
):
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kan::{name}", shapes, lib=library)
library.impl("layer", Layer.apply, "Autograd")
