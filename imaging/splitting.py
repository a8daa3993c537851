"""From a folder to a checked and split data set: each photo is decoded once before any training.

Photos that cannot be read are left out and named, what belongs together never stands on two sides
of the split, and the split is a function of the photos' names and the seed. Nothing is written.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from imaging.checking import FINGERPRINT, TIME, Digests, Numbers, Seen, check_photos
from imaging.data_report import DataReport, Problem
from imaging.depth import Range
from imaging.exclusion import Exclusion, without
from imaging.grouping import NEAR, NONE, choose_units, groups_of, rank, units_of
from imaging.grouping import TIME as BY_TIME
from imaging.relations import (
    ByClass,
    Sides,
    contradictory,
    described,
    drop_leaks,
    note_copies,
    related,
    require_groups,
    still_grouped,
)
from imaging.scanning import File, Folders, find_sides, match_classes, require_classes, scan_classes
from system.terminal import listed, printable

Files = dict[str, dict[str, list[File]]]  # side -> class name -> files
# By default near copies are looked for among so many photos at most.
MOST_COMPARED = 20_000
WANTED = {NEAR: (FINGERPRINT,), BY_TIME: (TIME,)}  # of each photo, to group by
ORDER = ("train", "val", "test")


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
    choice: shares, seed and grouping that chose the photos not trained on; empty where folders did.
    test: photos that are judged once, at the end. groups: photos that belong together, by path the
    name of their group; others stand alone. excluded: photos that a list left out.
    """

    root: str
    classes: list[str]
    train: Samples
    val: Samples
    report: DataReport
    ranges: dict[str, Range] = field(default_factory=dict)
    choice: dict[str, float | str] = field(default_factory=dict)
    test: Samples | None = None
    groups: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)

    @property
    def sides(self) -> dict[str, Samples]:
        """The photos by what they are for."""
        sides = {"train": self.train, "val": self.val}
        return sides if self.test is None else sides | {"test": self.test}

    def groups_of(self, paths: Sequence[str]) -> list[str]:
        """The name of each photo's group; of one that stands alone, its path."""
        return groups_of(paths, self.groups)

    def to_dict(self) -> dict:
        """Plain Python: the classes, for each side the paths by class, those of each group, and
        those left out by a list; relative to root."""
        sides = {}
        for name, samples in self.sides.items():
            sides[name] = {class_name: [] for class_name in self.classes}
            for path, label in zip(*samples, strict=True):
                sides[name][self.classes[label]].append(relative(path, self.root))
        groups = defaultdict(list)
        for path, group in self.groups.items():
            groups[group].append(relative(path, self.root))
        excluded = [relative(path, self.root) for path in self.excluded]
        facts = {"choice": self.choice, "groups": list(groups.values()), "excluded": excluded}
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
            excluded = [_below(root, _text(p)) for p in values.get("excluded", [])]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a split as train.py writes it: {error!r:.200}") from error
        if len(set(classes)) < 2 or len(set(classes)) < len(classes):
            raise ValueError("not a split as train.py writes it: its classes are not two or more")
        choice = _choice(values.get("choice", {}))  # older runs did not write it
        folds = "folds" in choice  # each photo is trained on, and judged in a fold
        if not all(train.values()) or not (folds or any(val.values())):
            raise ValueError("not a split as train.py writes it: some side has no photos")
        split = make_split(root, classes, train, val, test, problems=[])
        split.choice = choice
        split.groups = {path: group[0] for group in together for path in group}
        split.excluded = excluded
        return split

    def moved(self, places: Sequence[tuple[str, str]]) -> "DataSplit":
        """The same photos in other places: pairs of a folder and where it lies now; the first
        that holds a photo counts. The last one is the data's root."""
        root = places[-1][1]
        sides = {name: samples.moved(places) for name, samples in self.sides.items()}
        groups = {_moved(p, places): _moved(name, places) for p, name in self.groups.items()}
        facts = {"groups": groups, "excluded": [_moved(p, places) for p in self.excluded]}
        return replace(self, root=root, **sides, **facts, report=replace(self.report, root=root))


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


def _choice(values) -> dict[str, float | str]:
    fits = isinstance(values, dict) and all(
        type(value) is str if name == "group_by" else type(value) in (int, float)
        for name, value in values.items()
    )
    if not fits:
        raise ValueError(f"not a split as train.py writes it: its choice is {values!r:.80}")
    return values


