"""Files that appear whole or not at all; text from outside, JSON, CSV; names in a folder."""

import codecs
import contextlib
import csv
import difflib
import errno
import hashlib
import io
import json
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

WEIGHTS_FOLDER = Path("weights")  # of pretrained files and, in folders of it, of runs
REPLACE_TRIES = 20  # of 0.1 s each
MOST_OF_NAME = 50  # characters in a temporary name, which may have 255 bytes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Names of devices, which no file on Windows may have, whatever its ending.
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"}
RESERVED |= {f"{device}{n}" for device in ("com", "lpt") for n in "0123456789¹²³"}
# Byte order marks; UTF-32's starts as UTF-16's does. A codec without -le or -be takes the mark off.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HEAD_BYTES = 256  # by which `encoding_of` judges


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """What the disk refuses in here to a file without a name of its own is an OSError of `path`."""
    try:
        yield
    except OSError as error:
        # A copy's error names what is read, even if it is the disk that is full.
        if error.errno in FULL or str(error.filename or ".tmp").endswith(".tmp"):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


@contextlib.contextmanager
def appearing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty file beside `path` to write to, which becomes `path` at the end, or goes.

    A program killed while writing leaves a hidden `.NAME.*.tmp`, which `clear_temporary` removes.
    What the disk refuses is an OSError with the name of the file that was to appear.
    """
    path = Path(path)
    with named(path):
        handle, temporary = tempfile.mkstemp(".tmp", _beginning(path.name), path.parent)
        try:
            os.close(handle)
            os.chmod(temporary, 0o644)  # mkstemp's files are private, a result is not
            yield Path(temporary)
            _replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _beginning(name: str) -> str:
    """Of the names of a file's temporary ones."""
    return f".{name[:MOST_OF_NAME]}."


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[io.BufferedWriter]:
    """Opens a file that appears whole or not at all, see `appearing`: flushed, then renamed."""
    with appearing(path) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _replace(temporary: str, path: Path) -> None:
    """os.replace, which Windows refuses while another program reads `path`: some are soon done."""
    for _ in range(REPLACE_TRIES):
        try:
            os.replace(temporary, path)
            return
        except PermissionError as error:
            refusal = error
            time.sleep(0.1)
    reason = f"{refusal.strerror} (is it open in another program?)"
    raise PermissionError(refusal.errno, reason, str(path))


def clear_temporary(folder: str | os.PathLike, names: Iterable[str]) -> None:
    """Removes what writers of `names` in `folder` left when they were killed."""
    for name in names:
        for path in Path(folder).glob(f"{_beginning(name)}*.tmp"):
            path.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def write_picture(path: str | os.PathLike, save: Callable, **options) -> None:
    """Writes what `save` gives: of a PIL image or a figure of matplotlib, with its options.

    Through memory, for Pillow takes half a picture on a full disk for a whole one.
    """
    save(buffer := io.BytesIO(), **options)
    with appearing(path) as file:
        file.write_bytes(buffer.getvalue())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8; bytes of a file's name that are none become \\udcNN, as JSON escapes them."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, value) -> None:
    write_text(path, json.dumps(value, indent=4, ensure_ascii=False) + "\n")


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes: what its byte order mark says, else UTF-8.

    Windows writes UTF-16, also without a mark: then three letters in a row betray it, each beside
    its zero bytes. In a list separated by NULs that would be three names of one letter.
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be") if b"\0" in head else ():
        text = head.decode(encoding, "replace")
        if re.search(r"[\t\r\n -~]{3}", text) or re.fullmatch(r"[\t\r\n -~]+\ufffd?", text):
            return encoding
    return "utf-8"


def decode_text(data: bytes, name: object) -> str:
    """Text from outside in UTF-8, UTF-16 or UTF-32, without its byte order mark, if it has one.

    Line ends stay as they are. Raises ValueError, naming `name`, for bytes that are no such text.
    """
    try:
        text = data.decode(encoding_of(data[:HEAD_BYTES]))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{name} is not text in UTF-8 (line {line}): save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{name} holds zero bytes, which no text does: save it as UTF-8")
    return text


def read_text(path: str | os.PathLike) -> str:
    """Returns what a text file from outside holds; see `decode_text`."""
    return decode_text(Path(path).read_bytes(), path)


