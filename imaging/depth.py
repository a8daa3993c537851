"""What the numbers in a picture of more than 8 bits mean: which of them is black, which white.

No file says it: 12 bits lie in 16, floats go from 0 to 1 or to 255. Whoever decides picture by
picture gives equal numbers different greys, so all pictures of a data set are measured first, and
one range for each kind of number is kept with the model.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

Range = tuple[float, float]  # the numbers that are black and white
INTEGERS, WHOLE, FLOATS = "16-bit", "32-bit", "float"
KINDS = (INTEGERS, WHOLE, FLOATS)
DEPTHS = (8, 10, 12, 14, 16)  # bits of the sensors whose numbers lie in 16
FLOAT_WHITES = (1, 255, 65535)
SLACK = 0.1  # of the range, by which single numbers may lie outside: scaling a picture rings
DIM = 16  # a photo that ends at so small a part of white may be of fewer bits than the others
STRAY = 20  # one float picture in so many does not decide the range
COLOUR_SPACES = ("srgb", "stored")
SCALED = ("PPM", "JPEG2000")  # these formats state their depth, and Pillow scales it to 16 bits


class Unclear(ValueError):
    """Numbers whose meaning is not known; the message is a sentence about the file."""


class Wide(NamedTuple):
    """What the numbers of a picture are: a key of KINDS, lowest, highest and middle one.

    whole: whether all their bits can be read, which Pillow does for grey and libpng for colour.
    """

    kind: str
    low: float
    high: float
    middle: float
    whole: bool = True


@dataclass(frozen=True)
class Reading:
    """How the numbers of pictures become 8-bit sRGB.

    ranges: by kind, black and white of the data set. A kind that it lacks is judged by each
        picture: as 16 bits, or as the first of 0..1, 0..255, 0..65535 that holds about all. None is
        what checkpoints without the field meant: the same, but not a number may lie outside.
    colour_space: `srgb` converts what has a profile of other colours, `stored` takes no notice.
    strict: refuse a picture of a kind that the data set lacked where it tells no range by itself.
    """

    ranges: Mapping[str, Range] | None = field(default_factory=dict)
    colour_space: str = "srgb"
    strict: bool = False


def checked_ranges(ranges: object) -> dict[str, Range] | None:
    """The ranges of a checkpoint; raises ValueError where they are none."""
    if ranges is None:
        return None
    try:
        found = {kind: (float(low), float(high)) for kind, (low, high) in ranges.items()}
    except (AttributeError, TypeError, ValueError):
        found = {"": (0.0, 0.0)}
    for kind, (low, high) in found.items():
        if kind not in KINDS or not (low < high and math.isfinite(high - low)):
            raise ValueError(
                f"ranges must be (black, white) by kind of number, not {ranges!r:.100}"
            )
    return found


# --- pictures of a data set ----------------------------------------------------------------------


def data_ranges(found: Iterable[Wide]) -> dict[str, Range]:
    """The range of each kind of number over all pictures of a data set."""
    by_kind = defaultdict(list)
    for wide in found:
        by_kind[wide.kind].append(wide)
    return {kind: _common_range(kind, by_kind[kind]) for kind in KINDS if kind in by_kind}


def _common_range(kind: str, found: list[Wide]) -> Range:
    lows, highs = sorted(w.low for w in found), sorted(w.high for w in found)
    strays = len(found) // STRAY if kind == FLOATS else 0
    low, high = lows[strays], highs[-1 - strays]
    if kind == INTEGERS:
        return 0.0, float(_depth(high))
    return _usual_range(kind, low, high, least=0.25) or (low, high if high > low else low + 1)


def _depth(high: float) -> int:
    """The highest number of the fewest bits that hold `high`; of 16 for pictures of zeros."""
    return next(2**bits - 1 for bits in DEPTHS if high < 2**bits) if high else 65535


def _usual_range(kind: str, low: float, high: float, least: float = 0.0) -> Range | None:
    """The customary range for numbers from `low` to `high`; None where they fit none.

    least: the share of a float range that the numbers must reach, so that degrees are no greys.
    """
    if kind == WHOLE:
        return (0.0, float(_depth(high))) if low >= 0 and high < 2**16 else None
    if -1 - SLACK <= low < -SLACK and high <= 1 + SLACK:
        return -1.0, 1.0
    for white in FLOAT_WHITES:
        if low >= -SLACK * max(high, 0) and least * white <= high <= (1 + SLACK) * white:
            return 0.0, float(white)
    return None


def range_lines(ranges: Mapping[str, Range], found: Iterable[Wide]) -> list[str]:
    """A line for each kind of number: how it is read and why."""
    lines, found = [], list(found)
    for kind, (low, high) in ranges.items():
        these = [wide for wide in found if wide.kind == kind]
        lowest, highest = min(w.low for w in these), max(w.high for w in these)
        dim = sum(0 < wide.high <= high / DIM for wide in these)
        note = f"; {dim} end below {high / DIM:g} and are nearly black" if dim else ""
        lines.append(
            f"{len(these)} photos of {kind} numbers, from {lowest:g} to {highest:g}: in all of "
            f"them {low:g} is black and {high:g} is white{note}"
        )
    return lines


def misfit(wide: Wide, within: Range) -> str:
    """Why a picture cannot be read with this range, as a sentence about the file; "" if it can."""
    low, high = within
    slack = SLACK * (high - low)
    spoken = f"its {wide.kind} numbers go from {wide.low:g} to {wide.high:g}"
    if not low - slack <= wide.middle <= high + slack:
        return f"{spoken}, beyond {low:g} to {high:g}, the range of the data set"
    if wide.kind == FLOATS and low == 0 and high >= 255 and 0 < wide.high <= 1:
        return f"{spoken}, where those of the data set go to {high:g}"
    if not wide.whole and high < 65535:
        return f"16-bit colours of which {high:g} is white are read from PNG alone: save it as PNG"
    return ""


# --- one picture ---------------------------------------------------------------------------------


def measure(image: Image.Image) -> Wide | None:
    """The numbers of an opened picture, not loaded yet; None where 8 bits or the format tell."""
    if image.format in SCALED:
        return None
    if _is_deep_colour(image):
        return _measured_colour(image)
    return _measured(image) if _is_wide(image) else None


def narrowed(image: Image.Image, reading: Reading) -> Image.Image | None:
    """An opened picture of more than 8 bits, not loaded yet, with 8; None for any other.

    Of mode L, or RGB or RGBA for 16-bit colours. Raises Unclear.
    """
    if _is_deep_colour(image):
        return _narrow_colour(image, reading)
    return _narrow_grey(image, reading) if _is_wide(image) else None


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow will read the upper bytes of 16-bit colours alone."""
    if image.mode not in ("RGB", "RGBA", "CMYK") or not getattr(image, "tile", None):
        return False
    told = image.tile[0][3]  # the decoder's arguments: the layout of the bytes, alone or first
    return ";16" in str(told[0] if isinstance(told, tuple) and told else told)


