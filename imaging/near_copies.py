"""Which photos are near copies: encoded again, resized, cropped a little, brightened or mirrored.

A photo's fingerprint is itself, grey and 32 pixels wide and high. Two that may be copies have alike
spectra (the lowest cosines of the picture, which resizing and encoding leave alone), where one of
both is also taken as cropped in a few ways and as mirrored; such fingerprints are laid over each
other and compared (`aligning`). Many photos are first sorted into cells of alike spectra, so that
the work grows with their number and not with its square.

Shapes: N photos, S = 32 the side of a fingerprint, D = 63 numbers of a spectrum.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from imaging.aligning import likeness

SIDE = 32
# A JPEG may be decoded at a fraction of its size that leaves so many pixels a side: see `decode`.
ENOUGH_PIXELS = 2 * SIDE
WAVES = 8  # cosines along each axis
FLAT = 2.0  # grey levels: a picture with a smaller standard deviation shows nothing to compare
# What is cut off the left, top, right and bottom of a photo, as shares, to look for its crops.
CROPS = (
    (0, 0, 0, 0),
    (0.08, 0.08, 0.08, 0.08),
    (0.08, 0.08, 0, 0),
    (0, 0.08, 0.08, 0),
    (0.08, 0, 0, 0.08),
    (0, 0, 0.08, 0.08),
)
CANDIDATE = 0.72  # spectra that are less alike are of other photos
PER_PHOTO = 24  # candidates of a photo, the most alike; copies of copies find each other in chains
ALIKE, DETAILS_ALIKE, TOGETHER = 0.95, 0.75, 1.8  # correlations of copies, and their sum
# From this many photos on only alike cells are compared, of about so many photos.
MANY, CELL, PROBED = 10_000, 256, 16
PAIRS_AT_ONCE = 256
FOUND_AT_ONCE = 4_000_000  # candidates in memory before all but the strongest go


class Candidates(NamedTuple):
    """Pairs of photos that may be copies: `first` cropped (an index into CROPS), and mirrored where
    `mirrored`, is like `second`."""

    first: np.ndarray
    second: np.ndarray
    crop: np.ndarray
    mirrored: np.ndarray
    cosine: np.ndarray


def fingerprint(image: Image.Image) -> np.ndarray:
    """(S, S) grey values of a picture, squeezed to a square."""
    # The size first: of a large picture far fewer pixels are left to be made grey.
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2)
    return np.asarray(small.convert("L"))


def near_copies(fingerprints: np.ndarray, quiet: bool = True) -> list[tuple[int, int]]:
    """Returns the pairs (i, j), i < j, of near copies among (N, S, S) fingerprints, uint8."""
    pictures = torch.from_numpy(fingerprints)
    found = candidates(pictures, quiet)
    pairs = []
    for start in range(0, len(found.first), PAIRS_AT_ONCE):
        first, second, crop, mirrored, _ = (c[start : start + PAIRS_AT_ONCE] for c in found)
        seen = pictures[first].float()
        seen = torch.where(torch.from_numpy(mirrored)[:, None, None], seen.flip(2), seen)
        both = likeness(pictures[second].float(), seen, STARTS[crop])
        same = (both[:, 0] > ALIKE) & (both[:, 1] > DETAILS_ALIKE) & (both.sum(1) > TOGETHER)
        pairs += np.sort(np.stack([first, second], 1)[same.numpy()]).tolist()
    return sorted(map(tuple, pairs))


def place_of(crop: tuple) -> tuple[float, ...]:
    """Where a crop lies in its photo, as `aligning.likeness` takes it."""
    left, top, right, bottom = crop
    return 1 - left - right, left - right, 1 - top - bottom, top - bottom


STARTS = torch.tensor([place_of(crop) for crop in CROPS])


# --- spectra --------------------------------------------------------------------------------------


def cosines(before: float, after: float) -> Tensor:
    """(WAVES, S): cosines over an axis of which shares are cut off before and after."""
    x = ((torch.arange(SIDE) + 0.5) / SIDE - before) / (1 - before - after)
    waves = torch.cos(torch.pi * torch.arange(WAVES)[:, None] * x)
    return waves * ((x >= 0) & (x <= 1))


UP, ALONG = (wave.flatten()[1:] for wave in np.indices((WAVES, WAVES)))  # without the mean
# Natural pictures have less of fine waves, in proportion: all weigh alike by this.
WEIGHT = torch.from_numpy(np.hypot(UP, ALONG)).float()
MIRRORED = torch.from_numpy(1.0 - 2 * (ALONG % 2)).float()  # odd waves change their sign


def spectra(pictures: Tensor, crop: tuple = CROPS[0]) -> Tensor:
    """(N, D) of length 1, or 0 for flat pictures; (N, S, S) `pictures` are cropped first."""
    pictures = pictures.float()
    flat = pictures.std((1, 2), correction=0) < FLAT
    pictures = pictures - pictures.mean((1, 2), keepdim=True)
    left, top, right, bottom = crop
    found = (cosines(top, bottom) @ pictures @ cosines(left, right).mT).flatten(1)[:, 1:] * WEIGHT
    found = torch.nn.functional.normalize(found)
    return torch.where(flat[:, None], 0.0, found)


# --- candidates -----------------------------------------------------------------------------------


def candidates(pictures: Tensor, quiet: bool) -> Candidates:
    """Returns the pairs whose spectra are alike, each once, at most PER_PHOTO for each photo."""
    blocks = pictures.split(4096)
    plain = torch.cat([spectra(block) for block in blocks])
    # Half precision: of a million photos these take 0.8 GB.
    cropped = torch.cat([torch.stack([spectra(b, c) for c in CROPS], 1).half() for b in blocks])
    found: list[Candidates] = []
    kept = new = 0
    for asked, members in tqdm(
        list(compared(plain)), "comparing photos", unit="", leave=False, disable=quiet or None
    ):
        found += alike(cropped, plain, asked, members)
        new += len(found[-1].first)
        if new > max(kept, FOUND_AT_ONCE):  # many alike photos have more than memory holds
            found, new = [strongest(joined(found))], 0
            kept = len(found[0].first)
    return once(strongest(joined(found)))


def compared(plain: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields queries, and the photos to compare them with, so that alike ones meet.

    A query is the index of a photo, plus N where it is mirrored.
    """
    count = len(plain)
    queries = torch.arange(2 * count)
    if count < MANY:
        for part in queries.split(256):
            yield part, torch.arange(count)
        return
    cells = count // CELL
    generator = torch.Generator().manual_seed(0)
    centres = plain[torch.randperm(count, generator=generator)[:cells]]
    nearest = [
        (block @ centres.mT).topk(PROBED).indices
        for view in (plain, plain * MIRRORED)
        for block in view.split(4096)
    ]
    nearest = torch.cat(nearest)
    homes = nearest[:count, 0].contiguous()
    by_home, by_cell = homes.argsort(), nearest.flatten().argsort()
    members = by_home.split(torch.bincount(homes, minlength=cells).tolist())
    asked = by_cell.div(PROBED, rounding_mode="floor")
    asked = asked.split(torch.bincount(nearest.flatten(), minlength=cells).tolist())
    for some, those in zip(asked, members, strict=True):
        for part in some.split(2048):
            if len(those):
                yield part, those


