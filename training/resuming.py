"""What a run left behind, checked before anything is built from it: last.pth and split.json.

Opening them executes nothing, but they may have been edited, damaged or made by a stranger. Each
part is compared with what a run writes, so that all that follows can rely on it.
"""

from pathlib import Path

import torch
from torch import Tensor

from formats.checking import checked_classes, checked_config, checked_later, checked_preprocess
from formats.checkpoints import load_checkpoint
from formats.reading import whole_states
from imaging.splitting import DataSplit
from system.files import json_if_any, read_json
from system.flags import flag_of
from system.terminal import printable
from training import needs
from training.flags import Options, kept

PARTS = {
    "config": dict,
    "classes": list,
    "preprocess": dict,
    "optimizer": dict,
    "scheduler": dict,
    "scaler": dict,
    "rng": dict,
    "loader": dict,
    "args": dict,
    "trainable": list,
    "history": list,
    "best": dict,
    "advised": list,
}


def load_state(folder: Path) -> dict:
    """Returns the state in a run's last.pth; raises ValueError, naming it, where it is no run's."""
    path = folder / "last.pth"
    state = load_checkpoint(path)
    missing = PARTS.keys() - state.keys()
    if missing:
        raise ValueError(f"{path} cannot be resumed: it lacks {', '.join(sorted(missing))}")
    try:
        if state.get("backbone") is not None:
            state |= _whole(path, state)
        _check(state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be resumed: it {error}") from None
    return state


def _whole(path: Path, state: dict) -> dict:
    """Returns the weights in a state with those of the backbone that it leaves out."""
    parts = {part: state.get(part) for part in ("model", "raw_model", "ema")}
    parts = {part: held for part, held in parts.items() if held is not None}
    for part, held in parts.items():
        _check_finite(part, held)
    average = parts.get("ema", {})
    inner = {name.removeprefix("module."): value for name, value in average.items()}
    whole = whole_states(path, state, (parts | {"ema": inner} if average else parts).values())
    found = dict(zip(parts, whole, strict=True))
    if average:
        count = {name: value for name, value in average.items() if name == "n_averaged"}
        found["ema"].pop("n_averaged", None)
        found["ema"] = {f"module.{name}": value for name, value in found["ema"].items()} | count
    return found


def read_split(folder: Path, data_path: str, classes: list[str]) -> DataSplit:
    """Returns the split of a run; raises ValueError, naming split.json, where it is another's."""
    path = folder / "split.json"
    values = read_json(path)
    try:
        data = DataSplit.from_dict(values, data_path)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None
    if data.classes != classes:
        raise ValueError(f"{path} names other classes than the run's last.pth; restore it")
    return data


def first_options(folder: Path, begun: Options) -> Options:
    """Returns the options of a run's first start, to whose folders the paths of split.json belong.

    No resume changes args.json, which has them. begun: those of last.pth, whose folders are where a
    resume has found the photos since; they serve where args.json is gone or spoilt.
    """
    said = json_if_any(folder / "args.json")
    try:
        return Options.from_dict(said) if isinstance(said, dict) else begun
    except ValueError:
        return begun


def moved(data: DataSplit, begun: Options, now: Options) -> DataSplit:
    """Returns the split of a run that `begun` chose with its photos where its folders lie `now`."""
    # A folder of photos to judge may lie in the other one: it is asked first.
    names = ("test_path", "val_path", "data_path")
    moves = [(getattr(begun, name), getattr(now, name)) for name in names]
    return data.moved([(old, new) for old, new in moves if old])


def _check(state: dict) -> None:
    """Raises ValueError, worded to follow a file's name, for what no run would have written."""
    for part, kind in PARTS.items():
        if not isinstance(state[part], kind):
            raise ValueError(f"has `{part}` of type {type(state[part]).__name__}")
    for part in ("model", "raw_model", "ema"):
        _check_finite(part, state.get(part) or {})
    config = checked_config(state["config"], state["model"])
    checked_classes(state["classes"], config)
    checked_preprocess(state["preprocess"], config)
    checked_later(state)
    for part in ("trainable", "advised"):
        _require(all(isinstance(name, str) for name in state[part]), part)
    for row in (*state["history"], state["best"]):
        _require(isinstance(row, dict), "history")
        _require(all(isinstance(k, str) and _is_number(v) for k, v in row.items()), "history")
    loader = state["loader"]
    counts = [loader.get("epoch"), loader.get("batches_done"), loader.get("processes", 1)]
    _require(all(type(count) is int and count >= 0 for count in counts), "loader")
    sums, failed = loader.get("sums"), loader.get("failed")
    _require(isinstance(sums, Tensor) and sums.shape == (3,), "loader")
    _require(isinstance(failed, list) and all(map(_is_failure, failed)), "loader")
    _require(all(isinstance(name, str) for name in state["args"]), "args")
    Options.from_dict(state["args"])


def _require(holds: bool, part: str) -> None:
    if not holds:
        raise ValueError(f"has `{part}` that is not as a run writes it")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_failure(value: object) -> bool:
    """Whether `value` is a my_dataset.Failed as a list: path, reason, index."""
    return isinstance(value, list) and list(map(type, value)) == [str, str, int]


def _check_finite(part: str, tensors: object) -> None:
    _require(isinstance(tensors, dict), part)
    for name, value in tensors.items():
        _require(isinstance(value, Tensor), part)
        if not value.isfinite().all():
            raise ValueError(f"is spoilt: {name} has values that are NaN or infinite")


def check_alike(state: dict, optimizer, scheduler, scaler) -> None:
    """Raises ValueError where the state is not one of these, which a resumed run has built anew."""
    fresh = {"scheduler": scheduler.state_dict(), "scaler": scaler.state_dict()}
    for part, values in fresh.items():
        _require(_alike(values, state[part]), part)
    saved, groups = state["optimizer"], optimizer.state_dict()["param_groups"]
    _require(_alike(groups, saved.get("param_groups")), "optimizer")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _require(isinstance(saved.get("state"), dict), "optimizer")
    for number, values in saved["state"].items():
        _require(type(number) is int and 0 <= number < len(parameters), "optimizer")
        _require(isinstance(values, dict), "optimizer")
        shapes = (torch.Size(), parameters[number].shape)
        for value in values.values():
            fits = isinstance(value, Tensor) and value.shape in shapes
            _require(fits or value is None or _is_number(value), "optimizer")


def _alike(fresh: object, saved: object) -> bool:
    """Whether `saved` has the form of `fresh`: the same containers, numbers where numbers are.

    Another version of torch may keep more or less, so only common keys are compared.
    """
    if isinstance(fresh, dict):
        common = fresh.keys() & saved.keys() if isinstance(saved, dict) else ()
        return isinstance(saved, dict) and all(_alike(fresh[key], saved[key]) for key in common)
    if isinstance(fresh, list | tuple):
        same = isinstance(saved, list | tuple) and len(fresh) == len(saved)
        return same and all(map(_alike, fresh, saved))
    if fresh is None or isinstance(fresh, bool):
        return saved is None or isinstance(saved, bool) or _is_number(saved)
    return _is_number(saved) if _is_number(fresh) else isinstance(saved, type(fresh))


def changed(saved: Options, typed: Options, folder: Path) -> Options:
    """Returns the options of a run with what a resume may change; prints what it changes.

    Raises ValueError for a typed flag that would make it another run, or that contradicts it.
    """
    changes = {}
    for name in sorted(typed.given - {"resume", "output"}):
        new, old = getattr(typed, name), getattr(saved, name)
        if new == old or (name, new) == ("batch_size", "auto"):
            continue
        fixed = name in ("epochs", "patience") and saved.folds  # some may be finished
        none = name in ("val_path", "test_path") and old is None  # no folder that could move
        if name in kept() or fixed or none:
            raise ValueError(
                f"{flag_of(name)} {new} differs from the run in {folder} ({old}) and would make it "
                f"another run: leave it out to resume, or start anew with --output"
            )
        print(f"{flag_of(name)}: {new} instead of {old}")
        changes[name] = new
    merged = saved.settled(**changes)
    both = (one.settled(resume=str(folder)) for one in (saved, merged))
    before, sentence = map(needs.contradiction, both)
    if sentence and sentence != before:  # a run of an earlier version may have been less strict
        raise ValueError(sentence)
    return merged


def shared_batch(batch_size: int, before: int, now: int) -> int:
    """Returns the batch of each of `now` processes in a run that `before` processes began.

    Together they take as many photos as before. Raises ValueError where they cannot share them
    equally.
    """
    if before == now:
        return batch_size
    total = batch_size * before
    if total % now:
        raise ValueError(
            f"the run took {total} photos together at each step, which {now} processes cannot "
            f"share equally: resume it on a number of processes that divides {total}"
        )
    print(
        f"begun on {before} process{'es' * (before > 1)}, resumed on {now}: {total // now} "
        f"photos per process keep the total batch of {total}"
    )
    return total // now


def check_still_there(data: DataSplit, options: Options) -> None:
    """Raises FileNotFoundError when photos of the split are not where `options` say."""
    paths = [path for samples in data.sides.values() for path in samples.paths]
    gone = [path for path in paths if not Path(path).exists()]
    if not gone:
        return
    given = {"--data-path": options.data_path, "--val-path": options.val_path}
    given |= {"--test-path": options.test_path}
    flags = " and ".join(flag for flag, path in given.items() if path)
    roots = " and ".join(map(printable, options.data_roots))
    raise FileNotFoundError(
        f"{len(gone)} of the run's {len(paths)} photos are gone from {roots}, for instance "
        f"{printable(gone[0])}: if they moved, resume with {flags} where all of them are now; else "
        f"put them back, or start a new run"
    )
