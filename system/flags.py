"""How every command line is read: a table of flags in, a frozen object of options out.

    class Options(Given):                      # frozen dataclass, a row for each flag
        epochs: int = RUN.row(10, "passes over the photos", type=number(int, 0), metavar="N")

    options = parse(Options, argv, prog="train.py", description="...")

From the row come the parser, the help, which tells every default, and what a saved value may be. An
error is one sentence with the nearest flag; `options.given` says which flags were typed. A row also
says when its flag has an effect (`Need`): a typed one without effect is refused.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, TypeVar

from system.files import near_file

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
    raise argparse.ArgumentTypeError(f"{text} does not exist{near_file(text)}")


def existing_or(is_name: Callable[[str], bool]) -> Callable[[str], str]:
    """Returns a parser of a name that `is_name` takes, or of a file or folder that is there."""

    def parse(text: str) -> str:
        return text if is_name(text) else existing(text)

    FILES.add(parse)
    return parse


FILES = {existing}  # parsers of files: what is gone by now is named where it is opened


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
    """Returns `text` if `vit.mlps.parse_blocks` takes it for some number of blocks."""
    if re.fullmatch(r" *(all|last:0*[1-9]\d{0,3}|\d{1,4}( *, *\d{1,4})*) *", text, re.ASCII):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is not all, last:N or a list of block numbers such as 0,3,5"
    )


def grouping(text: str) -> str:
    """Returns `text`, one of a few words or a regular expression."""
    try:
        re.compile(given(text))
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither near-copies, folder, time or none nor a regular expression: "
            f"{error}"
        ) from None
    return text


class Help(argparse.HelpFormatter):
    """Help of 98 columns in any terminal."""

    def __init__(self, prog: str, **options) -> None:
        super().__init__(prog, **options | {"max_help_position": 30, "width": 98})


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


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What a flag has no effect without: `words` go on from "--flag needs ".

    holds(options, known) says whether it is there, None while that cannot be told. known: what came
    to light after the command line was read, by name.
    """

    words: str
    holds: Callable[[Any, Mapping[str, Any]], bool | None]


def needs_flag(name: str, words: str) -> Need:
    """Returns the need of another flag, the field `name` of the options."""
    return Need(words, lambda options, _: bool(getattr(options, name)))


@dataclass(frozen=True)
class Row:
    """What is known of a flag beside its name and default.

    names: as typed, by default --NAME; without hyphens, an argument of that place. kind: "value",
    "switch" (on if it stands there), "pair" (--x and --no-x), "maybe" (its value may be left out,
    which means true; `off` names its opposite), "list" or "optional" (an argument that may be left
    out, None then). facts: what a command asks of its rows.
    needs: what the flag has no effect without, unless its value is one of `idle`, which switch off
    what the flag is for.
    """

    section: str
    help: str
    names: tuple[str, ...]
    kind: str
    parse: dict[str, Any]  # type, choices, metavar
    off: str | None
    facts: dict[str, Any]
    needs: "Need | None" = None
    idle: tuple = ()

    @property
    def parser(self) -> Callable[[str], Any] | None:
        return self.parse.get("type")


class Section:
    """A group of flags in the help."""

    def __init__(self, title: str) -> None:
        self.title = title

    def row(self, default, help, *names, kind="value", off=None, type=None, choices=None,
            metavar=None, needs=None, idle=(), **facts) -> Any:  # fmt: skip
        """Returns the field of a dataclass for one flag: see `Row`."""
        parse = {"type": type, "choices": choices, "metavar": metavar}
        parse = {key: value for key, value in parse.items() if value is not None}
        row = Row(self.title, help, names, kind, parse, off, facts, needs, idle)
        if default is REQUIRED:
            return field(metadata={"row": row}, kw_only=True)
        return field(default=default, metadata={"row": row}, kw_only=True)


REQUIRED = object()
T = TypeVar("T", bound="Given")


