"""The confusion matrix as a picture that is read at two classes, at forty and at a thousand."""

import os
import textwrap
from collections.abc import Sequence

import numpy as np

from reporting.metrics import percent
from reporting.palette import LIGHT, Theme, mixed, on
from reporting.plots import new_figure, save, style
from system.fonts import legible, pil_font

LABELLED = 60  # up to so many classes a confusion matrix names every one
COUNTED = 16  # and up to so many the share stands below each count
SUMMARISED = 30  # of more than LABELLED classes, this many of the most often confused are shown
CELL, SMALL_CELL = 0.62, 0.27  # inches, and of more than COUNTED classes
NAME, SMALL_NAME = 10.5, 8  # points
COUNT, SMALL_COUNT, SHARE = 11.5, 7, 8
LONGEST = 2.2  # inches that a name may take
POINTS = 72  # in an inch
READING = (
    "Rows: the true class; columns: the answer. The stronger the colour, the larger the share of "
    "its row: green is right, orange wrong. Behind each row: the share that is right."
)


def plot_confusion(matrix, classes: Sequence[str], path: str | os.PathLike) -> None:
    """Draws the confusion matrix, rows true and columns predicted, coloured by share of the row.

    Up to COUNTED classes counts have their share below them; up to LABELLED all are named; of more,
    the most often confused.
    """
    save(confusion_figure(matrix, classes, LIGHT), path)


def confusion_figure(matrix, classes: Sequence[str], theme: Theme):
    """Returns the figure that `plot_confusion` describes."""
    counts = np.asarray(matrix)
    shown = _shown(counts)
    photos, right = counts.sum(1), np.diag(counts)
    shares = (counts / np.maximum(photos, 1)[:, None])[np.ix_(shown, shown)]
    told = [f"{percent(right[k] / photos[k])} % of {photos[k]:,}" if photos[k] else "no photo"
            for k in shown]  # fmt: skip
    size = NAME if len(shown) <= COUNTED else SMALL_NAME
    names = [_short(legible(classes[k]), size) for k in shown]
    title = f"{right.sum():,} of {photos.sum():,} photos right"
    if len(shown) < len(classes):
        title += f"; the {len(shown)} of {len(classes):,} classes most often confused"
    figure, axes = _laid_out(names, told, size, theme, title)
    axes.imshow(cell_colours(shares, theme))
    _write_names(axes, names, told, size, theme)
    _write_counts(axes, counts[np.ix_(shown, shown)], shares, theme)
    return figure


def _shown(counts: np.ndarray) -> np.ndarray:
    """Returns the classes that a plot shows: all, or of very many the most often confused."""
    if len(counts) <= LABELLED:
        return np.arange(len(counts))
    wrong = counts - np.diag(np.diag(counts))
    mistakes = wrong.sum(0) + wrong.sum(1)
    return np.sort(np.argsort(-mistakes, kind="stable")[:SUMMARISED])


def cell_colours(shares: np.ndarray, theme: Theme) -> np.ndarray:
    """Returns red, green and blue (K, K, 3) of the cells of a matrix of shares (K, K).

    Mistakes are coloured by the root of their share: of forty classes each is rare.
    """
    cells = np.empty((*shares.shape, 3))
    for (row, column), share in np.ndenumerate(shares):
        full, part = (theme.accent, share) if row == column else (theme.wrong, share**0.5)
        cells[row, column] = mixed(theme.paper, full, part)
    return cells


def _inches(text: str, points: float) -> float:
    return pil_font(points, text).getlength(text) / POINTS


def _short(name: str, points: float) -> str:
    """Returns a name, where it is too long without its middle: names often differ at the end."""
    if _inches(name, points) <= LONGEST:
        return name
    kept = len(name) - 1
    while kept > 2 and _inches(name[:kept], points) > LONGEST:
        kept -= 1
    return f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"


def _turned(names: Sequence[str], size: float) -> bool:
    """Whether names must stand upright below their columns."""
    return max(_inches(name, size) for name in names) > _cell(len(names)) - 0.08


def _cell(classes: int) -> float:
    """Returns the side of a cell, in inches."""
    return max(CELL, 2.2 / classes) if classes <= COUNTED else SMALL_CELL


def _laid_out(names: Sequence[str], told: Sequence[str], size: float, theme: Theme, title: str):
    """Returns a figure and its axes, with the room that cells and words need."""
    side, longest = len(names) * _cell(len(names)), max(_inches(name, size) for name in names)
    upright = (longest if _turned(names, size) else size / POINTS) + 0.15
    both = len(names) > COUNTED  # of many classes, columns are named above as well
    left, right = longest + 0.5, max(_inches(one, size) for one in told) + 0.25
    width = max(left + side + right, 4.6)
    head = textwrap.wrap(title, int((width - 0.2) * POINTS / 7))
    words = textwrap.wrap(READING, int((min(width, 7.5) - 0.2) * POINTS / 4.9))
    told_from = 0.15 + 0.22 * len(head)
    top = told_from + 0.08 + 0.17 * len(words) + (upright if both else 0)
    bottom = upright + 0.35
    height = top + side + bottom
    figure = new_figure(width, height, theme)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    style(axes, theme, "")
    for lines, down, colour, points in (
        (head, 0.1, theme.ink, 12),
        (words, told_from, theme.soft, 9),
    ):
        figure.text(
            0.1 / width, 1 - down / height, "\n".join(lines), color=colour, fontsize=points,
            va="top",
        )  # fmt: skip
    return figure, axes


def _write_names(axes, names: Sequence[str], told: Sequence[str], size: float, theme: Theme):
    ticks = range(len(names))
    turned = {"rotation": 90} if _turned(names, size) else {}
    axes.set_xticks(ticks, names, parse_math=False, fontsize=size, **turned)
    axes.set_yticks(ticks, names, parse_math=False, fontsize=size)
    if len(names) > COUNTED:
        above = axes.secondary_xaxis("top")
        above.set_xticks(ticks, names, parse_math=False, fontsize=size, **turned)
        _quiet(above, theme)
    behind = axes.secondary_yaxis("right")
    behind.set_yticks(ticks, told, fontsize=size)
    _quiet(behind, theme)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("answer", color=theme.soft, fontsize=10)
    axes.set_ylabel("true class", color=theme.soft, fontsize=10)
    edges = np.arange(len(names) - 1) + 0.5  # lines that part the cells
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color=theme.card, linewidth=1.5 if len(names) <= COUNTED else 0.7)
    axes.set_axisbelow(False)


def _quiet(axis, theme: Theme) -> None:
    axis.tick_params(colors=theme.ink, length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _write_counts(axes, counts: np.ndarray, shares: np.ndarray, theme: Theme) -> None:
    """Writes the counts that are not 0 and fit into their cells, of few classes with the share."""
    few, room = len(counts) <= COUNTED, _cell(len(counts)) - 0.02
    most = COUNT if few else SMALL_COUNT
    cells = cell_colours(shares, theme)
    for row, column in np.argwhere(counts).tolist():
        text = f"{counts[row, column]}"
        size = min(most, most * room / _inches(text, most))
        if size < SMALL_COUNT:  # the colour tells it
            continue
        place = {"ha": "center", "color": on(cells[row, column])}
        vertical = "bottom" if few else "center_baseline"
        axes.text(column, row, text, va=vertical, fontsize=size, gid="count", **place)
        if few:
            share = f"{100 * shares[row, column]:.0f} %"
            axes.text(column, row + 0.06, share, va="top", fontsize=SHARE, gid="share", **place)
