"""A page of boxes, lines and labels that becomes an SVG: for phones, and for light and dark.

A page is 440 units wide, so that its smallest letters are still read on a phone. It remembers where
everything lies: `collisions` says what overlaps, which is how the layouts test themselves.
"""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from html import escape
from itertools import combinations, pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reporting.palette import DARK, LIGHT

WIDTH = 440
Point = tuple[float, float]

# Widths of Helvetica's letters in thousandths of the size. Every text is told its width, so that
# another font on the reader's machine cannot make it longer than the room that it has.
WIDTHS = {
    222: "'ijl|",
    278: " !,./:;I[]\\ft",
    333: "-()r`",
    355: '"',
    500: "cksvxyzJ",
    584: "+<=>~",
    611: "FTZ",
    667: "ABEKPSVXY&",
    722: "CDHNRUw",
    778: "GOQ",
    833: "mM",
    889: "%",
    944: "W",
}
WIDTH_OF = {letter: width for width, letters in WIDTHS.items() for letter in letters}
MONO_WIDTH = 0.6
BOLD = 1.06

COLOURS = """
  .paper { fill: %(card)s } .frame { stroke: %(line)s } .box { fill: %(paper)s; stroke: %(soft)s }
  .ink { fill: %(ink)s } .soft, .head { fill: %(soft)s } .line { stroke: %(soft)s }
  .frame-in { stroke: %(soft)s } .bar { stroke: %(ink)s }
  .ti { fill: %(against)s } .li { stroke: %(against)s }
  .tc { fill: %(violet)s } .lc { stroke: %(violet)s }
  .to { fill: %(accent)s } .lo { stroke: %(accent)s }
  .tm { fill: %(for_)s } .lm { stroke: %(for_)s }
  """
SHAPES = """
  .paper, .frame, .box, .line, .li, .lc, .lo, .lm { stroke-width: 1.3 }
  .frame, .line, .li, .lc, .lo, .lm { fill: none }
  .frame-in { fill: none; stroke-width: 1.1 } .bar { stroke-width: 3 }
  text { font-family: Helvetica, Arial, "Liberation Sans", sans-serif }
  .mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .bold { font-weight: bold }
"""
STYLE = (
    f"{SHAPES}{COLOURS % asdict(LIGHT)}"
    f"@media (prefers-color-scheme: dark) {{{COLOURS % asdict(DARK)}}}\n"
)