def relative(path: str, root: str) -> str:
    """Returns a path as split.json has it: below the data folder, with / between its parts."""
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
    *,
    test_path: str | None = None,
    test_split: float = 0.0,
    group_by: str | None = None,
    exclude: Exclusion | None = None,
) -> DataSplit:
    """Scans, checks and splits the photos of `data_path`, without those that `exclude` lists.

    Folders for validation and for testing (`val_path` and `test_path`, or val and test beside train
    in `data_path`) are used as they are; else `val_split` and `test_split` of each class are kept
    apart, chosen by `seed`; what belongs together by `group_by` (`relations.related`; None: near
    copies, unless the photos are many) stays together. `workers` threads decode. Raises ValueError
    or OSError with a sentence, also where there are not `num_classes` classes.
    """
    if not 0 < val_split < 1:
        raise ValueError(f"--val-split must lie between 0 and 1, not {val_split}")
    data_path, val_path, test_path = map(_path, (data_path, val_path, test_path))
    problems: list[Problem] = []
    folders = find_sides(data_path, val_path, problems, test_path)
    files = _scanned(folders, num_classes, problems)
    files, excluded, about = without(files, exclude, data_path)
    group_by, notes = _settled(group_by, files)
    sides, groups, seen = _compared(files, folders, group_by, workers, problems)
    shares = {"val": val_split} | ({"test": test_split} if test_split else {})
    sides, facts = split_sides(sides, groups, seen, group_by, shares, seed, folders.train, problems)
    require_photos(sides["train"], sides["val"])
    classes = sorted(files["train"])
    split = make_split(data_path, classes, **sides, problems=problems, numbers=seen.numbers)
    split.report.notes += about + notes + described(group_by, groups)
    split.report.notes += _on_folders(folders, data_path)
    split.groups, split.choice, split.excluded = groups, facts, excluded
    return split


def _compared(
    files: Files, folders: Folders, group_by: str, workers: int, problems: list[Problem]
) -> tuple[Sides, dict[str, str], Seen]:
    """The photos of each side that can be used and stand on no later one, and their groups."""
    roots = folders._asdict()
    paths = {side: _usable(photos) for side, photos in files.items()}
    require_groups(group_by, paths, roots)
    everything = [file for photos in files.values() for some in photos.values() for file in some]
    seen = check_photos(everything, workers, problems, WANTED.get(group_by, ()))
    sides = {side: _usable(photos, seen.digests) for side, photos in files.items()}
    groups = related(group_by, sides, roots, seen, problems)
    sides = drop_leaks(sides, seen.digests, groups, group_by == NEAR, problems)
    return sides, still_grouped(groups, sides), seen


def _scanned(folders: Folders, num_classes: int | None, problems: list[Problem]) -> Files:
    """The files of each side that has a folder, by the class that they train, validate or test."""
    found = scan_classes(folders.train, problems)
    require_classes(folders.train, found, problems)
    require_count(folders.train, found, num_classes)
    files = {"train": found}
    for side, root in (("val", folders.val), ("test", folders.test)):
        if root:
            own = match_classes(found, scan_classes(root, problems), root, problems)
            files[side] = {name: [] for name in found} | own
    return files


def _path(path: str | os.PathLike | None) -> str | None:
    return path and os.fspath(path)


def _settled(group_by: str | None, files: Files) -> tuple[str, list[str]]:
    """What groups the photos where nothing was said, and a line where that is not as usual."""
    photos = sum(len(some) for side in files.values() for some in side.values())
    if group_by or photos <= MOST_COMPARED:
        return group_by or NEAR, []
    return NONE, [
        f"more than {MOST_COMPARED:,} photos: near copies were not looked for; --group-by {NEAR} "
        f"does it, which takes half a minute and 2.6 GB for 100,000"
    ]


def _on_folders(folders: Folders, data_path: str) -> list[str]:
    """A line where a folder for testing is no longer taken to validate on, as it once was."""
    if not folders.test or folders.val or folders.train == data_path:
        return []
    return [
        f"validation photos are split off {printable(folders.train)}, and "
        f"{printable(folders.test)} is judged once, at the end; --val-path "
        f"{printable(folders.test)} validates on it instead, as before"
    ]


