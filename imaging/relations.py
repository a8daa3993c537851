"""What photos have to do with each other: copies, leaks between sides, and groups of any kind.

A side is what photos are for: train, val or test; where no folder says so, train holds all.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from imaging.checking import Digests, Seen
from imaging.data_report import Problem
from imaging.grouping import (
    FOLDER,
    NEAR,
    NONE,
    TIME,
    Together,
    burst_keys,
    folder_keys,
    name_keys,
)
from imaging.near_copies import near_copies
from system.terminal import counted, printable

ByClass = dict[str, list[str]]  # class name -> sorted paths
Sides = dict[str, ByClass]
# Photos that look alike are no copies where they are more than this share of a class, such as
# pictures of one background; two always may be, unless a class would be left with nothing else.
LARGEST_SHARE, PAIR = 0.1, 2


class Home(NamedTuple):
    """Where a photo stands."""

    side: str
    name: str  # of its class


def homes_of(sides: Sides) -> dict[str, Home]:
    return {
        path: Home(side, name)
        for side, photos in sides.items()
        for name, paths in photos.items()
        for path in paths
    }


def related(
    group_by: str, sides: Sides, roots: Mapping[str, str], seen: Seen, problems: list[Problem]
) -> dict[str, str]:
    """Returns the name of its group for each photo that does not stand alone.

    group_by: a word of `grouping`, or a regular expression for file names. roots: the folder of
    each side. Exact copies always belong together. Raises ValueError where nothing is grouped by
    what the user asked for.
    """
    homes = homes_of(sides)
    together = Together(homes)
    together.join_equal(known(seen.digests, homes))
    if group_by == NEAR:
        for members in near_groups(homes, seen, problems):
            together.join_equal(dict.fromkeys(members, 0))
    elif group_by != NONE:
        keys = burst_keys(seen.times) if group_by == TIME else keys_of(group_by, sides, roots)
        if not keys:
            raise ValueError(f"--group-by {printable(group_by)}: {_nothing(group_by)}")
        together.join_equal(keys)
        _note_torn(together.groups(), homes, problems)
    return together.groups()


def known(digests: Digests, paths: Collection[str]) -> dict[str, bytes]:
    """The digests that there are."""
    return {path: digests[path] for path in paths if digests[path]}


def require_groups(group_by: str, sides: Sides, roots: Mapping[str, str]) -> None:
    """Raises ValueError where folders or names group nothing, before a photo is opened."""
    if group_by not in (NEAR, NONE, TIME) and not keys_of(group_by, sides, roots):
        raise ValueError(f"--group-by {printable(group_by)}: {_nothing(group_by)}")


def keys_of(group_by: str, sides: Sides, roots: Mapping[str, str]) -> dict[str, str]:
    """What groups each photo, by folder or name; photos that nothing groups are left out."""
    keys = {}
    for side, photos in sides.items():
        paths = [path for some in photos.values() for path in some]
        found = folder_keys(roots[side], paths) if group_by == FOLDER else None
        keys |= name_keys(group_by, paths) if found is None else found
    return keys


def _nothing(group_by: str) -> str:
    others = f"{FOLDER}, {TIME}, {NEAR} or {NONE}"
    if group_by == FOLDER:
        return "no class folder holds folders of photos: give a regular expression for file names"
    if group_by == TIME:
        return "no photo says when it was taken (EXIF): give a regular expression for file names"
    return (
        f"this regular expression finds nothing in any photo's file name; beside one, "
        f"the flag takes {others}"
    )


def _note_torn(groups: Mapping[str, str], homes: Mapping[str, Home], problems: list) -> None:
    """Notes groups that the user's own folders put on several sides."""
    for first, members in by_group(groups).items():
        others = [path for path in members if homes[path].side != homes[first].side]
        if others:
            detail = f"its group also stands in {homes[others[0]].side}: {_short(others[0], homes)}"
            problems.append(Problem("torn group", first, detail))


def by_group(groups: Mapping[str, str]) -> dict[str, list[str]]:
    members = defaultdict(list)
    for path, first in groups.items():
        members[first].append(path)
    return members


def _short(path: str, homes: Mapping[str, Home]) -> str:
    return f"{homes[path].name}/{os.path.basename(path)}"


# --- near copies ----------------------------------------------------------------------------------


