"""The training photos that a photo resembles most, by what the model's head reads of them.

    nearest = Nearest.beside("weights/run/best.pth", classifier)
    nearest.note                     # why they cannot be told, or not shown; "" where all is well
    nearest.of(answer.features)      # [Near(path="roses/7.jpg", label="roses", similarity=0.93)]

A run writes features.npz beside its best.pth, and some of the features into that itself, by which
the two are known to belong together; the photos lie where the run found them.
"""

import io
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from formats.known import Known, as_bytes, checked_known
from predicting.classifier import Classifier
from system.files import json_if_any
from training.known import FEATURES, MOST_PHOTOS

ANOTHER = "it is of another model"
SHOWN = 3
LOOKED_FOR = 20  # photos, which tell whether a file is of a model, and whether they are still there
HEADER = 10_000  # bytes before the numbers of an array, more than there ever are
LONGEST = 4 * 4_096  # bytes of a path or a name, in numpy's four a letter


class Near(NamedTuple):
    """A training photo: its path below the data folder, its class, the cosine of the features.

    photo: the file, None where it is not there.
    """

    path: str
    label: str
    similarity: float
    photo: Path | None = None


@dataclass(frozen=True)
class Nearest:
    """directions: (M, F), features of training photos at length one; paths and labels: M each.

    root: the folder of the photos, None where they are not to be found. note: see above.
    """

    directions: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    root: Path | None = None
    note: str = ""

    @classmethod
    def beside(cls, weights: str | Path, classifier: Classifier) -> "Nearest":
        """Those of the run whose folder holds the weights; where that has none, a note says so."""
        place = Path(weights)
        path = (place if place.is_dir() else place.parent) / FEATURES
        if not path.is_file():
            return cls(note=f"the nearest training photos are not shown: there is no {path}")
        if not classifier.tells_unknown:
            return cls(
                note=f"the nearest training photos are not shown: {place} holds no features of "
                f"them, by which {path} could be known to be of its model; a finished best.pth does"
            )
        try:
            features, paths, labels = _read(path, classifier)
        except Exception as error:  # damaged archives raise what they like
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            note = f"the nearest training photos are not shown: {path} is unusable ({reason})"
            return cls(note=note)
        root = _root(path.parent, paths)
        note = "" if root else "the nearest training photos are named alone: they are not there now"
        return cls(F.normalize(features, dim=1), paths, labels, root, note)

    def of(self, features: Tensor, count: int = SHOWN) -> list[Near]:
        """Features (F,) of a photo -> the training photos most like it, the nearest first."""
        if not self.paths:
            return []
        likeness = self.directions @ F.normalize(features.cpu().float(), dim=0)
        best = likeness.topk(min(count, len(likeness)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [self._near(row, similarity) for row, similarity in pairs]

    def _near(self, row: int, similarity: float) -> Near:
        photo = self.root and self.root / self.paths[row]
        there = photo is not None and photo.is_file()
        return Near(self.paths[row], self.labels[row], similarity, photo if there else None)


def _root(run: Path, paths: list[str]) -> Path | None:
    """The folder of a run's photos as its args.json names it, if some of the first are there."""
    args = json_if_any(run / "args.json")
    told = args.get("data_path") if isinstance(args, dict) else None
    if not isinstance(told, str) or not told or "\0" in told:
        return None
    root = Path(told)
    return root if any((root / path).is_file() for path in paths[:LOOKED_FOR]) else None


def _read(path: Path, classifier: Classifier) -> tuple[Tensor, list[str], list[str]]:
    """Returns features (M, F), paths and names of classes, M each, from a file of a run.

    Raises ValueError, or what damaged archives raise, for any other. Nothing in it is executed, and
    no more memory is taken than a file of a run can need.
    """
    classes = list(classifier.classes)
    with zipfile.ZipFile(path) as archive:
        features = _array(archive, "features", "f", (MOST_PHOTOS, classifier.width), 4)
        paths = _array(archive, "paths", "U", (MOST_PHOTOS,), LONGEST)
        labels = _array(archive, "labels", "i", (MOST_PHOTOS,), 8)
        names = _array(archive, "classes", "U", (len(classes),), LONGEST)
    if features.shape[1] != classifier.width or names.tolist() != classes:
        raise ValueError(ANOTHER)
    if not len(features) == len(paths) == len(labels) > 0:
        raise ValueError("its arrays do not fit together")
    if not np.isfinite(features).all() or not ((labels >= 0) & (labels < len(classes))).all():
        raise ValueError("it holds numbers that no run writes")
    if not all(map(_lies_below, paths.tolist())):
        raise ValueError("it names files outside the folder of the photos")
    found = torch.from_numpy(features.astype("float32"))
    if not _holds(found, checked_known(classifier.facts, classifier.width)):
        raise ValueError(ANOTHER)
    return found, paths.tolist(), [classes[label] for label in labels.tolist()]


def _holds(features: Tensor, known: Known) -> bool:
    """Whether the first photos that a model knows are among features (M, F) of training photos."""
    rows = as_bytes(features).short()
    # Half precision, which features.npz has, rounds a byte to the next one at most.
    return all(
        ((rows - row).abs().amax(1) <= 1).any() for row in known.features[:LOOKED_FOR].short()
    )


def _array(
    archive: zipfile.ZipFile, name: str, kind: str, most: tuple[int, ...], largest: int
) -> np.ndarray:
    """Returns an array of an .npz of at most so many elements, none larger than `largest` bytes."""
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > HEADER + math.prod(most) * largest:
        raise ValueError(f"{name} is larger than a run writes it")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed as no run does")  # others unpack without a bound
    with archive.open(member) as packed:
        file = io.BytesIO(packed.read(member.file_size))  # no more, whatever comes out of it
    version = np.lib.format.read_magic(file)
    header = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}[version]
    shape, fortran, dtype = getattr(np.lib.format, header)(file)
    data = file.read()
    fits = dtype.kind == kind and len(shape) == len(most) and not fortran
    if not fits or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} is not as a run writes it")
    return np.frombuffer(data, dtype).reshape(shape)


def _lies_below(path: str) -> bool:
    """Whether a path stays in the folder that it is relative to."""
    return not Path(path).anchor and ".." not in Path(path).parts
