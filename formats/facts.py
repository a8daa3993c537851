"""Decides what no tensor tells of a model, by what its files state and the tables of `fact_table`.

    levels = [[Source("the file itself", extras)], [Source("config.json", config)], ...]
    facts = decide(levels, "timm", has_head=True)
    facts.values["num_heads"], facts.lines()

A level is believed before those after it. Two statements of one level that contradict each other
are refused, and so is a value that our model cannot follow.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from formats.architectures import facts_of, short
from formats.fact_table import (
    ARCHITECTURE,
    CLASS_LISTS,
    CLASS_NUMBERS,
    CONTAINERS,
    FACTS,
    IN_FILE_NAME,
    MODEL_NAMES,
    NO,
    Fact,
)
from system.files import json_or_text

DEEPEST = 4  # containers within containers


@dataclass(frozen=True)
class Source:
    """What one place states: `said` holds (value, key as written) by key.

    name: how words call the place. keys: all of them, as written.
    """

    name: str
    said: dict[str, list[tuple[Any, str]]]

    @classmethod
    def of(cls, name: str, stated: Mapping) -> "Source":
        """Reads a config, metadata (values are JSON) or what stands beside weights."""
        said: dict[str, list[tuple[Any, str]]] = {}
        _collect(stated, "", said, 0)
        return cls(name, said)

    @classmethod
    def of_file_name(cls, path: Path) -> "Source":
        """What the name of a file says: the model's, where it looks like one of timm's."""
        found = re.search(IN_FILE_NAME, path.name.lower())
        named = found[1] + (found[2] or "") if found else ""
        return cls("its name", {"arch": [(named, "arch")]} if found else {})


def _collect(stated: Mapping, above: str, said: dict, depth: int) -> None:
    for key, value in stated.items():
        if not isinstance(key, str) or isinstance(value, Tensor):
            continue
        if isinstance(value, str) and value[:1] in '[{0123456789-tfn"':
            value = json_or_text(value)
        if isinstance(value, Mapping) and key in CONTAINERS and depth < DEEPEST:
            _collect(value, f"{above}{key}.", said, depth + 1)
        elif value is not None:
            said.setdefault(key, []).append((value, above + key))


@dataclass
class Decided:
    """values: of fields (num_heads, mean ...). told, assumed: facts in words, with whence.

    whence: the place alone, of facts that a file states. names: of the model, as stated. ignored:
    keys that no table names, by place. not_followed: in words, what our model cannot do. seen:
    parts that are stated to be there or not, by fact.
    """

    values: dict[str, Any] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    whence: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    not_followed: list[str] = field(default_factory=list)
    seen: dict[str, bool] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)

    def assume(self, fact: Fact, value: Any) -> None:
        """Takes a value that nothing tells."""
        self.assumed[fact.name] = f"{value:g}" if isinstance(value, float) else value
        if fact.sets:
            self.values[fact.sets] = fact.means.get(value, value)


def decide(
    levels: Sequence[Sequence[Source]],
    format_name: str,
    has_head: bool,
    allow_partial: bool = False,
) -> Decided:
    """Returns what is believed of each fact, the first level that tells it deciding.

    Raises ValueError, worded to follow a file's name, for contradictions within a level and for
    values that our model cannot follow, which `allow_partial` lists instead.
    """
    found: dict[str, tuple[Any, str]] = {}  # fact -> (value, whence)
    for level in levels:
        stated = {fact.name: said for fact in FACTS if (said := _stated(fact, level))}
        named = _implied(level)
        if "kind of norm" in stated and "norm epsilon" in named:  # timm's norms by name have 1e-6
            named["norm epsilon"] = (1e-6, stated["kind of norm"][1])
        for name, said in (named | stated).items():
            found.setdefault(name, said)
    decided = Decided(names=_names_of_model(levels), ignored=_ignored(levels))
    for fact in FACTS:
        if fact.name in found:
            refusal = _follow(fact, *found[fact.name], has_head, decided)
            if refusal and not allow_partial:
                raise ValueError(f"has {refusal}; train.py --allow-partial trains without it")
            decided.not_followed += [refusal] * bool(refusal)
        else:
            value = fact.default.get(format_name, fact.default.get(""))
            if value is not None:
                decided.assume(fact, value)
    return decided


def _stated(fact: Fact, level: Sequence[Source]) -> tuple[Any, str] | None:
    """Returns (value, whence) of a fact that a level states, None where it does not."""
    said = [
        (value, f"{key} in {source.name}")
        for source in level
        if not fact.needs or any(key in source.said for key in fact.needs)
        for spelling in fact.keys
        for value, key in source.said.get(spelling, ())
    ]
    for value, whence in said[1:]:
        if _meaning(fact, value) != _meaning(fact, said[0][0]):
            first = f"{_short(said[0][0])} ({said[0][1]})"
            raise ValueError(
                f"has two {fact.name}, {first} and {_short(value)} ({whence}); make them agree"
            )
    return said[0] if said else None


def _meaning(fact: Fact, value: Any) -> Any:
    """Returns what two spellings of a value have in common."""
    value = _lower(value)
    if fact.square and not _is_oblong(value):
        return True  # how long the sides are, shapes tell
    if fact.sets is None and _is_among(value, fact.takes):
        return True  # it is followed, whatever it is called
    if fact.seen:
        return not _is_among(value, NO)
    if isinstance(value, str | bool | int | float):
        return fact.means.get(value, value)
    return list(value) if isinstance(value, tuple) else value


def _names_of_model(levels: Sequence[Sequence[Source]]) -> list[str]:
    return [
        value.lower()
        for source in (source for level in levels for source in level)
        for key in MODEL_NAMES
        for value, _ in source.said.get(key, ())
        if isinstance(value, str)
    ]


def _implied(level: Sequence[Source]) -> dict[str, tuple[Any, str]]:
    """Returns {fact: (value, whence)} that the model's name in this level tells.

    A known name of timm's tells every fact that its family has, or has not.
    """
    implied: dict[str, tuple[Any, str]] = {}
    for source in level:
        for key in MODEL_NAMES:
            for value, written in source.said.get(key, ()):
                if isinstance(value, str):
                    whence = f"{written} {value} in {source.name}"
                    if source.name == "its name":
                        whence = f"its name has {value!r}"
                    implied |= _told_by_name(value, whence, key == ARCHITECTURE)
    return implied


def _told_by_name(name: str, whence: str, must_be_known: bool) -> dict[str, tuple[Any, str]]:
    told = facts_of(name)
    if told is None:
        if must_be_known:
            raise ValueError(
                f"is of the architecture {short(name)!r} ({whence}), which is not known here; if "
                f"it is a plain Vision Transformer, leave that entry out"
            )
        return {}
    plain = {f.name: f.takes[0] for f in FACTS if f.takes and not f.sets and not f.seen}
    plain |= {f.name: f.plain for f in FACTS if f.plain is not None}
    return {fact: (value, whence) for fact, value in (plain | told).items()}


def _follow(fact: Fact, value: Any, whence: str, has_head: bool, decided: Decided) -> str | None:
    """Takes a value that is told, or returns in words that our model cannot follow it."""
    value = _lower(value)
    taken = (*fact.takes, *(() if has_head else fact.headless))
    shapeless = fact.square and (_is_oblong(value) or not _is_count(_side(value)))
    if shapeless or (fact.takes and not _is_among(value, taken)):
        return f"{fact.name}: {_short(value)} ({whence}), which is not supported"
    decided.told[fact.name] = f"{_short(value)} ({whence})"
    decided.whence[fact.name] = whence
    if fact.seen:
        decided.seen[fact.name] = not _is_among(value, NO)
    if fact.sets and not (fact.takes and _is_among(value, fact.headless)):
        value = _side(value) if fact.square else value
        key = value if isinstance(value, str | bool | int | float) else None
        decided.values[fact.sets] = fact.means.get(key, value)
    return None


def misfits(decided: Decided, sizes: Mapping[str, Any]) -> list[str]:
    """Returns in words what is stated of parts and said otherwise by the tensors.

    sizes: fields of `ViTConfig` that shapes tell.
    """
    sizes = {**sizes, "last_norm": sizes["final_norm"] or sizes["fc_norm"]}
    words = []
    for fact in FACTS:
        if fact.name in decided.seen:
            name, _, value = fact.seen.partition(":")
            has = sizes[name] in (value, "both") if value else sizes[name] not in (False, "none")
            if has != decided.seen[fact.name]:
                words.append(
                    f"{fact.name}: {decided.told[fact.name]}, but its tensors have "
                    f"{'it' if has else 'none'}"
                )
    return words


def _side(value: Any) -> Any:
    """Returns the one side of what is stated as one, or as two that are equal."""
    sides = [*value.values()] if isinstance(value, Mapping) else value
    return sides[0] if isinstance(sides, list | tuple) and sides else value


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number above zero."""
    return type(value) in (int, float) and value > 0 and value == value // 1 < 1e6


