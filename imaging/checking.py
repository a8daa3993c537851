"""Each photo decoded once before any training: can it be used, and is it another one's copy?"""

import datetime
from collections import Counter
from collections.abc import Collection, Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from imaging.colour import Profile, odd_profile
from imaging.data_report import TINY_PIXELS, Problem
from imaging.decoding import decode, explain, refuse_costly, with_photo
from imaging.depth import Range, Wide, data_ranges, measure, misfit, range_lines
from imaging.digests import file_digest
from imaging.near_copies import ENOUGH_PIXELS, fingerprint
from imaging.scanning import File
from system.terminal import counted, printable

LEFT_OUT = ("unreadable", "truncated")  # kinds of problems of photos that cannot be used
Digests = dict[str, bytes | None]  # path of a usable photo -> hash, None if no file has its size
# What may be asked of each photo beside whether it can be used.
FINGERPRINT, TIME = "fingerprint", "time"


class Numbers(NamedTuple):
    """How all photos with more than 8 bits a number are read, and a line on each kind of them."""

    ranges: dict[str, Range]
    lines: list[str]


class Look(NamedTuple):
    """What an opened photo showed: `fingerprint` and `time` (in seconds) where they were wanted."""

    mode: str
    sides: tuple[int, int]
    wide: Wide | None
    profile: Profile | None
    fingerprint: np.ndarray | None = None
    time: float | None = None


class Checked(NamedTuple):
    """What decoding a photo showed."""

    path: str
    problems: list[Problem]
    usable: bool
    digest: bytes | None
    look: Look | None = None


class Seen(NamedTuple):
    """What decoding all photos showed, of those that can be used."""

    digests: Digests
    numbers: Numbers
    fingerprints: dict[str, np.ndarray]
    times: dict[str, float]


def check_photos(
    files: Sequence[File], workers: int, problems: list[Problem], wanted: Collection[str] = ()
) -> Seen:
    """Decodes all photos and notes what is wrong with them. ValueError where none can be used.

    Only files that share their size with another can be copies, so only those are hashed. wanted:
    of FINGERPRINT and TIME.
    """
    sizes = Counter(file.size for file in files)

    def check(file: File) -> Checked:
        return check_photo(file.path, sizes[file.size] > 1, wanted)

    digests, looks = {}, {}
    with ThreadPool(max(1, workers)) as pool:  # threads: Pillow decodes without the GIL
        results = pool.imap(check, files, chunksize=16)
        bar = tqdm(results, "checking photos", len(files), unit="", leave=False, disable=None)
        for checked in bar:
            problems += checked.problems
            if checked.usable:
                digests[checked.path] = checked.digest
                looks[checked.path] = checked.look
    wide = {path: look.wide for path, look in looks.items() if look.wide}
    numbers = common_range(digests, wide, problems)
    if files and not digests:
        path, why = next((p.path, p.detail) for p in problems if p.kind in LEFT_OUT)
        raise ValueError(
            f"none of the {counted(len(files), 'photo')} can be used, for instance "
            f"{printable(path)}: {why}"
        )
    usable = [(path, looks[path]) for path in digests]
    fingerprints = {path: look.fingerprint for path, look in usable if look.fingerprint is not None}
    times = {path: look.time for path, look in usable if look.time is not None}
    return Seen(digests, numbers, fingerprints, times)


def common_range(digests: Digests, wide: dict[str, Wide], problems: list[Problem]) -> Numbers:
    """One range for each kind of number; takes photos that would be all black or white in it out
    of `digests`."""
    ranges = data_ranges(wide.values())
    for path, numbers in wide.items():
        if reason := misfit(numbers, ranges[numbers.kind]):
            problems.append(Problem("unreadable", path, reason))
            del digests[path]
    return Numbers(ranges, range_lines(ranges, wide.values()))


def check_photo(path: str, wants_digest: bool, wanted: Collection[str] = ()) -> Checked:
    """Decodes a photo; a JPEG at a fraction of its size, which reads the whole file as well."""
    problems = []
    try:
        seen = with_photo(path, lambda image: look(image, wanted))
        digest = file_digest(path) if wants_digest else None
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        failure = explain(path, error)
        return Checked(path, [Problem(failure.kind, path, failure.reason)], False, None)
    wide, profile = seen.wide, seen.profile
    if min(seen.sides) < TINY_PIXELS:
        problems.append(Problem("tiny", path, f"{seen.sides[0]} x {seen.sides[1]}"))
    if wide:
        problems.append(Problem("wide", path, f"{wide.kind}, {wide.low:g} to {wide.high:g}"))
    elif seen.mode not in ("RGB", "L"):
        problems.append(Problem("odd mode", path, seen.mode))
    if profile:
        kind = "broken profile" if profile.broken else "profile"
        problems.append(Problem(kind, path, profile.name))
    return Checked(path, problems, True, digest, seen)


def look(image: Image.Image, wanted: Collection[str] = ()) -> Look:
    """What an opened photo shows, once it has been decoded; `wanted` as for `check_photos`."""
    mode, sides = image.mode, image.size
    refuse_costly(image)
    wide = measure(image)  # before decoding, which forgets how the file has them
    compared = FINGERPRINT in wanted
    upright = decode(image, min_size=ENOUGH_PIXELS if compared else 1)
    seen = Look(mode, sides, wide, odd_profile(image))
    if compared:
        seen = seen._replace(fingerprint=fingerprint(upright))
    return seen._replace(time=time_taken(image)) if TIME in wanted else seen


def time_taken(image: Image.Image) -> float | None:
    """When a photo was taken, in seconds from some day on, as its EXIF data say; else None."""
    try:
        exif = image.getexif()
        inside = exif.get_ifd(ExifTags.IFD.Exif)
        text = inside.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
        moment = datetime.datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        return moment.replace(tzinfo=datetime.UTC).timestamp()
    except Exception:  # parsed from untrusted bytes, or not there
        return None
