"""Photos, from a file to the tensor that a model sees: one way for training and prediction.

`load_image` turns any file that Pillow reads into an upright RGB picture, `eval_transform` and
`train_transform` turn that into a normalised tensor. `Preprocess` holds every number that both
need; it travels in the checkpoint, so that prediction sees what training saw.

Photos come from strangers: whatever is wrong with a file ends in a `PhotoError`, nothing in it is
executed, and time and memory are bounded (a picture has at most 178,956,970 pixels, twice
`PIL.Image.MAX_IMAGE_PIXELS`, which is where Pillow refuses).
"""

import logging
import math
import os
import stat
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

RESIZE_MODES = ("crop", "squash", "pad")
AUGMENTATIONS = ("none", "basic", "trivial", "rand")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_IMG_SIZE = 4096  # of the model's input; a checkpoint that claims more is damaged or hostile

# The smallest crop of RandomResizedCrop is 8 % of a photo's area at a side ratio of 3:4, a quarter
# (0.245) of the short side: a photo decoded at four times the size wanted serves it undiminished.
CROP_SCALE = (0.08, 1.0)
CROP_MARGIN = 4

# Never opened, whatever a file's name says: EPS runs Ghostscript, WMF asks the operating system,
# FITS unpacks gzip without a limit in older Pillows, FPX and MIC parse OLE containers; the others
# are recognised by Pillow but not decoded.
SHUT_FORMATS = {"EPS", "WMF", "FITS", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "MPEG"}

# A JPEG has 1 to about 20 scans. libjpeg goes over the whole picture for each, so a file of 300 KB
# with 1,000 empty scans of 64 megapixels takes 39 s (measured); libtiff refuses at 100, too.
MAX_JPEG_SCANS = 100
SCAN_START = b"\xff\xda\x00"  # the marker and the first byte of a length that is below 256

ORIENTATION_TAG = 0x0112  # EXIF 2.3, 4.6.4 A: how to turn the stored picture to stand upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow speaks of odd EXIF data, palettes and large pictures without naming the file; what matters
# of it is in our own sentences.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Preprocess:
    """What happens between a photo and the model, as kept in the checkpoint.

    img_size: side of the square input. resize_mode: `crop` scales the short side to `resize` and
    takes the centre, `squash` ignores the proportions, `pad` fits the whole photo and fills the
    rest with the mean colour. resize: None stands for img_size * 256 / 224. mean, std: of the
    normalisation, for values in [0, 1].
    """

    img_size: int = 224
    resize_mode: str = "crop"
    resize: int | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"

    def __post_init__(self):
        if not _is_int(self.img_size) or not 1 <= self.img_size <= MAX_IMG_SIZE:
            raise ValueError(
                f"the image size must be between 1 and {MAX_IMG_SIZE}, not {self.img_size!r}"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(
                f"the resize mode must be one of {', '.join(RESIZE_MODES)}, "
                f"not {self.resize_mode!r}"
            )
        if self.resize is not None and not (
            _is_int(self.resize) and self.img_size <= self.resize <= 2 * MAX_IMG_SIZE
        ):
            raise ValueError(
                f"resize must be at least the image size ({self.img_size}), not {self.resize!r}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"the interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"not {self.interpolation!r}"
            )
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean))
        object.__setattr__(self, "std", _three_numbers("std", self.std))
        if min(self.std) <= 0:
            raise ValueError(f"std must be above zero, not {self.std}")

    @property
    def short_side(self) -> int:
        """The short side that a photo is scaled to before the centre crop."""
        return self.resize or round(self.img_size * 256 / 224)

    @property
    def min_size(self) -> int:
        """What `load_image(min_size=...)` must keep for `eval_transform`."""
        return self.short_side if self.resize_mode == "crop" else self.img_size

    def to_dict(self) -> dict:
        """Plain Python, for the checkpoint and for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocess":
        """The inverse of `to_dict`; unknown keys, of a later version, are an error."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            raise ValueError(f"not a description of preprocessing: {values!r:.200}")
        return cls(**values)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _three_numbers(name: str, values) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be three numbers, not {values!r:.100}")
    return numbers


class PhotoError(ValueError):
    """A photo that cannot be used: `path`, `reason`, and `kind` (unreadable or truncated)."""

    def __init__(self, path: str, reason: str, kind: str = "unreadable"):
        super().__init__(path, reason, kind)  # these three, so that it can be pickled
        self.path, self.reason, self.kind = path, reason, kind

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(text: str) -> str:
    """A file's or class's name for a terminal, a log or a page.

    Bytes that are no UTF-8 (Python keeps them as surrogates) and control characters, which could
    steer a terminal or begin a new line, are written as \\xNN.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    escaped = {"Cc", "Zl", "Zp"}  # control characters, line and paragraph separators
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in escaped else c for c in text)


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself, in the order in which it tries them."""
    Image.init()
    return tuple(name for name in Image.ID if name not in SHUT_FORMATS)


