"""Photos in class folders: scanned, checked, split and served to a loader.

    data/roses/*.jpg, data/tulips/*.jpg, ...            one folder, split by `prepare_data`
    data/train/roses/*.jpg, data/val/roses/*.jpg, ...   split already

`prepare_data` finds the photos, decodes each once to learn what is wrong with the data before an
epoch is spent on it, and splits them. Nothing is ever written into the data folder. `MyDataSet`
and `SeededSampler` then serve photos whose random changes depend on the photo, the epoch and the
seed alone, not on the number of workers.
"""

import hashlib
import os
import random
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from photos import (  # re-exported: data set and photos are one subject to those who use them
    AUGMENTATIONS,
    RESIZE_MODES,
    PhotoError,
    Preprocess,
    decode,
    eval_transform,
    explain,
    load_image,
    open_photo,
    printable,
    readable_extensions,
    train_transform,
)

__all__ = [
    "AUGMENTATIONS",
    "RESIZE_MODES",
    "Batch",
    "DataReport",
    "DataSplit",
    "Failed",
    "MyDataSet",
    "PhotoError",
    "Preprocess",
    "Problem",
    "Samples",
    "SeededSampler",
    "eval_transform",
    "load_image",
    "prepare_data",
    "printable",
    "read_split_data",
    "train_transform",
]

TRAIN_NAME = "train"
VAL_NAMES = ("val", "valid", "validation", "test")  # the first that exists is used
NEVER_A_CLASS = {"__pycache__", "__macosx", "@eadir", "lost+found", "$recycle.bin"}  # lower case
TINY_PIXELS = 8  # a photo with a shorter side has nothing to learn from
IMBALANCE = 3  # the report speaks of imbalance from this ratio of largest to smallest class on
SHOWN = 3  # problems of a kind named in the short report; the long one names all


class Problem(NamedTuple):
    """Something to know about the data: `kind` is a key of KINDS, `detail` adds to it."""

    kind: str
    path: str
    detail: str = ""


# In the order of the report: what a reader of the short report is told of each kind.
KINDS = {
    "unreadable": "unreadable, left out",
    "truncated": "truncated, left out",
    "tiny": f"tiny (a side under {TINY_PIXELS} pixels), kept",
    "odd mode": "neither RGB nor grey, converted",
    "conflict": "in more than one class, kept for training only",
    "leak": "also among the validation photos, left out of training",
    "copy": "exact copies of another photo of the class, kept on the same side",
    "missing class": "classes without validation photos",
    "extra class": "classes of the validation folder that training does not have, left out",
    "empty class": "folders without a photo, left out",
    "not a class": "folders that are no class, left out",
    "wrong level": "class folders that look like a wrong folder level",
    "loose": "photos beside the class folders, left out",
    "hidden": "hidden files or folders, left out",
    "unsupported": "files that are no photos, left out",
    "not a file": "broken links, devices and the like, left out",
    "loop": "folders reached twice through links, counted once",
    "closed": "folders that cannot be opened, left out",
}


class Samples(NamedTuple):
    """Photos and the indices of their classes, equally long."""

    paths: list[str]
    labels: list[int]


class File(NamedTuple):
    path: str
    size: int  # in bytes


