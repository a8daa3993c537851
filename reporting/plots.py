"""Pictures about a run: curves, confusion matrix, image grid.

Functions from plain data (lists, dicts, arrays, tensors) to files that appear whole or not at all.
matplotlib is imported where a plot is drawn, and only through its object interface: nothing here
needs a display or the main thread.
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from reporting.calibration import Bin
from system.files import atomic_file
from system.fonts import legible, pil_font, use_fonts

LABELLED = 60  # up to so many classes a confusion matrix names every one
COUNTED = 16  # and up to so many it shows every count
SUMMARISED = 30  # of more than LABELLED classes, this many of the most often confused are shown


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; the report holds each plot twice, for light and for dark screens."""

    paper: str
    ink: str
    faint: str
    train: str
    val: str
    empty: str  # of a cell of the confusion matrix with share 0; with share 1 it has `val`


LIGHT = Theme("#ffffff", "#24302b", "#dfe5e1", "#8a9a92", "#0f7b5f", "#f1f5f3")
DARK = Theme("#1a211e", "#dbe5df", "#36423c", "#8fa39a", "#4fd1a5", "#232c28")
# title, columns of metrics.csv
PANELS = (
    ("Loss", ("train_loss", "val_loss")),
    ("Accuracy", ("train_acc", "val_acc")),
    ("Learning rate", ("learning_rate",)),
)


def _new_figure(width: float, height: float, theme: Theme):
    use_fonts()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, facecolor=theme.paper, layout="constrained")


def _style(axes, theme: Theme, title: str) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=12, loc="left", parse_math=False)
    axes.tick_params(colors=theme.ink, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)


def _numbers(rows: Sequence[dict], column: str) -> np.ndarray:
    """Returns a column of metrics as floats, nan where it is absent or empty."""
    values = [row.get(column) for row in rows]
    return np.array([math.nan if value in (None, "") else float(value) for value in values])


def _draw_panel(axes, rows: Sequence[dict], panel: tuple, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    title, columns = panel
    _style(axes, theme, title)
    epochs = _numbers(rows, "epoch")
    for column in columns:
        kind = column.split("_")[0]
        label = {"train": "training", "val": "validation"}.get(kind)
        values = _numbers(rows, column)
        # Dots: a line through a single epoch, or between two gaps, would not be seen.
        axes.plot(
            epochs,
            np.where(np.isfinite(values), values, np.nan),
            color=theme.train if kind == "train" else theme.val,
            linewidth=2,
            marker="o" if len(rows) <= 30 else ".",
            markersize=4,
            label=label,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.05 if len(rows) > 1 else 1)
    axes.set_xlabel("epoch", color=theme.ink, fontsize=10)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    if len(columns) > 1:
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=10)


def curve_figure(rows: Sequence[dict], panel: tuple, theme: Theme):
    """Returns the figure of one of PANELS."""
    figure = _new_figure(4.8, 3.2, theme)
    _draw_panel(figure.subplots(), rows, panel, theme)
    return figure


