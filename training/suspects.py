"""What a run with folds says of its labels: suspects.csv, a page, and how to train without them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.digests import digest_of
from imaging.grouping import NEAR
from reporting.suspects import Suspect, suspects
from reporting.suspects_page import write_suspects_page
from system.files import safe_cell, write_table
from system.terminal import command
from training import advice
from training.conclusion import Answers
from training.setup import Run

MANY = 0.3  # of all labels: of real photos with right labels, a fifth at most were suspects
TABLE = "suspects.csv"
COLUMNS = ["image", "label", "likely", "score"]


@dataclass(frozen=True)
class Suspects:
    """The photos of a run whose label is likely wrong, the most suspicious first."""

    run: Run
    answers: Answers
    found: Sequence[Suspect]

    @classmethod
    def of(cls, run: Run, answers: Answers) -> "Suspects":
        """Those among answers that are each of a model trained without the photo."""
        copies = copies_among(answers, run.data.choice.get("group_by") == NEAR)
        return cls(run, answers, suspects(answers.probabilities, answers.labels, copies))

    @property
    def told(self) -> str:
        """What was found, in words."""
        count, photos = len(self.found), len(self.answers.paths)
        if not count:
            return f"none of {photos} labels looks wrong"
        copies = sum(bool(one.copies) for one in self.found)
        also = f", {copies} of them because a copy has another one" if copies else ""
        weak = "; so many that the model is rather too weak to tell" * (count > MANY * photos)
        return f"{count} of {photos} labels are to be checked{also}{weak}"

    @property
    def without(self) -> str:
        """The command that trains without them; "" of none."""
        if not self.found:
            return ""
        listed = [*(self.run.options.exclude or ()), self.run.folder / TABLE]
        return command("python", "train.py", *advice.again(self.run), "--exclude", *listed)

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(what it does, command line) for a user who has looked at the photos."""
        what = f"train without them (look first, and take right ones out of {TABLE})"
        return [(what, self.without)] if self.found else []

    def write(self) -> None:
        """Writes suspects.csv and suspects.html into the run."""
        run, answers = self.run, self.answers
        classes = run.data.classes
        rows = [
            [answers.paths[one.photo], classes[one.label], classes[one.likely], f"{one.score:.6f}"]
            for one in self.found
        ]
        write_table(run.folder / TABLE, [COLUMNS, *([*map(safe_cell, row)] for row in rows)])
        write_suspects_page(
            run.folder,
            title=f"Labels to check in {Path(run.options.data_path).name}",
            told=self.told,
            found=self.found,
            paths=answers.paths,
            labels=answers.labels,
            probabilities=answers.probabilities,
            classes=classes,
            command=self.without,
            reading=run.preprocess.reading,
        )


def copies_among(answers: Answers, near: bool) -> list[list[int]]:
    """Returns photos that are copies of each other and have several labels, by index.

    near: whether groups are near copies; else only what is equal to the byte is a copy. Exact
    copies are always of one group, so that few files need be read.
    """
    members = defaultdict(list)
    for index, group in enumerate(answers.groups):
        members[group].append(index)
    mixed = [some for some in members.values() if len(np.unique(answers.labels[some])) > 1]
    if near:
        return mixed
    equal = defaultdict(list)
    for index in (index for some in mixed for index in some):
        if digest := digest_of(answers.paths[index]):
            equal[digest].append(index)
    return list(equal.values())
