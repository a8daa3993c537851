"""What 8 bits change of a model's answers, on the photos that its run kept for validation."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imaging.digests import TrainedOn
from imaging.preprocess import eval_transform
from predicting.classifier import Classifier
from predicting.inputs import Photo, find_photos
from predicting.predictor import Predictor, decode
from predicting.run_photos import split_beside
from system.devices import default_workers

MOST = 1000  # photos, drawn evenly: enough to tell 1 % by
BATCH = 16
MOST_CHANGED = 0.01  # the share of other answers from which on 8 bits are advised against


class Changes(NamedTuple):
    """photos: how many were compared; changed: other answers; largest: of a probability."""

    photos: int
    changed: int
    largest: float

    @property
    def words(self) -> str:
        share = self.changed / self.photos
        return (
            f"8 bits change {self.changed} of {self.photos} answers ({share:.1%}), and a "
            f"probability by at most {self.largest:.3f}"
        )

    @property
    def advice(self) -> str:
        """What to do where that is too much; "" where it is not."""
        if self.changed <= MOST_CHANGED * self.photos:
            return ""
        return f"that is more than {MOST_CHANGED:.0%} of the answers: export with --int8 false"


def own_photos(checkpoint: str, data: str | None, classifier: Classifier) -> list[str]:
    """The photos that the run of a checkpoint kept for validation, at most MOST; [] without any.

    data: where the run's photos lie now, or a folder of class folders of others. Of answers to
    photos that the model was trained on, 8 bits change fewer: they are left out.
    """
    split = split_beside(checkpoint, data)
    paths = [path for path in split.val.paths if os.path.exists(path)] if split else []
    if not paths and data:
        found = [photo.path for photo in find_photos([data], classifier.classes)]
        trained = TrainedOn(classifier.trained_on).among(found, default_workers())
        paths = [path for path, known in zip(found, trained, strict=True) if not known]
    step = max(1, len(paths) / MOST)
    return [paths[int(n * step)] for n in range(min(len(paths), MOST))]


def changes(
    classifier: Classifier, forward: Callable[[Tensor], Tensor], paths: Sequence[str]
) -> Changes | None:
    """Compares probabilities, photo by photo; None where no photo can be read."""
    transform, found = eval_transform(classifier.preprocess), []
    ways = [
        Predictor(one, device="cpu") for one in (classifier, classifier.computing_with(forward))
    ]
    for start in range(0, len(paths), BATCH):
        read = (decode(Photo(path), transform, False) for path in paths[start : start + BATCH])
        images = [one.tensor for one in read if one.tensor is not None]
        if images:  # the report of the run names those that cannot be read
            found.append(torch.stack([way.see(torch.stack(images)).logits for way in ways]))
    if not found:
        return None
    exact, rounded = torch.cat(found, 1)
    changed = int((exact.argmax(1) != rounded.argmax(1)).sum())
    return Changes(len(exact), changed, float((exact - rounded).abs().max()))
