"""The two sides: KANs and MLPs in float64, with the three variants of each that tuning may choose.

An MLP of depth d has d layers of weights, so d - 1 hidden ones.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from kan import KAN


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
