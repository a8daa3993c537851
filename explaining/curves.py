"""The learned curves of a KAN-ViT: how much each one moved a prediction, and what it looks like.

A "curve" is one learned spline: an edge of a KANLinear (from input feature i to output o), one term
of a low-rank KANLinear (component r of input feature i, felt by all outputs) or the spline that a
group of features shares in a GroupKANLinear. The last axis of the parameter that holds them counts
the basis functions, so curve = bases @ coefficients in every case.

The contribution of a curve to a class's logit is, to first order, what the logit would lose without
it: the sum over tokens of (gradient of the logit with respect to the curve's output) times (the
curve's output). Because the curve is linear in its coefficients, that is the coefficients times
their gradient, summed over the bases: one backward pass gives it for all curves of a model.

Letters in shape comments: N tokens, I inputs, O outputs, R rank, G groups, K bases.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear
from splines.bases import dense_bases

KAN_LAYERS = (KANLinear, GroupKANLinear)
CHUNK = 4  # photos at a time where what all layers saw is kept


def kan_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The KAN layers of `model` by name, in the order of the blocks."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, KAN_LAYERS)}


def block_of(layer_name: str) -> int:
    """The number of the block that a layer such as blocks.7.mlp.fc2 belongs to."""
    return int(layer_name.split(".")[1])


def coefficients(layer: nn.Module) -> nn.Parameter:
    """The parameter that holds the layer's curves: (O, I, K), (R, I, K) or (G, K)."""
    return next(layer.spline_parameters())


def part_of(layer_name: str) -> str:
    """The map of the block that a layer such as blocks.7.mlp.fc2 is: fc1, fc2, qkv or proj."""
    return layer_name.rsplit(".", 1)[-1]


class Place(NamedTuple):
    """Where a curve sits: of which layer, on which input features, for which output or part."""

    block: int
    layer: str  # fc1, fc2, qkv or proj
    first: int
    last: int
    part: int | None = None  # of a low rank
    to: int | None = None  # the output feature that an edge leads to


@dataclass(frozen=True)
class Curve:
    """One learned spline of a model and what it added to a logit."""

    layer_name: str
    index: tuple[int, ...]  # (output, input), (component, input) or (group,)
    contribution: float

    def place(self, layer: nn.Module) -> "Place":
        """Where the curve sits: block, layer, features."""
        block, part = block_of(self.layer_name), part_of(self.layer_name)
        if isinstance(layer, GroupKANLinear):
            size = layer.in_features // layer.groups
            first = self.index[0] * size
            return Place(block, part, first, first + size - 1)
        target, source = self.index
        if layer.spline_rank is not None:
            return Place(block, part, source, source, part=target)
        return Place(block, part, source, source, to=target)

    def describe(self, layer: nn.Module) -> str:
        """Where the curve sits, for a reader."""
        place = self.place(layer)
        name = {"fc1": "layer 1", "fc2": "layer 2"}.get(place.layer, place.layer)
        features = f"feature {place.first}"
        if place.last != place.first:
            features = f"features {place.first} to {place.last}"
        end = "" if place.part is None else f", part {place.part}"
        end += "" if place.to is None else f" → {place.to}"
        return f"block {place.block + 1}, {name}, {features}{end}"


class LayerRecord:
    """Input (N, I) and output (N, O) of a layer for one photo, and the logit's gradient of both."""

    def __init__(self):
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None
        self.gradient: Tensor | None = None  # of the logit with respect to `outputs`
        self.contributions: Tensor | None = None  # (O, I), (R, I) or (G,)


@contextmanager
def recording(layers: dict[str, nn.Module]) -> Iterator[dict[str, LayerRecord]]:
    """Within it, each layer's last input and output are kept under its name."""
    records = {name: LayerRecord() for name in layers}

    def keep(record):
        def hook(_, inputs, output):
            record.inputs, record.outputs = inputs[0], output

        return hook

    hooks = [layer.register_forward_hook(keep(records[name])) for name, layer in layers.items()]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def gradients_of(parameters: Iterable[nn.Parameter], wanted: bool = True) -> Iterator[None]:
    """Within it these parameters ask for a gradient, or, with wanted=False, none of them does.

    What asks for none costs nothing in a pass back: without the parameters it takes half of it.
    """
    turned = [parameter for parameter in parameters if parameter.requires_grad != wanted]
    for parameter in turned:
        parameter.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter in turned:
            parameter.requires_grad_(not wanted)


def trace(model: nn.Module, image: Tensor, target: int) -> dict[str, LayerRecord]:
    """One photo (3, S, S) through `model` and back: each KAN layer's record for class `target`."""
    layers = kan_layers(model)
    held = {name: coefficients(layer) for name, layer in layers.items()}
    with torch.enable_grad(), gradients_of(held.values()), recording(layers) as records:
        logit = model(image[None])[0, target]
        outputs = [record.outputs for record in records.values()]
        gradients = torch.autograd.grad(logit, [*held.values(), *outputs])
    count = len(layers)
    for (name, record), of_curve, of_output in zip(
        records.items(), gradients[:count], gradients[count:], strict=True
    ):
        record.contributions = (held[name].detach() * of_curve).sum(-1)
        record.inputs, record.outputs = record.inputs.detach()[0], record.outputs.detach()[0]
        record.gradient = of_output[0]
    return records