def _kind(image: Image.Image) -> str:
    if image.mode.startswith("F"):
        return FLOATS
    # Pillow has 16-bit PNG and PGM files in mode I, too.
    return INTEGERS if image.mode != "I" or image.format in ("PNG", "PPM") else WHOLE


def _measured(image: Image.Image) -> Wide:
    kind, values = _kind(image), np.asarray(image)
    if kind == FLOATS:
        values = values[np.isfinite(values)]
    if not values.size:
        return Wide(kind, 0.0, 0.0, 0.0)
    return Wide(kind, float(values.min()), float(values.max()), float(np.median(values)))


def _measured_colour(image: Image.Image) -> Wide:
    """From the upper bytes, which tell how many bits there are."""
    image.load()
    colours = image.getextrema()[: 4 if image.mode == "CMYK" else 3]
    low, high = min(low for low, _ in colours), max(high for _, high in colours)
    return Wide(INTEGERS, 256.0 * low, 256.0 * high + 255, 256.0 * low, image.format == "PNG")


def _narrow_grey(image: Image.Image, reading: Reading) -> Image.Image:
    """Mode L. 16-bit numbers without a range are divided by 257, whatever their maximum, so that
    equal ones stay equal in all photos."""
    if reading.ranges is None:
        return _narrow_in_the_old_way(image)
    if image.format in SCALED:
        return Image.fromarray(_scaled(np.asarray(image), (0.0, 65535.0)))
    wide = _measured(image)
    within = reading.ranges.get(wide.kind)
    if within is None:
        within = _own_range(wide, reading.strict)
    elif reason := misfit(wide, within):
        raise Unclear(reason)
    return Image.fromarray(_scaled(np.asarray(image), within, nothing=within[0]))


