"""GRAFCET drawings (IEC 60848) from a few lines of text.

    name G1
    title A training run
    step 0 initial parse_args in training/flags.py: wait for a command
    either                               # divergence: single line, each branch has a condition
      when new run
      step 1 start in train.py: data, model
      when ready
    or
      when `--dry-run`
      to 0                               # a link that goes on at step 0
    end                                  # convergence of the branches that have not left
    both                                 # simultaneous sequences: double line
      step 2 ...
    and
      step 3 ...
    end
    when both done
    part                                 # what follows is a GRAFCET of its own
    step 20 forcing F/G1{0}: killed         # a forcing order stands in a double frame

Steps and transitions alternate on every path, which `parse` checks. Words between backticks are
names of the code.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from svg import WIDTH, Page, Rect, shown_file, text_width, wrap

STEP = 30  # side of a step's square
LINK = 10  # length of the links between things
GAP = 10  # between branches
SIZE = 11.5
MARGIN = 14


@dataclass
class Step:
    number: int
    initial: bool
    forcing: bool
    code: str
    file: str
    words: str


@dataclass
class When:
    words: str


@dataclass
class Jump:
    steps: list[int]


@dataclass
class Split:
    """Alternative (kind "either") or simultaneous ("both") sequences."""

    kind: str
    branches: list[list]


@dataclass
class Grafcet:
    name: str = ""
    title: str = ""
    parts: list[list] = field(default_factory=lambda: [[]])

    def steps(self) -> Iterator[Step]:
        for part in self.parts:
            yield from _steps_of(part)


def _steps_of(sequence: list) -> Iterator[Step]:
    for item in sequence:
        if isinstance(item, Step):
            yield item
        elif isinstance(item, Split):
            for branch in item.branches:
                yield from _steps_of(branch)


STEP_LINE = re.compile(r"step (\d+)( initial)?( forcing)? ([^:]+?)(?: in (\S+))?: (.+)")


def parse(text: str) -> Grafcet:
    """Reads a description. Raises ValueError where it is none, or breaks a rule of GRAFCET."""
    grafcet = Grafcet()
    open_lists = [grafcet.parts[0]]
    splits: list[Split] = []
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word in ("name", "title"):
            setattr(grafcet, word, rest)
        elif word == "part":
            grafcet.parts.append([])
            open_lists = [grafcet.parts[-1]]
        elif line in ("either", "both"):
            splits.append(Split(line, [[]]))
            open_lists[-1].append(splits[-1])
            open_lists.append(splits[-1].branches[0])
        elif line in ("or", "and") and splits:
            splits[-1].branches.append([])
            open_lists[-1] = splits[-1].branches[-1]
        elif line == "end" and splits:
            splits.pop()
            open_lists.pop()
        else:
            open_lists[-1].append(_leaf(word, rest, line))
    check(grafcet)
    return grafcet


def _leaf(word: str, rest: str, line: str) -> Step | When | Jump:
    match = STEP_LINE.fullmatch(line)
    if match:
        number, initial, forcing, code, file, words = match.groups()
        return Step(int(number), bool(initial), bool(forcing), code, file or "", words)
    if word == "when" and rest:
        return When(rest)
    if word == "to" and re.fullmatch(r"\d+( \d+)*", rest):
        return Jump([int(number) for number in rest.split()])
    raise ValueError(f"not a line of a GRAFCET description: {line!r}")


def check(grafcet: Grafcet) -> None:
    """Raises ValueError where steps and transitions do not alternate or a link leads nowhere."""
    numbers = [step.number for step in grafcet.steps()]
    if len(set(numbers)) < len(numbers):
        raise ValueError("two steps have the same number")
    for part in grafcet.parts:
        _follow(part, "start", set(numbers))


def _follow(sequence: list, last: str, known: set[int]) -> str:
    """Walks along a sequence; returns what it ends with: "step", "when" or "gone"."""
    for item in sequence:
        kind = type(item).__name__.lower()
        if isinstance(item, Split):
            wanted = "step" if item.kind == "either" else "when"
            if last != wanted:
                raise ValueError(f"{item.kind!r} must follow a {wanted}, not a {last}")
            ends = {_follow(branch, last, known) for branch in item.branches} - {"gone"}
            if len(ends) > 1 or (item.kind == "both" and ends != {"step"}):
                raise ValueError(f"the branches of {item.kind!r} end differently: {sorted(ends)}")
            last = ends.pop() if ends else "gone"
            continue
        if last in (kind, "gone") or (kind == "jump" and last != "when"):
            raise ValueError(f"{item} cannot follow a {last}")
        if kind == "jump" and not set(item.steps) <= known:
            raise ValueError(f"a link leads to a step that is not there: {item.steps}")
        last = "gone" if kind == "jump" else kind
    return last


# --- sizes --------------------------------------------------------------------------------------


def plain(words: str) -> str:
    return words.replace("`", "")


def action_size(step: Step, most: float) -> tuple[float, float, list[str]]:
    """Width and height of the box beside a step, which is at most `most` wide, and its lines."""
    file = shown_file(step.file, most - 12)
    code = max(text_width(word, 10.5, mono=True) for word in (step.code, file or " "))
    lines = wrap(plain(step.words), max(code, most - 12), SIZE)
    width = max([code, 24, *(text_width(line, SIZE) for line in lines)]) + 12
    return width, 13 * len(lines) + 13 * (1 + bool(step.file)) + 9, lines


def condition_lines(when: When, room: float) -> list[str]:
    return wrap(plain(when.words), room - 24, SIZE)


def height_of(item, room: float) -> float:
    """The height of one thing, with the links at its ends, in a column `room` wide."""
    if isinstance(item, Step):
        return max(STEP, action_size(item, room - STEP - 10)[1])
    if isinstance(item, When):
        return max(2 * LINK, 13 * len(condition_lines(item, room)) + 8)
    if isinstance(item, Jump):
        return LINK + 20
    rooms = branch_rooms(item, room)
    inner = max(height_of_sequence(b, r) for b, r in zip(item.branches, rooms, strict=True))
    if item.kind == "both":
        return inner + 3 * LINK
    return inner + LINK * (1 + converges(item))


def height_of_sequence(sequence: list, room: float) -> float:
    between = LINK * sum(isinstance(item, Step) for item in sequence[:-1])
    return sum(height_of(item, room) for item in sequence) + between


def branch_rooms(split: Split, room: float) -> list[float]:
    """Shares the width among the branches: what each needs, and the rest in equal parts."""
    needs = [need_of(branch) for branch in split.branches]
    rest = room - sum(needs) - GAP * (len(needs) - 1)
    return [need + rest / len(needs) for need in needs]


def need_of(sequence: list) -> float:
    """The least width of a column: no word of a condition is cut, no name of an action."""
    needs = [0.0]
    for item in sequence:
        if isinstance(item, Step):
            needs.append(STEP + 10 + action_size(item, 0)[0])
        elif isinstance(item, When):
            needs.append(28 + max(text_width(word, SIZE) for word in plain(item.words).split()))
        elif isinstance(item, Split):
            some = [need_of(branch) for branch in item.branches]
            needs.append(sum(some) + GAP * (len(some) - 1))
    return max(needs)


def leaves(sequence: list) -> bool:
    """Whether a sequence ends with links to elsewhere."""
    last = sequence[-1]
    if isinstance(last, Split):
        return all(leaves(branch) for branch in last.branches)
    return isinstance(last, Jump)


def converges(split: Split) -> bool:
    return sum(not leaves(branch) for branch in split.branches) > 1


# --- drawing ------------------------------------------------------------------------------------


def draw(grafcet: Grafcet) -> tuple[Page, float]:
    """Returns the page and its height."""
    page = Page(f"GRAFCET: {grafcet.title}")
    page.text(f"GRAFCET {grafcet.name}", MARGIN, 24, 9.5, "soft")
    page.text(grafcet.title, MARGIN, 40, 13, bold=True)
    y, room = 58.0, WIDTH - 2 * MARGIN
    for part in grafcet.parts:
        y = draw_sequence(page, part, MARGIN + STEP / 2 + 3, y, room) + 22
    return page, y - 6


def draw_sequence(page: Page, sequence: list, x: float, y: float, room: float) -> float:
    """Draws things below one another on the axis x; returns where they end."""
    for number, item in enumerate(sequence):
        height = height_of(item, room)
        if isinstance(item, Step):
            draw_step(page, item, x, y, room)
            if number + 1 < len(sequence):
                link(page, x, y + STEP, y + height + LINK)
                y += LINK
        elif isinstance(item, When):
            draw_condition(page, item, x, y, y + height, room)
        elif isinstance(item, Jump):
            draw_jump(page, item, x, y)
        else:
            draw_split(page, item, x, y, y + height, room)
        y += height
    return y


def link(page: Page, x: float, top: float, bottom: float) -> None:
    page.line("line", "link", [(x, top), (x, bottom)])


def bar(page: Page, x: float, right: float, y: float) -> None:
    page.lines.append(("bar", (x, y), (right, y)))
    page.add(f'<path class="line" d="M{x:.1f} {y:.1f}L{right:.1f} {y:.1f}"/>')


def draw_step(page: Page, step: Step, x: float, y: float, room: float) -> None:
    half = STEP / 2
    page.box(f"step {step.number}", Rect(x - half, y, x + half, y + STEP))
    if step.initial:  # the double square
        page.rect("frame-in", Rect(x - half + 3.5, y + 3.5, x + half - 3.5, y + STEP - 3.5))
    page.text(f"{step.number}", x, y + half + 4.3, 12, anchor="middle", bold=True)
    left = x + half + 9
    width, height, lines = action_size(step, room - STEP - 10)
    page.line("line", f"action of {step.number}", [(x + half, y + half), (left, y + half)])
    place = Rect(left, y, left + width, y + height)
    page.box(f"action {step.number}", place)
    if step.forcing:
        page.rect("frame-in", place.grown(-2.5))
    baseline = y + 14
    page.text(step.code, left + 6, baseline, 10.5, mono=True)
    if step.file:
        baseline += 13
        page.text(
            shown_file(step.file, room - STEP - 22), left + 6, baseline, 10.5, "soft", mono=True
        )
    for line in lines:
        baseline += 13
        page.text(line, left + 6, baseline, SIZE)


def draw_condition(page: Page, when: When, x: float, top: float, bottom: float, room: float):
    middle = (top + bottom) / 2
    link(page, x, top, bottom)
    page.add(f'<path class="bar" d="M{x - 9:.1f} {middle:.1f}L{x + 9:.1f} {middle:.1f}"/>')
    page.lines.append(("transition", (x - 9, middle), (x + 9, middle)))
    lines = condition_lines(when, room)
    page.label(lines, x + 13, middle - 13 * len(lines) / 2 + 1, SIZE, style="tc")


def draw_jump(page: Page, jump: Jump, x: float, y: float) -> None:
    if len(jump.steps) > 1:  # several steps at once: the double line
        for offset in (0, 3.5):
            bar(page, x - 9, x + 9, y + offset)
        y += 3.5
    page.line("li", "link", [(x, y), (x, y + LINK + 5)], arrow=True)
    words = ", ".join(map(str, jump.steps))
    page.label([words], x, y + LINK + 7, 12, style="ti", anchor="middle", bold=True)


def draw_split(page: Page, split: Split, x: float, top: float, bottom: float, room: float) -> None:
    """Branches beside one another, the first on the axis x, between their two lines."""
    double = split.kind == "both"
    if double or converges(split):  # what follows hangs on a link
        link(page, x, bottom - LINK, bottom)
        bottom -= LINK
    axes, at = [], x
    rooms = branch_rooms(split, room)
    for width in rooms:
        axes.append(at)
        at += width + GAP
    start = top + (4 if double else 0)
    for offset in (0, 3.5) if double else (0,):
        bar(page, axes[0] - 9 * double, axes[-1] + 9 * double, top + offset)
    joined = [a for a, b in zip(axes, split.branches, strict=True) if not leaves(b)]
    end = bottom - (4 if double else 0)
    for axis, branch, width in zip(axes, split.branches, rooms, strict=True):
        inner = start + LINK * double
        if double:
            link(page, axis, start, inner)
        y = draw_sequence(page, branch, axis, inner, width)
        if not leaves(branch):
            if isinstance(branch[-1], Step):
                y -= height_of(branch[-1], width) - STEP
            link(page, axis, y, end if len(joined) > 1 or axis == x else y)
    if len(joined) > 1:
        for offset in (0, 3.5) if double else (0,):
            bar(page, joined[0] - 9 * double, joined[-1] + 9 * double, bottom - offset)
