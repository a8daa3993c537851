"""The colours of our pages, light and dark: legible, and told apart by those who see fewer."""

import re

import pytest
from conftest import ROOT

SCHEMES = re.findall(r":root \{(.*?)\}", (ROOT / "reporting/colours.css").read_text("utf-8"), re.S)


def luminance(colour):
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_text_and_controls_stand_out(scheme):
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
    for text in ("ink", "soft", "accent", "for", "against", "wrong"):
        for ground in ("paper", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    for edge in ("edge", "accent"):
        assert contrast(colours[edge], colours["card"]) >= 3, edge


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_the_best_class_and_the_others_differ_in_lightness(scheme):
    """So do bars for whom green and grey are alike."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
    assert contrast(colours["accent"], colours["other"]) >= 1.5
