"""What a model keeps of the photos that it was trained on, so that it can say when one is unlike.

    known = Known.fit(features, labels, judged)    # kept in a checkpoint: known.to_dict()
    known.strangeness(features) <= 0.05            # of photos of its kind, one in twenty

A photo's score is its mean distance from the nearest photos of the training set, measured between
features, that is, between the numbers that the model's head reads (Sun et al. 2022, arXiv
2204.06507). How strange a score is, the scores of photos of the same kind tell that the model has
not been trained on: the share of them that are at least as far, the photo itself counted in (a
conformal p-value: Bates et al. 2023, arXiv 2104.08279). So of photos like these at most a share P
is called unknown at P, on average, however the scores are distributed.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN_SHARE = 0.05  # of photos like those of the training set, called unknown by default
UNTOLD = (
    "note: no photo is called unknown: the file has no features of its training photos (its run "
    "was stopped, or of an earlier version, or it was pruned or shared without them)"
)
NEAREST = 3  # photos, whose distances are averaged
MOST_BYTES = 700_000  # of features, which base64 makes a third larger
MOST_SCORES = 2_000
ROWS = 1_024  # of photos compared at a time


@dataclass(frozen=True)
class Known:
    """Features of training photos, and the scores of photos that the model was not trained on.

    features: (R, F) int8, each row a direction. scores: (S,) float32, sorted.
    """

    features: Tensor
    scores: Tensor

    @classmethod
    def fit(
        cls,
        features: Tensor,
        labels: Tensor,
        judged: Tensor | None = None,
        groups: Sequence | None = None,
    ) -> "Known":
        """Keeps what there is room for of the features (M, F) of training photos, of every class.

        labels: (M,). judged: features (V, F) of photos of the same kind that the model was not
        trained on. groups: (M,) of any values, for a model whose features have learned nothing from
        the photos, as where the head alone trains: each photo is then judged as well, by those of
        other groups (near copies, photos of one place, or each its own).
        """
        rows = kept(labels, max(1, MOST_BYTES // features.shape[1]))
        known = cls(as_bytes(features[rows]), torch.empty(0))
        found = [known.distances(judged)] if judged is not None else []
        if groups is not None:
            names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
            numbers = torch.tensor([names[group] for group in groups])
            found.append(known.distances(features, numbers, numbers[rows]))
        return known.judged_by(torch.cat(found)) if found else known

    def judged_by(self, scores: Tensor) -> "Known":
        """The same photos, with the scores (S,) of others of their kind."""
        scores = (
            scores[scores.isfinite()].float().sort().values
        )  # of a spoilt model they may not be
        if len(scores) > MOST_SCORES:
            places = torch.linspace(0, len(scores) - 1, MOST_SCORES, dtype=torch.float64)
            scores = scores[places.round().long()]
        return replace(self, scores=scores)

    @cached_property
    def directions(self) -> Tensor:
        return F.normalize(self.features.float(), dim=1)

    @property
    def width(self) -> int:
        return self.features.shape[1]

    def distances(
        self, features: Tensor, groups: Tensor | None = None, own: Tensor | None = None
    ) -> Tensor:
        """Features (N, F) of photos -> their scores (N,), 0 to 2: larger where less like the known.

        groups: (N,), and own (R,) those of the known: photos of one group are not compared.
        """
        found = [torch.zeros(0)]
        for start in range(0, len(features), ROWS):
            some = slice(start, start + ROWS)
            likeness = F.normalize(features[some].cpu().float(), dim=1) @ self.directions.T
            if groups is not None:
                likeness = likeness.masked_fill(groups[some, None] == own, -1.0)
            nearest = likeness.topk(min(NEAREST, likeness.shape[1]), dim=1).values
            found.append(1 - nearest.mean(1))
        return torch.cat(found)

    def strangeness(self, features: Tensor) -> Tensor:
        """Features (N, F) of photos -> the share (N,) of known photos that are at least as far."""
        nearer = torch.searchsorted(self.scores, self.distances(features))
        return (len(self.scores) - nearer + 1) / (len(self.scores) + 1)

    @property
    def least(self) -> float:
        """The least strangeness there is: below it no photo can be called unknown."""
        return 1 / (len(self.scores) + 1)

    def to_dict(self) -> dict:
        """Plain Python, for a checkpoint or JSON."""
        return {
            "features": base64.b64encode(self.features.numpy().tobytes()).decode(),
            "width": self.width,
            "scores": [round(score, 7) for score in self.scores.tolist()],
        }

    @classmethod
    def from_dict(cls, values: object) -> "Known | None":
        """What `to_dict` described, None of an empty dict.

        Raises ValueError, worded to follow a file's name, for anything else.
        """
        if isinstance(values, dict) and not values:
            return None
        try:
            if not isinstance(values, dict):
                raise TypeError
            told = values["features"], values["width"], values["scores"]
            return cls(*_checked(*told))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"has a `known` that holds no features of training photos: {str(values)[:80]!r}"
            ) from None


def _checked(features: object, width: object, scores: object) -> tuple[Tensor, Tensor]:
    """Returns features and scores from what a file says; ValueError or TypeError where not so."""
    if type(width) is not int or not isinstance(scores, Sequence) or isinstance(scores, str):
        raise ValueError
    data = base64.b64decode(features, validate=True)
    if width < 1 or not data or len(data) % width:
        raise ValueError
    if not all(type(score) in (int, float) and abs(score - 1) < 1.01 for score in scores):
        raise ValueError
    numbers = torch.frombuffer(bytearray(data), dtype=torch.int8)
    return numbers.view(-1, width), torch.tensor(sorted(scores), dtype=torch.float32)


def as_bytes(features: Tensor) -> Tensor:
    """Features (M, F) -> int8 rows of the same directions, to within a hundredth."""
    features = features.float()
    largest = features.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return (features / largest * 127).round().to(torch.int8)


def kept(labels: Tensor, most: int) -> Tensor:
    """Returns which photos are kept, at most so many: drawn, of each class in turn."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    turn = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique():
        own = drawn[labels[drawn] == label]
        turn[own] = torch.arange(len(own))
    order = drawn[turn[drawn].argsort(stable=True)]
    return order[:most].sort().values


def checked_known(told: Mapping, width: int) -> "Known | None":
    """Returns what a file's facts say of training photos, for a model of so many features."""
    known = Known.from_dict(told.get("known", {}))
    if known and known.width != width:
        raise ValueError(
            f"has a `known` of {known.width} numbers a photo for a model of {width} features"
        )
    return known
