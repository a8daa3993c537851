"""Photos from strangers: any file that Pillow reads as an upright RGB picture.

One loader serves training, validation and prediction, so that all see the same pixels; `depth` and
`colour` say what their numbers mean, and broken metadata never cost a photo its pixels. Whatever
is wrong with a file ends in a `PhotoError`, nothing in it is executed, time and memory are bounded:
a picture has at most 178,956,970 pixels (twice `PIL.Image.MAX_IMAGE_PIXELS`: Pillow's own limit),
none of its sides more than a million, its file at most a gibibyte.
"""

import io
import logging
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from imaging.colour import to_srgb
from imaging.depth import Reading, Unclear, narrowed, whole_file
from system.terminal import printable

Answer = TypeVar("Answer")

# Never opened, whatever a file's name says: EPS runs Ghostscript, IPTC hands what it wraps to any
# reader, EPS's too, WMF asks the operating system, FITS unpacks gzip without a limit in older
# Pillows, FPX and MIC parse OLE containers; the others are recognised by Pillow but not decoded.
SHUT_FORMATS = {"EPS", "IPTC", "WMF", "FITS", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "MPEG"}
# WebP and AVIF are read whole before anything is looked at, twice over, and a sparse file of any
# size costs nothing to make. The largest picture in 16-bit RGB takes this much uncompressed.
MAX_FILE_BYTES = 2**30
# Pillow keeps a pointer for each row: a picture one pixel wide would take three times the memory.
MAX_SIDE = 1_000_000
# A JPEG has 1 to about 20 scans. libjpeg goes over the whole picture for each, so a file of 300 KB
# with 1,000 empty scans of 64 megapixels takes 39 s (measured); libtiff refuses at 100, too.
MAX_JPEG_SCANS = 100
SCAN_START = b"\xff\xda\x00"  # the marker and the first byte of a length that is below 256
# HEIC is what phones write. Pillow reads it through another package, which is loaded when a first
# such photo is met; without it they count as photos all the same, so that each is named.
HEIC_EXTENSIONS = {".heic", ".heif", ".hif"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# Chunks of a PNG without which its pixels would be others, or lie otherwise; the profile apart.
PNG_NEEDED = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"}
TAKING_TURNS = threading.Lock()  # at the file of an open picture, which may be asked for twice
PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE_BYTES = 2**24  # unpacked: those of printing presses take a few megabytes
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


class PhotoError(ValueError):
    """A photo that cannot be used: `path`, `reason`, and `kind` (unreadable or truncated)."""

    def __init__(self, path: str, reason: str, kind: str = "unreadable"):
        super().__init__(path, reason, kind)  # these three, so that it can be pickled
        self.path, self.reason, self.kind = path, reason, kind

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself, in the order in which it tries them."""
    Image.init()
    return tuple(name for name in Image.ID if name not in SHUT_FORMATS)


@cache
def readable_extensions() -> frozenset[str]:
    """Lower-case extensions, with their dot, of `readable_formats` and of HEIC."""
    formats = {*readable_formats(), "MPO"}  # MPO, JPEGs in a row, is opened by the JPEG reader
    found = Image.registered_extensions().items()
    known = {end for end, name in found if end and name in formats}  # saving SPIDER registers ""
    return frozenset(known | HEIC_EXTENSIONS)


def load_image(
    path_or_file: str | os.PathLike | BinaryIO,
    min_size: int | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Image.Image:
    """Reads a photo as an upright RGB `PIL.Image`.

    EXIF orientation is applied, transparency laid on white, 16-bit and float values scaled into 8
    bits and colours converted to sRGB as `reading` says, CMYK, palette and grey converted, of an
    animation the first frame is taken. With `min_size`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of
    its size, as long as its short side keeps `min_size` pixels: several times faster for photos
    from a camera.

    Raises PhotoError (a ValueError) with a sentence, whatever the file holds.
    """
    name = photo_name(path_or_file)
    try:
        return with_photo(path_or_file, lambda image: decode(image, min_size, reading))
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        raise explain(name, error) from error


def with_photo(path_or_file, work: Callable[[Image.Image], Answer]) -> Answer:
    """What `work` returns for an opened photo, which may be opened a second time for it.

    Pillow gives up a PNG for too long a text or a damaged comment: then it sees the pixels alone.
    """
    try:
        with open_photo(path_or_file) as image:
            return work(image)
    except Exception:
        bare = bare_png(path_or_file)
        if bare is None:
            raise
        file, profile = bare
        with open_photo(file) as image:
            if profile:
                image.info["icc_profile"] = profile
            return work(image)


def photo_name(path_or_file) -> str:
    if isinstance(path_or_file, (str, os.PathLike)):
        return os.fspath(path_or_file)
    return str(getattr(path_or_file, "name", "the stream"))


def open_photo(path_or_file) -> Image.Image:
    """Opens a regular file or stream without decoding it; a FIFO or device is never opened."""
    check_file(path_or_file)
    try:
        return Image.open(path_or_file, formats=readable_formats())
    except UnidentifiedImageError:
        if not is_heic(path_or_file):
            raise
    load_heic_reader()
    return Image.open(path_or_file, formats=("HEIF",))


def check_file(path_or_file) -> None:
    """Raises OSError for what must not be opened, by its path."""
    if not isinstance(path_or_file, (str, os.PathLike)):
        return
    status = os.stat(path_or_file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    if status.st_size == 0:
        raise OSError("the file is empty")
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(f"too large: a file of {status.st_size / 1e9:.1f} GB is no photo")


def bare_png(path_or_file) -> tuple[BinaryIO, bytes | None] | None:
    """A PNG in memory without what its pixels do not need, and its profile; None for other files.

    Also None where nothing can be left out. Only the chunks that are kept are read.
    """
    if not isinstance(path_or_file, (str, os.PathLike)):
        return _bare_png(path_or_file)
    try:
        check_file(path_or_file)
        with open(path_or_file, "rb") as file:
            return _bare_png(file)
    except OSError:
        return None


def _bare_png(file: BinaryIO) -> tuple[BinaryIO, bytes | None] | None:
    file.seek(0)
    if file.read(8) != PNG_START:
        return None
    kept, profile, left_out = [PNG_START], None, False
    for name, head, body in _png_chunks(file):
        sound = zlib.crc32(name + body[:-4]) == int.from_bytes(body[-4:])
        if name == b"iCCP":
            profile = _unpacked_profile(body[:-4])
        if name in PNG_NEEDED and (sound or name not in (b"tRNS", b"eXIf")):
            kept += [head, body]
        else:
            left_out = True
    return (io.BytesIO(b"".join(kept)), profile) if left_out else None


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, head and body with checksum of each chunk; the bodies of others than `_bare_png`'s
    are passed over."""
    while len(head := file.read(8)) == 8:
        name, length = head[4:], int.from_bytes(head[:4]) + 4
        wanted = name in PNG_NEEDED or (name == b"iCCP" and length < MAX_PROFILE_BYTES)
        if not wanted:
            file.seek(length, os.SEEK_CUR)
        yield name, head, file.read(length) if wanted else b""


def _unpacked_profile(body: bytes) -> bytes:
    """The profile in an iCCP chunk: name, zero, method 0, deflated bytes; garbage as it is."""
    try:
        packed = body[body.index(b"\0") + 2 :]
        return zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES)
    except (ValueError, zlib.error):
        return body or b"?"


