"""B-spline bases in plain torch: exact on any increasing knots, differentiable any number of times.

Letters in shape comments, here and in the other modules of this room: N rows, I inputs, O outputs,
G grid_size, k order, K = G + k bases of an edge.
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


def ends(grid: Tensor, order: int, outside: str) -> tuple[int, int]:
    """Returns the numbers of the knots between which splines are what their coefficients say."""
    first = 0 if outside == "zero" else order
    return first, grid.shape[1] - 1 - first


def local_bases(x: Tensor, grid: Tensor, order: int, outside: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the k + 1 bases that differ from zero, their slopes, and the cells.

    x: (..., I), of the grid's type; grid: (I, G + 2k + 1), increasing. Values and slopes are
    (..., I, k + 1); base j of an input in cell c has the number c - k + j, of which only 0 to
    K - 1 exist. Differentiable in x any number of times. The NURBS Book, A2.2 and A2.3.
    """
    first, last = ends(grid, order, outside)
    cell = find_cells(x.detach(), grid, first, last)
    at = torch.clamp(x, grid[:, first], grid[:, last])  # NaN stays
    values, slopes = _recursion(at, _neighbours(cell, grid, order), order)
    if outside == "linear":
        # The detour by `at` has slope 0 out there and 1 inside, so derivatives come out right.
        return values + (x - at).unsqueeze(-1) * slopes, slopes, cell
    beyond = ((x < grid[:, first]) | (x > grid[:, last])).unsqueeze(-1)
    if outside == "zero":
        values = values.masked_fill(beyond, 0)
    return values, slopes.masked_fill(beyond, 0), cell


def find_cells(x: Tensor, grid: Tensor, first: int, last: int) -> Tensor:
    """Returns the number of the cell of x (..., I) from knot `first` to `last`, the ends held."""
    # Knots that repeat the last one begin no cell.
    inner = torch.where(grid < grid[:, last, None], grid, math.inf)[:, first + 1 : last]
    cell = torch.full_like(x, first, dtype=torch.int32)  # (..., I)
    for knot in inner.unbind(1):  # half the time of one comparison with all knots and a sum
        cell = cell + (x >= knot)
    return cell.long()


def _neighbours(cell: Tensor, grid: Tensor, order: int) -> tuple[Tensor, ...]:
    """Returns the knots c - k + 1 to c + k of each cell c (..., I), 2k tensors of its shape."""
    if not order:
        return ()
    table = padded_knots(grid, order).unfold(1, 2 * order, 1)  # (I, cells + 2, 2k)
    offset = torch.arange(cell.shape[-1], device=cell.device) * table.shape[1]
    return F.embedding(cell + 1 + offset, table.flatten(0, 1)).unbind(-1)  # rows of a table


def _recursion(x: Tensor, near: tuple[Tensor, ...], order: int) -> tuple[Tensor, Tensor]:
    """Returns values and slopes (..., I, k + 1) of the bases at x, in cells with knots `near`."""
    left = [None, *(x - near[order - p] for p in range(1, order + 1))]
    right = [None, *(near[order - 1 + p] - x for p in range(1, order + 1))]
    values, slopes = [1 + 0 * x], [0 * x]
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
    return torch.stack(values, -1), torch.stack(slopes, -1)


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


def scaled(weight: Tensor, scaler: Tensor | None) -> Tensor:
    """Coefficients (O, I, K) times one factor (O, I) per edge, where there is one."""
    return weight if scaler is None else weight * scaler.unsqueeze(-1)


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
