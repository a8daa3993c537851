"""One palette for pages and pictures: read from the style sheet, legible, told apart by any eye."""

import itertools
import re

import numpy as np
import pytest
from conftest import ROOT

from reporting import palette
from reporting.palette import DARK, LIGHT

both = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
# What linear red, green and blue become for eyes without one kind of cone (Machado, Oliveira and
# Fernandes, IEEE TVCG 15, 2009, severity 1), and for others.
EYES = {
    "most": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
MEANINGS = ("accent", "other", "for_", "against", "violet")  # `wrong` is as `for_`
TEXT_ON = {  # what is written on what
    "paper": ("ink", "soft", "accent", "wrong", "for_", "against"),
    "card": ("ink", "soft", "accent", "wrong", "for_", "against", "violet"),
    "accent": ("on_accent",),
    "bar": ("ink",),
}


def linear(colour):
    value = np.array(palette.parts(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(colour, eyes):
    """A colour in CIELAB, in which distances are about as large as they are seen."""
    seen = np.clip(np.array(eyes) @ linear(colour), 0, 1)
    x, y, z = np.cbrt(np.array(TO_XYZ) @ seen / (0.95047, 1, 1.08883))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    bright, dim = sorted((0.2126, 0.7152, 0.0722) @ linear(colour) for colour in (other, one))[::-1]
    return (bright + 0.05) / (dim + 0.05)


@both
@pytest.mark.parametrize("eyes", EYES)
def test_colours_that_mean_something_are_told_apart_by_any_eye(theme, eyes):
    for one, other in itertools.combinations(MEANINGS, 2):
        apart = lab(getattr(theme, one), EYES[eyes]) - lab(getattr(theme, other), EYES[eyes])
        assert np.linalg.norm(apart) > 15, (one, other)  # 2.3 is just seen side by side


@both
def test_text_is_read_on_what_it_stands_on(theme):
    for ground, texts in TEXT_ON.items():
        for text in texts:
            found = contrast(getattr(theme, text), getattr(theme, ground))
            assert found >= 4.5, (text, ground)


@both
def test_bars_and_edges_are_seen_on_paper_and_card(theme):
    for name in ("accent", "other", "edge"):
        for ground in (theme.paper, theme.card):
            assert contrast(getattr(theme, name), ground) >= 3, name


def test_what_is_written_on_any_colour_is_read():
    for rgb in itertools.product(range(0, 256, 15), repeat=3):
        colour = "#{:02x}{:02x}{:02x}".format(*rgb)
        assert contrast(palette.on(colour), colour) >= 4.5, colour


def test_both_themes_are_those_of_the_style_sheet():
    light, dark = palette.SOURCE.read_text("utf-8").split("@media")
    for theme, css in ((LIGHT, light), (DARK, dark)):
        assert f"--accent: {theme.accent};" in css
        assert f"--for: {theme.for_};" in css
        assert f"--on-accent: {theme.on_accent};" in css
    assert LIGHT.card != DARK.card


def sources():
    """The files that draw or style something, but the style sheet itself."""
    for folder in ("reporting", "explaining", "predicting", "training", "serving", "docs/diagrams"):
        for end in ("py", "css", "js", "html", "jinja"):
            yield from (ROOT / folder).rglob(f"*.{end}")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_has_colours_of_its_own(path):
    if path == palette.SOURCE:
        return
    text = path.read_text("utf-8")
    found = set(re.findall(r"(?<!&)#(?:[0-9a-f]{6}|[0-9a-f]{3})\b|\btab:\w+", text))
    assert found <= {"#000", "#fff", "#000000", "#ffffff"}  # on photos, on any colour
