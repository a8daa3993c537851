"""Ways of naming the splines that spoke most for a class, to be compared by taking these away.

Each takes a `Model`, an image that it has `prepared`, a class and a count, and returns the numbers
of so many curves (see `explaining.attribution`). Letters in shape comments: N curves of the model.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from explaining.attribution import Strengths, take
from explaining.curves import block_of, kan_layers, trace
from explaining.kan_vit import layer_inputs
from kan import GroupKANLinear
from splines.bases import dense_bases
from training.feature_cache import rest_of, run_frozen

STEPS = 8  # of a path


class Model:
    """A model whose curves can be turned down, with what its curves give on average."""

    def __init__(self, model: nn.Module, references: Tensor) -> None:
        """references: photos (B, 3, S, S) over which a curve's mean output is taken."""
        blocks = [block_of(name) for name in kan_layers(model)]
        # What comes before the first of them is computed once for each photo.
        self.whole, self.skip = model, blocks[0]
        self.model = rest_of(model, self.skip)
        self.strengths, self.layers = Strengths(self.model), kan_layers(self.model)
        self.inputs = layer_inputs(self.model, self.prepared(references))
        self.means = {name: mean_outputs(self.layers[name], x) for name, x in self.inputs.items()}
        sizes = torch.tensor(self.strengths.sizes)
        self.block = torch.tensor(blocks).repeat_interleave(sizes)  # of each curve, (N,)

    @torch.no_grad()
    def prepared(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> what `model` takes: these, or the tokens of a later block."""
        return run_frozen(self.whole, self.skip, images) if self.skip else images


@torch.no_grad()
def mean_outputs(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The mean of each curve over inputs (M, I): (O, I), (R, I) or (G,)."""
    x = layer.per_curve(inputs)
    bases = dense_bases(x.to(layer.grid), layer.grid, layer.spline_order, layer.outside).mean(0)
    return (next(layer.spline_parameters()) * bases).sum(-1)


def sensitivity(layer: nn.Module, gradient: Tensor) -> Tensor:
    """By how much the logit rises if a curve gives one more in every token, as `mean_outputs`.

    gradient: of the logit with respect to the layer's output, (tokens, O).
    """
    total = gradient.sum(0)
    if isinstance(layer, GroupKANLinear):
        return (total @ layer.base_weight).unflatten(0, (layer.groups, -1)).sum(1)
    ends = total if layer.spline_rank is None else total @ layer.spline_up
    return ends[:, None].expand(-1, layer.in_features)


def first_order(model: Model, image: Tensor, target: int) -> Tensor:
    return model.strengths.slopes(image, target, model.strengths.full)


def integrated(model: Model, image: Tensor, target: int, start: float = 0.0) -> Tensor:
    """Slopes averaged from `start` to full strength of all curves, at the middles of STEPS parts.

    From 0, they add up to what the logit loses without all curves.
    """
    full = model.strengths.full
    total = torch.zeros_like(full)
    for step in range(STEPS):
        strength = start + (1 - start) * (step + 0.5) / STEPS
        total += model.strengths.slopes(image, target, strength * full)
    return total / STEPS


def near_full(model: Model, image: Tensor, target: int) -> Tensor:
    """The same over the last tenth of the path: only 1 % of the curves will be taken away."""
    return integrated(model, image, target, start=0.9)


def by_block(model: Model, image: Tensor, target: int) -> Tensor:
    """The exact fall of each block without its curves; what the first order lacks is shared out.

    A curve takes part in it as the size of its first-order contribution does in its block's.
    """
    strengths = model.strengths
    values = first_order(model, image, target)
    whole = strengths.logit(image, target, strengths.full)
    for block in model.block.unique():
        own = model.block == block
        fall = whole - strengths.logit(image, target, strengths.full.masked_fill(own, 0.0))
        size = values[own].abs()
        values[own] += (fall - values[own].sum()) * size / size.sum().clamp_min(1e-30)
    return values


def patched(model: Model, image: Tensor, target: int) -> Tensor:
    """What the logit loses, to first order, where a curve gives its mean over other photos."""
    records = trace(model.model, image, target)
    parts = []
    for name, record in records.items():
        slope = sensitivity(model.layers[name], record.gradient)
        parts.append((record.contributions - slope * model.means[name]).flatten())
    return torch.cat(parts)


def sizes(model: Model, image: Tensor, target: int) -> Tensor:
    """The norm of each curve's coefficients times that of the weights which it passes through."""
    parts = []
    for name, layer in model.layers.items():
        norm = model.strengths.stored[name].norm(dim=-1)
        if isinstance(layer, GroupKANLinear):
            norm = norm * layer.base_weight.unflatten(1, (layer.groups, -1)).norm(dim=(0, 2))
        elif layer.spline_rank is not None:
            norm = norm * layer.spline_up.norm(dim=0)[:, None]
        elif layer.spline_scaler is not None:
            norm = norm * layer.spline_scaler.abs()
        parts.append(norm.flatten())
    return torch.cat(parts)


def best(values: Callable) -> Callable:
    """The naming by the largest of the values that a method gives."""

    def name(model: Model, image: Tensor, target: int, count: int) -> Tensor:
        return values(model, image, target).topk(count).indices

    return name


def greedy(parts: int) -> Callable:
    """A part of the set is taken away, then the rest is judged anew."""
    return lambda model, *about: take(model.strengths, *about, parts)[0]


def halfway(rounds: int) -> Callable:
    """The best by slopes where the set itself, as last named, is at half its strength."""

    def name(model: Model, image: Tensor, target: int, count: int) -> Tensor:
        strengths = model.strengths.full
        for _ in range(rounds + 1):
            values = model.strengths.slopes(image, target, strengths)
            named = values.topk(count).indices
            strengths = model.strengths.full.index_fill(0, named, 0.5)
        return named

    return name


NAMINGS: dict[str, Callable] = {
    "first order": best(first_order),
    "integrated gradients": best(integrated),
    "integrated near full strength": best(near_full),
    "exact by block": best(by_block),
    "activation patching": best(patched),
    "greedy, 2 parts": greedy(2),
    "greedy, 4 parts": greedy(4),
    "greedy, 8 parts": greedy(8),
    "half-way, 1 round": halfway(1),
    "half-way, 3 rounds": halfway(3),
    "largest": best(sizes),
}


def falls(
    model: Model, image: Tensor, target: int, sets: Sequence[Tensor], whole: float
) -> list[float]:
    """By how much the logit falls, from `whole`, without each of the sets of curves."""
    strengths = model.strengths
    return [whole - strengths.logit(image, target, strengths.without(one)) for one in sets]
