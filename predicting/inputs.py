"""Which photos a command line means: files, folders, glob patterns, lists on standard input.

Everything is a generator: a hundred thousand photos are named one by one, never collected first.
"""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imaging.data_report import Problem
from imaging.scanning import as_text, composed, identity, is_photo, walk


class Photo(NamedTuple):
    """A file to predict, the class index that its folder names, or why it cannot be read.

    source: where the photo is in memory, a PIL image or an open file; `path` then is its name.
    """

    path: str | None
    truth: int | None = None
    error: str | None = None
    source: object = None


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
            yield Photo(found.path, truth)
    if empty:
        yield Photo(folder, error="there is no image in this folder")
