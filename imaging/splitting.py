"""From a folder to a checked and split data set: each photo is decoded once before any training.

Photos that cannot be read are left out and named, exact copies never stand on both sides of the
split, and the split is a function of the photos' names and the seed. Nothing is written.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from imaging.colour import Profile, odd_profile
from imaging.data_report import TINY_PIXELS, DataReport, Problem
from imaging.decoding import decode, explain, refuse_costly, with_photo
from imaging.depth import Range, Wide, data_ranges, measure, misfit, range_lines
from imaging.grouping import groups_of, rank
from imaging.scanning import File, find_sides, match_classes, require_classes, scan_classes
from system.terminal import counted, listed, printable

ByClass = dict[str, list[str]]  # class name -> sorted paths
LEFT_OUT = ("unreadable", "truncated")  # kinds of problems of photos that cannot be used
Digests = dict[str, bytes | None]  # path of a usable photo -> hash, None if no file has its size


class Numbers(NamedTuple):
    """How all photos with more than 8 bits a number are read, and a line on each kind of them."""

    ranges: dict[str, Range]
    lines: list[str]


class Samples(NamedTuple):
    """Photos and the indices of their classes, equally long."""

    paths: list[str]
    labels: list[int]

    def moved(self, places: Sequence[tuple[str, str]]) -> "Samples":
        return Samples([_moved(path, places) for path in self.paths], self.labels)


@dataclass
class DataSplit:
    """The photos of a run; `to_dict` is what split.json holds.

    ranges: how the numbers of those are read that have more than 8 bits, see `depth.Reading`.
    choice: the share and the seed that chose the photos for validation; empty where a folder did.
    test: photos that are judged once, at the end. groups: photos that belong together, by path the
    name of their group; others stand alone.
    """

    root: str
    classes: list[str]
    train: Samples
    val: Samples
    report: DataReport
    ranges: dict[str, Range] = field(default_factory=dict)
    choice: dict[str, float] = field(default_factory=dict)
    test: Samples | None = None
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Samples]:
        """The photos by what they are for."""
        sides = {"train": self.train, "val": self.val}
        return sides if self.test is None else sides | {"test": self.test}

    def groups_of(self, paths: Sequence[str]) -> list[str]:
        """The name of each photo's group; of one that stands alone, its path."""
        return groups_of(paths, self.groups)

    def to_dict(self) -> dict:
        """Plain Python: the classes, for each side the paths by class, and those of each group;
        relative to root."""
        sides = {}
        for name, samples in self.sides.items():
            sides[name] = {class_name: [] for class_name in self.classes}
            for path, label in zip(*samples, strict=True):
                sides[name][self.classes[label]].append(_relative(path, self.root))
        groups = defaultdict(list)
        for path, group in self.groups.items():
            groups[group].append(_relative(path, self.root))
        facts = {"choice": self.choice, "groups": list(groups.values())}
        return {"classes": list(self.classes), **sides, **facts}

    @classmethod
    def from_dict(cls, values: dict, root: str) -> "DataSplit":
        """The split that `to_dict` described, its photos under `root`; none is opened."""
        root = os.fspath(root)
        try:
            classes = [_text(name) for name in values["classes"]]
            train, val, test = (
                side
                and {name: [_below(root, _text(path)) for path in side[name]] for name in classes}
                for side in (values["train"], values["val"], values.get("test"))
            )
            together = [
                [_below(root, _text(p)) for p in group] for group in values.get("groups", [])
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a split as train.py writes it: {error!r:.200}") from error
        if len(set(classes)) < 2 or len(set(classes)) < len(classes):
            raise ValueError("not a split as train.py writes it: its classes are not two or more")
        choice = _numbers(values.get("choice", {}))  # older runs did not write it
        folds = "folds" in choice  # each photo is trained on, and judged in a fold
        if not all(train.values()) or not (folds or any(val.values())):
            raise ValueError("not a split as train.py writes it: some side has no photos")
        split = make_split(root, classes, train, val, test, problems=[])
        split.choice = choice
        split.groups = {path: group[0] for group in together for path in group}
        return split

    def moved(self, places: Sequence[tuple[str, str]]) -> "DataSplit":
        """The same photos in other places: pairs of a folder and where it lies now; the first
        that holds a photo counts. The last one is the data's root."""
        root = places[-1][1]
        sides = {name: samples.moved(places) for name, samples in self.sides.items()}
        groups = {_moved(p, places): _moved(name, places) for p, name in self.groups.items()}
        report = replace(self.report, root=root)
        return replace(self, root=root, **sides, groups=groups, report=report)


def make_split(
    root: str,
    classes: Sequence[str],
    train: ByClass,
    val: ByClass,
    test: ByClass | None = None,
    *,
    problems: list[Problem],
    numbers: Numbers | None = None,
) -> DataSplit:
    """Class names become indices; the report counts."""
    photos = [train, val] if test is None else [train, val, test]
    sides = []
    for side in photos:
        pairs = [(path, label) for label, name in enumerate(classes) for path in side[name]]
        sides.append(Samples([path for path, _ in pairs], [label for _, label in pairs]))
    counts = {name: tuple(len(side[name]) for side in photos) for name in classes}
    ranges, lines = numbers or Numbers({}, [])
    report = DataReport(root, counts, problems, lines)
    return DataSplit(root, list(classes), *sides[:2], report, ranges, {}, *sides[2:])


def _moved(path: str, places: Iterable[tuple[str, str]]) -> str:
    for old, new in places:
        inside = os.path.join(os.path.abspath(old), "")
        if old != new and os.path.abspath(path).startswith(inside):
            return os.path.join(new, os.path.abspath(path).removeprefix(inside))
    return path


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name was expected, not {value!r:.80}")
    return value


def _numbers(values) -> dict[str, float]:
    fits = isinstance(values, dict) and all(type(v) in (int, float) for v in values.values())
    if not fits:
        raise ValueError(f"not a split as train.py writes it: its choice is {values!r:.80}")
    return values


def _relative(path: str, root: str) -> str:
    try:
        return os.path.relpath(path, root).replace(os.sep, "/")
    except ValueError:  # Windows: on another drive
        return os.path.abspath(path).replace(os.sep, "/")


def _below(root: str, relative: str) -> str:
    # By name, as relpath does it, not through links; on Windows also from another drive.
    if relative.startswith("../") or os.path.splitdrive(relative)[0]:
        return os.path.normpath(os.path.join(os.path.abspath(root), relative))
    return os.path.join(root, *relative.split("/"))


def prepare_data(
    data_path: str,
    val_path: str | None = None,
    val_split: float = 0.2,
    seed: int = 0,
    workers: int = 1,
    num_classes: int | None = None,
) -> DataSplit:
    """Scans, checks and splits the photos of `data_path`.

    A validation folder (`val_path`, or val, valid, validation or test beside train in `data_path`)
    is used as it is; without one, `val_split` of each class is kept for validation, chosen by
    `seed`. `workers` threads decode. Raises ValueError or OSError with a sentence, also where there
    are not `num_classes` class folders.
    """
    if not 0 < val_split < 1:
        raise ValueError(f"--val-split must lie between 0 and 1, not {val_split}")
    data_path, val_path = os.fspath(data_path), val_path and os.fspath(val_path)
    problems: list[Problem] = []
    train_root, val_root = find_sides(data_path, val_path, problems)
    found = scan_classes(train_root, problems)
    require_classes(train_root, found, problems)
    require_count(train_root, found, num_classes)
    found_val = {name: [] for name in found}
    if val_root is not None:
        found_val |= match_classes(found, scan_classes(val_root, problems), val_root, problems)
    digests, numbers = check_photos([*_files(found), *_files(found_val)], workers, problems)
    train, val = _usable(found, digests), _usable(found_val, digests)
    if val_root is None:
        conflicts = note_copies(train, digests, problems)
        train, val = split_photos(train, digests, conflicts, val_split, seed, train_root)
    else:
        train = drop_leaks(train, val, digests, problems)
        for side in (train, val):
            note_copies(side, digests, problems)
        problems += [Problem("missing class", name) for name in sorted(val) if not val[name]]
    require_photos(train, val)
    split = make_split(data_path, sorted(found), train, val, problems=problems, numbers=numbers)
    split.choice = {"val_split": val_split, "seed": seed} if val_root is None else {}
    return split


def require_count(root: str, found: ByClass, num_classes: int | None) -> None:
    """Raises ValueError unless there are `num_classes` class folders, where that is said."""
    if num_classes not in (None, len(found)):
        raise ValueError(
            f"--num-classes {num_classes} contradicts the {len(found)} class folders of "
            f"{printable(root)} ({', '.join(map(printable, sorted(found)[:10]))}); leave the flag "
            f"out"
        )


def _files(found: dict[str, list[File]]) -> Iterable[File]:
    return (file for files in found.values() for file in files)


def _usable(found: dict[str, list[File]], digests: Digests) -> ByClass:
    return {name: [f.path for f in files if f.path in digests] for name, files in found.items()}


def require_photos(train: ByClass, val: ByClass) -> None:
    """Raises ValueError if checking and comparing left too little."""
    if empty := [name for name, paths in train.items() if not paths]:
        raise ValueError(
            f"class {printable(empty[0])!r} has no photo to train on: its photos cannot be read or "
            f"are validation photos, too{_also(empty)}"
        )
    if not any(val.values()):
        raise ValueError("none of the validation photos can be read")


def _also(names: Iterable[str]) -> str:
    """Names all but the first, of which a sentence has told already."""
    others = [repr(printable(name)) for name in names][1:]
    return f"; the same goes for {listed(others)}" if others else ""


class Checked(NamedTuple):
    """What decoding a photo showed."""

    path: str
    problems: list[Problem]
    usable: bool
    digest: bytes | None
    wide: Wide | None = None


def check_photos(
    files: Sequence[File], workers: int, problems: list[Problem]
) -> tuple[Digests, Numbers]:
    """Decodes all photos and notes what is wrong with them. ValueError where none can be used.

    Only files that share their size with another can be copies, so only those are hashed.
    """
    sizes = Counter(file.size for file in files)

    def check(file: File) -> Checked:
        return check_photo(file.path, sizes[file.size] > 1)

    digests, wide = {}, {}
    with ThreadPool(max(1, workers)) as pool:  # threads: Pillow decodes without the GIL
        results = pool.imap(check, files, chunksize=16)
        bar = tqdm(results, "checking photos", len(files), unit="", leave=False, disable=None)
        for checked in bar:
            problems += checked.problems
            if checked.usable:
                digests[checked.path] = checked.digest
            if checked.wide:
                wide[checked.path] = checked.wide
    numbers = common_range(digests, wide, problems)
    if files and not digests:
        path, why = next((p.path, p.detail) for p in problems if p.kind in LEFT_OUT)
        raise ValueError(
            f"none of the {counted(len(files), 'photo')} can be used, for instance "
            f"{printable(path)}: {why}"
        )
    return digests, numbers


def common_range(digests: Digests, wide: dict[str, Wide], problems: list[Problem]) -> Numbers:
    """One range for each kind of number; takes photos that would be all black or white in it out
    of `digests`."""
    ranges = data_ranges(wide.values())
    for path, numbers in wide.items():
        if reason := misfit(numbers, ranges[numbers.kind]):
            problems.append(Problem("unreadable", path, reason))
            del digests[path]
    return Numbers(ranges, range_lines(ranges, wide.values()))


def check_photo(path: str, wants_digest: bool) -> Checked:
    """Decodes a photo; a JPEG at an eighth of its size, which reads the whole file as well."""
    problems = []
    try:
        mode, sides, wide, profile = with_photo(path, look)
        digest = file_digest(path) if wants_digest else None
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        failure = explain(path, error)
        return Checked(path, [Problem(failure.kind, path, failure.reason)], False, None)
    if min(sides) < TINY_PIXELS:
        problems.append(Problem("tiny", path, f"{sides[0]} x {sides[1]}"))
    if wide:
        problems.append(Problem("wide", path, f"{wide.kind}, {wide.low:g} to {wide.high:g}"))
    elif mode not in ("RGB", "L"):
        problems.append(Problem("odd mode", path, mode))
    if profile:
        kind = "broken profile" if profile.broken else "profile"
        problems.append(Problem(kind, path, profile.name))
    return Checked(path, problems, True, digest, wide)


def look(image: Image.Image) -> tuple[str, tuple[int, int], Wide | None, Profile | None]:
    """Mode, sides, numbers and profile of an opened photo, once it has been decoded."""
    mode, sides = image.mode, image.size
    refuse_costly(image)
    wide = measure(image)  # before decoding, which forgets how the file has them
    decode(image, min_size=1)
    return mode, sides, wide, odd_profile(image)


def file_digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def note_copies(photos: ByClass, digests: Digests, problems: list[Problem]) -> set[bytes]:
    """Notes what is there more than once; returns the digests of what is in several classes."""
    first, conflicts = {}, set()
    for name, paths in photos.items():
        for path in paths:
            digest = digests[path]
            if digest is None:
                continue
            home, original = first.setdefault(digest, (name, path))
            if original == path:
                continue
            if home != name:
                conflicts.add(digest)
            same = f"the same as {home}/{os.path.basename(original)}"
            problems.append(Problem("copy" if home == name else "conflict", path, same))
    return conflicts


def split_photos(
    photos: ByClass, digests: Digests, conflicts: set, val_split: float, seed: int, root: str
) -> tuple[ByClass, ByClass]:
    """Splits each class into training and validation.

    Copies stay together. A photo in two classes only trains: as a wrong answer in validation it
    would count against a right model.
    """
    train, val, small = {}, {}, {}
    for name, paths in photos.items():
        groups = defaultdict(list)
        for path in paths:
            if digests[path] not in conflicts:
                groups[digests[path] or path].append(path)
        # All but one may go, or all if a photo in two classes remains for training.
        most = len(groups) - (sum(map(len, groups.values())) == len(paths))
        if most < 1:
            small[name] = len(paths)
            continue
        ranked = sorted(groups.values(), key=lambda group: rank(group[0], root, seed))
        chosen = ranked[: min(max(1, round(val_split * len(groups))), most)]
        val[name] = sorted(path for group in chosen for path in group)
        train[name] = sorted(set(paths) - set(val[name]))
    if small:
        (name, count), *_ = small.items()
        raise ValueError(
            f"class {printable(name)!r} has too few photos that can be used and are not the same: "
            f"{count}, where one to train on and one to validate on are needed{_also(small)}: add "
            f"photos, or take the {'folders' if len(small) > 1 else 'folder'} out"
        )
    return train, val


def drop_leaks(train: ByClass, val: ByClass, digests: Digests, problems: list[Problem]) -> ByClass:
    """The training photos without those that also stand among the validation photos."""
    known = {}
    for name, paths in val.items():
        known |= {digests[path]: f"{name}/{os.path.basename(path)}" for path in paths}
    known.pop(None, None)
    kept = {}
    for name, paths in train.items():
        leaks = [path for path in paths if digests[path] in known]
        problems += [Problem("leak", path, f"there {known[digests[path]]}") for path in leaks]
        kept[name] = [path for path in paths if digests[path] not in known]
    return kept
