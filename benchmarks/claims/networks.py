"""The two sides: KANs and MLPs in float64, with the three variants of each that tuning may choose.

An MLP of depth d has d layers of weights, so d - 1 hidden ones.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from kan import KAN
from kan_fit import fit, fit_with_extension


class Sine(nn.Module):
    """sin(x): the activation that suits waves, as splines do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


ACTIVATIONS = {"tanh": nn.Tanh, "SiLU": nn.SiLU, "sine": Sine}
KAN_VARIANTS = {
    "even knots": {"init": "glorot", "outside": "linear", "grid_eps": 1.0},
    "knots where data are": {"init": "glorot", "outside": "linear", "grid_eps": 0.02},
    "paper's start": {"init": "noise", "outside": "zero", "grid_eps": 1.0},
}


def make_mlp(sizes: list[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1]).double()


def hidden_sizes(inputs: int, width: int, depth: int, outputs: int = 1) -> list[int]:
    return [inputs, *[width] * (depth - 1), outputs]


def make_kan(sizes: list[int], variant: str, grid_size: int, **options) -> KAN:
    """Without the factor per edge, which doubles what the coefficients can do by themselves."""
    options = {"enable_standalone_scale_spline": False} | KAN_VARIANTS[variant] | options
    return KAN(sizes, grid_size=grid_size, **options).double()


def best_start(
    create: Callable[[], nn.Module], x: Tensor, y: Tensor, starts: int, steps: int
) -> nn.Module:
    """The one of `starts` random networks that fits best after a few steps.

    Narrow networks, KANs above all, end in very different minima.
    """
    candidates = []
    for _ in range(starts):
        model = create().to(x.device)
        if isinstance(model, KAN):
            grid_size = model.layers[0].grid_size
            rmse = fit_with_extension(model, x, y, (grid_size,), steps, rounds=2)[-1].rmse
        else:
            rmse = fit(model, x, y, steps)
        candidates.append((rmse, model))
    return min(candidates, key=lambda candidate: candidate[0])[1]
