"""The confusion matrix: read at two classes, at forty and at a thousand, in any script."""

from itertools import chain, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox
from PIL import Image

from reporting import confusion
from reporting.palette import DARK, LIGHT, luminance, mixed, parts
from reporting.plots import DPI, png_bytes

ZH = ["蒲公英", "玫瑰", "鬱金香", "向日葵", "雛菊", "薰衣草", "百合", "蝴蝶蘭", "牡丹", "菊花"]


def names_of(kind, count):
    """Names as folders have them: short, Chinese, or long and alike but for their end."""
    return {
        "short": [f"class {k}" for k in range(count)],
        "chinese": [f"{ZH[k % 10]}{k // 10 or ''}" for k in range(count)],
        "long": [f"Rosa damascena of the northern garden, bed number {k}" for k in range(count)],
    }[kind]


def matrix_of(count, photos=40):
    """Mostly right, and each class sometimes taken for the next."""
    right = np.eye(count, dtype=int) * (photos - 3)
    return right + np.roll(np.eye(count, dtype=int) * 3, 1, axis=1)


def texts(figure, gid):
    return [one for one in figure.axes[0].texts if one.get_gid() == gid]


def labels_of(figure):
    """The names along each side of a drawn matrix, as lists of matplotlib's texts."""
    axes = figure.axes[0]
    beside = [one for child in axes.child_axes for one in (child.xaxis, child.yaxis)]
    sides = [axis.get_ticklabels() for axis in (axes.xaxis, axes.yaxis, *beside)]
    return [[one for one in side if one.get_text()] for side in sides if side]


