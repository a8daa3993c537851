"""Class names in any script: legible on pictures, or escaped and said so."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from system import fonts

NAMES = {
    "Traditional Chinese": "鬱金香蒲公英玫瑰向日葵雛菊臺灣",
    "Simplified Chinese": "郁金香雏菊台湾罗兰",
    "Japanese": "たんぽぽチューリップ",
    "Korean": "튤립장미민들레",
    "Cyrillic": "тюльпан",
    "Arabic": "نرجس",
    "Greek": "μαργαρίτα",
}


def draw_letter(letter, font):
    """Returns the pixels of a letter drawn in black on white, in a box of one size for all."""
    picture = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(picture).text((6, 4), letter, font=font, fill=0)
    return np.asarray(picture)


@pytest.fixture
def only_latin(monkeypatch):
    """A machine on which no font but DejaVu Sans is found."""
    latin = fonts.Face(fonts._file_of(*fonts.DEJAVU))
    monkeypatch.setattr(fonts, "_packaged_faces", lambda: (latin,))
    monkeypatch.setattr(fonts, "_system_faces", dict)


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES.keys())
def test_letters_are_drawn_each_differently_and_never_as_a_missing_box(text):
    font = fonts.pil_font(36, text)
    pictures = {letter: draw_letter(letter, font).tobytes() for letter in set(text)}
    missing = draw_letter("\U0010ffff", font).tobytes()
    empty = draw_letter(" ", font).tobytes()
    assert len(set(pictures.values())) == len(pictures)
    assert missing not in pictures.values()
    assert empty not in pictures.values()


def test_matplotlib_draws_every_script_with_a_glyph_of_some_font(recwarn):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fonts.use_fonts()
    pictures = set()
    for letter in "蒲公英鬱장は":
        figure = Figure(figsize=(1, 1), dpi=50)
        figure.text(0.2, 0.2, letter, fontsize=30)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.add(np.asarray(canvas.buffer_rgba()).tobytes())
    assert len(pictures) == 6
    assert not [w for w in recwarn if "missing from" in str(w.message)]


def test_a_latin_name_does_not_load_matplotlib_or_search_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "_system_faces", lambda: pytest.fail("searched the system"))
    assert fonts.pil_font(18, "daisy 花").size == 18


def test_letters_that_no_font_has_become_escapes(only_latin):
    assert fonts.legible("a 蒲\n$x$") == "a \\u84b2\\n$x$"
    advice = fonts.font_advice(["daisy", "蒲公英"])
    assert "1 of the class names" in advice
    assert "\\u84b2\\u516c\\u82f1" in advice
    assert "noto-cjk-sans-otc" in advice


def test_legible_names_stay_as_they_are_and_need_no_advice():
    names = ["daisy", "蒲公英 鬱金香", "тюльпан", "نرجس", "$x$ & <b>"]
    assert [fonts.legible(name) for name in names] == names
    assert fonts.font_advice(names) is None


def test_undecodable_file_names_are_escaped():
    assert fonts.legible("caf\udce9.jpg") == "caf\\udce9.jpg"


def test_web_font_holds_the_letters_and_little_else():
    data = fonts.web_font("daisy 蒲公英")
    assert len(data) < 20_000
    from fontTools.ttLib import TTFont

    assert {ord(c) for c in "蒲公英"} == set(TTFont(io.BytesIO(data)).getBestCmap())


def test_web_font_is_none_where_every_device_has_the_letters():
    assert fonts.web_font("daisy тюльпан") is None


def test_without_any_font_pillows_own_is_used(monkeypatch):
    monkeypatch.setattr(fonts, "_packaged_faces", tuple)
    monkeypatch.setattr(fonts, "_system_faces", dict)
    assert isinstance(fonts.pil_font(18, "daisy"), ImageFont.FreeTypeFont)
