"""What a look at the data found: photos per class and side, and everything odd by name."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from system.terminal import printable, table

TINY_PIXELS = 8  # a photo with a shorter side has nothing to learn from
IMBALANCE = 3  # the report speaks of imbalance from this ratio of largest to smallest class on
SHOWN = 3  # problems of a kind named in the short report; the long one names all
SIDES = ("training", "validation", "testing")
# Every kind of problem in the order of the report, in the words of the report.
KINDS = {
    "unreadable": "unreadable, left out",
    "truncated": "truncated, left out",
    "tiny": f"tiny, a side under {TINY_PIXELS} pixels, kept",
    "odd mode": "neither RGB nor grey, converted",
    "wide": "more than 8 bits a number, scaled alike in all photos",
    "profile": "with a profile of other colours than sRGB, converted to sRGB",
    "broken profile": "with a colour profile that makes no sense, taken for sRGB",
    "conflict": "the same photo in two classes, one of which must be wrong",
    "near conflict": "near copies of a photo of another class, only trained on",
    "near conflict in folds": "near copies of a photo of another class, one of which must be wrong",
    "leak": "photos that also stand among those to validate or test on, left out here",
    "near leak": "near copies of photos to validate or test on, left out here",
    "near leak kept": "near copies of photos to validate or test on, too many to leave out: the "
    "accuracy is optimistic",
    "torn group": "groups that stand on two sides: the accuracy is optimistic",
    "copy": "exact copies of another photo of their class, kept on its side",
    "near copy": "near copies of another photo of their class, kept on its side",
    "look-alikes": "photos that look alike, too many of a class for copies, not kept on one side",
    "missing class": "classes without a photo to validate or test on",
    "extra class": "validation classes unknown to training, left out",
    "unlabelled": "folders for testing without class folders, left out",
    "empty class": "folders without a photo, left out",
    "not a class": "folders that are no class, left out",
    "wrong level": "classes that look like a wrong level of folders",
    "loose": "photos beside the class folders, left out",
    "hidden": "hidden files and folders, left out",
    "unsupported": "files that are no photos, left out",
    "not a file": "broken links, devices and the like, left out",
    "loop": "folders reached again through a link, left out the second time",
    "closed": "folders that cannot be opened, left out",
}


class Problem(NamedTuple):
    """Something to know about the data: `kind` is a key of KINDS, `detail` says more."""

    kind: str
    path: str
    detail: str = ""


@dataclass
class DataReport:
    """`counts` maps each class to its photos for (training, validation) or these and (testing).

    notes: sentences about the data as a whole.
    """

    root: str
    counts: dict[str, tuple[int, ...]]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the terminal: a line of totals, one on imbalance, one for each kind of problem."""
        lines = [*self._head()]
        for kind, found in self._by_kind().items():
            names = "; ".join(self._name(problem) for problem in found[:SHOWN])
            more = "; ..." if len(found) > SHOWN else ""
            lines.append(f"{KINDS[kind]}: {len(found)} ({names}{more})")
        return lines

    def text(self) -> str:
        """For a file: the counts of each class and every problem by name."""
        rows = [("class", *SIDES[: len(self._totals())])]
        rows += [(printable(name), *map(str, sides)) for name, sides in self.counts.items()]
        lines = [*self._head(), "", *table(rows, "<" + ">" * len(self._totals()))]
        for kind, found in self._by_kind().items():
            lines += ["", f"{KINDS[kind]}: {len(found)}"]
            lines += [f"  {self._name(problem)}" for problem in found]
        return "\n".join(lines) + "\n"

    def imbalance(self) -> str:
        """A sentence if the largest class has several times the photos of the smallest, else ''."""
        totals = {name: sum(sides) for name, sides in self.counts.items()}
        small, large = min(totals, key=totals.get), max(totals, key=totals.get)
        ratio = totals[large] / max(1, totals[small])
        if ratio < IMBALANCE:
            return ""
        return (
            f"imbalance: {printable(large)!r} has {ratio:.1f} times as many photos as "
            f"{printable(small)!r} ({totals[large]} and {totals[small]})"
        )

    def _totals(self) -> list[int]:
        """The photos of each side."""
        return [sum(side) for side in zip(*self.counts.values(), strict=True)]

    def _head(self) -> list[str]:
        totals = self._totals()
        sides = [f"{n} for {side}" for n, side in zip(totals, SIDES, strict=False)]
        total = (
            f"{printable(self.root)}: {sum(totals)} photos in {len(self.counts)} classes, "
            f"{', '.join(sides)}"
        )
        return [line for line in (total, self.imbalance(), *self.notes) if line]

    def _by_kind(self) -> dict[str, list[Problem]]:
        found = defaultdict(list)
        for problem in self.problems:
            found[problem.kind].append(problem)
        return {kind: found[kind] for kind in KINDS if kind in found}

    def _name(self, problem: Problem) -> str:
        path = problem.path.removeprefix(os.path.join(self.root, ""))
        return printable(f"{path}: {problem.detail}" if problem.detail else path)