def size_of(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def tick_names(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_confusion_of_few_classes_shows_names_and_counts(tmp_path):
    matrix, classes = [[7, 2], [0, 5]], ["蒲公英", "$x$ <b>"]
    confusion.plot_confusion(matrix, classes, tmp_path / "confusion.png")
    assert size_of(tmp_path / "confusion.png")
    figure = confusion.confusion_figure(matrix, classes, LIGHT)
    assert tick_names(figure) == classes
    assert [text.get_text() for text in texts(figure, "count")] == ["7", "2", "5"]  # 0 is blank
    assert [text.get_text() for text in texts(figure, "share")] == ["78 %", "22 %", "100 %"]
    assert "12 of 14 photos right" in figure.texts[0].get_text()


def test_confusion_of_a_thousand_classes_shows_those_most_often_confused():
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(5, 50, 1000))
    matrix[617, 23] = 40
    figure = confusion.confusion_figure(matrix, [f"class {k}" for k in range(1000)], LIGHT)
    names = tick_names(figure)
    assert len(names) == confusion.SUMMARISED
    assert {"class 617", "class 23"} <= set(names)
    assert "1,000 classes" in figure.texts[0].get_text()


def test_confusion_colours_shares_of_all_photos_of_a_class_also_when_summarised():
    matrix = np.eye(confusion.LABELLED + 1, dtype=int) * 10
    matrix[0, 1] = 30
    figure = confusion.confusion_figure(matrix, [str(k) for k in range(len(matrix))], LIGHT)
    cells = figure.axes[0].images[0].get_array()
    assert tuple(cells[0, 1]) == pytest.approx(mixed(LIGHT.paper, LIGHT.wrong, 0.75**0.5))
    assert tuple(cells[1, 1]) == pytest.approx(parts(LIGHT.accent))
    assert tuple(cells[1, 0]) == pytest.approx(parts(LIGHT.paper))
    assert "25.0 % of 40" in [label.get_text() for label in labels_of(figure)[-1]]


def test_confusion_takes_classes_without_photos(tmp_path):
    confusion.plot_confusion(np.zeros((3, 3), int), ["a", "b", "c"], tmp_path / "confusion.png")
    assert size_of(tmp_path / "confusion.png")


@pytest.mark.parametrize(
    ("count", "kind"),
    [(2, "long"), (5, "short"), (10, "chinese"), (17, "chinese"), (40, "long"), (100, "long")],
)
def test_every_name_is_legible_and_overlaps_no_other(count, kind):
    names = names_of(kind, count)
    figure = confusion.confusion_figure(matrix_of(count), names, LIGHT)
    figure.draw_without_rendering()
    sides = labels_of(figure)
    assert all(len(side) == min(count, 30 if count > 60 else count) for side in sides)
    for side in sides:
        boxes = [one.get_window_extent() for one in side]
        assert all(one.get_fontsize() >= 8 for one in side)  # points
        for before, after in pairwise(boxes):
            assert not before.overlaps(after)
        for box in boxes:
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
            assert box.y1 <= figure.bbox.y1
    drawn = [one.get_text() for one in sides[1]]
    assert len(set(drawn)) == len(drawn), "two names cannot be told apart"


@pytest.mark.parametrize(
    ("count", "photos"), [(2, 40), (5, 4000), (16, 4_000_000), (17, 4000), (17, 4_000_000)]
)
def test_a_count_lies_within_its_cell(count, photos):
    figure = confusion.confusion_figure(matrix_of(count, photos), names_of("short", count), LIGHT)
    figure.draw_without_rendering()
    axes, drawn = figure.axes[0], texts(figure, "count") + texts(figure, "share")
    assert ("3997" in [one.get_text() for one in drawn]) == (photos == 4000)
    assert drawn
    assert min(one.get_fontsize() for one in drawn) >= 7  # points
    for one in drawn:
        column, row = one.get_position()
        corners = axes.transData.transform(
            [(column - 0.5, round(row) + 0.5), (column + 0.5, round(row) - 0.5)]
        )
        cell, box = Bbox(corners), one.get_window_extent()
        assert cell.x0 <= box.x0
        assert box.x1 <= cell.x1
        assert cell.y0 <= box.y0 + 1
        assert box.y1 <= cell.y1 + 1


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_word_and_count_is_read_on_what_lies_below_it(theme):
    matrix = np.array([[50, 50, 0, 0], [9, 91, 0, 0], [1, 30, 69, 0], [80, 0, 0, 20]])
    figure = confusion.confusion_figure(matrix, list("abcd"), theme)
    cells = figure.axes[0].images[0].get_array()

    def contrast(text, ground):
        dim, bright = sorted((luminance(to_rgb(text.get_color())), luminance(ground)))
        return (bright + 0.05) / (dim + 0.05)

    for one in texts(figure, "count") + texts(figure, "share"):
        column, row = one.get_position()
        assert contrast(one, cells[round(row), round(column)]) >= 4.5
    axes = figure.axes[0]
    words = [*figure.texts, axes.xaxis.label, axes.yaxis.label, *chain(*labels_of(figure))]
    assert min(contrast(one, parts(theme.card)) for one in words) >= 4.5


def test_a_single_mistake_among_forty_classes_is_seen():
    matrix = matrix_of(40)
    matrix[3, 30] = 1  # a fortieth of its row
    cell = (
        confusion.confusion_figure(matrix, names_of("short", 40), LIGHT)
        .axes[0]
        .images[0]
        .get_array()[3, 30]
    )
    assert np.abs(cell - parts(LIGHT.paper)).max() > 0.1


def test_a_picture_of_forty_classes_is_no_larger_than_a_screen_and_small():
    figure = confusion.confusion_figure(matrix_of(40), names_of("long", 40), LIGHT)
    assert figure.get_figheight() * DPI < 2600
    assert len(png_bytes(figure)) < 200_000


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "confusion.png"
    confusion.plot_confusion([[1]], ["a"], path)
    before = path.read_bytes()
    with pytest.raises(IndexError):
        confusion.plot_confusion([[1, 0], [0, 1]], ["a"], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_like_a_formula_is_drawn_as_it_is():
    names = ["$\\frac{$", "a_b^c$"]
    figure = confusion.confusion_figure([[1, 0], [0, 1]], names, DARK)
    assert png_bytes(figure)
    assert tick_names(figure) == names