def reliability_figure(bins: Sequence[Bin], title: str, theme: Theme):
    """Returns the reliability diagram: accuracy over probability, dots as large as their bin."""
    figure = _new_figure(4.8, 3.6, theme)
    axes = figure.subplots()
    _style(axes, theme, title)
    axes.plot([0, 1], [0, 1], color=theme.train, linewidth=1, linestyle="--")
    x, y = [one.probability for one in bins], [one.accuracy for one in bins]
    most = max((one.photos for one in bins), default=1)
    axes.plot(x, y, color=theme.val, linewidth=1.5)
    axes.scatter(x, y, s=[12 + 120 * one.photos / most for one in bins], color=theme.val, zorder=3)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("probability of the answer", color=theme.ink, fontsize=10)
    axes.set_ylabel("share that is right", color=theme.ink, fontsize=10)
    axes.grid(color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def plot_curves(rows: Sequence[dict], path: str | os.PathLike) -> None:
    """Draws loss, accuracy and learning rate per epoch.

    rows: of metrics.csv, dicts with epoch, train_loss, train_acc, val_loss, val_acc, learning_rate;
        values may be text, missing, or nan, which leaves a gap.
    """
    figure = _new_figure(14, 4, LIGHT)
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _draw_panel(axes, rows, panel, LIGHT)
    _save(figure, path)


def _shown(counts: np.ndarray) -> np.ndarray:
    """Returns the classes that a plot shows: all, or of very many the most often confused."""
    if len(counts) <= LABELLED:
        return np.arange(len(counts))
    wrong = counts - np.diag(np.diag(counts))
    mistakes = wrong.sum(0) + wrong.sum(1)
    return np.sort(np.argsort(-mistakes, kind="stable")[:SUMMARISED])


def confusion_figure(matrix, classes: Sequence[str], theme: Theme):
    """Returns the figure that `plot_confusion` describes."""
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(matrix)
    shown = _shown(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # before classes are left out
    counts, shares = counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)]
    names = [_short(legible(classes[k])) for k in shown]
    title = "Colour: share of the true class"
    if len(shown) < len(classes):
        title += f": the {len(shown)} of {len(classes):,} classes most often confused"
    few = len(shown) <= COUNTED
    side = max(3.6, 1.8 + len(shown) * (0.55 if few else 0.24))
    figure = _new_figure(side + 0.2, side, theme)
    axes = figure.subplots()
    _style(axes, theme, title)
    shades = LinearSegmentedColormap.from_list("shares", [theme.empty, theme.val])
    picture = axes.imshow(shares, cmap=shades, vmin=0, vmax=1)
    size = 12 if few else 8
    ticks = range(len(names))
    turned = {"rotation": 90} if max(map(len, names)) * len(names) > 30 else {}
    axes.set_xticks(ticks, names, parse_math=False, fontsize=size, **turned)
    axes.set_yticks(ticks, names, parse_math=False, fontsize=size)
    axes.set_xlabel("predicted", color=theme.ink, fontsize=10)
    axes.set_ylabel("true", color=theme.ink, fontsize=10)
    if few:
        _write_counts(axes, counts, picture)
    return figure


def _write_counts(axes, counts: np.ndarray, picture) -> None:
    """Writes each count into its cell, dark on light colours and light on dark ones."""
    for (row, column), count in np.ndenumerate(counts):
        red, green, blue, _ = picture.cmap(picture.norm(picture.get_array()[row, column]))
        bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
        colour = "#15201b" if bright else "#ffffff"
        axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=12)


def _short(name: str, letters: int = 24) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def plot_confusion(matrix, classes: Sequence[str], path: str | os.PathLike) -> None:
    """Draws the confusion matrix, rows true and columns predicted, coloured by share of the row.

    Up to COUNTED classes show counts, up to LABELLED names; of more, the most often confused.
    """
    _save(confusion_figure(matrix, classes, LIGHT), path)


def png_bytes(figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _save(figure, path: str | os.PathLike) -> None:
    data = png_bytes(figure)
    with atomic_file(path) as file:
        file.write(data)


# --- image grid ---------------------------------------------------------------------------------


def image_grid(
    images, titles: Sequence[str], path: str | os.PathLike, mean=None, std=None, columns: int = 4
) -> None:
    """Draws images in rows with a caption under each.

    Args:
        images: N of (3, H, W), tensors or arrays: uint8, or floats in [0, 1], or normalised ones
            with the `mean` and `std` that they were normalised by.
    """
    tiles = [_tile(image, mean, std) for image in images]
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    caption, gap = 26, 8
    rows = math.ceil(len(tiles) / columns)
    size = (columns * (width + gap) + gap, rows * (height + caption + gap) + gap)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for k, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        x = gap + k % columns * (width + gap)
        y = gap + k // columns * (height + caption + gap)
        grid.paste(tile, (x, y))
        text = legible(title)
        font = pil_font(15, text)
        while text and font.getlength(text) > width:
            text = text[:-2] + "…" if len(text) > 2 else ""
        draw.text((x, y + height + 3), text, fill="#24302b", font=font)
    with atomic_file(path) as file:
        grid.save(file, "PNG")


def _tile(image, mean, std, least: int = 160) -> Image.Image:
    """Returns one image of a grid, at least `least` pixels wide so that a caption fits."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        if mean is not None:
            column = (3, 1, 1)
            pixels = pixels * np.reshape(std, column) + np.reshape(mean, column)
        pixels = (np.clip(np.nan_to_num(pixels), 0, 1) * 255).round().astype(np.uint8)
    tile = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))  # (3,H,W) -> (H,W,3)
    factor = math.ceil(least / tile.width)
    return tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.BICUBIC)
