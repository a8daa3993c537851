"""Where the boxes of an IDEF0 diagram stand and which ways its arrows take.

Boxes stand on a staircase from the upper left to the lower right, as FIPS 183 advises. A part of
each box's top sticks out to the right of those above it, and a part of its bottom to the left of
those below: controls come down on the one, mechanisms come up on the other, and nothing is in their
way. Inputs from earlier boxes pass between two boxes; feedback goes up and over, or down and under.
"""

from idef0_text import Arrow, Box, Diagram, End
from labels import SIZE, height_of
from svg import WIDTH, Point, Rect, wrap

LEFT, RIGHT = 86, 84  # room beside the staircase for the labels of inputs and outputs
STEP = {1: 0, 3: 62, 4: 52, 5: 44, 6: 38}  # of the staircase, for each number of boxes
EDGE = 27  # where arrows from and to the sides of the page end
SLOT = 10  # between parallel lines
BESIDE = 13  # between lines that enter a box on the left, with room for their heads


def title_lines(box: Box, width: float) -> list[str]:
    return wrap(box.words, width - 14, 12, bold=True)


class Layout:
    """Places boxes and finds the ways of arrows; `room` is added between boxes for labels."""

    def __init__(self, diagram: Diagram, room: float) -> None:
        self.diagram, self.room = diagram, room
        self.count = len(diagram.boxes)
        self.numbers = range(1, self.count + 1)
        step = STEP[self.count]
        width = WIDTH - LEFT - RIGHT - step * (self.count - 1) if step else 200
        first = LEFT if step else (WIDTH - width) / 2
        self.x = {j: first + step * (j - 1) for j in range(1, self.count + 2)}
        self.width = width
        self.heights = {j: self._height(j) for j in self.numbers}
        self._assign_columns()
        self._assign_tracks()
        self._assign_rows()

    def _height(self, j: int) -> float:
        ports = max(len(self.left(j)), len(self.right(j)))
        lines = len(title_lines(self.diagram.boxes[j - 1], self.width))
        return max(lines * 13.5 + 50, (20 if self.count > 1 else 48) * (ports + 1))

    # Arrows at each side of box j, in the order that crosses least.

    def _forward(self, j: int, role: str) -> list[Arrow]:
        found = [a for a in self.diagram.into(j, role) if 0 < a.box < j]
        return sorted(found, key=lambda a: -a.box)  # nearest first

    def _back(self, j: int, role: str) -> list[Arrow]:
        return [a for a in self.diagram.into(j, role) if a.box >= j]

    def _edge(self, j: int, role: str) -> list[Arrow]:
        return [a for a in self.diagram.into(j, role) if not a.box]

    def left(self, j: int) -> list[Arrow]:
        """The inputs of box j from the top down."""
        return self._forward(j, "input")[::-1] + self._edge(j, "input") + self._back(j, "input")

    def right(self, i: int) -> list[Arrow]:
        """The outputs of box i from the top down."""

        def rank(arrow: Arrow) -> tuple:
            over = any(0 < e.box <= i and e.role == "control" for e in arrow.ends)
            under = any(0 < e.box <= i and e.role == "input" for e in arrow.ends)
            out = any(not e.box for e in arrow.ends)
            far = max((e.box for e in arrow.ends), default=0)
            near = all(e.role == "input" for e in arrow.ends)
            return not over, under, not out, -far, near

        return sorted((a for a in self.diagram.arrows if a.box == i), key=rank)

    def _risers(self, i: int) -> list[Arrow]:
        """Outputs of box i that go back up or down before they go left."""
        return [a for a in self.right(i) if any(0 < e.box <= i for e in a.ends)]

    def _assign_columns(self) -> None:
        """x of every vertical line: self.column[what, box, arrow's number]."""
        self.column: dict[tuple, float] = {}
        for j in range(1, self.count + 2):
            here = [("riser", j - 1, a) for a in self._risers(j - 1)]
            for source in range(j - 1, 0, -1):
                for what, role in (("down", "input"), ("top", "control")):
                    some = [a for a in self._forward(j, role) if a.box == source]
                    here += [(what, j, a) for a in some]
            here += [("top", j, a) for a in self._edge(j, "control") + self._back(j, "control")]
            low = self.x[j - 1] + self.width + 8 if j > 1 else self.x[1] + 14
            self._spread(here, low, self.x[j] + self.width - 12)
            inputs = self._left_columns(j)
            for number, arrow in enumerate(inputs):
                self.column["left", j, id(arrow)] = self.x[j] - BESIDE * (number + 1)
            if j <= self.count:
                end = self.x[j + 1] - BESIDE * (len(self._left_columns(j + 1)) + 1)
                if j == self.count:
                    end = self.x[j] + self.width - 30  # beside the node's name
                here = [("bottom", j, a) for a in self._edge(j, "mechanism")]
                self._spread(here, self.x[j] + 12, end)

    def _left_columns(self, j: int) -> list[Arrow]:
        """Arrows that come down or up beside box j before they enter it, nearest to it first."""
        return self._forward(j, "input")[::-1] + self._back(j, "input")

    def _spread(self, items: list[tuple], low: float, high: float) -> None:
        if self.count == 1:
            low, high = low + 20, high - 20
        gap = (high - low) / max(1, len(items) - 1)
        gap = min(gap, 2.2 * SLOT) if self.count > 1 else gap
        start = low if items and items[0][0] in ("riser", "down") else high - gap * (len(items) - 1)
        if len(items) == 1 and items[0][0] == "bottom":
            start = (low + high) / 2
        for number, (what, j, arrow) in enumerate(items):
            self.column[what, j, id(arrow)] = start + gap * number

    def _assign_tracks(self) -> None:
        """y of every box and of the horizontal lines between boxes, from the top down."""
        self.track: dict[tuple, float] = {}
        self.y: dict[int, float] = {}
        controls = [a for a in self.diagram.arrows if a.kind == "C"]
        forks = [a for a in controls if len(a.ends) > 1]
        self.top = 26
        label = max((height_of(wrap(a.words, 92, SIZE)) for a in controls), default=0)
        y = self.top + label + 8
        for number, arrow in enumerate(forks):
            self.track["trunk", 0, id(arrow)] = y + SLOT * number
        y += SLOT * len(forks)
        for j in range(1, self.count + 2):
            some = [("under", j - 1, a) for a in self._back_under(j - 1)]
            some += [("gap", j, a) for a in self._forward(j, "input") if j <= self.count]
            some += [("over", j, a) for a in self._back(j, "control") if j <= self.count]
            for what, box, arrow in some:
                y += 20 + self.room
                self.track[what, box, id(arrow)] = y
            y += 20 + self.room * (0.3 if some else 1) + 8 * (not some)
            if j <= self.count:
                self.y[j] = y
                y += self.heights[j]
        self._assign_bottom(y - self.room)

    def _assign_bottom(self, y: float) -> None:
        mechanisms = [a for a in self.diagram.arrows if a.kind == "M"]
        for arrow in [a for a in mechanisms if len(a.ends) > 1][::-1]:
            self.track["trunk", 0, id(arrow)] = y
            y += SLOT
        label = max((height_of(wrap(a.words, 92, SIZE)) for a in mechanisms), default=0)
        self.bottom = y + label + 8

    def _back_under(self, i: int) -> list[Arrow]:
        return [
            a for a in self._risers(i) if any(0 < e.box <= i and e.role == "input" for e in a.ends)
        ]

    def _assign_rows(self) -> None:
        """y of the arrows at the left and right side of every box."""
        self.row: dict[tuple, float] = {}
        for j in self.numbers:
            for side, arrows in (("left", self.left(j)), ("right", self.right(j))):
                for number, arrow in enumerate(arrows, start=1):
                    share = number / (len(arrows) + 1)
                    self.row[side, j, id(arrow)] = self.y[j] + self.heights[j] * share

    def place(self, j: int) -> Rect:
        return Rect(self.x[j], self.y[j], self.x[j] + self.width, self.y[j] + self.heights[j])

    # The way of an arrow to one of its ends.

    def way(self, arrow: Arrow, end: End) -> list[Point]:
        if arrow.kind == "I":
            return self._from_left(arrow, end)
        if arrow.kind == "C":
            columns = [self.column["top", e.box, id(arrow)] for e in arrow.ends]
            x = self.column["top", end.box, id(arrow)]
            return self._from_edge(arrow, self.top, min(columns), x, self.y[end.box])
        if arrow.kind == "M":
            columns = [self.column["bottom", e.box, id(arrow)] for e in arrow.ends]
            x = self.column["bottom", end.box, id(arrow)]
            return self._from_edge(arrow, self.bottom, min(columns), x, self.place(end.box).bottom)
        return self._from_box(arrow, end)

    def _from_left(self, arrow: Arrow, end: End) -> list[Point]:
        first = min(e.box for e in arrow.ends)
        start = (EDGE, self.row["left", first, id(arrow)])
        y = self.row["left", end.box, id(arrow)]
        forks = [a for a in self.diagram.arrows if a.kind == "I" and len(a.ends) > 1]
        if end.box == first:
            return [start, (self.x[end.box], y)]
        x = self.x[1] - 14 - SLOT * [id(a) for a in forks].index(id(arrow))
        return [start, (x, start[1]), (x, y), (self.x[end.box], y)]

    def _from_edge(self, arrow: Arrow, edge: float, root: float, x: float, y: float) -> list[Point]:
        if x == root:
            return [(x, edge), (x, y)]
        trunk = self.track["trunk", 0, id(arrow)]
        return [(root, edge), (root, trunk), (x, trunk), (x, y)]

    def _from_box(self, arrow: Arrow, end: End) -> list[Point]:
        i, key = arrow.box, id(arrow)
        start = (self.x[i] + self.width, self.row["right", i, key])
        if not end.box:
            return [start, (WIDTH - EDGE, start[1])]
        if end.role == "control":
            x = self.column["top", end.box, key]
            if end.box > i:
                return [start, (x, start[1]), (x, self.y[end.box])]
            up, y = self.column["riser", i, key], self.track["over", end.box, key]
            return [start, (up, start[1]), (up, y), (x, y), (x, self.y[end.box])]
        x, y = self.column["left", end.box, key], self.row["left", end.box, key]
        if end.box > i:
            down, track = self.column["down", end.box, key], self.track["gap", end.box, key]
        else:
            down, track = self.column["riser", i, key], self.track["under", i, key]
        return [start, (down, start[1]), (down, track), (x, track), (x, y), (self.x[end.box], y)]
