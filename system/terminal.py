"""What a command says: names that cannot steer a terminal, columns, errors of one sentence."""

import contextlib
import faulthandler
import os
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

BAR_WIDTH = 30
MOST_NAMED = 10  # names in a sentence
EIGHTHS = " ▏▎▍▌▋▊▉"


def printable(text: str) -> str:
    """A file's or class's name for a terminal, a log or a page.

    Bytes that are no UTF-8 (Python keeps them as surrogates) and control characters, which could
    steer a terminal or begin a new line, are written as \\xNN.
    """
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair of surrogates, as JSON can hold
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if text.isprintable():
        return text
    escaped = {"Cc", "Zl", "Zp"}  # control characters, line and paragraph separators
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in escaped else c for c in text)


def run_cli(main: Callable[[], int | None]) -> None:
    """Runs a command line's `main`; a user's mistake ends in one sentence and exit status 2.

    KAN_VIT_TRACEBACK=1 in the environment shows the traceback behind the sentence. A crash below
    Python (a library's, or native.c's) leaves where each thread was on standard error.
    """
    prog = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):  # names of files and classes, whatever the encoding
        stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(OSError):  # a standard error that is no file, as a notebook's
        if not faulthandler.is_enabled():
            faulthandler.enable()
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left: nothing to say, nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (ValueError, OSError) as error:
        if os.environ.get("KAN_VIT_TRACEBACK"):
            raise
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def one_line(error: Exception) -> str:
    """Returns an error's message on one line, an operating system's with the file's name first."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    # Names of files and classes must not steer the terminal.
    return printable(" ".join(text.split())) or type(error).__name__


def counted(count: int, what: str, several: str = "") -> str:
    """Returns "1 photo" or "2 photos"; several: a plural that is not `what` and s."""
    return f"{count} {what if count == 1 else several or f'{what}s'}"


def listed(names: Sequence[str]) -> str:
    """Returns "a", "a and b", "a, b and c", or the first MOST_NAMED "and 3 more"."""
    left = len(names) - MOST_NAMED
    *some, last = [*names[:MOST_NAMED], f"{left} more"] if left > 0 else names
    return f"{', '.join(some)} and {last}" if some else last


def command(*words: object) -> str:
    """Returns a command line that survives pasting into a shell, whatever its words hold."""
    return " ".join(map(_quoted, words))


def _quoted(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):  # or it would be taken for a flag
        text = os.path.join(".", text)
    text = printable(text)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def pad(text: str, width: int, align: str = "<") -> str:
    """`text` with spaces on its right (`<`) or its left (`>`) up to `width` columns."""
    spaces = " " * (width - display_width(text))
    return text + spaces if align == "<" else spaces + text


def table(rows: Sequence[Sequence[str]], align: str, gap: str = "  ") -> list[str]:
    """Returns rows of cells as lines with columns as wide as their widest cell.

    align: for each column `<` or `>`.
    """
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, align, strict=True)
        return gap.join(pad(cell, width, side) for cell, width, side in cells).rstrip()

    return [line(row) for row in rows]


def bar(probability: float, encoding: str | None = "utf-8") -> str:
    """A bar of up to BAR_WIDTH columns, in eighths of a column where the encoding has them."""
    if not (encoding or "").lower().replace("-", "").startswith("utf"):
        return "#" * round(probability * BAR_WIDTH)
    whole, eighth = divmod(round(probability * BAR_WIDTH * 8), 8)
    return "█" * whole + EIGHTHS[eighth].strip()
