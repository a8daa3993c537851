"""Curves, confusion matrix and image grid: they appear whole, and show what they should."""

import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from reporting import plots


def metrics(epoch, **changed):
    row = {"epoch": epoch, "train_loss": 1 / epoch, "train_acc": 0.5, "val_loss": 1.2 / epoch}
    return row | {"val_acc": 0.6, "learning_rate": 1e-4, "seconds": 3.0} | changed


def size_of(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def drawn_points(rows, panel):
    """Returns {label: number of points drawn} of a panel."""
    figure = plots.curve_figure(rows, panel, plots.LIGHT)
    lines = figure.axes[0].get_lines()
    return {line.get_label(): int(np.isfinite(line.get_ydata()).sum()) for line in lines}


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


def tick_names(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_confusion_of_few_classes_shows_names_and_counts(tmp_path):
    matrix, classes = [[7, 2], [0, 5]], ["蒲公英", "$x$ <b>"]
    plots.plot_confusion(matrix, classes, tmp_path / "confusion.png")
    assert size_of(tmp_path / "confusion.png")
    figure = plots.confusion_figure(matrix, classes, plots.LIGHT)
    assert tick_names(figure) == classes
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["0", "2", "5", "7"]


def test_confusion_of_a_thousand_classes_shows_those_most_often_confused():
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(5, 50, 1000))
    matrix[617, 23] = 40
    figure = plots.confusion_figure(matrix, [f"class {k}" for k in range(1000)], plots.LIGHT)
    names = tick_names(figure)
    assert len(names) == plots.SUMMARISED
    assert {"class 617", "class 23"} <= set(names)
    assert "1,000 classes" in figure.axes[0].get_title(loc="left")


def test_confusion_colours_shares_of_all_photos_of_a_class_also_when_summarised():
    matrix = np.eye(plots.LABELLED + 1, dtype=int) * 10
    matrix[0, 1] = 30
    figure = plots.confusion_figure(matrix, [str(k) for k in range(len(matrix))], plots.LIGHT)
    shares = figure.axes[0].images[0].get_array()
    assert shares[0, 1] == 0.75
    assert shares[1, 1] == 1


def test_confusion_takes_classes_without_photos(tmp_path):
    plots.plot_confusion(np.zeros((3, 3), int), ["a", "b", "c"], tmp_path / "confusion.png")
    assert size_of(tmp_path / "confusion.png")


def test_image_grid_shows_the_pixels_and_wraps_into_rows(tmp_path):
    red = np.zeros((3, 200, 200), np.uint8)
    red[0] = 255
    plots.image_grid([red] * 5, ["玫瑰"] * 5, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 200
        assert grid.height > 2 * 200
        assert grid.getpixel((100, 100)) == (255, 0, 0)


def test_image_grid_undoes_the_normalisation(tmp_path):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.1)
    image = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1).expand(3, 200, 200)
    plots.image_grid([image], ["x"], tmp_path / "grid.png", mean=mean, std=std)
    with Image.open(tmp_path / "grid.png") as grid:
        pixel = grid.getpixel((100, 100))
    assert pixel == (153, 64, 153)  # 0.4 + 0.2, 0.5 - 0.25, 0.6 in 255ths


def test_image_grid_takes_values_beyond_the_range_and_no_numbers(tmp_path):
    image = torch.full((3, 160, 160), 7.0)
    image[1], image[2] = -1, math.nan
    plots.image_grid([image], ["x"], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.getpixel((100, 100)) == (255, 0, 0)


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "confusion.png"
    plots.plot_confusion([[1]], ["a"], path)
    before = path.read_bytes()
    with pytest.raises(IndexError):
        plots.plot_confusion([[1, 0], [0, 1]], ["a"], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_like_a_formula_is_drawn_as_it_is():
    names = ["$\\frac{$", "a_b^c$"]
    figure = plots.confusion_figure([[1, 0], [0, 1]], names, plots.DARK)
    assert plots.png_bytes(figure)
    assert tick_names(figure) == names