@dataclass
class DataReport:
    """What was found: photos per class and side, and the problems."""

    root: str
    counts: dict[str, tuple[int, int]]  # class -> (training, validation)
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A few lines for the terminal."""
        train, val = (sum(side) for side in zip(*self.counts.values(), strict=True))
        lines = [
            f"{printable(self.root)}: {train + val} photos in {len(self.counts)} classes, "
            f"{train} for training, {val} for validation"
        ]
        imbalance = self.imbalance()
        return lines + ([imbalance] if imbalance else []) + self._problem_lines(SHOWN)

    def text(self) -> str:
        """Everything, for a file."""
        width = max(len(printable(name)) for name in self.counts)
        table = [f"{'class':<{width}}  training  validation"]
        for name, (train, val) in self.counts.items():
            table.append(f"{printable(name):<{width}}  {train:8}  {val:10}")
        first, *rest = self.lines()[: 2 if self.imbalance() else 1]
        return "\n".join([first, *rest, "", *table, "", *self._problem_lines(None)]) + "\n"

    def imbalance(self) -> str:
        """A sentence if the largest class has several times the photos of the smallest, else ''."""
        ordered = sorted(self.counts, key=lambda name: sum(self.counts[name]))
        small, large = ordered[0], ordered[-1]
        ratio = sum(self.counts[large]) / max(1, sum(self.counts[small]))
        if ratio < IMBALANCE:
            return ""
        return (
            f"imbalance: {printable(large)!r} has {ratio:.1f} times the photos of "
            f"{printable(small)!r} (see --class-weights)"
        )

    def _problem_lines(self, shown: int | None) -> list[str]:
        by_kind = defaultdict(list)
        for problem in self.problems:
            by_kind[problem.kind].append(problem)
        lines = []
        for kind, meaning in KINDS.items():
            found = by_kind[kind]
            if not found:
                continue
            names = [self._name(problem) for problem in found[:shown]]
            if shown is None:
                lines += [f"{len(found)} {meaning}:", *(f"  {name}" for name in names)]
            else:
                more = ", ..." if len(found) > shown else ""
                lines.append(f"{len(found)} {meaning}: {', '.join(names)}{more}")
        return lines

    def _name(self, problem: Problem) -> str:
        path = problem.path
        if path.startswith(self.root + os.sep):
            path = os.path.relpath(path, self.root)
        detail = f" ({printable(problem.detail)})" if problem.detail else ""
        return printable(path) + detail


@dataclass
class DataSplit:
    """The photos of a run; `to_dict` is what split.json holds."""

    root: str
    classes: list[str]
    train: Samples
    val: Samples
    report: DataReport

    def to_dict(self) -> dict:
        """Plain Python: classes, and for each side the paths, relative to root, by class."""

        def side(samples: Samples) -> dict[str, list[str]]:
            by_class = {name: [] for name in self.classes}
            for path, label in zip(*samples, strict=True):
                by_class[self.classes[label]].append(_relative(path, self.root))
            return by_class

        return {"classes": list(self.classes), "train": side(self.train), "val": side(self.val)}

    @classmethod
    def from_dict(cls, values: dict, root: str) -> "DataSplit":
        """The split that `to_dict` described; its photos are looked for under `root`."""
        root = os.fspath(root)
        try:
            classes = [_text(name) for name in values["classes"]]

            def side(name: str) -> Samples:
                files = values[name]
                pairs = [
                    (os.path.join(root, _text(path)), label)
                    for label, class_name in enumerate(classes)
                    for path in files[class_name]
                ]
                return Samples([path for path, _ in pairs], [label for _, label in pairs])

            train, val = side("train"), side("val")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"this is not a split as train.py writes it (split.json): {error!r:.200}"
            ) from error
        return cls(root, classes, train, val, DataReport(root, _counts(classes, train, val)))


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name was expected, not {value!r:.80}")
    return value


def _relative(path: str, root: str) -> str:
    try:
        return os.path.relpath(path, root)
    except ValueError:  # Windows: on another drive
        return os.path.abspath(path)


def _counts(classes: Sequence[str], train: Samples, val: Samples) -> dict[str, tuple[int, int]]:
    of_train, of_val = Counter(train.labels), Counter(val.labels)
    return {name: (of_train[label], of_val[label]) for label, name in enumerate(classes)}


# ---- scan: which files are there ---------------------------------------------------------------


def scan_classes(root: str, problems: list[Problem]) -> dict[str, list[File]]:
    """The photos below each class folder of `root`, both in sorted order; fills `problems`."""
    classes = {}
    for entry in _entries(root, problems):
        if not _is_folder(entry):
            _loose_file(entry, problems)
        elif entry.name.startswith("."):
            problems.append(Problem("hidden", entry.path))
        elif entry.name.lower() in NEVER_A_CLASS:
            problems.append(Problem("not a class", entry.path))
        else:
            photos = scan_folder(entry.path, problems)
            if photos:
                classes[entry.name] = photos
                _look_at_level(entry, photos, problems)
            else:
                problems.append(Problem("empty class", entry.path))
    return classes


def scan_folder(folder: str, problems: list[Problem]) -> list[File]:
    """All photos below `folder`, links followed, every real folder visited once; sorted."""
    photos, waiting, seen = [], [folder], set()
    while waiting:
        current = waiting.pop()
        if not _first_visit(current, seen):
            problems.append(Problem("loop", current))
            continue
        for entry in _entries(current, problems):
            if entry.name.startswith("."):
                problems.append(Problem("hidden", entry.path))
            elif _is_folder(entry):
                waiting.append(entry.path)
            else:
                photo = _photo(entry, problems)
                if photo:
                    photos.append(photo)
    return sorted(photos)


def _entries(folder: str, problems: list[Problem]) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(Problem("closed", folder, error.strerror or str(error)))
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _first_visit(folder: str, seen: set) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return True  # opening it will say what is wrong
    key = status.st_dev, status.st_ino
    if key in seen and status.st_ino:  # some network file systems number nothing
        return False
    seen.add(key)
    return True


def _photo(entry: os.DirEntry, problems: list[Problem]) -> File | None:
    """The entry as a photo, or None and a problem."""
    if os.path.splitext(entry.name)[1].lower() not in readable_extensions():
        problems.append(Problem("unsupported", entry.path))
        return None
    try:
        status = entry.stat()
    except OSError as error:
        problems.append(Problem("not a file", entry.path, error.strerror or str(error)))
        return None
    if not stat.S_ISREG(status.st_mode):
        problems.append(Problem("not a file", entry.path))
        return None
    return File(entry.path, status.st_size)


def _loose_file(entry: os.DirEntry, problems: list[Problem]) -> None:
    """A file beside the class folders: only a photo is worth a word."""
    if not entry.name.startswith(".") and _photo(entry, []):
        problems.append(Problem("loose", entry.path))


def _look_at_level(entry: os.DirEntry, photos: list[File], problems: list[Problem]) -> None:
    """Notes a class folder that is rather a level of the tree, or the output of a program."""
    folders = {os.path.relpath(photo.path, entry.path).split(os.sep)[0] for photo in photos}
    direct = any(os.path.dirname(photo.path) == entry.path for photo in photos)
    if not direct and len(folders) > 1:
        detail = f"all its photos are in its folders {', '.join(sorted(folders)[:SHOWN])}"
        problems.append(Problem("wrong level", entry.path, detail))
    elif entry.name.lower() in {"runs", TRAIN_NAME, *VAL_NAMES}:
        problems.append(Problem("wrong level", entry.path, "is this really the name of a class?"))


def find_sides(data_path: str, val_path: str | None) -> tuple[str, str | None]:
    """The training folder and, where the data come split, the validation folder."""
    for folder, flag in ((data_path, "--data-path"), (val_path, "--val-path")):
        if folder is not None and not os.path.isdir(folder):
            what = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
            raise FileNotFoundError(f"{printable(folder)} {what}: {flag} wants a folder of folders")
    folders = {name.lower(): name for name in _folder_names(data_path)}
    inner = [folders[name] for name in VAL_NAMES if name in folders]
    if TRAIN_NAME in folders and (val_path or inner):
        train = os.path.join(data_path, folders[TRAIN_NAME])
        return train, val_path or os.path.join(data_path, inner[0])
    if folders and not folders.keys() - {TRAIN_NAME, *VAL_NAMES}:
        names = ", ".join(sorted(folders.values()))
        raise ValueError(
            f"{printable(data_path)} holds {names} instead of class folders: name the folder that "
            "holds the class folders with --data-path, and its validation folder with --val-path"
        )
    return data_path, val_path


def _folder_names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if _is_folder(entry)
                and not entry.name.startswith(".")
                and entry.name.lower() not in NEVER_A_CLASS
            ]
    except OSError as error:
        raise OSError(f"{printable(folder)} cannot be opened: {error.strerror}") from error


# ---- check: which photos can be used -----------------------------------------------------------


class Checked(NamedTuple):
    """What decoding a photo showed; `digest` where another file has the same size."""

    path: str
    problems: list[Problem]
    usable: bool
    digest: bytes | None


def check_photo(path: str, wants_digest: bool) -> Checked:
    """Decodes a photo (a JPEG at an eighth of its size, which reads the whole file, too)."""
    problems = []
    try:
        with open_photo(path) as image:
            mode, sides = image.mode, image.size
            decode(image, min_size=1)
        digest = file_digest(path) if wants_digest else None
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        failure = explain(path, error)
        return Checked(path, [Problem(failure.kind, path, failure.reason)], False, None)
    if min(sides) < TINY_PIXELS:
        problems.append(Problem("tiny", path, f"{sides[0]} x {sides[1]}"))
    if mode not in ("RGB", "L"):
        problems.append(Problem("odd mode", path, mode))
    return Checked(path, problems, True, digest)


def file_digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def check_photos(
    files: Sequence[File], workers: int, problems: list[Problem]
) -> dict[str, bytes | None]:
    """Path -> digest of all usable photos; fills `problems`. Threads: decoding frees the GIL."""
    sizes = Counter(file.size for file in files)

    def check(file: File) -> Checked:
        return check_photo(file.path, sizes[file.size] > 1)

    usable = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(check, files) if workers > 1 else map(check, files)
        bar = tqdm(results, "checking photos", len(files), leave=False, disable=None, unit="")
        for checked in bar:
            problems += checked.problems
            if checked.usable:
                usable[checked.path] = checked.digest
    return usable


# ---- split: which photos train -----------------------------------------------------------------


def prepare_data(
    data_path: str,
    val_path: str | None = None,
    val_split: float = 0.2,
    seed: int = 0,
    workers: int = 1,
) -> DataSplit:
    """Scans, checks and splits the photos of `data_path`.

    A validation folder (`val_path`, or val, valid, validation or test beside train in `data_path`)
    is used as it is; without one, `val_split` of each class is kept for validation, chosen by
    `seed`. `workers` threads decode. Raises ValueError or OSError with a sentence.
    """
    if not 0 < val_split < 1:
        raise ValueError(f"--val-split must lie between 0 and 1, not {val_split}")
    data_path = os.fspath(data_path)
    train_root, val_root = find_sides(data_path, None if val_path is None else os.fspath(val_path))
    problems: list[Problem] = []
    train_files = scan_classes(train_root, problems)
    require_classes(train_root, train_files, problems)
    val_files = {}
    if val_root is not None:
        val_files = match_classes(train_files, scan_classes(val_root, problems), problems, val_root)
    files = [
        file for side in (train_files, val_files) for photos in side.values() for file in photos
    ]
    digests = check_photos(files, workers, problems)
    classes = sorted(train_files)
    train = {name: [f.path for f in train_files[name] if f.path in digests] for name in classes}
    if val_root is None:
        train, val = split_photos(train, digests, val_split, seed, train_root, problems)
    else:
        val = {
            name: [f.path for f in val_files.get(name, []) if f.path in digests] for name in classes
        }
        train = drop_leaks(train, val, digests, problems)
    sides = [to_samples(classes, side) for side in (train, val)]
    for name in classes:
        if not train[name]:
            raise ValueError(f"class {printable(name)!r} has no usable photo to train on")
    report = DataReport(data_path, _counts(classes, *sides), problems)
    return DataSplit(data_path, classes, *sides, report)


def read_split_data(root: str, val_rate: float = 0.2, seed: int = 0):
    """The reference's function: (train paths, train labels, validation paths, their labels)."""
    split = prepare_data(root, val_split=val_rate, seed=seed)
    return *split.train, *split.val


