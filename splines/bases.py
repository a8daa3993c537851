"""B-spline bases in plain torch: exact on any increasing knots, differentiable any number of times.

Letters in shape comments: N rows, I inputs, O outputs, G grid_size, k order, K = G + k bases of an
edge.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Beyond [low, high] a spline tapers to zero over the extension, holds its value or goes straight.
OUTSIDE = ("zero", "held", "linear")


def padded_knots(grid: Tensor, order: int) -> Tensor:
    """Grid (I, G + 2k + 1) with k more knots on both sides, so that every cell has 2k neighbours.

    They belong to bases that do not exist: their values are never used, only the room.
    """
    count = torch.arange(1, order + 1, device=grid.device, dtype=grid.dtype)
    left = grid[:, :1] - count.flip(0) * (grid[:, 1:2] - grid[:, :1])
    right = grid[:, -1:] + count * (grid[:, -1:] - grid[:, -2:-1])
    return torch.cat([left, grid, right], 1)


def local_bases(x: Tensor, grid: Tensor, order: int, outside: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the k + 1 bases that differ from zero, their slopes, and the cells.

    x: (..., I), of the grid's type; grid: (I, G + 2k + 1), increasing. Values and slopes are
    (..., I, k + 1); base j of an input in cell c has the number c - k + j, of which only 0 to
    K - 1 exist. Differentiable in x any number of times. The NURBS Book, A2.2 and A2.3.
    """
    first = 0 if outside == "zero" else order
    last = grid.shape[1] - 1 - first
    low, high = grid[:, first], grid[:, last]
    # Knots that repeat the last one begin no cell.
    inner = torch.where(grid < high[:, None], grid, math.inf)[:, first + 1 : last]
    cell = torch.full_like(x, first, dtype=torch.int32)  # (..., I)
    for knot in inner.unbind(1):  # half the time of one comparison with all knots and a sum
        cell = cell + (x.detach() >= knot)
    cell = cell.long()

    # Knots c - k + 1 to c + k of the cell, looked up as rows of a table.
    near = ()
    if order:
        table = padded_knots(grid, order).unfold(1, 2 * order, 1)  # (I, cells + 2, 2k)
        offset = torch.arange(x.shape[-1], device=x.device) * table.shape[1]
        near = F.embedding(cell + 1 + offset, table.flatten(0, 1)).unbind(-1)

    at = torch.clamp(x, low, high)  # NaN stays
    values, slopes = [1 + 0 * at], [0 * at]
    left = [None, *(at - near[order - p] for p in range(1, order + 1))]
    right = [None, *(near[order - 1 + p] - at for p in range(1, order + 1))]
    for p in range(1, order + 1):
        saved, before = 0, 0
        previous, values, slopes = values, [], []
        for r in range(p):
            part = previous[r] / (right[r + 1] + left[p - r])
            values.append(saved + right[r + 1] * part)
            slopes.append(p * (before - part))
            saved, before = left[p - r] * part, part
        values.append(saved)
        slopes.append(p * before)
    values, slopes = torch.stack(values, -1), torch.stack(slopes, -1)
    if outside == "linear":
        # The detour by `at` has slope 0 out there and 1 inside, so derivatives come out right.
        values = values + (x - at).unsqueeze(-1) * slopes
    else:
        beyond = ((x < low) | (x > high)).unsqueeze(-1)
        slopes = slopes.masked_fill(beyond, 0)
        if outside == "zero":
            values = values.masked_fill(beyond, 0)
    return values, slopes, cell


def dense_bases(x: Tensor, grid: Tensor, order: int, outside: str) -> Tensor:
    """Returns all bases, (..., I) -> (..., I, K)."""
    values, _, cell = local_bases(x, grid, order, outside)
    return among_all(values, cell, grid.shape[1] - 1 - order)


def among_all(values: Tensor, cell: Tensor, count: int) -> Tensor:
    """The values of all `count` bases from those of the k + 1 in each cell, (..., I, count)."""
    order = values.shape[-1] - 1
    index = cell.unsqueeze(-1) + torch.arange(order + 1, device=cell.device)
    wide = values.new_zeros(*cell.shape, count + 2 * order)  # room for those that do not exist
    return wide.scatter(-1, index, values)[..., order : order + count]


def pieces(length: int, most: int) -> Iterator[slice]:
    """Cuts range(length) into the fewest slices of at most `most` each, nearly equal."""
    size = -(-length // max(1, -(-length // max(1, most))))
    for start in range(0, length, max(1, size)):
        yield slice(start, min(start + size, length))


def penalty(coefficients: Tensor, activation: float, entropy: float) -> Tensor:
    """Weighted L1 norm and entropy of curves with coefficients (..., K); finite at zero."""
    size = coefficients.abs().mean(-1)
    total = size.sum()
    tiny = torch.finfo(size.dtype).tiny
    share = size / total.clamp_min(1e-12)
    return activation * total - entropy * (share * share.clamp_min(tiny).log()).sum()


def scaled(weight: Tensor, scaler: Tensor | None) -> Tensor:
    """Coefficients (O, I, K) times one factor (O, I) per edge, where there is one."""
    return weight if scaler is None else weight * scaler.unsqueeze(-1)
