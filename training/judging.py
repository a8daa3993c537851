"""Which photos --eval judges: what the run of the weights kept for validation, where it did.

A folder of their own (val/, --val-path) goes before everything. Else the photos are those of the
run's split.json beside the weights, or, away from it, those that the seed and share kept among the
metrics choose again, with the grouping that stands beside them. Only where nothing tells, flags
choose.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from formats.opening import weights_in
from imaging.digests import TrainedOn
from imaging.exclusion import Exclusion
from imaging.grouping import NONE
from imaging.preprocess import eval_transform
from imaging.scanning import find_sides, scan_classes
from imaging.splitting import DataSplit, Samples
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from parallel.world import World
from pretrained import LoadedModel
from reporting.intervals import NOT_TOLD, accuracy_of
from system.files import json_if_any
from system.flags import flag_of
from system.terminal import counted, printable
from training.flags import Options
from utils import evaluate

SOME = 20  # training photos that tell whether data are a run's own
BATCH = 32  # where --batch-size gives no number
# What a split follows from, beside the photos; a run that says nothing of the last two had neither.
CHOICE = {"val_split": None, "seed": None, "test_split": 0.0, "group_by": NONE}


def judged(options: Options, said: dict, load: Callable[..., DataSplit]):
    """Returns the split whose validation photos --eval judges.

    said: what the weights file says of its run, `WeightsFile.meta`. load: checks and
        splits as options say, without what is excluded.
    Raises ValueError where a typed flag would choose other photos than the run did.
    """
    root, folder, _ = find_sides(options.data_path, options.val_path, [], options.test_path)
    split = run_split(options)
    excluded = Exclusion.of_paths(split.excluded) if split and split.excluded else None
    if folder is not None:
        return load(options, excluded)
    told = (said.get("metrics") or {}) | {n: said[n] for n in ("group_by",) if n in said}
    chosen = {name: told.get(name, usual) for name, usual in CHOICE.items()}
    if split:
        if not split.val.paths:
            raise ValueError(
                f"{options.weights} was trained on all photos of {options.data_path}, and judged "
                f"in folds: see out_of_fold.csv beside it, or name others with --val-path"
            )
        _refuse_others(options, chosen, "split.json beside it lists")
        print(*_without_listed(split, options), *_told(split, root, options), sep="\n")
        return split
    if None in chosen.values():
        return load(options)
    _refuse_others(options, chosen, "it keeps")
    share, seed = chosen["val_split"], int(chosen["seed"])
    print(f"validation photos: as in the run of {options.weights} (share {share:g}, seed {seed})")
    return load(options.settled(**chosen | {"seed": seed}))


def judge(
    options: Options, loaded: LoadedModel, data: DataSplit, device: torch.device, world: World
) -> None:
    """Prints how right a model is on the validation photos of a split that it did not train on.

    Raises ValueError for classes that it does not know, and where no photo is left.
    """
    unknown = sorted(set(data.classes) - set(loaded.classes))
    if unknown:
        raise ValueError(
            f"{options.weights} does not know the classes {', '.join(unknown)} of "
            f"{options.data_path}; it knows {', '.join(loaded.classes[:20])}"
        )
    val = world.first_does(_unseen, options, loaded, data.val)
    labels = [loaded.classes.index(data.classes[label]) for label in val.labels]
    preprocess = loaded.preprocess.with_ranges(data.ranges)
    dataset = MyDataSet(val.paths, labels, eval_transform(preprocess))
    order = SeededSampler(len(dataset), options.seed, False, world.rank, world.size)
    batch_size = options.batch_size if isinstance(options.batch_size, int) else BATCH
    loader = PhotoLoader(dataset, batch_size, order, options.workers, device)
    result, probabilities, indices = evaluate(loaded.model, loader, device, world=world)
    right = probabilities.argmax(1) == torch.tensor(labels)[indices]
    told = accuracy_of(right.numpy(), data.groups_of([val.paths[i] for i in indices]))
    for photo in result.failed:
        print(f"not judged, for it cannot be read: {printable(photo.path)}: {photo.reason}")
    print(
        f"{options.weights} on {counted(result.samples, 'validation photo')} of "
        f"{printable(options.data_path)}: "
        f"accuracy {result.accuracy:.4f}, loss {result.loss:.4f}; {told.words}"
        f"{_caveat(loaded.weights.meta, data)}"
    )


def _unseen(options: Options, loaded: LoadedModel, judged: Samples) -> Samples:
    """Returns the photos that the model was not trained on; says how many are left out."""
    trained = TrainedOn(loaded.weights.meta.get("trained_on", ""))
    if not trained.known:
        print(f"{options.weights}: {NOT_TOLD}")
    known = trained.among(judged.paths, options.workers)
    pairs = [pair for pair, seen in zip(zip(*judged, strict=True), known, strict=True) if not seen]
    if not pairs:
        raise ValueError(
            f"{options.weights} was trained on all {len(known)} photos that would be judged: name "
            f"others with --val-path"
        )
    if any(known):
        print(f"left out, for the model was trained on them: {counted(sum(known), 'photo')}")
    return Samples(*([*part] for part in zip(*pairs, strict=True)))


def _caveat(meta: dict, data: DataSplit) -> str:
    """What makes the accuracy too good, where the run chose its epoch by these photos."""
    metrics = meta.get("metrics") or {}
    among = metrics.get("chosen_among") or 0
    own = all(metrics.get(key) == data.choice.get(key, "") for key in ("val_split", "seed"))
    # Other data may be split by the same numbers: the run's own has photos that it trained on.
    own = own and any(TrainedOn(meta.get("trained_on", "")).among(data.train.paths[:SOME]))
    told = f"; the run's epoch was chosen among {among} by them, so it is optimistic"
    return told if own and among > 1 else ""


def run_split(options: Options) -> DataSplit | None:
    """Returns the split of the run whose folder holds the weights, if these are its data.

    They are when half of its validation photos are there, also at another place; of a run that
    kept none, half of those that it trained on.
    """
    values = json_if_any(weights_in(Path(options.weights)).with_name("split.json"))
    try:
        split = DataSplit.from_dict(values, options.data_path) if values else None
    except ValueError:  # somebody else's file of that name
        return None
    if split is None:
        return None
    listed = split.val.paths or split.train.paths
    return split if 2 * sum(map(os.path.exists, listed)) >= len(listed) else None


def _refuse_others(options: Options, chosen: dict, where: str) -> None:
    for name in CHOICE:
        if name in options.given and getattr(options, name) != chosen[name]:
            raise ValueError(
                f"{flag_of(name)} {printable(str(getattr(options, name)))} would judge photos that "
                f"{options.weights} was trained on: {where} those that its run kept for "
                f"validation; leave the flag out, or name other photos with --val-path"
            )


def _without_listed(split: DataSplit, options: Options) -> list[str]:
    """Takes what --exclude lists out of the photos to judge; returns a line on it."""
    if not options.exclude:
        return []
    exclusion = Exclusion.of_files(options.exclude)
    paths = [path for samples in split.sides.values() for path in samples.paths]
    listed, lost = exclusion.among([*split.excluded, *paths], options.data_path)
    pairs = [pair for pair in zip(*split.val, strict=True) if pair[0] not in listed]
    if not pairs:
        raise ValueError(f"{exclusion.source} leaves no photo to judge")
    split.excluded = sorted({*split.excluded, *listed} - {*split.train.paths})
    split.val = Samples(*([*part] for part in zip(*pairs, strict=True)))
    return [exclusion.told(len(listed), lost)]


def _told(split: DataSplit, root: str, options: Options) -> list[str]:
    """Takes photos that are gone out of the split; says where every photo of the data went."""
    found = {file.path for files in scan_classes(root, []).values() for file in files}
    pairs = [pair for pair in zip(*split.val, strict=True) if os.path.exists(pair[0])]
    gone = len(split.val.paths) - len(pairs)
    split.val.paths[:], split.val.labels[:] = ([*part] for part in zip(*pairs, strict=True))
    trained = found & {*split.train.paths}
    excluded = found & {*split.excluded}
    others = found.difference(excluded, *(samples.paths for samples in split.sides.values()))
    lines = [
        f"{printable(options.data_path)}: judged are the {counted(len(pairs), 'photo')} that the "
        f"run of {options.weights} kept for validation; it was trained on {len(trained)}"
    ]
    if excluded:
        lines.append(f"left out by --exclude, now or in the run: {len(excluded)}")
    if others:
        some = printable(os.path.relpath(min(others), options.data_path))
        lines.append(f"left out by the run, or new since: {len(others)} (such as {some})")
    if gone:
        lines.append(f"no longer there, so not judged: {gone}")
    return lines