def to_samples(classes: Sequence[str], side: dict[str, list[str]]) -> Samples:
    pairs = [(path, label) for label, name in enumerate(classes) for path in side.get(name, ())]
    return Samples([path for path, _ in pairs], [label for _, label in pairs])


def require_classes(root: str, found: dict[str, list[File]], problems: list[Problem]) -> None:
    """Raises ValueError unless at least two classes were found."""
    if len(found) > 1:
        return
    where = printable(root)
    if found:
        (name,) = found
        raise ValueError(
            f"{where} holds one class only ({printable(name)!r}): two or more folders, one for "
            f"each class, are needed; if they lie in {printable(os.path.join(root, name))}, name it"
        )
    loose = sum(problem.kind == "loose" for problem in problems)
    if loose:
        raise ValueError(
            f"{where} holds {loose} photos but no folder of photos: "
            "put the photos of each class into a folder with its name"
        )
    raise ValueError(f"there is no photo in {where}: a folder with photos is needed for each class")


def match_classes(
    train: dict[str, list[File]], val: dict[str, list[File]], problems: list[Problem], root: str
) -> dict[str, list[File]]:
    """The validation photos under the names of the training classes; others are noted."""
    names = {unicodedata.normalize("NFC", name): name for name in train}
    matched = {}
    for name, photos in val.items():
        own = names.get(unicodedata.normalize("NFC", name))  # macOS writes accents decomposed
        if own is None:
            detail = f"{len(photos)} photos"
            problems.append(Problem("extra class", os.path.join(root, name), detail))
        else:
            matched[own] = photos
    if not matched:
        raise ValueError(
            f"{printable(root)} holds photos of none of the training classes "
            f"({', '.join(printable(name) for name in sorted(train)[:SHOWN])}, ...)"
        )
    problems += [Problem("missing class", name) for name in sorted(train) if name not in matched]
    return matched


