"""Photos that belong together (copies, a burst, a patient's): every split keeps them whole."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from imaging.scanning import as_text

NEAR, NONE, FOLDER, TIME = "near-copies", "none", "folder", "time"  # or a regular expression
BURST_SECONDS = 10  # between two photos of a burst


def rank(path: str, root: str, seed: int) -> bytes:
    """A hash of seed and name: independent of file system order and of other classes, and a photo
    added later changes the side of few others."""
    name = path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


class Together:
    """Photos that are joined in pairs, and what belongs together by that."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.order = {path: number for number, path in enumerate(paths)}
        self.above: dict[str, str] = {}

    def first(self, path: str) -> str:
        """The first photo, in the order of all, of those that `path` belongs to."""
        while (above := self.above.get(path, path)) != path:
            self.above[path] = path = self.above.get(above, above)
        return path

    def join(self, one: str, other: str) -> None:
        low, high = sorted((self.first(one), self.first(other)), key=self.order.__getitem__)
        self.above[high] = low

    def join_equal(self, keys: Mapping[str, object]) -> None:
        """Joins photos of the same key."""
        first: dict[object, str] = {}
        for path, key in keys.items():
            self.join(first.setdefault(key, path), path)

    def groups(self) -> dict[str, str]:
        """The first of its group, by path, of photos that do not stand alone."""
        firsts = {path: self.first(path) for path in self.order}
        counts = Counter(firsts.values())
        return {path: first for path, first in firsts.items() if counts[first] > 1}


def folder_keys(root: str, paths: Iterable[str]) -> dict[str, str]:
    """The folder in its class folder that each photo stands in; not of those that stand in none."""
    keys = {}
    for path in paths:
        parts = os.path.relpath(path, root).split(os.sep)
        if len(parts) > 2:
            keys[path] = os.path.join(root, *parts[:2])
    return keys


def name_keys(pattern: str, paths: Iterable[str]) -> dict[str, str]:
    """What the pattern finds in each photo's file name: its first group, or all that it matches."""
    wanted, keys = re.compile(pattern), {}
    for path in paths:
        if found := wanted.search(as_text(os.path.basename(path))):
            key = found[1] if wanted.groups else found[0]
            keys |= {path: key} if key else {}
    return keys


def burst_keys(times: Mapping[str, float]) -> dict[str, int]:
    """The number of the burst that each photo with a time is of."""
    keys, number, last = {}, 0, float("-inf")
    for path, time in sorted(times.items(), key=lambda pair: (pair[1], pair[0])):
        number += time - last > BURST_SECONDS
        keys[path], last = number, time
    return keys


# --- splits ---------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """Photos that go to one side. photos: (class, path); weights: those of each class that differ,
    for exact copies count once."""

    photos: list[tuple[str, str]]
    weights: Counter


def units_of(
    photos: Mapping[str, Sequence[str]], groups: Mapping[str, str], digests: Mapping
) -> list[Unit]:
    members = defaultdict(list)
    for name, paths in photos.items():
        for path in paths:
            members[groups.get(path, path)].append((name, path))
    units = []
    for group in members.values():
        distinct = {(name, digests[path] or path) for name, path in group}
        units.append(Unit(group, Counter(name for name, _ in distinct)))
    return units


def choose_units(units: Sequence[Unit], share: float, left: Counter) -> list[Unit]:
    """Returns units, the first ones that fit, of about `share` of each class, at least one.

    left: what each class has in all; what is returned is taken from it, but never all.
    """
    totals: Counter = Counter()
    for unit in units:
        totals.update(unit.weights)
    wanted = {name: min(max(1, round(share * n)), left[name] - 1) for name, n in totals.items()}
    have: Counter = Counter()
    chosen = []

    def fits(unit: Unit) -> bool:
        return all(left[name] > weight for name, weight in unit.weights.items())

    def take(unit: Unit) -> None:
        chosen.append(unit)
        have.update(unit.weights)
        left.subtract(unit.weights)

    for unit in units:
        nearer = sum(
            abs(have[name] + weight - wanted[name]) - abs(have[name] - wanted[name])
            for name, weight in unit.weights.items()
        )
        if nearer < 0 and fits(unit):
            take(unit)
    for name in totals:
        rest = [u for u in units if name in u.weights and not have[name] and fits(u)]
        if rest:  # all of its groups are larger than what is wanted
            take(min(rest, key=lambda unit: unit.weights[name]))
    return chosen


# --- folds ----------------------------------------------------------------------------------------


def groups_of(paths: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    """The name of each photo's group: that in `groups`, or its own path."""
    return [groups.get(path, path) for path in paths]


def grouped_folds(
    paths: Sequence[str],
    labels: Sequence[int],
    groups: Mapping[str, str],
    k: int,
    seed: int,
    *,
    root: str = "",
) -> list[list[int]]:
    """Cuts photos into `k` folds: lists of indices into `paths`, sorted, each photo in one fold.

    The photos of a group stand in one fold, those of a class are spread evenly. Names below `root`
    and the seed decide. Raises ValueError where without one fold no photo of a class would be left,
    or a fold would be empty.
    """
    members = defaultdict(list)
    for index, group in enumerate(groups_of(paths, groups)):
        members[group].append(index)
    ranked = sorted(members.values(), key=lambda indices: rank(paths[indices[0]], root, seed))
    ranked.sort(key=len, reverse=True)  # small ones fill what large ones leave; a stable sort
    totals, dealt = Counter(labels), [Counter() for _ in range(k)]
    folds: list[list[int]] = [[] for _ in range(k)]
    for indices in ranked:
        here = Counter(labels[index] for index in indices)

        def fullness(fold: int, here=here) -> tuple:
            shares = sum(dealt[fold][name] * n / totals[name] for name, n in here.items())
            return shares, len(folds[fold]), fold

        fold = min(range(k), key=fullness)
        dealt[fold].update(here)
        folds[fold] += indices
    _check_folds(folds, dealt, totals)
    return [sorted(fold) for fold in folds]


def _check_folds(folds: list[list[int]], dealt: list[Counter], totals: Counter) -> None:
    if not all(folds):
        raise ValueError(
            f"{len(folds)} folds need as many groups of photos, of which there are "
            f"{sum(map(bool, folds))}: take fewer folds"
        )
    for counts in dealt:
        for label, count in counts.items():
            if count == totals[label]:
                raise ValueError(
                    f"all {count} photos of class {label} belong together, so that one fold "
                    f"would hold them all and train without them: add photos, or take the class out"
                )