def _own_range(wide: Wide, strict: bool) -> Range:
    """The range of a picture whose data set knows no such numbers; Unclear where `strict`."""
    if strict and not _speaks_for_itself(wide):
        raise Unclear(
            f"its {wide.kind} numbers go from {wide.low:g} to {wide.high:g}, and no photo of the "
            f"model's data set tells which of them is white: save it with 8 bits"
        )
    if wide.kind == INTEGERS:
        return 0.0, 65535.0
    low, high = wide.low, wide.high
    return _usual_range(wide.kind, low, high) or (low, high if high > low else low + 1)


def _speaks_for_itself(wide: Wide) -> bool:
    """Whether the numbers of one picture leave no doubt of their range."""
    if wide.low == wide.high == 0:
        return True
    if wide.kind == INTEGERS:  # else 12 bits in 16, or a night without a light
        return wide.high >= 2**12
    return _usual_range(wide.kind, wide.low, wide.high, least=1 / 16) is not None


def _narrow_in_the_old_way(image: Image.Image) -> Image.Image:
    """As checkpoints without ranges saw it: each picture by itself, by the first customary range
    that holds every number, else from minimum to maximum."""
    values = np.asarray(image)
    if _kind(image) == INTEGERS:
        return Image.fromarray(_scaled(values, (0.0, 65535.0)))
    values = np.nan_to_num(values.astype(np.float32), copy=False, posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    whites = FLOAT_WHITES if image.mode == "F" else FLOAT_WHITES[1:]
    white = next((white for white in whites if low >= 0 and high <= white), None)
    within = (0.0, float(white)) if white else (low, high if high > low else low + 1)
    return Image.fromarray(_scaled(values, within))


def _narrow_colour(image: Image.Image, reading: Reading) -> Image.Image:
    """RGB, RGBA or CMYK: the upper bytes where 65535 is white, else from all bits."""
    within = (reading.ranges or {}).get(INTEGERS)
    fewer = within is not None and within[1] < 65535
    data = whole_file(image) if fewer and image.format == "PNG" else b""
    wide = _measured_colour(image)  # first of all Pillow looks at the whole file
    if within is None and reading.ranges is not None:
        _own_range(wide, reading.strict)
    if not fewer:
        return image
    if reason := misfit(wide, within):
        raise Unclear(reason)
    return _from_all_bits(data, within)


def whole_file(image: Image.Image) -> bytes:
    """The file of an opened picture, which stays where it was."""
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data


def _from_all_bits(png: bytes, within: Range) -> Image.Image:
    """A 16-bit colour PNG as RGB or RGBA by libpng, since Pillow reads its upper bytes alone."""
    import torch
    from torchvision.io import decode_image  # late: slow to import and rarely wanted

    values = decode_image(torch.frombuffer(bytearray(png), dtype=torch.uint8)).numpy()
    values = values.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C): grey and alpha, RGB or RGBA
    colours = values[..., :3] if values.shape[2] > 2 else values[..., [0, 0, 0]]
    narrow = [_scaled(colours, within)]
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:]
        white = within[1] if alpha.max() <= within[1] else 65535.0
        narrow.append(_scaled(alpha, (0.0, white)))
    return Image.fromarray(np.concatenate(narrow, axis=2))


def _scaled(values: np.ndarray, within: Range, nothing: float = 0.0) -> np.ndarray:
    """Numbers of any shape as bytes, black as 0 and white as 255; no numbers as `nothing`."""
    low, high = within
    scaled = values.astype(np.float32)  # and in place: each copy of the largest takes 700 MB
    if values.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False, nan=nothing, posinf=nothing, neginf=nothing)
    np.clip(scaled, low, high, out=scaled)
    scaled -= low
    scaled *= 255 / (high - low)
    return np.rint(scaled, out=scaled).astype(np.uint8)