@dataclass(frozen=True)
class Given:
    """Options of a command: what its flags say, and which of them were typed."""

    given: frozenset[str] = frozenset()

    @classmethod
    def rows(cls) -> Iterator[tuple[Field, Row]]:
        return ((f, f.metadata["row"]) for f in fields(cls) if "row" in f.metadata)

    def check(self) -> None:
        """Raises ValueError with a sentence where flags contradict each other."""

    def in_force(self, row: Row) -> bool:
        """Whether what a row needs is asked at all."""
        return True

    def refuse_idle(self, **known: Any) -> None:
        """Raises ValueError for a typed flag that would change nothing, naming what it needs.

        Its user would believe that it did. A value that switches off what the flag is for is taken.
        """
        for named, row in self.rows():
            if named.name not in self.given or getattr(self, named.name) in row.idle:
                continue
            if row.needs and self.in_force(row) and row.needs.holds(self, known) is False:
                raise ValueError(f"{flag_of(named.name)} needs {row.needs.words}")


def flag_of(name: str) -> str:
    """Returns the flag of a field."""
    return "--" + name.replace("_", "-")


def parse(kind: type[T], argv: Sequence[str] | None = None, **about: str) -> T:
    """Returns the options that a command line says; ends with a sentence where it is wrong.

    about: prog, description, epilog.
    """
    parser = parser_of(kind, **about)
    typed = vars(parser.parse_args(argv))
    options = kind(given=frozenset(typed), **typed)
    try:
        options.check()
        options.refuse_idle()
    except ValueError as error:
        parser.error(str(error))
    return options


def parser_of(kind: type[Given], **about: str) -> Parser:
    """Returns the parser of a table; what is not typed is absent from its result."""
    parser = Parser(argument_default=argparse.SUPPRESS, **about)
    parser.table = kind
    sections: dict[str, Any] = {"": parser}
    for named, row in kind.rows():
        if row.section not in sections:
            sections[row.section] = parser.add_argument_group(row.section)
        _add(sections[row.section], named, row)
    return parser


def _add(group, named: Field, row: Row) -> None:
    help = _told(named, row)
    names = row.names or (flag_of(named.name),)
    if not names[0].startswith("-"):
        group.add_argument(named.name, help=help, **_count_of(row), **row.parse)
        return
    common = {"dest": named.name, "default": argparse.SUPPRESS, "help": help}
    if row.kind == "switch":
        group.add_argument(*names, action="store_true", **common)
    elif row.kind == "pair":
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
    elif row.kind == "maybe":
        const = row.facts.get("const", True)
        if row.off:
            group = group.add_mutually_exclusive_group()
        group.add_argument(*names, nargs="?", const=const, **row.parse, **common)
        if row.off:
            same = f"the same as {names[0]} false (default: as there)"
            group.add_argument(row.off, action="store_false", **common | {"help": same})
    else:
        action = {"action": "extend"} if row.kind == "list" else {}  # a flag given twice adds
        group.add_argument(*names, **action, **_count_of(row), **row.parse, **common)


def _count_of(row: Row) -> dict:
    counts = {"list": {"nargs": "+"}, "optional": {"nargs": "?", "default": None}}
    return counts.get(row.kind, {})


def _told(named: Field, row: Row) -> str:
    """Returns the help of a flag with its default, where the words do not tell it."""
    positional = row.names and not row.names[0].startswith("-")
    if "(default" in row.help or positional:
        return row.help
    words = {"None": "none", "False": "off", "True": "on"}
    value = named.default
    told = f"{value:g}" if isinstance(value, float) else words.get(str(value), str(value))
    return f"{row.help} (default: {told})"


def gives(row: Row, value: object) -> bool:
    """Whether a flag gives `value` for some text: for what was saved and may have been edited."""
    if row.kind == "list":
        one = replace(row, kind="value")
        return isinstance(value, list) and bool(value) and all(gives(one, part) for part in value)
    if row.kind in ("switch", "pair"):
        return isinstance(value, bool)
    if row.parser in {None, str, *FILES}:
        return isinstance(value, str) and value in row.parse.get("choices", (value,))
    if type(value) not in (str, int, float, bool, tuple):
        return False
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    try:
        return row.parser(text) == value
    except argparse.ArgumentTypeError:
        return False
