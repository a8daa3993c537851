"""The colours of every picture, for light and for dark: those of the pages, read from colours.css.

from reporting.palette import DARK, LIGHT, on
LIGHT.accent          # a colour as matplotlib, Pillow and SVG take it
on(LIGHT.accent)      # black or white: what is read best on it
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

SOURCE = Path(__file__).with_name("colours.css")


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for, as #rrggbb.

    paper: of a page, and of what is empty on a card. card: what pictures and text lie on. ink,
    soft: text. line, edge: what parts things, what can be pressed. accent: what was right, asked
    for or is ours; on_accent: text on it; bar: a faint one. other: what is beside it. for_,
    against: what a class gained and lost by. wrong: mistakes and trouble. violet: one more.
    """

    paper: str
    card: str
    ink: str
    soft: str
    line: str
    edge: str
    accent: str
    on_accent: str
    bar: str
    other: str
    for_: str
    against: str
    wrong: str
    violet: str


def themes(css: str) -> tuple[Theme, Theme]:
    """Returns the light and the dark colours that a style sheet declares, in this order."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
        for part in css.split("@media (prefers-color-scheme: dark)")
    )
    names = {one.name: one.name.rstrip("_").replace("_", "-") for one in fields(Theme)}
    both = ({name: found[css_name] for name, css_name in names.items()} for found in (light, dark))
    return tuple(Theme(**found) for found in both)


LIGHT, DARK = themes(SOURCE.read_text("utf-8"))


def parts(colour: str) -> tuple[float, float, float]:
    """Returns red, green and blue in [0, 1]."""
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def mixed(low: str, high: str, share: float) -> tuple[float, float, float]:
    """Returns the colour that lies `share` of the way from one to the other."""
    ends = zip(parts(low), parts(high), strict=True)
    return tuple(a + share * (b - a) for a, b in ends)


def luminance(rgb: Sequence[float]) -> float:
    """Returns the relative luminance (WCAG 2) of red, green and blue in [0, 1]."""
    linear = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb)
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def on(rgb: str | Sequence[float]) -> str:
    """Returns black or white, whichever is read better on a colour (a contrast of 4.58 or more)."""
    light = luminance(parts(rgb) if isinstance(rgb, str) else rgb)
    return "#000000" if (light + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"