def near_groups(
    homes: Mapping[str, Home], seen: Seen, problems: list[Problem]
) -> Iterator[list[str]]:
    """Yields photos that are near copies of each other; those that are too many are noted."""
    paths = [path for path in homes if path in seen.fingerprints]
    if len(paths) < 2:
        return
    near = Together(homes)
    near.join_equal(known(seen.digests, homes))
    prints = np.stack([seen.fingerprints[path] for path in paths])
    for one, other in near_copies(prints, quiet=False):
        near.join(paths[one], paths[other])
    totals = Counter(home.name for home in homes.values())
    for first, members in by_group(near.groups()).items():
        distinct = {(homes[path].name, seen.digests[path] or path) for path in members}
        if len({digest for _, digest in distinct}) == 1:
            continue  # exact copies
        if too_many(Counter(name for name, _ in distinct), totals):
            detail = f"and {len(members) - 1} more, such as {_short(members[1], homes)}"
            problems.append(Problem("look-alikes", first, detail))
            continue
        _note_near(members, homes, seen.digests, problems)
        yield members


def too_many(counts: Mapping[str, int], totals: Mapping[str, int]) -> bool:
    """Whether so many photos of a class are no copies of each other, but look alike."""
    return any(
        count > max(LARGEST_SHARE * totals[name], PAIR) or 2 * count > totals[name] > 1
        for name, count in counts.items()
    )


def _note_near(members: list[str], homes: Mapping, digests: Digests, problems: list) -> None:
    first, noted = members[0], {digests[members[0]]} - {None}
    for path in members[1:]:
        if homes[path].side == homes[first].side and digests[path] not in noted:
            kind = "near copy" if homes[path].name == homes[first].name else "near conflict"
            problems.append(Problem(kind, path, f"like {_short(first, homes)}"))
        noted |= {digests[path]} - {None}


# --- exact copies and leaks -----------------------------------------------------------------------


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


def contradictory(
    groups: Mapping[str, str], photos: ByClass, conflicts: set, digests: Digests, group_by: str
) -> set[str]:
    """The photos that would count against a right model, as their copies have another class."""
    homes = homes_of({"train": photos})
    found = set()
    for members in by_group(groups).values():
        members = [path for path in members if path in homes]
        several = len({homes[path].name for path in members}) > 1
        if (several and group_by == NEAR) or any(digests[path] in conflicts for path in members):
            found.update(members)
    return found


def drop_leaks(
    sides: Sides, digests: Digests, groups: Mapping[str, str], near: bool, problems: list[Problem]
) -> Sides:
    """The sides without photos that also stand on a later one, where later ones are judged later.

    near: whether `groups` are near copies, which count as well, unless they are so many of a class
    that little would be left to train on: then they are noted alone.
    """
    kept, homes = {}, homes_of(sides)
    exact, alike = {}, {}  # digest or group -> a photo on a later side
    for side in reversed(sides):
        kept[side] = {}
        for name, paths in sides[side].items():
            leaks = {p: exact[digests[p]] for p in paths if digests[p] in exact}
            for path, there in leaks.items():
                problems.append(Problem("leak", path, f"there {_short(there, homes)}"))
            rest = [path for path in paths if path not in leaks]
            close = {p: alike[groups[p]] for p in rest if near and groups.get(p) in alike}
            many = len(close) > max(LARGEST_SHARE * len(rest), PAIR) or len(close) == len(rest)
            for path, there in close.items():
                kind = "near leak kept" if many else "near leak"
                problems.append(Problem(kind, path, f"there {_short(there, homes)}"))
            kept[side][name] = [path for path in rest if many or path not in close]
        for path in (path for paths in sides[side].values() for path in paths):
            if digests[path]:
                exact.setdefault(digests[path], path)
            if path in groups:
                alike.setdefault(groups[path], path)
    return {side: kept[side] for side in sides}


def still_grouped(groups: Mapping[str, str], sides: Sides) -> dict[str, str]:
    """The groups of the photos that are left."""
    left = Together(homes_of(sides))
    left.join_equal({path: groups[path] for path in left.order if path in groups})
    return left.groups()


def described(group_by: str, groups: Mapping[str, str]) -> list[str]:
    """A line on groups that the user asked for."""
    if group_by in (NEAR, NONE):
        return []
    count = counted(len(set(groups.values())), "group")
    return [f"--group-by {printable(group_by)}: {len(groups)} photos stand in {count}"]
