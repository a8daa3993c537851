"""Grids of knots: uniform, finer, where inputs are; what carries splines from one to another."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from splines.bases import dense_bases, padded_knots, pieces
from splines.exact import exact


def uniform_knots(low: Tensor, high: Tensor, size: int, order: int) -> Tensor:
    """Returns knots (curves, G + 2k + 1), uniform on [low, high] (curves,) and k beyond."""
    if low.is_meta:  # torch would import its compiler (2 s) to compute nothing
        return low.new_empty(len(low), size + 2 * order + 1)
    steps = torch.arange(-order, size + order + 1, dtype=torch.float64) / size  # MPS has no float64
    first, last = low.cpu().unsqueeze(1), high.cpu().unsqueeze(1)
    # This form gives low and high exactly, where low + step * (high - low) / g may not.
    return (first * (1 - steps) + last * steps).to(low)


def finer_knots(grid: Tensor, order: int, size: int) -> Tensor:
    """Returns knots with `size` cells in the range of `grid`, whose cells they divide as evenly."""
    before = grid.shape[1] - 1 - 2 * order
    old = exact(grid)[:, order : order + before + 1]
    position = torch.arange(size + 1, device=old.device) * before
    cell = (position // size).clamp(max=before - 1)
    part = (position - cell * size) / size
    inner = old[:, cell] * (1 - part) + old[:, cell + 1] * part
    return padded_knots(inner, order).to(grid)


def knots_at(x: Tensor, size: int, order: int, uniform_share: float, margin: float) -> Tensor:
    """Returns knots (curves, G + 2k + 1) at the quantiles of finite samples x (N, curves).

    They are mixed with `uniform_share` of uniform ones, on a range `margin` wider than that of x.
    """
    ranked = exact(x).sort(0).values
    low, high = ranked[0], ranked[-1]
    # A constant feature still needs knots that its type can tell apart.
    largest = 1e-3 * torch.maximum(-low, high).abs()
    room = torch.maximum(torch.full_like(low, margin), largest)
    room = torch.where((high - low) > 2 * largest, margin, room)
    low, high = low - room.clamp_min(1e-6), high + room.clamp_min(1e-6)
    share = torch.linspace(0, 1, size + 1, device=low.device, dtype=torch.float64)
    place = share * (len(x) - 1)
    below = place.long()
    part = (place - below)[:, None]
    above = (below + 1).clamp(max=len(x) - 1)
    adaptive = ranked[below] * (1 - part) + ranked[above] * part  # (G + 1, curves)
    adaptive[0], adaptive[-1] = low, high
    uniform = low + share[:, None] * (high - low)
    inner = uniform_share * uniform + (1 - uniform_share) * adaptive
    step = (high - low) / size
    count = torch.arange(1, order + 1, device=low.device)[:, None]
    grid = torch.cat([low - count.flip(0) * step, inner, high + count * step])
    return grid.t().to(x).contiguous()


def range_of(x: Tensor, outside_share: float) -> tuple[Tensor, Tensor]:
    """Returns (low, high), each (curves,), that leave the share of x (N, curves) outside."""
    curves = x.t().contiguous()
    last = int(outside_share / 2 * len(x)) + 1  # of the few at either end: no need to sort all
    low = curves.topk(last, largest=False).values[:, -1]
    high = curves.topk(last).values[:, -1]
    # A feature that hardly varies still needs knots that its type can tell apart.
    room = 1e-3 * torch.maximum(low.abs(), high.abs()).clamp_min(1e-3) - (high - low)
    return low - room.clamp_min(0) / 2, high + room.clamp_min(0) / 2


def change_of_grid(
    old: Tensor, new: Tensor, order: int, outside: str, samples: Tensor | None = None
) -> Tensor:
    """Returns matrices (curves, K_new, K_old) that carry coefficients from one grid to another.

    They are `exact`, as the coefficients must be that they are multiplied with.

    The least-squares fit of the old bases by the new ones at k + 1 points in each new cell, which
    determine it, and at samples (N, curves), which weigh far more. It depends on no coefficient,
    so that one small matrix serves all edges of an input; and is exact where the old splines are
    also splines on the new grid.
    """
    old, new = exact(old), exact(new)
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
            more = moments(exact(samples[rows]))
            gram, mixed = gram + weight * more[0], mixed + weight * more[1]
    return torch.linalg.solve(gram, mixed)


def everywhere(x: Tensor) -> Tensor:
    """x (N, C) of all processes of a distributed run, one below the other."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, x.cpu())
    return torch.cat(parts).to(x.device)


# Grids that were looked at: their version then, and whether they were even. A tensor that changes
# in place gets another version, and a look costs a wait for the device.
seen = WeakTensorKeyDictionary()


def is_even(grid: Tensor) -> bool:
    """Whether the knots of every curve (curves, knots) are evenly spaced, but for rounding.

    False where that cannot be told now: it is always right to say so.
    """
    if grid.is_inference() or (grid.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    version, even = seen.get(grid, (None, False))
    if version != grid._version:
        first, last = grid[:, :1], grid[:, -1:]
        cell = (last - first) / (grid.shape[1] - 1)
        steps = torch.arange(grid.shape[1], device=grid.device)
        off = (grid.detach() - (first + steps * cell)).abs()
        even = bool((off <= 64 * torch.finfo(grid.dtype).eps * cell).all())
        seen[grid] = grid._version, even
    return even
