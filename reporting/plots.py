"""Plots of a run: curves over its epochs, how far its probabilities are right.

Functions from plain data (lists, dicts, arrays) to figures, and to files that appear whole or not
at all. matplotlib is imported where a plot is drawn, and only through its object interface: nothing
here needs a display or the main thread.
"""

import io
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from reporting.calibration import Bin, error_of
from reporting.intervals import wilson
from reporting.palette import LIGHT, Theme
from system.files import write_bytes
from system.fonts import use_fonts

DPI = 150
# title, columns of metrics.csv
PANELS = (
    ("Loss", ("train_loss", "val_loss")),
    ("Accuracy", ("train_acc", "val_acc")),
    ("Learning rate", ("learning_rate",)),
)


def new_figure(width: float, height: float, theme: Theme, **layout):
    """Returns an empty figure of so many inches."""
    use_fonts()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor=theme.card, **layout)


def style(axes, theme: Theme, title: str) -> None:
    axes.set_facecolor(theme.card)
    axes.set_title(title, color=theme.ink, fontsize=12, loc="left", parse_math=False)
    axes.tick_params(which="both", colors=theme.ink, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    axes.set_axisbelow(True)


def png_bytes(figure) -> bytes:
    """Returns a figure as a PNG of 256 colours: a plot has fewer, but for the edges of letters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    buffer = io.BytesIO()
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save(figure, path: str | os.PathLike) -> None:
    write_bytes(path, png_bytes(figure))


# --- curves -------------------------------------------------------------------------------------


def plot_curves(
    rows: Sequence[dict],
    path: str | os.PathLike,
    best: int | None = None,
    worth: float | None = None,
) -> None:
    """Draws loss, accuracy and learning rate per epoch.

    rows: of metrics.csv, dicts with epoch, train_loss, train_acc, val_loss, val_acc, learning_rate;
        values may be text, missing, or nan, which leaves a gap.
    best: the epoch that was chosen, to be marked.
    worth: as how many independent photos those of validation count, for the 95 % interval of their
        accuracy.
    """
    figure = new_figure(14, 4, LIGHT, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _draw_panel(axes, rows, panel, LIGHT, best, worth)
    save(figure, path)


def curve_figure(
    rows: Sequence[dict],
    panel: tuple,
    theme: Theme,
    best: int | None = None,
    worth: float | None = None,
):
    """Returns the figure of one of PANELS; see `plot_curves`."""
    figure = new_figure(4.8, 3.4, theme, layout="constrained")
    _draw_panel(figure.subplots(), rows, panel, theme, best, worth)
    return figure


def _draw_panel(axes, rows: Sequence[dict], panel: tuple, theme: Theme, best, worth) -> None:
    title, columns = panel
    style(axes, theme, title)
    epochs = _numbers(rows, "epoch")
    for column in columns:
        _draw_column(axes, epochs, _numbers(rows, column), column, theme)
    values = _numbers(rows, columns[-1])
    if columns[-1] == "val_acc" and worth:
        ends = [wilson(share, worth) if 0 <= share <= 1 else (math.nan,) * 2 for share in values]
        axes.fill_between(
            epochs, *np.transpose(ends), color=theme.accent, alpha=0.18, linewidth=0,
            label="95 % interval",
        )  # fmt: skip
        axes.autoscale_view()
    axes.set_xlabel("epoch", color=theme.ink, fontsize=10)
    if best in epochs:
        _mark_best(axes, best, values[list(epochs).index(best)], columns, theme, worth)
    _scales(axes, len(rows), theme)
    if len(columns) > 1:  # beside the title, where no curve can be
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=3, frameon=False,
            labelcolor=theme.ink, fontsize=9, handlelength=1.6, columnspacing=1, handletextpad=0.5,
        )  # fmt: skip


def _numbers(rows: Sequence[dict], column: str) -> np.ndarray:
    """Returns a column of metrics as floats, nan where it is absent or no number."""
    values = (row.get(column) for row in rows)
    found = np.array([math.nan if value in (None, "") else float(value) for value in values])
    return np.where(np.isfinite(found), found, np.nan)


def _draw_column(axes, epochs, values, column: str, theme: Theme) -> None:
    kind = column.split("_")[0]
    train = kind == "train"
    # Dots: a line through a single epoch, or between two gaps, would not be seen. Dashes: the two
    # are told apart in print, too.
    axes.plot(
        epochs,
        values,
        color=theme.other if train else theme.accent,
        linewidth=1.6 if train else 2.2,
        linestyle=(0, (4, 1.5)) if train else "-",
        marker="o" if len(epochs) <= 30 else ".",
        markersize=3 if train else 4,
        label={"train": "training", "val": "validation"}.get(kind),
    )


def _mark_best(axes, best: int, value: float, columns: tuple, theme: Theme, worth) -> None:
    """Marks the chosen epoch, and says below the axis what validation gave there."""
    axes.axvline(best, color=theme.soft, linewidth=1, linestyle=":", zorder=1, label="_best")
    told = f"best epoch {best} (dotted)"
    if len(columns) > 1 and math.isfinite(value):
        axes.plot(
            [best], [value], "o", color=theme.card, markersize=9, markeredgewidth=2.2,
            markeredgecolor=theme.accent, zorder=4, label="_best value",
        )  # fmt: skip
        told += f": {value:.3f}"
        if columns[-1] == "val_acc" and worth and 0 <= value <= 1:
            told += " ({:.3f} to {:.3f})".format(*wilson(value, worth))
    axes.set_xlabel(f"epoch\n{told}", color=theme.ink, fontsize=10)


def _scales(axes, epochs: int, theme: Theme) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.margins(x=0.05 if epochs > 1 else 1)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)


# --- probabilities ------------------------------------------------------------------------------


def reliability_figure(bins: Sequence[Bin], title: str, theme: Theme):
    """Returns the reliability diagram: accuracy over probability with the 95 % interval of each.

    Below stands how many photos have such a probability; bins of few of them are worth little.
    """
    figure = new_figure(4.8, 4.4, theme, layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    style(axes, theme, f"{title}: error (ECE) {error_of(bins):.3f}" if bins else title)
    style(below, theme, "")
    axes.plot([0, 1], [0, 1], color=theme.soft, linewidth=1, linestyle="--")
    x, y = ([getattr(one, name) for one in bins] for name in ("probability", "accuracy"))
    ends = np.array([wilson(one.accuracy, one.photos) for one in bins]).reshape(-1, 2).T
    axes.errorbar(
        x, y, np.abs(ends - y), color=theme.accent, linewidth=1.8, marker="o", markersize=5,
        elinewidth=1, capsize=3,
    )  # fmt: skip
    below.bar(x, [one.photos for one in bins], width=0.035, color=theme.other)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    below.set_xlabel("probability of the answer", color=theme.ink, fontsize=10)
    axes.set_ylabel("share that is right", color=theme.ink, fontsize=10)
    below.set_ylabel("photos", color=theme.ink, fontsize=10)
    for one in (axes, below):
        one.grid(color=theme.line, linewidth=0.8)
    return figure
