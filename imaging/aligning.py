"""Whether two small grey pictures show the same photo, once one is laid over the other.

A copy may be cropped, so that its content is shifted and larger: `x -> sx * x + tx` and the same
for y, with coordinates from -1 to 1. These four numbers are found by Gauss-Newton steps on the
squared difference (Lucas and Kanade 1981; with gain and offset of the brightness), first in blurred
pictures of half the size, then in the pictures themselves.

Shapes: P pairs, S the side.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE_STEPS, FINE_STEPS = 5, 4
LARGEST_STEP = 0.12
LOWEST = torch.tensor([0.76, -0.25, 0.76, -0.25])  # crops by a tenth of all sides: 0.8 and 1.25
HIGHEST = torch.tensor([1.32, 0.25, 1.32, 0.25])
SATURATED = 245  # grey from which a brightened photo may have been brighter
FINE_BLUR = 4  # passes whose result is taken away, so that only details are compared
COARSE_LIKENESS = 0.8  # a pair less alike in half the size is not refined


def likeness(first: Tensor, second: Tensor, start: Tensor) -> Tensor:
    """Returns (P, 2): the correlation of the pictures once aligned, and that of their details.

    first, second: (P, S, S), grey values from 0 to 255. start: (P, 4), a guess of sx, tx, sy, ty,
    which say where in `second` a point of `first` lies.
    """
    found = compare(first, second, start)
    small, other = halved(first), halved(second)
    place = refine(small, other, start, COARSE_STEPS)
    warped, inside = warp(other, place)
    close = correlation(small, warped, inside) > COARSE_LIKENESS
    if close.any():
        first, second = first[close], second[close]
        place = refine(blurred(first, 1), blurred(second, 1), place[close], FINE_STEPS)
        aligned = compare(first, second, place)
        better = aligned.sum(1) > found[close].sum(1)
        found[close] = torch.where(better[:, None], aligned, found[close])
    return found


def halved(pictures: Tensor) -> Tensor:
    return blurred(F.avg_pool2d(pictures[:, None], 2)[:, 0], 1)


def blurred(pictures: Tensor, passes: int) -> Tensor:
    """(P, S, S) smoothed by [1 2 1] / 4 along both axes, so many times; edges are repeated."""
    smooth = smoothing(pictures.shape[-1], passes)
    return smooth @ pictures @ smooth.mT


@cache
def smoothing(side: int, passes: int) -> Tensor:
    """The same for one axis, a matrix."""
    line = torch.arange(side)
    once = torch.zeros(side, side)
    for step, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        once.index_put_((line, (line + step).clamp(0, side - 1)), torch.tensor(share), True)
    return torch.linalg.matrix_power(once, passes)


def refine(first: Tensor, second: Tensor, place: Tensor, steps: int) -> Tensor:
    """Returns a better `place`, (P, 4), by so many Gauss-Newton steps."""
    side = first.shape[-1]
    edges = F.pad(second[:, None], (1, 1, 1, 1), "replicate")[:, 0]
    slope_x = (edges[:, 1:-1, 2:] - edges[:, 1:-1, :-2]) * side / 4
    slope_y = (edges[:, 2:, 1:-1] - edges[:, :-2, 1:-1]) * side / 4
    layers = torch.stack([second, slope_x, slope_y], 1)
    axis = points(side)
    for _ in range(steps):
        grid, inside = lattice(place, side)
        warped = F.grid_sample(layers, grid, padding_mode="border", align_corners=False)
        value, dx, dy = warped.unbind(1)
        # first = gain * (value + slopes * change) + offset, linear in gain * change, gain, offset
        columns = [dx * axis, dx, dy * axis[:, None], dy, value, torch.ones_like(value)]
        matrix = (torch.stack(columns, 1) * inside[:, None]).flatten(2)
        normal = matrix @ matrix.mT
        normal = normal + torch.diag_embed(1e-3 * normal.diagonal(dim1=1, dim2=2) + 1e-3)
        target = matrix @ (first * inside).flatten(1)[:, :, None]
        solution = torch.linalg.solve(normal, target)[:, :, 0]
        gain = solution[:, 4:5].clamp_min(0.2)
        change = (solution[:, :4] / gain).clamp(-LARGEST_STEP, LARGEST_STEP)
        place = (place + change).clamp(LOWEST, HIGHEST)
    return place


def points(side: int) -> Tensor:
    """The centres of pixels in coordinates from -1 to 1."""
    return (torch.arange(side) + 0.5) * 2 / side - 1


def lattice(place: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of `first` lies in `second`, (P, S, S, 2), and 1 where that is inside."""
    axis = points(side)
    x, y = place[:, 0:1] * axis + place[:, 1:2], place[:, 2:3] * axis + place[:, 3:4]
    grid = torch.stack([x[:, None].expand(-1, side, side), y[:, :, None].expand(-1, -1, side)], 3)
    inside = ((x.abs() <= 1)[:, None] & (y.abs() <= 1)[:, :, None]).float()
    return grid, inside


def warp(pictures: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The pictures laid over the others, (P, S, S), and 1 where they reach."""
    grid, inside = lattice(place, pictures.shape[-1])
    warped = F.grid_sample(pictures[:, None], grid, padding_mode="border", align_corners=False)
    return warped[:, 0], inside


def compare(first: Tensor, second: Tensor, place: Tensor) -> Tensor:
    """Correlations of pictures and of details, (P, 2), where `place` lays one over the other."""
    second, inside = warp(second, place)
    swap = (first * inside).sum((1, 2)) > (second * inside).sum((1, 2))
    dark = torch.where(swap[:, None, None], second, first)
    bright = torch.where(swap[:, None, None], first, second)
    dark = brightened(dark, bright, inside * (bright < SATURATED))
    whole = correlation(dark, bright, inside)
    details = [picture - blurred(picture, FINE_BLUR) for picture in (dark, bright)]
    return torch.stack([whole, correlation(*details, inside)], 1)


def brightened(dark: Tensor, bright: Tensor, where: Tensor) -> Tensor:
    """The darker pictures as bright as the others, cut off at white as cameras and editors do."""
    count = where.sum((1, 2), keepdim=True).clamp_min(8)
    mean = [(p * where).sum((1, 2), keepdim=True) / count for p in (dark, bright)]
    apart = dark - mean[0]
    product = (apart * (bright - mean[1]) * where).sum((1, 2), keepdim=True)
    gain = product / ((apart * apart * where).sum((1, 2), keepdim=True) + 1)
    return (apart * gain.clamp(0.3, 4) + mean[1]).clamp(0, 255)


def correlation(first: Tensor, second: Tensor, where: Tensor) -> Tensor:
    """Pearson's correlation over the pixels with `where` 1, (P,); about 0 for flat pictures."""
    count = where.sum((1, 2), keepdim=True).clamp_min(1)
    a, b = ((p - (p * where).sum((1, 2), keepdim=True) / count) * where for p in (first, second))
    power = (a * a).sum((1, 2)) * (b * b).sum((1, 2))
    return (a * b).sum((1, 2)) / power.sqrt().clamp_min(1)
