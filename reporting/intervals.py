"""How sure an accuracy is: its 95 % interval, over photos that may stand together in groups.

    told = accuracy_of([True, True, False, True])
    told.share, told.low, told.high             # 0.75, 0.3006..., 0.9544...
    told.words                                  # "95 % interval 0.301 to 0.954, 4 photos"

The interval is Wilson's (J. Am. Stat. Assoc. 22, 1927). Photos of one group (a burst, a patient,
near copies) are right or wrong together, so that they count as fewer: as many as there are, divided
by the design effect (Kish, Survey Sampling, 1965).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from system.terminal import counted

NOT_TOLD = "the model does not tell which photos it was trained on: they may be among these"
Z = 1.959963984540054  # of a normal distribution, 95 % lie within so many standard deviations


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval.

    photos: how many were judged. worth: how many independent ones they count as.
    """

    share: float
    low: float
    high: float
    photos: int
    worth: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]

    @property
    def words(self) -> str:
        """The interval and what it rests on, to be put behind the share."""
        told = counted(self.photos, "photo")
        if self.worth < self.photos:
            told += f" in groups, worth {self.worth:.0f}"
        return f"95 % interval {self.low:.3f} to {self.high:.3f}, {told}"


def accuracy_of(right: Sequence[bool], groups: Sequence[str] | None = None) -> Accuracy | None:
    """Returns the share of right answers; None where there is no photo.

    groups: the name of each photo's group; without, each photo is one of its own.
    """
    hits = np.asarray(right, dtype=float)
    if not len(hits):
        return None
    worth = len(hits) / design_effect(hits, groups) if groups is not None else len(hits)
    share = float(hits.mean())
    return Accuracy(share, *wilson(share, worth), len(hits), float(worth))


def wilson(share: float, photos: float) -> tuple[float, float]:
    """Returns the 95 % interval of a share seen on so many independent photos, at least one."""
    middle = share + Z**2 / (2 * photos)
    half = Z * math.sqrt(share * (1 - share) / photos + Z**2 / (4 * photos**2))
    scale = 1 + Z**2 / photos
    # What rounding leaves of 0 and of 1 at the ends is taken away.
    low = (middle - half) / scale if share > 0 else 0.0
    high = (middle + half) / scale if share < 1 else 1.0
    return low, high


def design_effect(hits: np.ndarray, groups: Sequence[str]) -> float:
    """Returns by how much groups lessen what photos tell: 1 where they do not, else more.

    1 + (m - 1) r, with m the size of the group in which a photo stands, on the mean over photos,
    and r the correlation of right and wrong within groups (of the analysis of variance; Donner and
    Koval, Biometrics 36, 1980). Where it cannot be estimated, for all is right, all is wrong or
    there is one group, r is 1: then a group counts as one photo.
    """
    _, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(index)
    photos, count = len(hits), len(sizes)
    if count == photos:
        return 1.0
    size = float((sizes**2).sum() / photos)
    return 1 + (size - 1) * _correlation(hits, index, sizes)


def _correlation(hits: np.ndarray, index: np.ndarray, sizes: np.ndarray) -> float:
    photos, count = len(hits), len(sizes)
    if count == 1 or hits.min() == hits.max():
        return 1.0
    shares = np.bincount(index, weights=hits) / sizes
    between = float((sizes * (shares - hits.mean()) ** 2).sum() / (count - 1))
    within = float((sizes * shares * (1 - shares)).sum() / (photos - count))
    size = (photos - (sizes**2).sum() / photos) / (count - 1)
    return float(np.clip((between - within) / (between + (size - 1) * within), 0, 1))
