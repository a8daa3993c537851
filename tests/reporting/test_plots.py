"""Curves and reliability: they appear whole, and show what they should."""

import math
import threading

import numpy as np
import pytest
from PIL import Image

from reporting import plots
from reporting.calibration import Bin, error_of
from reporting.intervals import wilson
from reporting.palette import DARK, LIGHT


def metrics(epoch, **changed):
    row = {"epoch": epoch, "train_loss": 1 / epoch, "train_acc": 0.5, "val_loss": 1.2 / epoch}
    return row | {"val_acc": 0.6, "learning_rate": 1e-4, "seconds": 3.0} | changed


def size_of(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def drawn_points(rows, panel):
    """Returns {label: number of points drawn} of a panel."""
    figure = plots.curve_figure(rows, panel, LIGHT)
    lines = figure.axes[0].get_lines()
    return {line.get_label(): int(np.isfinite(line.get_ydata()).sum()) for line in lines}


def drawn_lines(best, worth=None, panel=1, theme=LIGHT):
    """Returns {label: line} of a panel of four epochs and its axes."""
    rows = [metrics(epoch, val_acc=0.2 * epoch, train_acc=0.3) for epoch in (1, 2, 3, 4)]
    axes = plots.curve_figure(rows, plots.PANELS[panel], theme, best, worth).axes[0]
    return {line.get_label(): line for line in axes.get_lines()}, axes


def test_curves_of_one_epoch_show_its_points(tmp_path):
    plots.plot_curves([metrics(1)], tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png")[0] > 1000
    assert drawn_points([metrics(1)], plots.PANELS[0]) == {"training": 1, "validation": 1}


@pytest.mark.parametrize("gap", [math.nan, math.inf, None, "", "nan"])
def test_curves_leave_a_gap_where_a_value_is_no_number(tmp_path, gap):
    rows = [metrics(1), metrics(2, val_loss=gap), metrics(3)]
    plots.plot_curves(rows, tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png")
    assert drawn_points(rows, plots.PANELS[0]) == {"training": 3, "validation": 2}


def test_curves_take_the_text_that_a_csv_reader_gives(tmp_path):
    rows = [{name: str(value) for name, value in metrics(e).items()} for e in (1, 2)]
    assert drawn_points(rows, plots.PANELS[1]) == {"training": 2, "validation": 2}


def test_curves_can_be_drawn_from_another_thread(tmp_path):
    path = tmp_path / "curves.png"
    thread = threading.Thread(target=plots.plot_curves, args=([metrics(1), metrics(2)], path))
    thread.start()
    thread.join()
    assert size_of(path)


@pytest.mark.parametrize("panel", range(len(plots.PANELS)))
def test_curves_mark_the_best_epoch_and_say_what_it_gave(panel):
    lines, axes = drawn_lines(best=3, panel=panel)
    assert list(lines["_best"].get_xdata()) == [3, 3]
    assert "best epoch 3" in axes.get_xlabel()
    if panel == 1:
        assert lines["_best value"].get_xydata().tolist() == [[3, pytest.approx(0.6)]]
        assert axes.get_xlabel().endswith(": 0.600")


@pytest.mark.parametrize("best", [None, 9])
def test_curves_without_the_best_epoch_mark_none(best):
    lines, axes = drawn_lines(best=best)
    assert set(lines) == {"training", "validation"}
    assert axes.get_xlabel() == "epoch"


def test_curves_show_the_interval_of_the_validation_accuracy_as_wilson_gives_it():
    _, axes = drawn_lines(best=4, worth=17.5)
    (band,) = axes.collections
    corners = {(x, round(y, 9)) for x, y in band.get_paths()[0].vertices}
    for epoch in (1, 2, 3, 4):
        low, high = wilson(0.2 * epoch, 17.5)
        assert {(epoch, round(low, 9)), (epoch, round(high, 9))} <= corners
    low, high = axes.get_ylim()
    assert low <= wilson(0.2, 17.5)[0]
    assert high >= wilson(0.8, 17.5)[1]
    assert "({:.3f} to {:.3f})".format(*wilson(0.8, 17.5)) in axes.get_xlabel()


def test_only_the_accuracy_has_an_interval():
    assert not drawn_lines(best=4, worth=17.5, panel=0)[1].collections


def test_training_and_validation_differ_by_more_than_colour():
    lines, _ = drawn_lines(best=None)
    assert lines["training"].get_linestyle() != lines["validation"].get_linestyle()


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_words_of_curves_lie_where_no_curve_is(theme):
    _, axes = drawn_lines(best=3, worth=9, theme=theme)
    axes.figure.draw_without_rendering()
    inside = axes.get_window_extent()
    boxes = [axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()]
    assert not any(inside.shrunk(0.99, 0.99).overlaps(box) for box in boxes)
    title = axes._left_title.get_window_extent()
    assert not title.overlaps(boxes[0])
    for box in (*boxes, title):
        assert box.x0 >= 0
        assert box.x1 <= axes.figure.bbox.width


def test_reliability_shows_each_bin_with_its_interval_and_its_photos():
    bins = [Bin(4, 0.5, 0.25), Bin(20, 0.9, 0.8)]
    figure = plots.reliability_figure(bins, "at temperature 1", LIGHT)
    axes, below = figure.axes
    assert [bar.get_height() for bar in below.patches] == [4, 20]
    (bars,) = axes.containers
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    assert np.allclose(ends, [wilson(0.25, 4), wilson(0.8, 20)])
    assert error_of(bins) == pytest.approx((4 * 0.25 + 20 * 0.1) / 24)
    assert axes.get_title(loc="left") == "at temperature 1: error (ECE) 0.125"
    assert plots.png_bytes(plots.reliability_figure([], "no photo", DARK))


def test_a_plot_of_256_colours_looks_as_it_was_drawn():
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _, axes = drawn_lines(best=3, worth=9)
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    with Image.open(io.BytesIO(plots.png_bytes(axes.figure))) as image:
        kept = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(kept - drawn).max() <= 24
    assert np.abs(kept - drawn).mean() < 0.2