@cache
def readable_extensions() -> frozenset[str]:
    """Lower-case extensions, with their dot, of `readable_formats`."""
    formats = {*readable_formats(), "MPO"}  # MPO, JPEGs in a row, is opened by the JPEG reader
    return frozenset(end for end, name in Image.registered_extensions().items() if name in formats)


def load_image(path_or_file: str | os.PathLike | BinaryIO, min_size: int | None = None):
    """Reads a photo as an upright RGB `PIL.Image`.

    EXIF orientation is applied, transparency laid on white, 16-bit and float values scaled into 8
    bits, CMYK, palette and grey converted, of an animation the first frame is taken. With
    `min_size`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side
    keeps `min_size` pixels: several times faster for photos from a camera.

    Raises PhotoError (a ValueError) with a sentence, whatever the file holds.
    """
    name = photo_name(path_or_file)
    try:
        with open_photo(path_or_file) as image:
            return decode(image, min_size)
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        raise explain(name, error) from error


def photo_name(path_or_file) -> str:
    if isinstance(path_or_file, (str, os.PathLike)):
        return os.fspath(path_or_file)
    return str(getattr(path_or_file, "name", "the stream"))


def open_photo(path_or_file) -> Image.Image:
    """Opens a regular file or stream without decoding it; a FIFO or device is never opened."""
    if isinstance(path_or_file, (str, os.PathLike)):
        status = os.stat(path_or_file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size == 0:
            raise OSError("the file is empty")
    return Image.open(path_or_file, formats=readable_formats())


def decode(image: Image.Image, min_size: int | None = None) -> Image.Image:
    """An opened picture, upright and in RGB."""
    if image.format in ("JPEG", "MPO"):
        limit_scans(image.fp)
    if min_size:
        image.draft(None, (min_size, min_size))  # JPEG only; others ignore it
    image.load()
    return upright(to_rgb(image), orientation(image))


def limit_scans(file: BinaryIO) -> None:
    """Raises ValueError if a JPEG has too many scans; leaves the file where it was."""
    position = file.tell()
    file.seek(0)
    scans = sum(block.count(SCAN_START) for block in iter(lambda: file.read(2**20), b""))
    file.seek(position)
    if scans > MAX_JPEG_SCANS:
        raise ValueError(f"{scans} scans, where a JPEG has a few")


def explain(path: str, error: Exception) -> PhotoError:
    """Any exception of opening or decoding `path` as one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return PhotoError(path, "not a picture of any format that can be read here")
    if isinstance(error, Image.DecompressionBombError):
        return PhotoError(path, f"too large: {text[0].lower()}{text[1:]}")
    if isinstance(error, MemoryError):
        return PhotoError(path, "too large for the memory")
    if "truncated" in text.lower() or "unexpected end" in text.lower():
        return PhotoError(path, "the file is truncated", "truncated")
    if isinstance(error, OSError):
        return PhotoError(path, error.strerror or text or "cannot be read")
    return PhotoError(path, f"cannot be decoded ({type(error).__name__}: {text[:200]})")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF data is garbage."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # parsed from untrusted bytes; a photo is worth more than its metadata
        return 1
    return value if isinstance(value, int) else 1


def upright(image: Image.Image, value: int) -> Image.Image:
    return image.transpose(UPRIGHT[value]) if value in UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's as RGB, transparency laid on white, wide values scaled."""
    if image.mode.startswith(("I", "F")):
        return narrow(image).convert("RGB")
    if image.mode == "La":  # premultiplied grey, which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")  # a copy even if RGB already: the file can then be closed


def narrow(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, whole or float, as 8-bit grey.

    16-bit values are divided by 257, whatever their maximum, so that equal values stay equal in
    all photos. The range of 32-bit and float values is not in the file: it is taken to be the
    first of 0..1 (float), 0..255, 0..65535 that holds them all, else their own minimum..maximum.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        low, high = 0, 65535  # Pillow has 16-bit PNG and PGM files in mode I, too
    else:
        values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
        low, high = value_range(float(values.min()), float(values.max()), image.mode == "F")
    scaled = (np.clip(values, low, high).astype(np.float32) - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def value_range(lowest: float, highest: float, is_float: bool) -> tuple[float, float]:
    for high in (1, 255, 65535)[0 if is_float else 1 :]:
        if lowest >= 0 and highest <= high:
            return 0, high
    return lowest, highest if highest > lowest else lowest + 1


class Fit:
    """Scales a picture to a square of `img_size`: the random-free part of `eval_transform`.

    `crop` equals torchvision's Resize(short_side) and CenterCrop(img_size), but computes only
    what the crop keeps: cheaper, and a picture of 1 x 10,000 pixels needs no 256 x 2,560,000.
    """

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess
        self.filter = Image.Resampling[preprocess.interpolation.upper()]

    def __call__(self, image: Image.Image) -> Image.Image:
        size = self.preprocess.img_size
        if self.preprocess.resize_mode == "crop":
            return image.resize((size, size), self.filter, box=self.crop_box(*image.size))
        if self.preprocess.resize_mode == "squash":
            return image.resize((size, size), self.filter)
        return self.pad(image)

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The centre crop in the coordinates of the original (left, top, right, bottom)."""
        size, short = self.preprocess.img_size, self.preprocess.short_side
        box = []
        for side in (width, height):
            scaled = int(short * side / min(width, height))  # truncated as torchvision does
            start = round((scaled - size) / 2)
            box.append((start * side / scaled, (start + size) * side / scaled))
        (left, right), (top, bottom) = box
        return left, top, min(right, width), min(bottom, height)

    def pad(self, image: Image.Image) -> Image.Image:
        size, longest = self.preprocess.img_size, max(image.size)
        width, height = (max(1, round(size * side / longest)) for side in image.size)
        fill = tuple(round(255 * min(max(value, 0), 1)) for value in self.preprocess.mean)
        square = Image.new("RGB", (size, size), fill)
        small = image.resize((width, height), self.filter)
        square.paste(small, ((size - width) // 2, (size - height) // 2))
        return square


class ToTensor:
    """PIL image (RGB) -> normalised float tensor (3, H, W).

    By hand, so that prediction does without torchvision, whose import takes longer than a photo.
    """

    def __init__(self, preprocess: Preprocess):
        std = torch.tensor(preprocess.std).view(3, 1, 1)
        self.scale = 1 / (255 * std)
        self.shift = torch.tensor(preprocess.mean).view(3, 1, 1) / std

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(self.scale).sub_(self.shift)


class Transform:
    """The steps from a PIL image to a tensor, and the `min_size` that `load_image` must keep."""

    def __init__(self, steps: Sequence[Callable], min_size: int):
        self.transforms = list(steps)
        self.min_size = min_size

    def __call__(self, image: Image.Image) -> torch.Tensor:
        for step in self.transforms:
            image = step(image)
        return image


def eval_transform(preprocess: Preprocess) -> Transform:
    """PIL image (RGB) -> normalised tensor (3, img_size, img_size); nothing random."""
    return Transform([Fit(preprocess), ToTensor(preprocess)], preprocess.min_size)


def train_transform(preprocess: Preprocess, aug: str = "basic", reprob: float = 0.0) -> Transform:
    """The same with random changes, drawn from torch's global generator.

    aug: `none` is the evaluation transform; `basic` a random crop and mirror image, as in the
    reference; `trivial` adds TrivialAugmentWide (arXiv 2103.10158), `rand` RandAugment (arXiv
    1909.13719). reprob: probability of erasing a rectangle (arXiv 1708.04896).
    """
    if aug not in AUGMENTATIONS:
        raise ValueError(f"the augmentation must be one of {', '.join(AUGMENTATIONS)}, not {aug!r}")
    if not 0 <= reprob <= 1:
        raise ValueError(f"the probability of erasing must be between 0 and 1, not {reprob}")
    if aug == "none":
        steps, min_size = [Fit(preprocess)], preprocess.min_size
    else:
        steps, min_size = _random_steps(preprocess, aug), CROP_MARGIN * preprocess.img_size
    steps.append(ToTensor(preprocess))
    if reprob:
        from torchvision.transforms import v2  # late, see ToTensor

        steps.append(v2.RandomErasing(reprob))  # with 0, the mean colour once normalised
    return Transform(steps, min_size)


def _random_steps(preprocess: Preprocess, aug: str) -> list:
    from torchvision.transforms import InterpolationMode, v2

    mode = InterpolationMode(preprocess.interpolation)
    crop = v2.RandomResizedCrop(preprocess.img_size, scale=CROP_SCALE, interpolation=mode)
    steps = [crop, v2.RandomHorizontalFlip()]
    fill = [round(255 * value) for value in preprocess.mean]
    if aug in ("trivial", "rand"):
        policy = v2.TrivialAugmentWide if aug == "trivial" else v2.RandAugment
        steps.append(policy(interpolation=InterpolationMode.BILINEAR, fill=fill))
    return steps