def split_sides(
    sides: Sides,
    groups: Mapping[str, str],
    seen: Seen,
    group_by: str,
    shares: Mapping[str, float],
    seed: int,
    root: str,
    problems: list[Problem],
) -> tuple[Sides, dict]:
    """Splits off what no folder holds, `shares` of each class of the photos to train on.

    Returns the sides, and what they follow from beside the photos' names.
    """
    conflicts, *_ = [note_copies(photos, seen.digests, problems) for photos in sides.values()]
    given = sides.keys() - {"train"}
    for side in given:
        empty = sorted(name for name, paths in sides[side].items() if not paths)
        problems += [Problem("missing class", name, f"in {side}") for name in empty]
    shares = {side: share for side, share in shares.items() if side not in given}
    if not shares:
        return sides, {}
    pool = sides["train"]
    fixed = contradictory(groups, pool, conflicts, seen.digests, group_by)
    parts = split_photos(pool, groups, fixed, seen.digests, shares, seed, root, group_by)
    choice = {f"{side}_split": share for side, share in shares.items()} | {"seed": seed}
    choice |= {} if group_by == NONE else {"group_by": group_by}
    ordered = {side: (sides | parts)[side] for side in ORDER if side in sides | parts}
    return ordered, choice


def require_count(root: str, found: ByClass, num_classes: int | None) -> None:
    """Raises ValueError unless there are `num_classes` class folders, where that is said."""
    if num_classes not in (None, len(found)):
        raise ValueError(
            f"--num-classes {num_classes} contradicts the {len(found)} class folders of "
            f"{printable(root)} ({', '.join(map(printable, sorted(found)[:10]))}); leave the flag "
            f"out"
        )


def _usable(found: dict[str, list[File]], digests: Digests | None = None) -> ByClass:
    """The paths of each class, of all its photos or of those that have a digest."""
    return {
        name: [f.path for f in files if digests is None or f.path in digests]
        for name, files in found.items()
    }


def require_photos(train: ByClass, val: ByClass) -> None:
    """Raises ValueError if checking and comparing left too little."""
    if empty := [name for name, paths in train.items() if not paths]:
        raise ValueError(
            f"class {printable(empty[0])!r} has no photo to train on: its photos cannot be read or "
            f"are validation or test photos, too{_also(empty)}"
        )
    if not any(val.values()):
        raise ValueError("none of the validation photos can be read")


def _also(names: Iterable[str]) -> str:
    """Names all but the first, of which a sentence has told already."""
    others = [repr(printable(name)) for name in names][1:]
    return f"; the same goes for {listed(others)}" if others else ""


def split_photos(
    photos: ByClass,
    groups: Mapping[str, str],
    fixed: Collection[str],
    digests: Digests,
    shares: Mapping[str, float],
    seed: int,
    root: str,
    group_by: str = NONE,
) -> Sides:
    """Splits `shares` of each class off for "val", for "test" or for both.

    What belongs together stays together. `fixed` photos, which stand in two classes, only train: as
    a wrong answer in validation they would count against a right model.
    """
    free = {name: [p for p in paths if p not in fixed] for name, paths in photos.items()}
    units = units_of(free, groups, digests)
    units.sort(key=lambda unit: rank(unit.photos[0][1], root, seed))
    left = Counter({name: len(paths) - len(free[name]) for name, paths in photos.items()})
    for unit in units:
        left.update(unit.weights)
    sides, taken = {}, set()
    for side, share in shares.items():
        chosen = choose_units(units, share, left)
        units = [unit for unit in units if unit not in chosen]
        sides[side] = {name: [] for name in photos}
        for name, path in (pair for unit in chosen for pair in unit.photos):
            sides[side][name].append(path)
        taken |= {path for unit in chosen for _, path in unit.photos}
        small = {name: len(photos[name]) for name, paths in sides[side].items() if not paths}
        if small and side == "val":
            raise ValueError(_too_few(small, group_by))
    sides = {side: {n: sorted(paths) for n, paths in some.items()} for side, some in sides.items()}
    train = {name: [p for p in paths if p not in taken] for name, paths in photos.items()}
    return {"train": train} | sides


def _too_few(small: Mapping[str, int], group_by: str) -> str:
    (name, count), *_ = small.items()
    if group_by in (NEAR, NONE):
        what, more = "photos that can be used and are not the same", "photos"
    else:
        what, more = f"groups of photos (--group-by {printable(group_by)})", "groups"
        count = f"its {count} photos stand in one"
    return (
        f"class {printable(name)!r} has too few {what}: {count}, where one to train on and one to "
        f"validate on are needed{_also(small)}: add {more}, or take the "
        f"{'folders' if len(small) > 1 else 'folder'} out"
    )
