"""How large the weights of a KAN layer start."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from splines.bases import dense_bases, local_bases
from splines.exact import exact

INITIALISATIONS = ("power", "glorot", "noise")


class Spread(NamedTuple):
    """Standard deviations of base weights and of coefficients."""

    base: float
    spline: float


def spreads(
    init: str, in_features: int, out_features: int, grid: Tensor, order: int, outside: str,
    activation: nn.Module,
) -> Spread:  # fmt: skip
    """Returns the deviations of schemes "power" and "glorot", for standard normal inputs.

    grid: knots (1, G + 2k + 1) that all inputs share.
    """
    grid = grid.cpu().double()
    bases_per_edge = grid.shape[1] - 1 - order
    terms = bases_per_edge + 1
    z = torch.linspace(0, 1, 1002, dtype=torch.float64, device="cpu")[1:-1, None]
    z = math.sqrt(2) * torch.erfinv(2 * z - 1)  # quantiles of the normal distribution
    bases, slopes, _ = local_bases(z, grid, order, outside)
    with torch.enable_grad():
        z.requires_grad_()
        active = activation(z)
        (rise,) = torch.autograd.grad(active.sum(), z)

    def deviation(value: Tensor, slope: Tensor, number: int) -> float:
        forward = in_features * value.square().sum().item() / number / len(z)
        backward = out_features * slope.square().sum().item() / number / len(z)
        return (2 / terms / (forward + backward)) ** 0.5

    if init == "power":
        keeping = (in_features * active.square().mean().item()) ** -0.5
        return Spread(keeping, (in_features * terms) ** -1.75)
    return Spread(deviation(active, rise, 1), deviation(bases, slopes, bases_per_edge))


def noisy(coefficients: Tensor, grid: Tensor, order: int, outside: str, scale: float) -> Tensor:
    """Returns (O, I, K) as `coefficients`: splines through noise at the G + 1 inner knots."""
    grid = exact(grid)
    cells = grid.shape[1] - 1 - 2 * order
    bases = dense_bases(grid[:, order : order + cells + 1].t(), grid, order, outside)[:, 0]
    solution = torch.linalg.pinv(bases).to(coefficients)  # (K, G + 1), one for all edges
    noise = coefficients.new_empty(*coefficients.shape[:2], cells + 1)
    return noise.uniform_(-0.5, 0.5) * (scale / cells) @ solution.t()
