"""Splines turned down, one by one or together: what a class's logit loses without them.

`Strengths` computes a model with each of its curves at some strength: 1 as it is, 0 without it. A
curve is linear in its coefficients, so that one backward pass gives the slope of the logit in the
strengths of all curves. At full strength that is the first order of what the logit loses without a
curve; along a path from 0 to 1 the slopes add up to what it loses without all of them.

Named are the curves that together speak most for a class. They are taken in PARTS: what is left is
judged anew without those taken before, since curves that do the same stand in for each other. That
won over six other ways, see `benchmarks/spline_faithfulness.py`.

All curves of a model are numbered: layer by layer in the order of `curves.kan_layers`, in each as
`coefficients` has them. Letters in shape comments: N curves of the model.
"""

import copy
import functools
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from explaining.curves import Curve, coefficients, gradients_of, kan_layers

NAMED, MOST_NAMED = 0.01, 10_000  # of all curves, those that a photo's file names
PARTS = 4
DRAWS = 3  # of as many curves by chance, the control


def with_own_modules(model: nn.Module) -> nn.Module:
    """A copy of the modules alone, which shares every tensor with `model`.

    Hooks and curves that are set there leave `model` as it is, for other threads that compute.
    """
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


class Strengths:
    """A model whose curves can be turned down; the model that is given stays as it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = with_own_modules(model)
        self.layers = kan_layers(self.model)
        self.stored = {name: coefficients(layer).detach() for name, layer in self.layers.items()}
        self.sizes = [coef[..., 0].numel() for coef in self.stored.values()]

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def full(self) -> Tensor:
        """Every curve as it is, (N,)."""
        return torch.ones(len(self), device=next(iter(self.stored.values())).device)

    def without(self, removed: Tensor) -> Tensor:
        """Every curve as it is but for those with these numbers, (N,)."""
        return self.full.index_fill(0, removed, 0.0)

    def by_layer(self, values: Tensor) -> dict[str, Tensor]:
        """A value for each curve (N,), as the layers have them: (O, I), (R, I) or (G,)."""
        parts = values.split(self.sizes)
        shapes = [coef.shape[:-1] for coef in self.stored.values()]
        named = zip(self.stored, parts, shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in named}

    def _turn(self, strengths: Tensor) -> list[nn.Parameter]:
        turned = []
        for name, factor in self.by_layer(strengths).items():
            layer, stored = self.layers[name], self.stored[name]
            place = next(n for n, p in layer.named_parameters() if p is coefficients(layer))
            turned.append(nn.Parameter(stored * factor[..., None].to(stored)))
            setattr(layer, place, turned[-1])
        return turned

    @torch.no_grad()
    def logit(self, image: Tensor, target: int, strengths: Tensor) -> float:
        """The class's logit for an image (3, S, S), with the curves at strengths (N,)."""
        self._turn(strengths)
        return float(self.model(image[None])[0, target])

    def slopes(self, image: Tensor, target: int, strengths: Tensor) -> Tensor:
        """The slope of that logit in each of the strengths, (N,)."""
        with torch.enable_grad(), gradients_of(self.model.parameters(), wanted=False):
            turned = self._turn(strengths)  # which alone ask for one
            gradients = torch.autograd.grad(self.model(image[None])[0, target], turned)
        pairs = zip(self.stored.values(), gradients, strict=True)
        return torch.cat([(coef * gradient).sum(-1).flatten() for coef, gradient in pairs])

    def curve(self, number: int, contribution: float) -> Curve:
        """The curve of that number, with the place it has in its layer's parameter."""
        for (name, coef), size in zip(self.stored.items(), self.sizes, strict=True):
            if number < size:
                index = divmod(number, coef.shape[1]) if coef.ndim == 3 else (number,)
                return Curve(name, index, contribution)
            number -= size
        raise IndexError("no curve has this number")


@dataclass(frozen=True)
class Removed:
    """A class's logit for the photo as it is, and with some splines set to zero.

    named: without those that spoke most for it; random: the mean over DRAWS of as many others.
    """

    splines: int
    of: int
    whole: float
    named: float
    random: float


def take(
    strengths: Strengths, image: Tensor, target: int, count: int, parts: int = PARTS
) -> tuple[Tensor, Tensor]:
    """The numbers of the curves that together speak most for a class, and what each adds, (M,).

    At most `count`, since a curve that speaks against the class is never taken.
    """
    slopes = strengths.slopes(image, target, strengths.full)
    taken = slopes.new_empty(0, dtype=torch.long)
    added = slopes.new_empty(0)
    for part in range(1, parts + 1):
        if len(taken):
            slopes = strengths.slopes(image, target, strengths.without(taken))
            slopes[taken] = 0.0
        best = slopes.topk(round(count * part / parts) - len(taken))
        found = best.values > 0
        taken = torch.cat([taken, best.indices[found]])
        added = torch.cat([added, best.values[found]])
    return taken, added


def name_curves(
    strengths: Strengths, image: Tensor, target: int
) -> tuple[list[Curve], Removed | None]:
    """The curves that speak most for a class, NAMED of all and at most MOST_NAMED, best first.

    With what the logit of the image (3, S, S) is without them; None where none speaks for it.
    """
    count = min(MOST_NAMED, max(1, round(NAMED * len(strengths))))
    taken, added = take(strengths, image, target, count)
    order = added.argsort(descending=True)
    rows = zip(taken[order].tolist(), added[order].tolist(), strict=True)
    named = [strengths.curve(*row) for row in rows]
    return named, remove(strengths, image, target, taken) if named else None


@functools.lru_cache(maxsize=1)  # of all photos, for millions of curves take seconds to draw
def drawn(total: int, count: int) -> list[Tensor]:
    """DRAWS sets of `count` of `total` curves, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(total, generator=generator)[:count] for _ in range(DRAWS)]


def remove(strengths: Strengths, image: Tensor, target: int, taken: Tensor) -> Removed:
    """What the logit is without the curves `taken` (M,), and without as many by chance."""
    sets = [taken[:0], taken]
    sets += [one.to(taken.device) for one in drawn(len(strengths), len(taken))]
    whole, named, *others = (strengths.logit(image, target, strengths.without(one)) for one in sets)
    return Removed(len(taken), len(strengths), whole, named, sum(others) / len(others))
