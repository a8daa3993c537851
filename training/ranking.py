"""Which weights suit the photos: --weights auto tries those that are here and takes the best.

Each candidate's layers stay as they are and run once over the training photos; a linear map of what
comes out is judged by cross-validation (`probe`). Validation and test photos are never looked at.
What ran serves the training of the head after it.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from formats import hub
from formats.adapter_file import caches
from formats.finding import find_weights, is_name
from formats.fitting import load_into
from formats.reading import WeightsFile, read_weights
from imaging.grouping import grouped_folds
from imaging.preprocess import Preprocess, eval_transform
from imaging.splitting import DataSplit, Samples
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from parallel.world import World
from reporting.intervals import Accuracy, accuracy_of
from system.devices import amp_dtype
from system.files import WEIGHTS_FOLDER
from system.terminal import counted, listed, table
from training.feature_cache import CachedLoader, fill
from training.flags import Options
from training.probe import probe
from training.progress import Progress
from training.setup import Run, choose_preprocess, model_config
from vit.catalogue import BY_NAME
from vit_model import VARIANTS, create_model

AUTO = "auto"
MOST_PHOTOS = 5000  # whose accuracy is known within 1.4 points
FOLDS = (5, 3)  # the first that the classes have photos for


@dataclass(frozen=True)
class Ranked:
    """A candidate and how it did on the training photos.

    features: of `photos`, prepared as `preprocess` says, in the order of the split.
    seconds: that the frozen layers took, and that the linear maps took.
    """

    name: str
    path: Path
    parameters: int
    accuracy: Accuracy
    seconds: tuple[float, float]
    photos: Samples
    preprocess: Preprocess
    features: CachedLoader | None

    def serve(self, run: Run) -> bool:
        """Whether the features are those of a run's training photos."""
        same = self.photos == run.data.train and self.preprocess == run.preprocess
        return same and self.features is not None


def is_auto(weights: str) -> bool:
    """Whether --weights says auto, or auto:A,B to choose among these, and names no file."""
    return weights.partition(":")[0] == AUTO and not Path(weights).exists()


def with_best_weights(
    options: Options,
    load_data: Callable[[Options], DataSplit],
    device: torch.device,
    world: World,
) -> tuple[Options, DataSplit | None, Ranked | None]:
    """Returns the options with a file for --weights auto, and the data by which it was chosen."""
    if not is_auto(options.weights):
        return options, None, None
    data = world.first_does(load_data, options)
    return choose_weights(options, data, device, world)


def choose_weights(
    options: Options, data: DataSplit, device: torch.device, world: World
) -> tuple[Options, DataSplit, Ranked]:
    """Returns the options with the weights that suit the training photos best; prints the table.

    Raises ValueError where there is no candidate, or none can be tried.
    """
    candidates = world.first_does(named, options.weights)
    photos, folds = sample(data, options.seed)
    print(
        f"--weights {AUTO}: {counted(len(candidates), 'candidate')} on "
        f"{counted(len(photos.paths), 'training photo')}"
    )
    tried, left = [], {}
    for name, path in candidates.items():
        try:
            ranked = try_weights(name, path, options, data, photos, folds, device, world)
        except (ValueError, OSError) as error:
            left[name] = " ".join(str(error).split())
            continue
        tried.append(ranked)
        tried.sort(key=lambda one: (-one.accuracy.share, one.parameters))
        tried[1:] = [replace(one, features=None) for one in tried[1:]]
    print(*[f"not tried: {name} ({reason})" for name, reason in left.items()], *untried(candidates),
          sep="\n")  # fmt: skip
    if not tried:
        raise ValueError(f"--weights {options.weights}: none of the candidates can be tried")
    print(*rows_of(tried), sep="\n")
    chosen = world.first_does(lambda: tried[0].name)  # rounding may differ between machines
    best = next(one for one in tried if one.name == chosen)
    print(f"--weights {best.path}  (the best of {len(tried)} on training photos alone)")
    return options.settled(weights=str(best.path)), data, best


# --- candidates -----------------------------------------------------------------------------------


def named(weights: str) -> dict[str, Path]:
    """Returns the candidates, {name: path}: those of auto:A,B, or all that lie here.

    Raises ValueError where there is none, FileNotFoundError for a file that is not there.
    """
    listed_here = [name for name in weights.partition(":")[2].split(",") if name]
    if missing := [n for n in listed_here if not is_name(n) and not os.path.exists(n)]:
        raise FileNotFoundError(f"--weights {weights}: there is no such file as {missing[0]}")
    if listed_here:
        return {name: find_weights(name) for name in listed_here}
    found = dict(here())
    if not found:
        raise ValueError(
            f"--weights {AUTO} chooses among files in {WEIGHTS_FOLDER}/ and models in the hub's "
            f"cache, and there are none: `pretrained.py NAME` fetches one of --list-models"
        )
    return found


