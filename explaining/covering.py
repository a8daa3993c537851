"""Whether the map of a photo holds for this very photo: its marked patches covered, and others.

Letters in shape comments: S pixels a side, P patches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHARE = 0.2  # of the patches that are covered
DRAWS = 5  # of as many patches by chance, the control


@dataclass(frozen=True)
class Covered:
    """A class's probability for the photo as it is, and with a fifth of its patches covered.

    marked: without the patches that the map gives most; random: the mean over DRAWS of others.
    """

    patches: int
    whole: float
    marked: float
    random: float


@torch.inference_mode()
def cover(probabilities: Callable, image: Tensor, target: int, heat: Tensor) -> Covered:
    """What `probabilities` (images (B, 3, S, S) -> (B, K)) gives with patches at the mean colour.

    heat: (side, side), the higher the more a patch counted. image: (3, S, S), normalised.
    """
    count = max(1, round(SHARE * heat.numel()))
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(heat.numel(), generator=generator) for _ in range(DRAWS)]
    orders = [heat.flatten().argsort(descending=True).cpu(), *orders]
    seen = torch.ones(1 + len(orders), heat.numel())
    for row, order in zip(seen[1:], orders, strict=True):
        row[order[:count]] = 0
    side = len(heat)
    size = image.shape[-1] // side
    mask = seen.view(-1, 1, side, side).repeat_interleave(size, 2).repeat_interleave(size, 3)
    rest = image.shape[-1] - side * size  # pixels beside whole patches, which the model never sees
    mask = F.pad(mask, (0, rest, 0, rest), value=1.0).to(image)
    whole, marked, *others = probabilities(image * mask)[:, target].tolist()
    return Covered(count, whole, marked, sum(others) / len(others))
