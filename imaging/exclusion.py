"""Photos that a file lists to be left out: of training, of validation and of tests.

A path a line, or a table with a column `image`, as suspects.csv is, also as a spreadsheet saves it.
A path is absolute, or relative to the working directory or to the data.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from imaging.scanning import File, as_text
from system.files import composed, parse_csv, read_text, unsafe_cell
from system.terminal import counted, printable

COLUMN = "image"
SEPARATORS = ",;\t"  # of spreadsheets

Files = Mapping[str, Mapping[str, Sequence[File]]]  # side -> class name -> files


class Entry(NamedTuple):
    """What a line says, and the paths that it may mean."""

    line: str
    meanings: tuple[str, ...]


class Exclusion(NamedTuple):
    """Photos to leave out. source: the flag that lists them; "" for those that a run left out, of
    which some may be gone."""

    entries: list[Entry]
    source: str = ""

    @classmethod
    def of_files(cls, names: Sequence[str]) -> "Exclusion":
        """What files list; raises ValueError or OSError, naming the file that lists nothing."""
        entries = [entry for name in names for entry in listed_in(name)]
        return cls(entries, f"--exclude {' '.join(map(printable, names))}")

    @classmethod
    def of_paths(cls, paths: Iterable[str]) -> "Exclusion":
        return cls([Entry(path, (path,)) for path in paths])

    def among(self, paths: Iterable[str], root: str) -> tuple[set[str], list[str]]:
        """Returns those of the paths that are listed, and the lines that name none of them.

        root: that of the data. Raises ValueError where a file lists none at all.
        """
        real = cache(os.path.realpath)  # few folders hold all photos
        known = {_key(path, real): path for path in paths}
        found, lost = set(), []
        for line, meanings in self.entries:
            places = [os.path.join(folder, path) for path in meanings for folder in ("", root)]
            keys = (_key(place, real) for place in places)
            named = next((known[key] for key in keys if key in known), None)
            if named is None:
                lost.append(line)
            else:
                found.add(named)
        if self.source and not found:
            raise ValueError(
                f"{self.source}: none of {counted(len(lost), 'line')} names a photo of "
                f"{printable(root)}, for instance {printable(lost[0])!r}: paths are read as "
                f"relative to the working directory or to --data-path"
            )
        return found, lost

    def told(self, count: int, lost: Sequence[str]) -> str:
        """A line on how many photos are left out, and on lines that name none."""
        said = (
            f"{self.source or 'as in the run of these weights'}: {counted(count, 'photo')} left out"
        )
        if not (self.source and lost):
            return said
        return (
            f"{said}; {counted(len(lost), 'line')} named no photo (such as {printable(lost[0])!r})"
        )


def listed_in(name: str) -> list[Entry]:
    """The entries of a file that lists photos; ValueError or OSError, naming it, of none."""
    if os.path.isdir(name):
        raise ValueError(f"--exclude {printable(name)} is a folder: name a file that lists photos")
    entries = list(_entries(read_text(name), name))
    if not entries:
        raise ValueError(
            f"--exclude {printable(name)} lists no photo: it needs a path a line, or a table with "
            f"a column {COLUMN}"
        )
    return entries


def _entries(text: str, name: str) -> Iterator[Entry]:
    head = text.lstrip("\r\n").partition("\n")[0]
    for separator in SEPARATORS:
        _, cells = next(parse_csv(head, name, separator), (1, []))
        columns = [cell.strip().lower() for cell in cells]
        if COLUMN in columns:
            at = columns.index(COLUMN)
            rows = [cells for _, cells in parse_csv(text, name, separator)]
            column = [cells[at] for cells in rows[1:] if len(cells) > at]
            yield from (Entry(cell, _meanings(cell)) for cell in column if cell.strip())
            return
    for line in io.StringIO(text, newline=None).read().split("\n"):
        if line.strip() and not line.startswith(("# ", "#\t")):
            _, cells = next(parse_csv(line, name), (1, [""]))
            yield Entry(line, _meanings(line) + _meanings(cells[0]))  # of a table without a head


def _meanings(cell: str) -> tuple[str, ...]:
    """The paths that a cell may mean: spaces and a leading ' may be the name's, or a table's."""
    return tuple(dict.fromkeys((cell, unsafe_cell(cell), cell.strip(), unsafe_cell(cell.strip()))))


def _key(path: str, real: Callable[[str], str]) -> str:
    """What all spellings of a path have in common; links of folders are followed, not its own."""
    folder, name = os.path.split(path)
    spelt = os.path.normcase(os.path.join(real(folder), name))
    # Bytes that are no text stand in a table as `system.files.write_text` writes them.
    return composed(as_text(spelt)).encode("utf-8", "backslashreplace").decode()


def without(
    files: Files, exclusion: Exclusion | None, root: str
) -> tuple[Files, list[str], list[str]]:
    """Returns the files that are not listed, the paths of those that are, and a line on them.

    Raises ValueError where no photo of a class is left to train on, or none of another side.
    """
    if exclusion is None:
        return files, [], []
    paths = [file.path for photos in files.values() for some in photos.values() for file in some]
    listed, lost = exclusion.among(paths, root)
    kept = {
        side: {name: [f for f in some if f.path not in listed] for name, some in photos.items()}
        for side, photos in files.items()
    }
    why = f"{exclusion.source or 'the list of the run'} leaves"
    for name, some in kept["train"].items():
        if not some:
            raise ValueError(f"{why} no photo of class {printable(name)!r}: take some of them out")
    for side, photos in kept.items():
        if not any(photos.values()):
            raise ValueError(f"{why} no photo in the folder of {side}: take some of them out")
    return kept, sorted(listed), [exclusion.told(len(listed), lost)]