def here() -> Iterator[tuple[str, Path]]:
    """Yields name and path of what may be pretrained: in weights/, but no run, and in the cache."""
    there = sorted(WEIGHTS_FOLDER.iterdir()) if WEIGHTS_FOLDER.is_dir() else []
    for path in there:
        told = any((path / name).is_file() for name in hub.ABOUT)
        if path.name.endswith(hub.ENDINGS) or (told and not (path / "last.pth").exists()):
            yield str(path), path
    for name, path in hub.held(caches()[1]):
        yield str(name), path


def untried(candidates: Mapping[str, Path]) -> list[str]:
    """Returns a line on the listed models that are not here."""
    known = {Path(variant.url).name: name for name, variant in VARIANTS.items() if variant.url}
    tried = {known.get(path.name) for path in candidates.values()}
    tried |= {name.rpartition("/")[2] for name in candidates}
    missing = [name for name in [*BY_NAME, *known.values()] if name not in tried]
    return [f"of --list-models not tried, for they are not here: {listed(missing)}"]


# --- one candidate --------------------------------------------------------------------------------


def sample(data: DataSplit, seed: int) -> tuple[Samples, list[list[int]]]:
    """Returns training photos, of many every nth, and their folds, which keep groups whole.

    Raises ValueError where a class has too few.
    """
    step = -(-len(data.train.paths) // MOST_PHOTOS)
    photos = Samples(data.train.paths[::step], data.train.labels[::step])
    for count in FOLDS:
        try:
            return photos, grouped_folds(*photos, data.groups, count, seed, root=data.root)
        except ValueError as error:
            refusal = error
    raise ValueError(f"--weights {AUTO} needs two training photos of each class or more: {refusal}")


def try_weights(
    name: str,
    path: Path,
    options: Options,
    data: DataSplit,
    photos: Samples,
    folds: Sequence[Sequence[int]],
    device: torch.device,
    world: World,
) -> Ranked:
    """Returns how a candidate does; raises ValueError or OSError where it cannot be tried."""
    weights = read_weights(path, model=options.model).merged()
    refuse_trained(weights)
    plain = options.settled(mlp="mlp", adapt="none")  # what starts without losing anything
    model = create_model(**model_config(plain, weights, len(data.classes)))
    load_into(model, weights)
    preprocess, _ = choose_preprocess(options, model, weights, data.ranges)
    started = time.perf_counter()
    features = run_once(name, model.to(device), preprocess, photos, options, device, world)
    middle = time.perf_counter()
    right = judge(features, folds)
    ended = time.perf_counter()
    groups = data.groups_of([photos.paths[index] for index in right])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accuracy = accuracy_of(list(right.values()), groups)
    seconds = middle - started, ended - middle
    return Ranked(name, path, parameters, accuracy, seconds, photos, preprocess, features)


def refuse_trained(weights: WeightsFile) -> None:
    """Raises ValueError for what train.py made: it may have seen the photos that judge it."""
    if weights.format == "ours" and (weights.meta.get("epoch") or weights.meta.get("trained_on")):
        raise ValueError("trained here, perhaps on these photos; name it to go on from it")


def run_once(
    name: str, model, preprocess: Preprocess, photos: Samples, options: Options, device, world
) -> CachedLoader:
    """Returns what the heads of a model read of each photo, as the training of one has it."""
    dataset = MyDataSet(*photos, eval_transform(preprocess, as_bytes=True))
    order = SeededSampler(len(dataset), options.seed, False, world.rank, world.size)
    loader = PhotoLoader(dataset, 32, order, options.workers, device, preprocess)
    progress = Progress(Path(name).name, len(order))
    kind = None if options.folds else amp_dtype(options.amp, device)
    skip = len(model.blocks) + 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            return fill(
                model, skip, loader, 1, device, kind, Path(folder), world, progress.bar.update
            )
        finally:
            progress.close()


def judge(features: CachedLoader, folds: Sequence[Sequence[int]]) -> dict[int, bool]:
    """Returns of each photo that could be read whether the answer to it is right."""
    good = [index for fold in folds for index in fold if index not in features.failed]
    good.sort()
    place = {index: at for at, index in enumerate(good)}
    rows = features.features[0, good].float().flatten(1)
    labels = features.labels[good]
    answers = probe(rows, labels, [[place[i] for i in fold if i in place] for fold in folds])
    return dict(zip(good, (answers == labels).tolist(), strict=True))


def rows_of(tried: Sequence[Ranked]) -> list[str]:
    """Returns the table of candidates, the best first."""
    rows = [("weights", "accuracy", "95 % interval", "features", "probe", "parameters")]
    for one in tried:
        told, (features, fitting) = one.accuracy, one.seconds
        between = f"{told.low:.3f} to {told.high:.3f}"
        times = f"{features:.1f} s", f"{fitting:.1f} s"
        size = f"{one.parameters / 1e6:.1f} M"
        rows.append((one.name, f"{told.share:.3f}", between, *times, size))
    return table(rows, "<><>>>")
