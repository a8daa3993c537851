"""Photos side by side: their pixels, their captions, and small files."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from reporting import grids
from reporting.metrics import confused_pairs
from system.fonts import pil_font


def test_image_grid_shows_the_pixels_and_wraps_into_rows(tmp_path):
    red = np.zeros((3, 200, 200), np.uint8)
    red[0] = 255
    grids.image_grid([red] * 5, ["玫瑰"] * 5, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 200
        assert grid.height > 2 * 200
        assert grid.getpixel((100, 100)) == (255, 0, 0)


def test_image_grid_undoes_the_normalisation(tmp_path):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.1)
    image = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1).expand(3, 200, 200)
    grids.image_grid([image], ["x"], tmp_path / "grid.png", mean=mean, std=std)
    with Image.open(tmp_path / "grid.png") as grid:
        pixel = grid.getpixel((100, 100))
    assert pixel == (153, 64, 153)  # 0.4 + 0.2, 0.5 - 0.25, 0.6 in 255ths


def test_image_grid_takes_values_beyond_the_range_and_no_numbers(tmp_path):
    image = torch.full((3, 160, 160), 7.0)
    image[1], image[2] = -1, math.nan
    grids.image_grid([image], ["x"], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.getpixel((100, 100)) == (255, 0, 0)


def photo(colour, size=200):
    return np.tile(np.array(colour, np.uint8).reshape(3, 1, 1), (1, size, size))


CLASSES = ["貓", "dog", "cow"]
LABELS = [0, 0, 0, 0, 1, 1, 2]
SURE = np.array([
    [0.2, 0.7, 0.1],  # a cat taken for a dog
    [0.1, 0.8, 0.1],  # the same, surer
    [0.6, 0.3, 0.1],  # right, a dog is next
    [0.6, 0.1, 0.3],
    [0.4, 0.6, 0.0],  # right
    [0.1, 0.2, 0.7],  # a dog taken for a cow
    [0.0, 0.1, 0.9],
])  # fmt: skip


def pairs(**more):
    return confused_pairs(list("abcdefg"), LABELS, SURE, CLASSES, **more)


def test_the_most_confused_classes_come_with_photos_taken_for_the_other_then_the_nearest():
    first, second = pairs()
    assert first.classes == ("貓", "dog")
    assert first.counts == (2, 0)
    assert [one["path"] for one in first.photos[0]] == ["b", "a", "c"]  # the surest first
    assert [one["path"] for one in first.photos[1]] == ["e"]  # f was taken for neither
    assert first.photos[0][0] == {
        "path": "b", "true": "貓", "predicted": "dog", "probability": 0.8,
    }  # fmt: skip
    assert first.told == ("貓: 2 taken for dog", "dog: none taken for 貓")
    assert second.classes == ("dog", "cow")
    assert len(pairs(count=1)) == 1
    assert [len(side) for side in pairs(photos=2)[0].photos] == [2, 1]


def test_without_a_mistake_no_classes_are_confused():
    assert confused_pairs(["a", "b"], [0, 1], np.eye(2), ["x", "y"]) == []


def test_confused_classes_stand_in_rows_and_leave_out_what_is_gone(tmp_path):
    images = {name: photo((255, 0, 0)) for name in "abef"}
    grids.confused_grid(pairs(), images, tmp_path / "confused.png")
    with Image.open(tmp_path / "confused.png") as grid:
        assert grid.getpixel((100, 100)) == (255, 0, 0)
        assert grid.getpixel((grid.width - 100, 100)) != (0, 0, 0)
        whole = grid.size
    grids.confused_grid(pairs(count=1), images, tmp_path / "confused.png")
    with Image.open(tmp_path / "confused.png") as grid:
        assert grid.height < 0.6 * whole[1]


def test_a_caption_tells_label_answer_and_probability():
    first, _ = pairs()
    wrong, right = first.photos[0][0], first.photos[1][0]
    assert grids.answer_title(wrong) == "貓\n→ dog 0.80"
    assert grids.answer_title(right) == "dog\nright 0.60"


@pytest.mark.parametrize(
    "name", ["a very long name of a class that differs at the end 17", "蒲公英" * 20]
)
def test_a_caption_that_is_too_long_keeps_its_ends(name):
    short = grids._fitting(name, 150)
    assert pil_font(grids.LETTERS, name).getlength(short) <= 150
    assert short[0] == name[0]
    assert short[-1] == name[-1]
    assert grids._fitting("短", 150) == "短"


def test_a_grid_of_photos_is_small_as_jpeg_and_as_good_to_the_eye(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)
    images = [
        np.asarray(Image.fromarray(one).resize((224, 224), Image.Resampling.BICUBIC)).transpose(
            2, 0, 1
        )
        for one in coarse
    ]
    sizes, pixels = [], []
    for path in (tmp_path / "grid.png", tmp_path / "grid.jpg"):
        grids.image_grid(images, ["x"] * 12, path)
        sizes.append(path.stat().st_size)
        with Image.open(path) as grid:
            pixels.append(np.asarray(grid.convert("RGB")).astype(float))
    assert sizes[1] < 0.4 * sizes[0]
    error = ((pixels[0] - pixels[1]) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 38  # decibels; from 36 on the eye sees no difference
