"""Reads the description of an IDEF0 diagram (FIPS 183).

    node A0
    number KV2
    title Fine-tune a ViT or KAN-ViT, predict photos
    box prepare_data in imaging/splitting.py: Check and split the photos
    box ...                              # three to six, in the order of their numbers
    I1 to 1: photos in class folders     # from the left edge into box 1
    C1 to 1 2: flags                     # from the top edge, forked
    1 to 2 3: `DataSplit`                # a box's output as input of others
    3 to O1 4.control: trained model     # to the right edge, and from above into box 4
    4 to 2.control: weights              # feedback: up and over
    M1 to 4: Pillow                      # from the bottom edge; M without a number is tunnelled

Inputs enter boxes on the left, controls at the top, mechanisms from below; outputs leave on the
right. Words between backticks are names of the code.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

ROLES = {"I": "input", "C": "control", "M": "mechanism"}


class End(NamedTuple):
    """Where an arrow points: a side of a box, or with box 0 the right edge of the page."""

    box: int
    role: str  # input, control, mechanism; the code of an output, such as O1


@dataclass
class Arrow:
    source: str  # the number of a box, or a code such as I1
    ends: list[End]
    label: str

    @property
    def box(self) -> int:
        """The number of the box that it leaves; 0 for an arrow from an edge."""
        return int(self.source) if self.source.isdigit() else 0

    @property
    def kind(self) -> str:
        return "" if self.box else self.source[0]

    @property
    def words(self) -> str:
        return self.label.replace("`", "")

    @property
    def name(self) -> str:
        return f"{self.source}: {self.words}"


@dataclass
class Box:
    """A function: its name in the code, the file that holds it, what it does."""

    code: str
    file: str
    words: str


@dataclass
class Diagram:
    node: str = ""
    number: str = ""
    title: str = ""
    purpose: str = ""
    viewpoint: str = ""
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)

    def child(self, box: int) -> str:
        """The node of a box: A0 below A-0, A3 below A0, A32 below A3."""
        return "A0" if self.node == "A-0" else f"{self.node.removesuffix('0')}{box}"

    def into(self, box: int, role: str) -> list[Arrow]:
        return [arrow for arrow in self.arrows if End(box, role) in arrow.ends]


BOX = re.compile(r"box (\S+) in ([^:]+): (.+)")
ARROW = re.compile(r"(\d|[ICM]\d?) to ([^:]+): (.+)")
END = re.compile(r"(\d)(?:\.(input|control|mechanism))?|(O\d)")


def parse(text: str) -> Diagram:
    """Reads a description. Raises ValueError with the line that says nothing."""
    diagram = Diagram()
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word in ("node", "number", "title", "purpose", "viewpoint"):
            setattr(diagram, word, rest)
        elif match := BOX.fullmatch(line):
            diagram.boxes.append(Box(*match.groups()))
        elif match := ARROW.fullmatch(line):
            source, ends, label = match.groups()
            diagram.arrows.append(Arrow(source, [_end(source, e) for e in ends.split()], label))
        else:
            raise ValueError(f"not a line of an IDEF0 description: {line!r}")
    return diagram


def _end(source: str, text: str) -> End:
    match = END.fullmatch(text)
    if not match:
        raise ValueError(f"no end of an arrow: {text!r}")
    box, role, output = match.groups()
    return End(0, output) if output else End(int(box), role or ROLES.get(source[0], "input"))
