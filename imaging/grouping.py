"""Photos that belong together (copies, a burst, a patient's): every split keeps them whole."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence


def rank(path: str, root: str, seed: int) -> bytes:
    """A hash of seed and name: independent of file system order and of other classes, and a photo
    added later changes the side of few others."""
    name = path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


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