def is_heic(path_or_file: str | os.PathLike | BinaryIO) -> bool:
    """Whether a file starts as HEIC does: a box of type ftyp (ISO/IEC 14496-12) with its brand."""
    if isinstance(path_or_file, (str, os.PathLike)):
        with open(path_or_file, "rb") as file:
            head = file.read(12)
    else:
        path_or_file.seek(0)
        head = path_or_file.read(12)
        path_or_file.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


@cache
def load_heic_reader() -> None:
    """Lets Pillow read HEIC; OSError with what to do where that package is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise OSError(
            "a HEIC photo, which Pillow does not read by itself: pip install pillow-heif, or save "
            "it as JPEG"
        ) from None
    register_heif_opener(thumbnails=False)


def decode(
    image: Image.Image,
    min_size: int | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Image.Image:
    """An opened picture, upright and in RGB; see `load_image`."""
    refuse_costly(image)
    if min_size:
        image.draft(None, (min_size, min_size))  # JPEG only; others ignore it
    narrow = narrowed(image, reading)
    image.load()
    profile = image.info.get("icc_profile") if reading.colour_space == "srgb" else None
    return upright(to_rgb(narrow or image, profile), orientation(image))


def decode_picture(
    image: Image.Image,
    min_size: int | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Image.Image:
    """A picture of somebody's, upright and in RGB; it stays as it is.

    Of one that Pillow has only opened the file is read: it alone tells what 16-bit numbers mean.
    """
    if _is_unread(image):
        with TAKING_TURNS:
            data = whole_file(image)
        return load_image(io.BytesIO(data), min_size, reading)
    pixels = image.copy()
    pixels.format = image.format  # some state the depth of their numbers
    return decode(pixels, min_size, reading)


def _is_unread(image: Image.Image) -> bool:
    """Whether a picture is the first of an open file of a kind that is read here, undecoded."""
    if not getattr(image, "tile", None) or not getattr(image, "fp", None):
        return False
    return image.tell() == 0 and image.format not in SHUT_FORMATS


def refuse_costly(image: Image.Image) -> None:
    """Raises an error for an opened picture that would take far more room or time than its like."""
    if max(image.size) > MAX_SIDE:
        raise Image.DecompressionBombError(f"a side has {max(image.size):,} pixels")
    coded = getattr(image, "tile", None)  # pixels cost nothing any more
    if coded and image.format in ("JPEG", "MPO", "BLP"):  # BLP can hold a JPEG
        limit_scans(image.fp)


def decoded_size(path: str | os.PathLike, min_size: int | None = None) -> tuple[int, int]:
    """Width and height of what `load_image` returns, from the header; (0, 0) for a bad photo."""
    try:
        with open_photo(path) as image:
            if min_size:
                image.draft(None, (min_size, min_size))
            width, height = image.size
            return (height, width) if orientation(image) >= 5 else (width, height)
    except Exception:  # the same file will explain itself when it is decoded
        return 0, 0


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
    if isinstance(error, Unclear):
        return PhotoError(path, text)
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


def to_rgb(image: Image.Image, profile: bytes | None = None) -> Image.Image:
    """Any mode of Pillow's as RGB in sRGB, transparency laid on white.

    profile: of its colours, an ICC profile.
    """
    image = narrowed(image, Reading()) or image
    if image.mode == "La":  # premultiplied grey, which Pillow converts to nothing else
        image = image.convert("LA")
    if not image.has_transparency_data:
        return to_srgb(image, profile)
    grey = image.mode in ("L", "LA")
    image = image.convert("RGBA")
    mask = image.getchannel("A")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(to_srgb(image.getchannel("R") if grey else image, profile), mask=mask)
    return white