def split_photos(
    photos: dict[str, list[str]],
    digests: dict[str, bytes | None],
    val_split: float,
    seed: int,
    root: str,
    problems: list[Problem],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Splits each class; copies stay together, what stands in two classes is trained on only."""
    homes = defaultdict(set)
    for name, paths in photos.items():
        for path in paths:
            homes[digests[path]].add(name)
    train, val = {}, {}
    for name, paths in photos.items():
        groups, shared = defaultdict(list), []
        for path in paths:
            digest = digests[path]
            if digest is not None and len(homes[digest]) > 1:
                shared.append(path)
                others = ", ".join(sorted(homes[digest] - {name}))
                problems.append(Problem("conflict", path, f"also in {others}"))
            else:
                groups[digest or path].append(path)
        for first, *copies in groups.values():
            problems += [Problem("copy", path, f"of {os.path.basename(first)}") for path in copies]
        chosen = choose_validation(name, groups, bool(shared), val_split, seed, root)
        val[name] = sorted(path for key in chosen for path in groups[key])
        train[name] = sorted({*paths} - {*val[name]})
    return train, val


def choose_validation(name, groups, has_others: bool, val_split: float, seed: int, root: str):
    """The keys of the groups to validate on: at least one, and not all.

    Groups are ranked by a hash of seed and name, so the choice depends neither on the order of the
    file system nor on other classes, and a new photo changes the side of few others.
    """
    most = len(groups) - (not has_others)
    if most < 1:
        raise ValueError(
            f"class {printable(name)!r} has {len(groups)} usable and different photo: "
            "at least two are needed, one to train on and one to validate on"
        )

    def rank(key) -> bytes:
        text = f"{seed}/{os.path.relpath(groups[key][0], root)}".replace(os.sep, "/")
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape")).digest()

    wanted = round(val_split * len(groups))
    return sorted(groups, key=rank)[: min(max(1, wanted), most)]


def drop_leaks(
    train: dict[str, list[str]],
    val: dict[str, list[str]],
    digests: dict[str, bytes | None],
    problems: list[Problem],
) -> dict[str, list[str]]:
    """The training photos without those that are also among the validation photos."""
    known = {digests[path]: path for paths in val.values() for path in paths if digests[path]}
    kept = {}
    for name, paths in train.items():
        leaks = [path for path in paths if digests[path] in known]
        problems += [Problem("leak", path, f"as {known[digests[path]]}") for path in leaks]
        kept[name] = [path for path in paths if digests[path] not in known]
    return kept


# ---- serve: photos for the loop ----------------------------------------------------------------


class Failed(NamedTuple):
    """A photo that could not be read when its turn came."""

    path: str
    reason: str
    index: int = -1


class Item(NamedTuple):
    image: Tensor  # (3, H, W)
    label: int
    index: int


class Batch(NamedTuple):
    """B photos that could be read, and the others by name; with none, `images` is empty."""

    images: Tensor  # (B, 3, H, W)
    labels: Tensor  # (B,), int64
    failed: list[Failed]
    indices: Tensor  # (B,), int64: positions in the data set


class MyDataSet(Dataset):
    """Photos as (tensor, label); a photo that cannot be read is a `Failed`, never another one.

    A key is an index, or a pair (index, seed): then the random changes are drawn from a generator
    seeded with `seed`, so the result depends on file and seed alone, in whichever process.
    `min_size` is `load_image`'s; by default, what the transform says it needs.
    """

    def __init__(
        self,
        images_path: Sequence[str],
        images_class: Sequence[int],
        transform: Callable | None = None,
        min_size: int | None = None,
    ):
        self.images_path, self.images_class = images_path, images_class
        self.transform = transform
        self.min_size = min_size or getattr(transform, "min_size", None)

    def __len__(self) -> int:
        return len(self.images_path)

    def __getitem__(self, key: int | tuple[int, int]):
        item = self._item(key)
        return item if isinstance(item, Failed) else (item.image, item.label)

    def __getitems__(self, keys: Sequence) -> list:
        """What a DataLoader calls: the same, with the indices that `collate_fn` passes on."""
        return [self._item(key) for key in keys]

    def _item(self, key) -> Item | Failed:
        index, seed = key if isinstance(key, tuple) else (key, None)
        path = self.images_path[index]
        try:
            image = self.decode(path)
        except PhotoError as error:
            return Failed(path, error.reason, index)
        return Item(self.transform_with(image, seed), self.images_class[index], index)

    def decode(self, path: str):
        return load_image(path, self.min_size)

    def transform_with(self, image, seed: int | None):
        if self.transform is None:
            return image
        if seed is None:
            return self.transform(image)
        state = torch.get_rng_state()
        # Not torch.manual_seed, which would seed the GPUs, too, when called in the main process.
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(image)
        finally:
            torch.set_rng_state(state)

    @staticmethod
    def collate_fn(items: Iterable[Item | Failed]) -> Batch:
        """Stacks what could be read, names the rest."""
        items = list(items)
        good = [item for item in items if not isinstance(item, Failed)]
        return Batch(
            torch.stack([item.image for item in good]) if good else torch.empty(0),
            torch.tensor([item.label for item in good], dtype=torch.int64),
            [item for item in items if isinstance(item, Failed)],
            torch.tensor([item.index for item in good], dtype=torch.int64),
        )


class SeededSampler(Sampler):
    """Yields (index, seed) pairs, a function of seed and epoch alone.

    With `shuffle`, rank r of `world_size` takes every world_size-th of a permutation, and all ranks
    equally many (up to world_size - 1 photos sit out an epoch). Without, as for evaluation, every
    photo is taken once, in order.
    """

    def __init__(
        self, length: int, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ):
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch; `start` samples of this rank are skipped, to resume within it."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, len(range(self.rank, self._used(), self.world_size)) - self.start)

    def _used(self) -> int:
        return self.length - self.length % self.world_size if self.shuffle else self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        mixed = random.Random(f"{self.seed}/{self.epoch}").getrandbits(63)
        generator = torch.Generator().manual_seed(mixed)
        seeds = torch.randint(2**62, (self.length,), generator=generator)  # one for each photo
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator)[: self._used()]
        for index in order[self.rank :: self.world_size][self.start :].tolist():
            yield index, int(seeds[index])
