"""Which photos a command line means: files, folders, glob patterns, lists on standard input.

Everything is a generator: a hundred thousand photos are named one by one, never collected first.
"""

import codecs
import contextlib
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imaging.data_report import Problem
from imaging.scanning import as_text, identity, is_photo, walk
from system.files import HEAD_BYTES, composed, encoding_of


class Photo(NamedTuple):
    """A file to predict, the class index that its folder names, or why it cannot be read.

    source: where the photo is in memory, a PIL image or an open file; `path` then is its name.
    folder: what it lies in below an input, where that is the name of no class.
    """

    path: str | None
    truth: int | None = None
    error: str | None = None
    source: object = None
    folder: str = ""


def class_folders(inputs: Iterable[str]) -> list[str]:
    """Returns the names of the folders right inside the inputs: perhaps those of classes."""
    names = set()
    for path in inputs:
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            names |= {composed(as_text(entry.name)) for entry in entries if entry.is_dir()}
    return sorted(names)


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
            yield listed(path, index_of)


def listed(path: str, index_of: Mapping[str, int]) -> Photo:
    """The file that a line of a list names, with the class of its folder; a folder is refused.

    A list that was made or read wrongly can name "/": it must not walk the whole file system.
    """
    error = None
    if os.path.isdir(path):
        error = "a folder, where a list names files only: give the folder itself to predict.py"
    elif not os.path.lexists(path) and not _is_unicode(path):
        error = "no file has this name, which is not UTF-8: save the list as UTF-8"
    folder = composed(as_text(os.path.basename(os.path.dirname(path))))
    truth = index_of.get(folder)
    return Photo(path, truth, error, folder=folder if truth is None else "")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding stand as lone surrogates
        return False
    return True


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Yields the paths in `stream`: one per line, or NUL-separated where it holds NULs.

    Names may be any bytes, as file systems have them. UTF-16 and byte order marks are understood.
    Empty lines are passed over, and comments: lines of "#", a space and words that name no file.
    """
    rest, separator = b"", None
    for block in _as_bytes(stream):
        rest += block
        if separator is None:
            separator = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else None
        if separator:
            *whole, rest = rest.split(separator)
            yield from (name for line in whole if (name := _path(line, separator)))
    if name := _path(rest, separator):
        yield name


def _as_bytes(stream: BinaryIO) -> Iterator[bytes]:
    """The blocks of a list as its names stand in the file system, in whatever encoding it came."""
    head = b""
    # A short first line is enough, unless there are zero bytes, of UTF-16 or between names.
    while len(head) < HEAD_BYTES and (b"\n" not in head or b"\0" in head):
        if not (block := stream.read1(1 << 16)):
            break
        head += block
    blocks = chain([head], iter(lambda: stream.read1(1 << 16), b""))
    encoding = encoding_of(head[:HEAD_BYTES])
    if encoding == "utf-8":
        yield from blocks
        return
    try:
        # A mark before UTF-8 says nothing of the names behind it, which may be any bytes.
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        yield from map(os.fsencode, codecs.iterdecode(blocks, encoding, errors))
    except UnicodeError:
        name = encoding.upper()
        raise ValueError(f"the list is cut short or no text in {name}: save it as UTF-8") from None


def _path(line: bytes, separator: bytes | None) -> str:
    """A line of a list as a path; "" for an empty one and for a comment."""
    # os.fsdecode, but for Windows, where that fails for what is not UTF-8.
    path = line.decode(sys.getfilesystemencoding(), "surrogateescape")
    if separator == b"\0":
        return path
    path = path.rstrip("\r\n")
    empty = not path.strip() or path == "#" or path.startswith(("# ", "#\t"))
    return "" if empty and not os.path.lexists(path) else path


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
    above = {identity(parent) for parent in Path(folder).resolve().parents}
    empty = True
    for found in walk(folder, above):
        if isinstance(found, Problem):
            if found.kind == "closed":
                empty = False
                yield Photo(found.path, error=f"cannot open this folder: {found.detail}")
        elif is_photo(found.name):
            empty = False
            folders = composed(as_text(os.path.relpath(found.path, folder))).split(os.sep)[:-1]
            truth = next((index_of[name] for name in folders if name in index_of), None)
            unknown = folders[0] if folders and truth is None else ""
            yield Photo(found.path, truth, folder=unknown)
    if empty:
        yield Photo(folder, error="there is no image in this folder")
