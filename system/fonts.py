"""Fonts for class names in any script, for Pillow (`pil_font`) and for matplotlib (`use_fonts`).

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic, Arabic and Hebrew letters. For
Chinese, Japanese and Korean a package of requirements.txt brings Noto Sans CJK; where it or another
script is missing, the fonts of the system are searched, and what no font has is shown as escapes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

# Families with scripts that DejaVu Sans lacks, on Linux, Windows and macOS; Traditional Chinese
# first, because one Chinese character has different forms in different countries.
FAMILIES = """
    Noto Sans CJK TC, Noto Sans TC, Source Han Sans TC, Microsoft JhengHei, PingFang TC, Heiti TC,
    Noto Sans CJK SC, Noto Sans SC, Source Han Sans SC, Microsoft YaHei, PingFang SC, SimHei,
    Noto Sans CJK JP, Noto Sans JP, Source Han Sans, Hiragino Sans, Yu Gothic, MS Gothic,
    Noto Sans CJK KR, Noto Sans KR, Malgun Gothic, Apple SD Gothic Neo, NanumGothic,
    WenQuanYi Micro Hei, WenQuanYi Zen Hei, Droid Sans Fallback, Arial Unicode MS, Unifont,
    Noto Sans Devanagari, Noto Sans Bengali, Noto Sans Tamil, Nirmala UI, Kohinoor Devanagari,
    Noto Sans Thai, Leelawadee UI, Thonburi, Tahoma
"""
FAMILIES = tuple(name.strip() for name in FAMILIES.split(","))
DEJAVU = ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf")
NOTO_CJK = ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc")  # the package holds this file alone
NOTO_CJK_TC = 3  # the face in that collection with the forms of Taiwan
FIRST_CJK = 0x1100  # Hangul Jamo; every block of Chinese, Japanese and Korean lies from here on


@dataclass(frozen=True)
class Face:
    """A typeface: a font file and, where that is a collection, the number in it."""

    path: str
    index: int = 0


def _file_of(package: str, name: str) -> str | None:
    """Returns the path of a file in an installed package, which is not imported for that."""
    spec = find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    return next((str(Path(f, name)) for f in folders if Path(f, name).is_file()), None)


@lru_cache(maxsize=1)
def _packaged_faces() -> tuple[Face, ...]:
    """Returns the faces that Python packages bring: found at once."""
    latin, cjk = _file_of(*DEJAVU), _file_of(*NOTO_CJK)
    return (*([Face(latin)] if latin else []), *([Face(cjk, NOTO_CJK_TC)] if cjk else []))


@lru_cache(maxsize=1)
def _system_faces() -> dict[str, Face]:
    """Returns {family: face} of the FAMILIES that matplotlib finds, in their order."""
    from matplotlib import font_manager  # about a second, a few more when it first runs here

    found: dict[str, Face] = {}
    for entry in font_manager.fontManager.ttflist:
        regular = entry.weight in (400, "normal", "regular") and entry.style == "normal"
        if entry.name in FAMILIES and (regular or entry.name not in found):
            found[entry.name] = Face(entry.fname, getattr(entry, "index", 0))
    return {name: found[name] for name in FAMILIES if name in found}


def _faces() -> Iterator[Face]:
    yield from _packaged_faces()
    yield from _system_faces().values()


@lru_cache(maxsize=64)
def _open(face: Face, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face.path, size, index=face.index)


@lru_cache(maxsize=8192)
def _draws(face: Face, character: str) -> bool:
    """Whether a face draws a character as anything but its box for missing ones."""
    font = _open(face, 24)
    drawn, missing = font.getmask(character), font.getmask("\U0010ffff")  # never a character
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def pil_font(size: float, text: str = ""):
    """Returns a Pillow font that has every letter of `text`, or as many as any font here has."""
    letters = {c for c in text if c.isprintable() and not c.isspace()}
    best, most = None, -1
    for face in _faces():
        count = sum(_draws(face, c) for c in letters)
        if count > most:
            best, most = face, count
        if count == len(letters):
            break
    return _open(best, size) if best else ImageFont.load_default(size)


@lru_cache(maxsize=1)
def use_fonts() -> tuple[str, ...]:
    """Lets matplotlib draw every script that some font here has; returns the families it uses."""
    import matplotlib
    from matplotlib import font_manager

    cjk = _file_of(*NOTO_CJK)
    if cjk:
        font_manager.fontManager.addfont(cjk)
        _system_faces.cache_clear()  # what was just added counts as well
    families = ("DejaVu Sans", *_system_faces())
    matplotlib.rcParams["font.family"] = list(families)
    return families


def legible(text: str) -> str:
    """Returns `text` with every character that cannot be drawn here as an escape (\\u0e01)."""

    def one(character: str) -> str:
        if character == " ":
            return character
        if character.isprintable() and any(_draws(face, character) for face in _faces()):
            return character
        return character.encode("unicode_escape", "surrogatepass").decode()

    return "".join(map(one, text))


def web_font(text: str) -> bytes | None:
    """Returns a WOFF font with the Chinese, Japanese and Korean letters of `text`, else None.

    A few kilobytes for a page to carry. Only of Noto Sans CJK, whose licence (OFL) allows it.
    """
    cjk = _file_of(*NOTO_CJK)
    if cjk is None:
        return None
    face = Face(cjk, NOTO_CJK_TC)
    letters = {c for c in text if ord(c) >= FIRST_CJK and c.isprintable() and _draws(face, c)}
    if not letters:
        return None
    from fontTools import subset  # matplotlib needs fontTools too; a second or two for this file

    options = subset.Options(flavor="woff", font_number=face.index, name_IDs=[])
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "BASE", "VORG", "vhea", "vmtx"]  # slow, unused
    font = subset.load_font(face.path, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(letters)))
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return buffer.getvalue()


def font_advice(names: Sequence[str]) -> str | None:
    """Returns a line of advice where some names need a font that is not at hand, else None."""
    escaped = [legible(name) for name in names if legible(name) != name]
    if not escaped:
        return None
    return (
        f"no font here has the letters of {len(escaped)} of the class names (pictures show "
        f"{escaped[0]}): install one, for Chinese, Japanese and Korean with "
        f"pip install noto-cjk-sans-otc"
    )
