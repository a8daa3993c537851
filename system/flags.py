"""How every command line is read: one sentence an error, help that tells defaults, value types."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence

ON, OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
LARGEST = 10**9  # whole number of a flag: what is computed from it still fits 64 bits
DEVICES = "auto, cpu, cuda, cuda:1, mps (default: auto, the first there is of cuda, mps, cpu)"


def on_off(text: str) -> bool:
    """Returns what "true" or "false" (yes/no, on/off, 1/0) says; `bool("False")` would be True."""
    if text.lower() in ON:
        return True
    if text.lower() in OFF:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def given(text: str) -> str:
    """Returns `text`; refuses an empty one, which is what a shell makes of an unset variable."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def existing(text: str) -> str:
    """Returns `text` where a file or folder has that name."""
    if os.path.exists(given(text)):
        return text
    raise argparse.ArgumentTypeError(f"{text} does not exist")


def number(kind: type, low: float, high: float | None = None, open_low=False) -> Callable:
    """Returns a parser of one number in [low, high], or (low, high] with `open_low`.

    Without `high`, whole numbers end at LARGEST, other numbers below infinity.
    """
    if high is None:
        high = LARGEST if kind is int else float("inf")

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {word}") from None
        inside = (low < value if open_low else low <= value) and value <= high
        if not inside or value == float("inf"):  # nan is never inside
            bound = f"above {low:g}" if open_low else f"at least {low:g}"
            if high != float("inf"):
                bound += f" and at most {high if kind is int else f'{high:g}'}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bound}")
        return value

    return parse


def number_or(words: Sequence[str], parse: Callable) -> Callable:
    """Returns a parser of one of `words` or of what `parse` takes."""

    def parse_either(text: str):
        if text in words:
            return text
        try:
            return parse(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error} (or {' or '.join(words)})") from None

    return parse_either


def numbers(count: int, what: str) -> Callable:
    """Returns a parser of `count` finite numbers separated by commas or spaces, as a tuple."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.replace(",", " ").split())
        except ValueError:
            values = ()
        if len(values) != count or not all(abs(v) < float("inf") for v in values):
            example = ",".join(["0.5"] * count)
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {what}: {count} numbers such as {example}"
            )
        return values

    return parse


def std_values(text: str) -> tuple[float, ...]:
    values = numbers(3, "a standard deviation")(text)
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0, for images are divided by it")
    return values


def value_range(text: str) -> str | tuple[float, float]:
    """Returns "auto" or (low, high) from "LOW,HIGH"."""
    if text == "auto":
        return text
    low, high = numbers(2, "auto or a range LOW,HIGH")(text)
    if low >= high:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: LOW must be below HIGH")
    return low, high


def block_list(text: str) -> str:
    """Returns `text` if `vit_model.parse_blocks` takes it for some number of blocks."""
    if re.fullmatch(r" *(all|last:0*[1-9]\d{0,3}|\d{1,4}( *, *\d{1,4})*) *", text, re.ASCII):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is not all, last:N or a list of block numbers such as 0,3,5"
    )


class Help(argparse.HelpFormatter):
    """Help of 98 columns in any terminal; every flag tells its default."""

    def __init__(self, prog: str, **options) -> None:
        super().__init__(prog, **options | {"max_help_position": 30, "width": 98})

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        is_help = action.default == argparse.SUPPRESS
        if "(default" in text or is_help or action.required or not action.option_strings:
            return text
        value = action.default
        words = {"None": "none", "False": "off", "True": "on"}
        told = f"{value:g}" if isinstance(value, float) else words.get(str(value), "%(default)s")
        return f"{text} (default: {told})"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, with the nearest flag for an unknown one."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Help, **options)
        self.register("type", None, given)  # what takes a name takes no empty one

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_args(self, args=None, namespace=None):
        """Flags may be spelled with `_` or `-`, and `--kan-range -2,2` needs no equals sign."""
        args = spell(sys.argv[1:] if args is None else args)
        namespace, unknown = self.parse_known_args(args, namespace)
        flags = [word for word in unknown if word.startswith("-")]
        if flags:
            flag = flags[0].split("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists all flags"
            self.error(f"unknown flag {flag}: {hint}")
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}: --help shows what is understood")
        return namespace


def spell(argv: Sequence[str]) -> list[str]:
    """Returns `argv` with flags spelled with hyphens and negative ranges tied to their flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] in ("--kan-range", "--mean") and word.startswith("-"):
            words[-1] += f"={word}"
        elif word.startswith("--") and "--" not in words:  # what follows -- are names of files
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-") + equals + value)
        else:
            words.append(word)
    return words