def strongest(records: dict[str, LayerRecord], count: int) -> list[Curve]:
    """The `count` curves with the largest contributions of either sign, largest first."""
    found = []
    for name, record in records.items():
        flat = record.contributions.flatten()
        for position in flat.abs().topk(min(count, len(flat))).indices:
            index = torch.unravel_index(position, record.contributions.shape)
            found.append(Curve(name, tuple(map(int, index)), float(flat[position])))
    return sorted(found, key=lambda curve: -abs(curve.contribution))[:count]


def anything_learned(model: nn.Module) -> bool:
    """Whether any spline of `model` differs from the zero that it was before training.

    Of low rank both factors must: their product is what the splines add.
    """
    for layer in kan_layers(model).values():
        factors = list(layer.spline_parameters())
        factors += [] if getattr(layer, "spline_up", None) is None else [layer.spline_up]
        if all(bool(factor.any()) for factor in factors):
            return True
    return False


def feature_of(curve: Curve, layer: nn.Module) -> int:
    """An input feature that the curve acts on (the group's first)."""
    if isinstance(layer, GroupKANLinear):
        return curve.index[0] * (layer.in_features // layer.groups)
    return curve.index[1]


@torch.no_grad()
def evaluate(curve: Curve, layer: nn.Module, x: Tensor) -> Tensor:
    """The learned spline at the values x (N,): (N,)."""
    row = curve.index[-1]  # of the grid: the input feature, or the group
    grid = layer.grid[row : row + 1]
    bases = dense_bases(x.to(grid)[:, None], grid, layer.spline_order, layer.outside)[:, 0]
    return (bases @ coefficients(layer)[curve.index].to(bases)).float()  # (N, K) @ (K,)


def acting_on(curve: Curve, layer: nn.Module, values: Tensor) -> Tensor:
    """Of a layer's input (..., I) the features that the curve acts on: (..., 1) or (..., I / G)."""
    first = feature_of(curve, layer)
    size = layer.in_features // layer.groups if isinstance(layer, GroupKANLinear) else 1
    return values[..., first : first + size]


@torch.no_grad()
def sensitivity(curve: Curve, layer: nn.Module, gradient: Tensor) -> Tensor:
    """How much a value gains by each unit that the curve adds, (..., F), as in `per_token`.

    gradient: of the value with respect to the layer's output, (..., O).
    """
    if isinstance(layer, GroupKANLinear):
        return gradient @ acting_on(curve, layer, layer.base_weight)  # (O, F)
    if layer.spline_rank is not None:
        return gradient @ layer.spline_up[:, curve.index[0], None]
    return gradient[..., curve.index[0], None]


@torch.no_grad()
def per_token(curve: Curve, layer: nn.Module, record: LayerRecord) -> tuple[Tensor, Tensor]:
    """Where on the curve each token lies and what it added to the logit there: x and y, (N, F).

    F is the number of features that share the curve. The sum of y is the curve's contribution.
    """
    x = acting_on(curve, layer, record.inputs)
    slope = sensitivity(curve, layer, record.gradient)
    return x, slope * evaluate(curve, layer, x.flatten()).view_as(x)


@torch.no_grad()
def usage(layer: nn.Module, values: Tensor, most: int = 1 << 24) -> Tensor:
    """How much each curve varies over the inputs `values` (N, I): (O, I), (R, I) or (G,).

    The standard deviation of the curve's output, times the size of the weights it passes through,
    so that curves of a layer can be compared. At most `most` numbers are held at a time.
    """
    coef, x = coefficients(layer), layer.per_curve(values)
    held = len(x) * (coef.shape[0] if coef.ndim == 3 else 1)
    result = []
    for some in torch.arange(layer.curves, device=x.device).split(max(1, most // held)):
        grid = layer.grid[some]
        bases = dense_bases(x[:, some].to(grid), grid, layer.spline_order, layer.outside)
        if coef.ndim == 2:
            result.append((bases * coef[some]).sum(-1).std(0))
        else:
            result.append(torch.einsum("nik,uik->nui", bases, coef[:, some]).std(0))
    varies = torch.cat(result, -1)
    if isinstance(layer, GroupKANLinear):
        return varies * layer.base_weight.unflatten(1, (layer.groups, -1)).norm(dim=(0, 2))
    return varies if layer.spline_rank is None else varies * layer.spline_up.norm(dim=0)[:, None]


@torch.no_grad()
def base_of(curve: Curve, layer: nn.Module, x: Tensor) -> Tensor:
    """What stands beside the spline on the same edge, and was there before it learned: (N,)."""
    if isinstance(layer, GroupKANLinear):
        return layer.base_activation(x)
    if layer.spline_rank is not None:
        return torch.zeros_like(x)  # the base weights do not pass through the low-rank part
    return layer.base_weight[curve.index] * layer.base_activation(x)
