"""The photos that a run kept for validation, found from a checkpoint of it.

    found = run_photos("weights/run/best.pth", classes)
    found.photos                # Photo(path, truth), those that are there now
    found.in_folds              # whether the model was trained on them: its run judged in folds

A run writes split.json beside its best.pth, all its photos below the folder of its data, and
args.json, which says where that folder was.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from formats.opening import weights_in
from imaging.splitting import DataSplit
from predicting.inputs import Photo
from system.files import json_if_any
from system.terminal import printable


class RunPhotos(NamedTuple):
    """photos: those that are there now; listed: how many the run had; in_folds: see above."""

    photos: list[Photo]
    listed: int
    in_folds: bool = False


def split_beside(checkpoint: str | Path, root: str | None = None) -> DataSplit | None:
    """The split of the run whose folder holds a checkpoint; None where no run is known there.

    root: where the run's data lie now; without it, where they lay.
    """
    run = weights_in(Path(checkpoint))
    values, said = (json_if_any(run.with_name(name)) for name in ("split.json", "args.json"))
    root = root or (said.get("data_path") if isinstance(said, dict) else None)
    if not values or not isinstance(root, str) or "\0" in root:
        return None
    try:
        return DataSplit.from_dict(values, root)
    except ValueError:  # somebody else's file of that name
        return None


def run_photos(checkpoint: str | Path, classes: Sequence[str]) -> RunPhotos:
    """Returns the validation photos of a checkpoint's run; of one judged in folds, all its photos.

    classes: of the model, whose indices the photos get. Raises FileNotFoundError, with a sentence,
    where they are not known or not one is there.
    """
    split = split_beside(checkpoint)
    if split is None:
        raise FileNotFoundError(
            f"the validation photos of {checkpoint} are not known, for no split.json and args.json "
            "of its run lie beside it: give photos with --data DIR"
        )
    in_folds = not split.val.paths
    side = split.train if in_folds else split.val
    index_of = {name: index for index, name in enumerate(classes)}
    photos = [
        Photo(path, index_of.get(split.classes[label]))
        for path, label in zip(*side, strict=True)
        if os.path.isfile(path)
    ]
    if not photos:
        raise FileNotFoundError(
            f"the {len(side.paths)} photos that the run of {checkpoint} kept are no longer in "
            f"{printable(split.root)}: give the folder where they are now with --data DIR"
        )
    return RunPhotos(photos, len(side.paths), in_folds)
