"""Which photos a command line means: files, folders, glob patterns, lists on standard input.

Everything is a generator: a hundred thousand photos are named one by one, never collected first.
"""

import glob
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from photos import readable_extensions
from scan import as_text, identity, is_folder


class Photo(NamedTuple):
    """A file to predict, the class index that its folder names, or why it cannot be read."""

    path: str
    truth: int | None = None
    error: str | None = None


def find_photos(inputs: Iterable[str], classes: Sequence[str] = ()) -> Iterator[Photo]:
    """Yields the photos that `inputs` name; `-` stands for a list on standard input.

    A photo in a folder given as an input gets as its `truth` the class that the first folder on
    the way down to it is named after, a photo of a list that of the folder it lies in.
    """
    index_of = {composed(name): index for index, name in enumerate(classes)}
    for text in inputs:
        if text != "-":
            yield from expand(text, classes)
            continue
        for path in read_list(sys.stdin.buffer):
            for photo in expand(path, classes):
                folder = composed(as_text(os.path.basename(os.path.dirname(photo.path))))
                known = photo.truth is not None or folder not in index_of
                yield photo if known else photo._replace(truth=index_of[folder])


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Yields the paths in `stream`: one per line, or NUL-separated where it holds NULs."""
    rest, separator = b"", None
    while block := stream.read1(1 << 16):
        rest += block
        if separator is None:
            separator = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else None
        if separator:
            *whole, rest = rest.split(separator)
            yield from (name for line in whole if (name := _path(line, separator)))
    if name := _path(rest, separator):
        yield name


def _path(line: bytes, separator: bytes | None) -> str:
    return os.fsdecode(line if separator == b"\0" else line.rstrip(b"\r\n"))


def expand(text: str, classes: Sequence[str] = ()) -> Iterator[Photo]:
    """Yields the photos of a folder, of a glob pattern, or the file itself."""
    if os.path.isdir(text):
        yield from photos_below(text, classes)
    elif os.path.lexists(text) or not glob.has_magic(text):
        yield Photo(text)
    else:
        matches = sorted(glob.iglob(text, recursive=True))
        if not matches:
            yield Photo(text, error="no file matches this pattern")
        for match in matches:
            yield from expand(match, classes)


def photos_below(folder: str, classes: Sequence[str] = ()) -> Iterator[Photo]:
    """Yields the images below `folder`, with their class where a folder name gives it."""
    index_of = {composed(name): index for index, name in enumerate(classes)}
    found = False
    for path, error in walk(folder):
        found = True
        folders = composed(as_text(os.path.relpath(path, folder))).split(os.sep)[:-1]
        truth = next((index_of[name] for name in folders if name in index_of), None)
        yield Photo(path, truth, error)
    if not found:
        yield Photo(folder, error="there is no image in this folder")


def composed(name: str) -> str:
    """`name` with accents as single characters: macOS writes them decomposed, others do not."""
    return unicodedata.normalize("NFC", name)


def walk(folder: str) -> Iterator[tuple[str, str | None]]:
    """Yields (path, error) for the images below `folder`, sorted by name.

    Links to folders are followed; each real folder is entered once, however many links lead to it,
    and none that holds `folder`. Hidden entries (thumbnails, macOS's ._photo.jpg) are passed over.
    """
    seen = {identity(parent) for parent in Path(folder).resolve().parents}
    waiting = [(folder, True)]
    while waiting:
        path, may_be_entered = waiting.pop()
        if not may_be_entered:
            yield path, None
            continue
        if (here := identity(path)) in seen:
            continue
        seen.add(here)
        try:
            with os.scandir(path) as entries:
                found = [(e.path, is_folder(e)) for e in entries if not e.name.startswith(".")]
        except OSError as error:
            yield path, f"cannot open this folder: {error.strerror}"
            continue
        waiting += sorted((e for e in found if e[1] or is_photo(e[0])), reverse=True)


def is_photo(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in readable_extensions()
