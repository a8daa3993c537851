"""Photos side by side with what was said of them: samples, mistakes, the most confused classes.

What is written is as its name ends: .jpg is a tenth of .png, and no eye sees the difference.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from reporting.metrics import ConfusedPair
from reporting.palette import LIGHT
from system.files import write_picture
from system.fonts import legible, pil_font

GAP, LINE, HEAD = 8, 20, 34  # pixels: between photos, of a line of text, of a heading
LETTERS = 15


def image_grid(
    images, titles: Sequence[str], path: str | os.PathLike, mean=None, std=None, columns: int = 4
) -> None:
    """Draws images in rows with a caption under each.

    Args:
        images: N of (3, H, W), tensors or arrays: uint8, or floats in [0, 1], or normalised ones
            with the `mean` and `std` that they were normalised by.
        titles: one each; a second line is written fainter.
    """
    tiles = [_tile(image, mean, std) for image in images]
    columns = min(columns, len(tiles))
    width, height = _cell(tiles, titles)
    rows = math.ceil(len(tiles) / columns)
    grid = Image.new("RGB", (columns * width + GAP, rows * height + GAP), LIGHT.card)
    for k, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        _put(grid, tile, title, (GAP + k % columns * width, GAP + k // columns * height))
    _save(grid, path)


def confused_grid(pairs: Sequence[ConfusedPair], images: dict, path: str | os.PathLike) -> None:
    """Draws the photos of classes that were taken for each other, a row for each two of them.

    images: (3, H, W) of uint8 for each path; photos without one are left out.
    """
    rows = [[[one for one in side if one["path"] in images] for side in p.photos] for p in pairs]
    tiles = {name: _tile(image, None, None) for name, image in images.items()}
    width, height = _cell(list(tiles.values()), ["a\nb"])
    most = [max(len(row[side]) for row in rows) for side in (0, 1)]
    start = (GAP, 3 * GAP + most[0] * width)  # of each class's photos
    size = (start[1] + max(most[1], 1) * width, len(rows) * (height + HEAD) + GAP)
    grid = Image.new("RGB", size, LIGHT.card)
    for number, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        y = GAP + number * (height + HEAD)
        for side, photos in enumerate(row):
            told = _fitting(pair.told[side], (most[side] or 1) * width - GAP, LETTERS + 2)
            _write(grid, told, (start[side], y + 4), LIGHT.ink, LETTERS + 2)
            for k, one in enumerate(photos):
                place = (start[side] + k * width, y + HEAD)
                wrong = one["predicted"] != one["true"]
                _put(grid, tiles[one["path"]], answer_title(one), place, wrong=wrong)
    _save(grid, path)


def answer_title(one: dict) -> str:
    """Returns a photo's label with its answer and probability, in two lines."""
    verdict = "right" if one["predicted"] == one["true"] else f"→ {one['predicted']}"
    return f"{one['true']}\n{verdict} {one['probability']:.2f}"


def _cell(tiles: Sequence[Image.Image], titles: Sequence[str]) -> tuple[int, int]:
    """Returns width and height of a photo with its caption and the gap to the next."""
    lines = max(title.count("\n") for title in titles) + 1
    width, height = (max(tile.size[side] for tile in tiles) for side in (0, 1))
    return width + GAP, height + lines * LINE + 4 + GAP


def _put(grid, tile: Image.Image, title: str, place: tuple[int, int], wrong: bool = False) -> None:
    grid.paste(tile, place)
    x, y = place[0], place[1] + tile.height + 3
    for number, line in enumerate(title.split("\n")):
        colour = LIGHT.wrong if number and wrong else LIGHT.soft if number else LIGHT.ink
        _write(grid, _fitting(line, tile.width), (x, y + number * LINE), colour)


def _write(grid, text: str, place: tuple[int, int], colour: str, size: int = LETTERS) -> None:
    ImageDraw.Draw(grid).text(place, text, fill=colour, font=pil_font(size, text))


def _fitting(text: str, width: float, size: int = LETTERS) -> str:
    """Returns a text that can be drawn here, without its middle where it is too long."""
    text = legible(text)
    font, kept = pil_font(size, text), len(text)
    short = text
    while kept > 1 and font.getlength(short) > width:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _save(grid: Image.Image, path: str | os.PathLike) -> None:
    jpeg = os.fspath(path).lower().endswith((".jpg", ".jpeg"))
    # Colours at full size, or letters would have fringes.
    as_jpeg = {"format": "JPEG", "quality": 85, "subsampling": 0, "optimize": True}
    write_picture(path, grid.save, **(as_jpeg if jpeg else {"format": "PNG"}))


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
