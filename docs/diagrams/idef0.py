"""IDEF0 drawings (FIPS 183) from a few lines of text, which `idef0_text.py` explains.

    page, height = draw(parse(text))

`staircase.py` finds the ways of the arrows, `labels.py` the places of their names.
"""

from collections.abc import Iterable
from itertools import pairwise

from idef0_text import ROLES, Arrow, Box, Diagram, parse
from labels import NoRoom, put_label
from staircase import EDGE, Layout, title_lines
from svg import WIDTH, Page, Point, Rect, shown_file, text_width, wrap

__all__ = ["draw", "parse"]

COLOURS = {"I": "i", "C": "c", "M": "m", "": "o"}  # by the side that an arrow comes from


def draw_box(page: Page, box: Box, number: int, place: Rect, detail: str | None) -> None:
    """A box with what it does, the function and file that do it, its number and its node."""
    page.box(f"{number}", place)
    lines = title_lines(box, place.right - place.left)
    middle = (place.left + place.right) / 2
    height = place.bottom - place.top
    y = place.top + (height - 13.5 * len(lines) - 34) / 2 + 10
    for line in lines:
        page.text(line, middle, y, 12, anchor="middle", bold=True)
        y += 13.5
    room = (place.right - place.left - 8) * 10.5 / 9  # letters may be a little smaller
    for words, style in ((box.code, "ink"), (shown_file(box.file, room), "soft")):
        size = min(10.5, (place.right - place.left - 8) / (0.6 * len(words)))
        page.text(words, middle, y + 1, size, style, "middle", mono=True)
        y += 12.5
    page.text(f"{number}", place.right - 5, place.bottom - 5, 11, anchor="end", bold=True)
    if detail:
        page.label([detail], place.right, place.bottom + 2.5, 10, style="soft", anchor="end")


def draw_codes(page: Page, arrow: Arrow, ways: list[list[Point]]) -> None:
    """Writes the ICOM code at the open end of an arrow; parentheses make it a tunnel."""
    style = "t" + COLOURS[arrow.kind]
    x, y = ways[0][0]
    if arrow.source in ROLES:  # no number: shown on no parent
        page.label(["("], x - 2.5, y - 12, 12, style=style, anchor="end", bold=True)
        page.label([")"], x + 2.5, y - 12, 12, style=style, bold=True)
    elif arrow.kind == "I":
        page.label([arrow.source], EDGE - 3, y - 5, 11, style=style, anchor="end", bold=True)
    elif arrow.kind:
        top = y - 14 if arrow.kind == "C" else y + 3
        page.label([arrow.source], x, top, 11, style=style, anchor="middle", bold=True)
    for end, way in zip(arrow.ends, ways, strict=True):
        if not end.box:
            (x, y) = way[-1]
            page.label([end.role], x + 3, y - 5, 11, style=style, bold=True)


def label_pieces(arrow: Arrow, ways: list[list[Point]]) -> list[tuple[Point, Point]]:
    """The pieces of an arrow, in the order in which a label would like to stand at them."""
    pieces = list(dict.fromkeys(piece for way in ways for piece in pairwise(way)))
    if arrow.kind:
        return pieces[:2] if len(ways) > 1 else pieces[:1]
    length = {p: abs(p[0][0] - p[1][0]) + abs(p[0][1] - p[1][1]) for p in pieces}
    return sorted(pieces, key=lambda p: (p[0][1] != p[1][1], -length[p]))


def draw(diagram: Diagram, nodes: Iterable[str] = ()) -> tuple[Page, float]:
    """Returns the page and its height. nodes: those that have a diagram of their own."""
    for room in range(0, 60, 4):
        try:
            return _draw(diagram, set(nodes), room)
        except NoRoom as error:
            last = error
    raise last


def _draw(diagram: Diagram, nodes: set[str], room: float) -> tuple[Page, float]:
    layout = Layout(diagram, room)
    page = Page(f"IDEF0 {diagram.node}: {diagram.title}")
    notes = context_lines(diagram)
    bottom = layout.bottom + 22 + 15 * len(notes)
    page.rect("frame", Rect(5, 5, WIDTH - 5, bottom + 34))
    ways = [[layout.way(arrow, end) for end in arrow.ends] for arrow in diagram.arrows]
    for arrow, some in zip(diagram.arrows, ways, strict=True):
        for way in some:
            page.line("l" + COLOURS[arrow.kind], arrow.name, way, arrow=True)
    for number, box in enumerate(diagram.boxes, start=1):
        child = diagram.child(number)
        detail = child if child in nodes and child != diagram.node else None
        draw_box(page, box, number if diagram.node != "A-0" else 0, layout.place(number), detail)
    for arrow, some in zip(diagram.arrows, ways, strict=True):
        draw_codes(page, arrow, some)
    bounds = Rect(8, 8, WIDTH - 8, bottom - 2)
    order = sorted(zip(diagram.arrows, ways, strict=True), key=lambda pair: not pair[0].kind)
    for arrow, some in order:
        near = some[0][0] if arrow.kind or len(some) > 1 else None
        pieces, style = label_pieces(arrow, some), "t" + COLOURS[arrow.kind]
        put_label(page, arrow.name, arrow.words, pieces, bounds, style, near)
    for number, (word, line) in enumerate(notes):
        y = layout.bottom + 26 + 15 * number
        page.text(word, 13, y, 9.5, "soft")
        page.text(line, 78, y, 11)
    draw_title_block(page, diagram, bottom)
    return page, bottom + 39


def context_lines(diagram: Diagram) -> list[tuple[str, str]]:
    """Purpose and viewpoint, which the standard wants on the page of the context alone."""
    lines = []
    for word, text in (("PURPOSE", diagram.purpose), ("VIEWPOINT", diagram.viewpoint)):
        parts = wrap(text, WIDTH - 92, 11)
        lines += [(word if not number else "", part) for number, part in enumerate(parts)]
    return lines


def draw_title_block(page: Page, diagram: Diagram, top: float) -> None:
    columns = (5, 75, WIDTH - 75, WIDTH - 5)
    fields = (("NODE", diagram.node), ("TITLE", diagram.title), ("NUMBER", diagram.number))
    for left, right, (name, value) in zip(columns[:3], columns[1:], fields, strict=True):
        page.rect("frame", Rect(left, top, right, top + 34))
        page.text(name, left + 6, top + 12, 9, "soft")
        size = min(12, 12 * (right - left - 12) / text_width(value, 12, bold=True))
        page.text(value, left + 6, top + 27, size, bold=True)
