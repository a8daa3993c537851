"""Whether a map of relevance is true: patches taken away and put back, and pasted objects found.

Letters in shape comments: S pixels a side, P patches.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 10  # of patches, as in SaCo's paper
BATCH = 32
THUMBNAIL = 8  # pixels a side that a blurred photo keeps


def blurred(image: Tensor) -> Tensor:
    """The photo (3, S, S) with only what a thumbnail keeps of it."""
    small = F.interpolate(image[None], size=THUMBNAIL, mode="area")
    return F.interpolate(small, size=image.shape[-1], mode="bicubic")[0]


def fillers(image: Tensor) -> dict[str, Tensor]:
    """What stands where a patch is taken away: the mean colour, or the photo blurred."""
    return {"mean": torch.zeros_like(image), "blur": blurred(image)}


def on_pixels(patches: Tensor, image: Tensor) -> Tensor:
    """Which patches are meant, (..., P), as pixels (..., 1, S, S); what no patch sees is not."""
    side = round(patches.shape[-1] ** 0.5)
    size = image.shape[-1] // side
    wide = patches.unflatten(-1, (side, side)).repeat_interleave(size, -1)
    wide = wide.repeat_interleave(size, -2)
    rest = image.shape[-1] - side * size
    return F.pad(wide, (0, rest, 0, rest))[..., None, :, :]


def firsts(order: Tensor, steps: int) -> Tensor:
    """Which of P patches are among the first 0, ..., P of an order, (steps + 1, P)."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    counts = torch.linspace(0, len(order), steps + 1, device=order.device).round()
    return rank[None] < counts[:, None]


def groups(order: Tensor) -> Tensor:
    """Which patches belong to each of GROUPS runs of an order, (GROUPS, P)."""
    upto = firsts(order, GROUPS)
    return upto[1:] & ~upto[:-1]


@torch.inference_mode()
def probabilities(model: nn.Module, images: Tensor, target: int, halved: bool = False) -> Tensor:
    """Of the class, for each of the images; halved: computed in bfloat16, as in training."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=halved):
        answers = [model(some).float().softmax(-1)[:, target] for some in images.split(BATCH)]
    return torch.cat(answers)


def saco(relevance: Tensor, falls: Tensor) -> float:
    """The Salience-guided Faithfulness Coefficient (arXiv 2404.01415), from -1 to 1.

    relevance: the sums over groups of patches, the largest first. falls: what the probability loses
    without each. A pair of groups counts by the difference of their relevance, for the map where
    the higher one falls at least as much, against it where it falls less.
    """
    apart = (relevance[:, None] - relevance[None]).triu(1)
    right = torch.where(falls[:, None] >= falls[None], 1.0, -1.0).to(apart)
    total = apart.abs().sum()
    return float((apart * right).sum() / total) if total else 0.0


def curves(model: nn.Module, image: Tensor, target: int, relevance: Tensor, steps: int) -> dict:
    """Deletion and insertion with each filler, by the trapezoid rule, and SaCo; of one photo.

    All masked photos go through the model together: but for the ends, which both ways share. What
    bfloat16 gets wrong is small beside a curve (0.001 of a probability on average), but not beside
    what a photo loses with a tenth of its patches.
    """
    order = relevance.argsort(descending=True)
    steps_in = firsts(order, steps)  # (steps + 1, P)
    taken = [steps_in, ~steps_in[1:-1]]  # deletion from none to all, insertion between
    parts, count = [], 2 * steps
    for filler in fillers(image).values():
        masks = on_pixels(torch.cat(taken), image)
        parts.append(torch.where(masks, filler, image))
    found = probabilities(model, torch.cat(parts), target, halved=True)
    result = {}
    for number, name in enumerate(fillers(image)):
        values = found[number * count : (number + 1) * count]
        deleted, inside = values[: steps + 1], values[steps + 1 :]
        inserted = torch.cat([deleted[-1:], inside, deleted[:1]])
        result[f"deletion_{name}"] = float(torch.trapezoid(deleted) / steps)
        result[f"insertion_{name}"] = float(torch.trapezoid(inserted) / steps)
    tenths = groups(order)
    without = torch.where(on_pixels(tenths, image), 0.0, image)
    whole, *left = probabilities(model, torch.cat([image[None], without]), target)
    falls = whole - torch.stack(left)
    return result | {"saco": saco((tenths * relevance).sum(1), falls)}


@dataclass(frozen=True)
class Pasted:
    """A photo (3, S, S) with an object pasted in; its box as top, left and side in pixels."""

    image: Tensor
    top: int
    left: int
    side: int


def paste(background: Tensor, subject: Tensor, generator: torch.Generator) -> Pasted:
    """The middle half of `subject` (3, S, S), at 3/7 of the width, somewhere on `background`."""
    size = background.shape[-1]
    quarter, side = size // 4, round(size * 3 / 7)
    crop = subject[:, quarter : size - quarter, quarter : size - quarter]
    small = F.interpolate(crop[None], size=side, mode="bilinear", antialias=True)[0]
    top, left = torch.randint(0, size - side + 1, (2,), generator=generator).tolist()
    image = background.clone()
    image[:, top : top + side, left : left + side] = small
    return Pasted(image, top, left, side)


def pointing(relevance: Tensor, pasted: Pasted) -> dict:
    """Whether the middle of the highest patch lies in the box; the box's share of what is for it.

    A patch that lies half in the box counts half.
    """
    side = round(len(relevance) ** 0.5)
    size = pasted.image.shape[-1] // side
    edge = torch.arange(side, device=relevance.device) * size

    def covered(start: int) -> Tensor:
        """Which share of each row or column of patches lies in the box."""
        end = start + pasted.side
        return (torch.clamp(end - edge, 0, size) - torch.clamp(start - edge, 0, size)) / size

    inside = (covered(pasted.top)[:, None] * covered(pasted.left)[None]).flatten()
    row, column = divmod(int(relevance.argmax()), side)
    middle = [(place + 0.5) * size for place in (row, column)]
    starts = (pasted.top, pasted.left)
    hit = all(s <= at < s + pasted.side for at, s in zip(middle, starts, strict=True))
    positive = relevance.clamp_min(0)
    share = (positive * inside).sum() / positive.sum().clamp_min(1e-12)
    return {"hit": int(hit), "inside": float(share)}
