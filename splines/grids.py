"""From one grid of knots to another: what moves coefficients, and whose samples count."""

import torch
import torch.distributed as dist
from torch import Tensor

from splines.bases import dense_bases, pieces


def change_of_grid(
    old: Tensor, new: Tensor, order: int, outside: str, samples: Tensor | None = None
) -> Tensor:
    """Returns matrices (curves, K_new, K_old) that carry coefficients from one grid to another.

    The least-squares fit of the old bases by the new ones at k + 1 points in each new cell, which
    determine it, and at samples (N, curves), which weigh far more. It depends on no coefficient,
    so that one small matrix serves all edges of an input; and is exact where the old splines are
    also splines on the new grid.
    """
    old, new = old.double(), new.double()
    inner = new[:, order : new.shape[1] - order]
    part = (torch.arange(order + 1, device=new.device, dtype=torch.float64) + 0.5) / (order + 1)
    points = inner[:, :-1, None] * (1 - part) + inner[:, 1:, None] * part  # (curves, G, k + 1)
    points = points.flatten(1).t()

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = dense_bases(x, new, order, outside), dense_bases(x, old, order, outside)
        return torch.einsum("ncj,nck->cjk", a, a), torch.einsum("ncj,nck->cjk", a, b)

    gram, mixed = moments(points)
    if samples is not None:
        weight = 1e6 * len(points) / len(samples)
        for rows in pieces(len(samples), 1024):
            more = moments(samples[rows].double())
            gram, mixed = gram + weight * more[0], mixed + weight * more[1]
    return torch.linalg.solve(gram, mixed)


def everywhere(x: Tensor) -> Tensor:
    """x (N, C) of all processes of a distributed run, one below the other."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, x.cpu())
    return torch.cat(parts).to(x.device)