def alike(cropped: Tensor, plain: Tensor, asked: Tensor, members: Tensor) -> Iterator[Candidates]:
    """Yields what queries find among some photos."""
    count = len(plain)
    photo, mirrored = asked % count, asked >= count
    queries = cropped[photo].float()  # (Q, crops, D)
    queries = torch.where(mirrored[:, None, None], queries * MIRRORED, queries)
    cosine = (queries.transpose(0, 1).flatten(0, 1) @ plain[members].mT).unflatten(
        0, (len(CROPS), -1)
    )
    best = cosine.amax(0)
    rows, columns = np.divmod(np.flatnonzero((best > CANDIDATE).numpy()), len(members))
    first, second = photo[rows].numpy(), members[columns].numpy()
    other = first != second
    rows, columns, first, second = (values[other] for values in (rows, columns, first, second))
    crop = cosine[:, rows, columns].argmax(0).numpy() if len(rows) else rows
    similar = best[rows, columns].numpy()
    yield Candidates(first, second, crop, mirrored[rows].numpy(), similar)


def joined(found: list[Candidates]) -> Candidates:
    return Candidates(*map(np.concatenate, zip(*found, strict=True)))


def strongest(found: Candidates) -> Candidates:
    """Of each photo the PER_PHOTO that are most alike."""
    order = np.lexsort((-found.cosine, found.first))
    first = found.first[order]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    order = order[place < PER_PHOTO]
    return Candidates(*(values[order] for values in found))


def once(found: Candidates) -> Candidates:
    """Each pair once, in the direction in which it is more alike."""
    order = np.argsort(-found.cosine, kind="stable")
    low, high = (f(found.first[order], found.second[order]) for f in (np.minimum, np.maximum))
    _, chosen = np.unique(low * (high.max(initial=0) + 1) + high, return_index=True)
    return Candidates(*(values[order[chosen]] for values in found))