def read_json(path: str | os.PathLike) -> Any:
    """Returns what a JSON file holds; raises ValueError, naming it, where it is none."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError:
        raise ValueError(f"{path} is not JSON: it was damaged or edited; restore it") from None


def parse_json(text: str) -> Any:
    """`json.loads` that raises ValueError, too, for what is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def json_or_text(text: str) -> Any:
    """What JSON says, or the text where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def sha256_of(path: str | os.PathLike) -> str:
    """The digest of a file, 64 digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_csv(path: str | os.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a CSV file with their lines' numbers; empty lines are passed over.

    Raises ValueError, naming the file, for what is no such text.
    """
    yield from parse_csv(read_text(path), path)


def parse_csv(text: str, name: object, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of CSV as `read_csv` does those of the file `name`."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}") from None


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes `rows` (dicts with the same keys) as CSV with a header."""
    write_table(path, [list(rows[0]), *(list(row.values()) for row in rows)])


def write_table(path: str | os.PathLike, rows: list[list]) -> None:
    """Writes rows of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins what a spreadsheet would run


def safe_cell(text: str) -> str:
    """`text` for a spreadsheet: a leading ' stops what would otherwise run as a formula."""
    return "'" + text if text.startswith(FORMULA) else text


def unsafe_cell(cell: str) -> str:
    """The text of which `safe_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def json_if_any(path: Path) -> Any:
    """Returns what a JSON file that need not be there holds; None where none can be read."""
    try:
        return read_json(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


def near_file(path: str | os.PathLike) -> str:
    """Returns "; did you mean FILE?" with the nearest name of its folder, "" where none is."""
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError):
        if near := difflib.get_close_matches(name, os.listdir(folder or "."), n=1, cutoff=0.7):
            return f"; did you mean {os.path.join(folder, near[0])}?"
    return ""


def composed(name: str) -> str:
    """`name` with accents as single characters: macOS writes them decomposed, others do not."""
    return unicodedata.normalize("NFC", name)


class FreshNames:
    """Gives file names inside one output folder: `x.jpg`, then `x-2.jpg` for the next `x.jpg`.

    own: whether a file that is there already was made of the same source, (source, file) -> bool:
    its name is given again, so that a repeated run replaces its own files and no others. Only
    hashes are remembered: a hundred thousand names take a few megabytes.
    """

    def __init__(self, folder: str, own: Callable[[str, Path], bool] = lambda *_: False):
        self.folder, self.own = Path(folder), own
        make_output_folder(self.folder)
        self.real = os.path.realpath(self.folder)
        self.used: set[int] = set()

    def path(self, source: str, *suffixes: str, subfolder: str = "") -> Path:
        """Where to write what is made of `source`: with the first suffix, and all are free.

        Raises ValueError if that could touch an input.
        """
        here = os.path.realpath(os.path.dirname(source) or ".")
        if os.path.commonpath([here, self.real]) == self.real:
            raise ValueError(
                f"{source} lies in the output folder {self.folder}; choose another one"
            )
        stem, number = Path(source).stem, 1
        name = stem
        while not self._take(source, [f"{name}{suffix}" for suffix in suffixes], subfolder):
            number += 1
            name = f"{stem}-{number}"
        return self.folder / subfolder / f"{name}{suffixes[0]}"

    def _take(self, source: str, names: list[str], subfolder: str) -> bool:
        """Whether these names are free, and from now on no more."""
        # macOS and Windows take names for one that differ in case, macOS also in how accents stand.
        key = hash((subfolder, composed(names[0]).lower()))
        paths = [self.folder / subfolder / name for name in names]
        if key in self.used or not all(self._may_replace(source, path) for path in paths):
            return False
        self.used.add(key)
        return True

    def _may_replace(self, source: str, path: Path) -> bool:
        if not os.path.lexists(path):
            return True
        with contextlib.suppress(OSError):  # what cannot be read is not known to be ours
            return path.is_file() and not path.is_symlink() and self.own(source, path)
        return False


def make_output_folder(folder: Path) -> None:
    """Creates `folder` and proves that files can be written there, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write into the folder {folder}: {error.strerror or error}"
        ) from error


def folder_name(class_name: str) -> str:
    """`class_name` as the name of one folder on any system: no separators, no `..`, no device."""
    kept = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in class_name)
    # File systems allow 255 bytes for a name; a class called ".." or "..." is left with nothing.
    kept = (
        kept.encode("utf-8", "replace")[:200].decode("utf-8", "ignore").strip().strip(".").strip()
    )
    device = kept.lower().split(".")[0].rstrip() in RESERVED
    return f"_{kept}" if device or not kept else kept
