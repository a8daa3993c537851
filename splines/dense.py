"""All bases of an input by whole-tensor operations: few of them, no search, no scatter, no gather.

What torch computes by itself where neither C nor Triton serves; no part of any graph. Tensors are
(N, K, F): each basis is a plane in which features lie side by side, as vectors want them.
"""

import math

import torch
from torch import Tensor

from splines.bases import ends


def dense_values(
    x: Tensor, grid: Tensor, order: int, outside: str, even: bool, out: Tensor
) -> None:
    """Puts all bases at x (N, F) into `out` (N, K, F); grid: (F, G + 2k + 1), of x's type."""
    at, distance, beyond = _places(x, grid, order, outside)
    if outside == "linear":
        slopes = torch.empty(out.shape, dtype=x.dtype, device=x.device)
        _inside(at, grid, order, outside, even, out, slopes)
        out.addcmul_(slopes, distance.unsqueeze(1))
    else:
        _inside(at, grid, order, outside, even, out, None)
        if outside == "zero":
            out.masked_fill_(beyond.unsqueeze(1), 0)


def dense_slopes(
    x: Tensor, grid: Tensor, order: int, outside: str, even: bool, out: Tensor
) -> None:
    """Puts the slopes of all bases at x (N, F) into `out` (N, K, F)."""
    at, _, beyond = _places(x, grid, order, outside)
    _inside(at, grid, order, outside, even, None, out)
    if outside != "linear":
        out.masked_fill_(beyond.unsqueeze(1), 0)


def _places(x: Tensor, grid: Tensor, order: int, outside: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x within the grid's ends, how far beyond it lies, and whether it does."""
    first, last = ends(grid, order, outside)
    low, high = grid[:, first], grid[:, last]
    at = torch.clamp(x, low, high)  # NaN stays
    most = torch.finfo(x.dtype).max  # which leaves 0 where it is multiplied by 0
    return at, (x - at).clamp_(-most, most), (x < low) | (x > high)


def _inside(
    x: Tensor, grid: Tensor, order: int, outside: str, even: bool,
    values: Tensor | None, slopes: Tensor | None,
) -> None:  # fmt: skip
    if even:
        _closed(x, grid, order, values, slopes)
    else:
        _recursion(x, grid, order, outside, values, slopes)


def _closed(
    x: Tensor, grid: Tensor, order: int, values: Tensor | None, slopes: Tensor | None
) -> None:
    """On even knots, from order 2 on: truncated powers of the distance from a basis' middle.

    Of order k they count (-1)^j binomial(k + 1, j) / k! (Schoenberg).
    """
    count = grid.shape[1] - 1 - order
    low, high = grid[:, order], grid[:, count]
    inverse = (count - order) / (high - low)
    t = ((x - 0.5 * (low + high)) * inverse).unsqueeze(1)
    middles = torch.arange(count, device=x.device, dtype=x.dtype) + 0.5 * (1 - count)
    t = t - middles.unsqueeze(-1)  # (N, K, F)
    d = t.abs()
    terms = [
        (0.5 * (order + 1) - j, (-1) ** j * math.comb(order + 1, j) / math.factorial(order))
        for j in range((order + 2) // 2)
    ]
    total, steep = values, slopes
    for number, (reach, factor) in enumerate(terms):
        q = torch.sub(reach, d).clamp_(min=0)
        power = q if order == 2 else q.pow(order - 1)
        if total is not None:
            term = torch.mul(q, power, out=total if not number else None)
            total.mul_(factor) if not number else total.add_(term, alpha=factor)
        if steep is not None:
            if number:
                steep.add_(power, alpha=-order * factor)
            else:
                torch.mul(power, -order * factor, out=steep)
    if steep is not None:
        steep.mul_(t.sign_()).mul_(inverse)


def _recursion(
    x: Tensor, grid: Tensor, order: int, outside: str,
    values: Tensor | None, slopes: Tensor | None,
) -> None:  # fmt: skip
    """On any knots, by Cox and de Boor (The NURBS Book, eq. 2.5), for all cells at once."""
    t = grid.t().contiguous()  # (knots, F)
    end = t[ends(grid, order, outside)[1]]
    # Knots from the end on begin no cell, so that the last cell has both its ends.
    passed = x.new_empty(len(x), *t.shape)  # numbers, 0 and 1: truth values take ten times as long
    torch.ge(x.unsqueeze(1), t.where(t < end, math.inf), out=passed)  # (N, knots, F)
    b = (passed[:, :-1] - passed[:, 1:]).add_(0 * x.unsqueeze(1))  # of order 0; NaN stays
    beyond = x.unsqueeze(1) - t  # each knot
    for p in range(1, order + 1):
        # Knots that coincide have no cell between them.
        inverse = (t[p:] - t[:-p]).clamp_min_(0).reciprocal_()
        b.mul_(inverse.masked_fill_(inverse.isinf(), 0))
        if p == order and slopes is not None:
            torch.sub(b[:, :-1], b[:, 1:], out=slopes).mul_(order)
            if values is None:
                return
        b = torch.mul(beyond[:, : -p - 1], b[:, :-1], out=values if p == order else None).addcmul_(
            beyond[:, p + 1 :], b[:, 1:], value=-1
        )
    if not order and values is not None:
        values.copy_(b)
    if not order and slopes is not None:
        slopes.zero_()
