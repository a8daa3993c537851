"""suspects.html: the photos whose label is likely wrong, to be looked at."""

import os
from collections.abc import Sequence
from pathlib import Path

from imaging.depth import Reading
from reporting.page import environment, font_of, shown
from reporting.suspects import Suspect
from system.files import write_text

PAGE = "suspects.html"
MOST = 100  # photos on the page
OF_A_GROUP = 4  # copies shown beside each other


def write_suspects_page(
    run_dir: str | os.PathLike,
    *,
    title: str,
    told: str,
    found: Sequence[Suspect],
    paths: Sequence[str],
    labels: Sequence[int],
    probabilities,
    classes: Sequence[str],
    command: str = "",
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Path:
    """Writes suspects.html into `run_dir` and returns its path.

    told: what was found, in words. found: from `suspects`, with the paths, labels and probabilities
    (N, K) that it was made of. command: trains without them. reading: of the photos' numbers.
    """
    first = found[:MOST]

    def photo(index: int, **facts) -> dict:
        label = int(labels[index])
        facts |= {"label": classes[label], "belief": float(probabilities[index][label])}
        return shown({"path": paths[index]}, reading) | facts

    copies = [[photo(index) for index in group] for group in groups_of(first)]
    single = [
        photo(one.photo, likely=classes[one.likely], score=f"{one.score:.3f}")
        for one in first
        if not one.copies
    ]
    page = environment().get_template(f"{PAGE}.jinja").render(
        title=title, told=told, command=command, copies=copies, single=single,
        more=len(found) - len(first),
        font=font_of([title, *classes, *(paths[one.photo] for one in first)]),
    )  # fmt: skip
    path = Path(run_dir) / PAGE
    write_text(path, page)
    return path


def groups_of(found: Sequence[Suspect]) -> list[list[int]]:
    """Returns photos that are copies of each other, each group once, suspects first."""
    groups, seen = [], set()
    for one in found:
        if one.copies and one.photo not in seen:
            group = [one.photo, *one.copies]
            seen.update(group)
            groups.append(group[:OF_A_GROUP])
    return groups