@dataclass(frozen=True)
class Rect:
    """left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def grown(self, by: float) -> "Rect":
        return Rect(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def meets(self, other: "Rect") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: "Rect") -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


def text_width(text: str, size: float, mono: bool = False, bold: bool = False) -> float:
    """The width of `text` in units, as the font in STYLE makes it."""
    if mono:
        return len(text) * MONO_WIDTH * size
    thousandths = sum(WIDTH_OF.get(letter, 556) for letter in text)
    return thousandths / 1000 * size * (BOLD if bold else 1)


def shown_file(files: str, room: float) -> str:
    """Returns files as a drawing names them: `imaging/scanning`, or `scanning.py` in less room."""
    names = files.split(", ")
    whole = ", ".join(name.removesuffix(".py") if "/" in name else name for name in names)
    if text_width(whole, 10.5, mono=True) <= room:
        return whole
    return ", ".join(name.rpartition("/")[2] for name in names)


def wrap(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Lines of `text`, each as full as `width` allows; a word is never cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@dataclass
class Page:
    """What is drawn, in the order of drawing, and where it lies."""

    title: str
    elements: list[str] = field(default_factory=list)
    labels: list[tuple[str, Rect]] = field(default_factory=list)
    boxes: list[tuple[str, Rect]] = field(default_factory=list)
    lines: list[tuple[str, Point, Point]] = field(default_factory=list)  # name, from, to

    def add(self, element: str) -> None:
        self.elements.append(element)

    def rect(self, style: str, r: Rect, radius: float = 0) -> None:
        corner = f' rx="{radius:g}"' if radius else ""
        self.add(
            f'<rect class="{style}" x="{r.left:g}" y="{r.top:g}" width="{r.right - r.left:g}" '
            f'height="{r.bottom - r.top:g}"{corner}/>'
        )

    def box(self, name: str, r: Rect) -> None:
        """A box that no line may cross and no label but its own may touch."""
        self.boxes.append((name, r))
        self.rect("box", r)

    def text(
        self, text: str, x: float, y: float, size: float, style: str = "ink", anchor: str = "start",
        mono: bool = False, bold: bool = False,
    ) -> Rect:  # fmt: skip
        """Writes one line of text with its baseline at y; returns the room that it takes."""
        width = text_width(text, size, mono, bold)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        classes = " ".join([style] + ["mono"] * mono + ["bold"] * bold)
        self.add(
            f'<text class="{classes}" x="{left:.1f}" y="{y:.1f}" font-size="{size:g}" '
            f'textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
        return Rect(left, y - 0.74 * size, left + width, y + 0.22 * size)

    def label(self, lines: Iterable[str], x: float, y: float, size: float, **how) -> None:
        """Lines of text that nothing else may touch, the first one's top at y."""
        for number, line in enumerate(lines):
            place = self.text(line, x, y + size * (0.8 + 1.12 * number), size, **how)
            self.labels.append((line, place))

    def line(self, style: str, name: str, points: list[Point], arrow: bool = False) -> None:
        """Horizontal and vertical pieces with rounded bends; `name` says what they belong to."""
        self.lines += [(name, a, b) for a, b in pairwise(points)]
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for before, at, after in zip(points, points[1:], points[2:], strict=False):
            radius = min(5, _distance(before, at) / 2, _distance(at, after) / 2)
            a, b = _towards(at, before, radius), _towards(at, after, radius)
            path += f"L{a[0]:.1f} {a[1]:.1f}Q{at[0]:.1f} {at[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
        path += f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"
        self.add(f'<path class="{style}" d="{path}"/>')
        if arrow:
            self.arrow_head(style, points[-2], points[-1])

    def arrow_head(self, style: str, start: Point, tip: Point) -> None:
        back = _towards(tip, start, 7)
        dx, dy = (tip[1] - back[1]) * 0.42, (back[0] - tip[0]) * 0.42
        corners = (tip, (back[0] + dx, back[1] + dy), (back[0] - dx, back[1] - dy))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        fill = {"line": "head"}.get(style, style.replace("l", "t", 1))
        self.add(f'<polygon class="{fill}" points="{points}"/>')

    def collisions(self) -> list[str]:
        """What overlaps: labels, boxes and lines, except line with line, or leaves the page."""
        found = []
        for (name, a), (other, b) in combinations(self.labels, 2):
            if a.meets(b):
                found.append(f"label {name!r} overlaps label {other!r}")
        for (name, a), (other, b) in combinations(self.boxes, 2):
            if a.meets(b):
                found.append(f"box {name!r} overlaps box {other!r}")
        page = Rect(0, 0, WIDTH, float("inf"))
        for name, place in self.labels + self.boxes:
            if not place.within(page):
                found.append(f"{name!r} leaves the page")
        for name, place in self.labels:
            found += [
                f"label {name!r} overlaps box {other!r}"
                for other, box in self.boxes
                if place.meets(box)
            ]
            found += [
                f"label {name!r} overlaps the line of {other!r}"
                for other, a, b in self.lines
                if place.meets(span(a, b))
            ]
        for name, a, b in self.lines:
            found += [
                f"the line of {name!r} crosses box {other!r}"
                for other, box in self.boxes
                if box.grown(-1).meets(span(a, b))
            ]
        return found

    def svg(self, height: float) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'width="{WIDTH}" height="{height:g}" role="img">'
        )
        paper = f'<rect class="paper" width="{WIDTH}" height="{height:g}" rx="8"/>'
        parts = [head, f"<title>{escape(self.title)}</title>", f"<style>{STYLE}</style>", paper]
        return "\n".join([*parts, *self.elements, "</svg>", ""])


def span(a: Point, b: Point) -> Rect:
    """The room of a line from a to b."""
    return Rect(min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])).grown(0.8)


def _distance(a: Point, b: Point) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: Point, end: Point, by: float) -> Point:
    """The point that lies `by` from start on the (horizontal or vertical) way to end."""
    far = _distance(start, end) or 1
    return start[0] + (end[0] - start[0]) / far * by, start[1] + (end[1] - start[1]) / far * by