def _is_oblong(value: Any) -> bool:
    """Whether a size is of two sides that differ."""
    sides = [*value.values()] if isinstance(value, Mapping) else value
    return isinstance(sides, list | tuple) and len(set(map(str, sides))) > 1


def _is_among(value: Any, values: tuple) -> bool:
    """Whether a value is one of several; 1 is true and 0 false, as scripts write them."""
    return any(type(value) in (bool, int, float, str) and value == other for other in values)


def _lower(value: Any) -> Any:
    return value.strip().lower().removesuffix("()") if isinstance(value, str) else value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ignored(levels: Sequence[Sequence[Source]]) -> dict[str, list[str]]:
    """Returns {place: keys that no table names}."""
    known = {key for fact in FACTS for key in fact.keys} | {*MODEL_NAMES}
    known |= {*CLASS_LISTS, *CLASS_NUMBERS}
    ignored = {}
    for source in (source for level in levels for source in level):
        keys = [written for key, said in source.said.items() if key not in known
                for _, written in said]  # fmt: skip
        if keys:
            ignored[source.name] = sorted(keys)
    return ignored


def class_names(
    levels: Sequence[Sequence[Source]], count: int, one_logit: bool = False
) -> tuple[list[str] | None, str]:
    """Returns (names of `count` classes in order, whence), or (None, why not).

    one_logit: the two classes are a yes, which may have a name, and its opposite.
    """
    misfit = ""
    for source in (source for level in levels for source in level):
        for key in (*CLASS_LISTS, *CLASS_NUMBERS):
            for value, written in source.said.get(key, ()):
                names = _names(value, key in CLASS_NUMBERS, count)
                if not names or "LABEL_0" in names:
                    continue
                if one_logit and len(names) == 1:
                    names = [f"not {names[0]}", *names]
                if len(names) == count:
                    return names, f"{written} in {source.name}"
                misfit = f"{written} in {source.name} names {len(names)}, the head has {count}"
    return None, misfit


def _names(value: Any, numbers: bool, count: int) -> list[str] | None:
    """Returns a list of names from a list, {number: name} or {name: number}.

    A number of `count` that has no name keeps its number.
    """
    if isinstance(value, Mapping):
        if not numbers and not all(isinstance(v, str) for v in value.values()):
            return None
        pairs = [(v, k) if numbers else (k, v) for k, v in value.items()]
        table = {str(number): str(name) for number, name in pairs}
        if not table or not all(number.isdecimal() for number in table):
            return None
        last = max(map(int, table))
        return [table.get(str(i), str(i)) for i in range(count)] if last < count else [*table]
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return list(value)
    return None
