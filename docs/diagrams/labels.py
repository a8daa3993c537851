"""Finds free places for labels beside lines."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from svg import Page, Point, Rect, span, text_width, wrap

SIZE = 11.5  # of letters


class NoRoom(ValueError):
    """A label finds no place: what is drawn must stand further apart."""


def height_of(lines: list[str]) -> float:
    return (len(lines) - 1) * SIZE * 1.12 + SIZE * 0.96


class Spot(NamedTuple):
    """A place for a label: its lines, the corner, how they are aligned, and how bad it is."""

    lines: list[str]
    place: Rect
    anchor: str
    cost: float


def spots(words: str, pieces: Iterable[tuple[Point, Point]]) -> Iterator[Spot]:
    """Yields places for a label beside the pieces of its arrow, which come in order of merit."""
    shapes: dict[tuple, None] = {}
    for width in (190, 150, 120, 100, 84, 70, 58, 46, 36):
        shapes[tuple(wrap(words, width, SIZE))] = None
    for rank, (a, b) in enumerate(pieces):
        for lines in shapes:
            width = max(text_width(line, SIZE) for line in lines)
            height = height_of(lines)
            cost = 4 * rank + 9 * len(lines)
            yield from _beside(a, b, list(lines), width, height, cost)


def _beside(a: Point, b: Point, lines, width: float, height: float, cost: float) -> Iterator[Spot]:
    (left, right), (top, bottom) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    if top == bottom:  # above or below a horizontal piece
        for y, more in ((top - height - 3, 0), (top + 4, 5)):
            for x in _steps(left - width / 3, right - width * 2 / 3):
                over = max(0, left - x) + max(0, x + width - right)
                yield Spot(lines, Rect(x, y, x + width, y + height), "start", cost + more + over)
    else:
        for x, anchor, more in ((left + 5, "start", 0), (left - 5 - width, "end", 2)):
            for y in _steps(top + 2, bottom - height - 2):
                yield Spot(lines, Rect(x, y, x + width, y + height), anchor, cost + more)


def _steps(low: float, high: float, step: float = 3) -> Iterator[float]:
    if high < low:
        return
    count = int((high - low) // step)
    yield from (low + step * number for number in range(count + 1))
    yield high


def _apart(place: Rect, point: Point) -> float:
    return abs((place.left + place.right) / 2 - point[0]) + abs(
        (place.top + place.bottom) / 2 - point[1]
    )


def nearest_other(place: Rect, name: str, page: Page) -> float:
    """Punishes a place that is as near to the line of another arrow as to its own."""
    wide = place.grown(7)
    return 6 * sum(other != name and wide.meets(span(a, b)) for other, a, b in page.lines)


def put_label(
    page: Page, name: str, words: str, pieces: list, bounds: Rect, style: str, near: Point | None
) -> None:
    """Writes `words` on the best free place beside the pieces of the line called `name`.

    near: where on the line the label belongs, if that matters. Raises NoRoom without a free place.
    """
    best = None
    for spot in spots(words, pieces):
        if near:
            spot = spot._replace(cost=spot.cost + 0.1 * _apart(spot.place, near))
        if best is not None and spot.cost >= best.cost:
            continue
        cost = spot.cost + nearest_other(spot.place, name, page)
        if (best is None or cost < best.cost) and is_free(spot.place, name, page, bounds):
            best = spot._replace(cost=cost)
    if best is None:
        raise NoRoom(f"no room for the label {words!r}")
    x = best.place.left if best.anchor == "start" else best.place.right
    page.label(best.lines, x, best.place.top, SIZE, style=style, anchor=best.anchor)


def is_free(place: Rect, name: str, page: Page, bounds: Rect) -> bool:
    """Whether nothing is there, and no other line so near that it would seem to be meant."""
    wide = place.grown(3)
    apart = Rect(wide.left, wide.top - 2, wide.right, wide.bottom + 4)
    return (
        place.within(bounds)
        and not any(wide.meets(box) for _, box in page.boxes)
        and not any(wide.meets(label) for _, label in page.labels)
        and not any(
            (place.grown(1) if other == name else apart).meets(span(a, b))
            for other, a, b in page.lines
        )
    )
