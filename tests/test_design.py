"""The drawings of docs/design.md: up to date, true to the code, readable, and by the standards."""

import builtins
import re
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from code_names import is_known, names_in, quoted
from conftest import ROOT

DIAGRAMS = ROOT / "docs" / "diagrams"
sys.path.insert(0, str(DIAGRAMS))

import draw  # noqa: E402
import grafcet  # noqa: E402
import idef0  # noqa: E402
from staircase import Layout  # noqa: E402
from svg import WIDTH, Page, Rect  # noqa: E402

IDEF0 = {name: idef0.parse(text) for name, text in draw.descriptions("idef0").items()}
GRAFCET = {name: grafcet.parse(text) for name, text in draw.descriptions("grafcet").items()}
BY_NODE = {diagram.node: diagram for diagram in IDEF0.values()}
PARENTS = [
    (diagram, number, BY_NODE[diagram.child(number)])
    for diagram in IDEF0.values()
    for number in range(1, len(diagram.boxes) + 1)
    if diagram.child(number) in BY_NODE and diagram.child(number) != diagram.node
]


# --- the code -------------------------------------------------------------------------------------


def words_of(name):
    """The text of a drawing's description."""
    return draw.descriptions(name.split("_")[0])[name]


@pytest.mark.parametrize("name", IDEF0)
def test_every_box_is_a_function_of_its_file(name):
    for box in IDEF0[name].boxes:
        for file in box.file.split(", "):
            assert box.code in names_in(file), f"{name}.txt: {file} has no {box.code}"


@pytest.mark.parametrize("name", GRAFCET)
def test_every_step_is_a_function_of_its_file(name):
    for step in GRAFCET[name].steps():
        if step.file:
            assert step.code in names_in(step.file), f"{name}.txt: {step.file} has no {step.code}"
        else:
            assert step.forcing or hasattr(builtins, step.code)


@pytest.mark.parametrize("name", [*IDEF0, *GRAFCET])
def test_every_name_between_backticks_is_known_to_the_code(name):
    unknown = [word for word in quoted(words_of(name)) if not is_known(word)]
    assert not unknown, f"{name}.txt names {unknown}"


def test_design_md_names_only_what_the_code_has_and_shows_every_drawing():
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    unknown = [word for word in quoted(text) if not is_known(word) and " " not in word]
    assert not unknown
    shown = set(re.findall(r"\(images/((?:idef0|grafcet)_\S+)\.svg\)", text))
    assert shown == set(IDEF0) | set(GRAFCET)


def test_a_name_that_the_code_lacks_is_noticed():
    right = ("Trainer.fit", "best.pth", "--resume", "torch.compile", "kan.py", "native.c")
    wrong = ("Trainer.sing", "worst.pth", "--sing", "torch.sing", "song.py", "song.c")
    assert all(map(is_known, right))
    assert not any(map(is_known, wrong))


# --- the pictures ---------------------------------------------------------------------------------


PAGES = draw.draw_all()


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_picture_is_what_its_description_gives(name):
    page, height = PAGES[name]
    committed = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
    assert committed == page.svg(height), "run: python docs/diagrams/draw.py"


def test_there_is_no_picture_without_a_description():
    found = {path.stem for kind in ("idef0", "grafcet") for path in draw.IMAGES.glob(f"{kind}_*")}
    assert found == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overlaps(name):
    assert PAGES[name][0].collisions() == []


def test_overlaps_are_noticed():
    page = Page("clash")
    page.box("a", Rect(10, 10, 60, 60))
    page.label(["on the box"], 20, 20, 12)
    page.line("line", "through", [(0, 40), (100, 40)])
    page.label(["off the page"], WIDTH - 5, 100, 12)
    assert len(page.collisions()) == 3


@pytest.mark.parametrize("name", PAGES)
def test_a_picture_is_legible_on_a_phone_and_in_the_dark(name):
    page, height = PAGES[name]
    root = ElementTree.fromstring(page.svg(height))
    sizes = [float(text.get("font-size")) for text in root.iterfind(".//{*}text")]
    on_phone = 358 / WIDTH  # a screen of 390 pixels without GitHub's margins
    assert min(sizes) * on_phone > 7, "the smallest letters"
    assert sorted(sizes)[len(sizes) // 5] * on_phone > 8, "nearly all letters"
    assert "prefers-color-scheme: dark" in root.find("{*}style").text
    assert root.get("viewBox").split()[2] == str(WIDTH)


# --- FIPS 183 -------------------------------------------------------------------------------------


def sides(diagram, number):
    """The labels at the sides of a box as I, C, O and M, from the top and from the left."""
    layout = Layout(diagram, 0)

    def place(what, arrow):
        return layout.column[what, number, id(arrow)]

    top = sorted(diagram.into(number, "control"), key=lambda a: place("top", a))
    bottom = sorted(diagram.into(number, "mechanism"), key=lambda a: place("bottom", a))
    found = {"I": layout.left(number), "C": top, "O": layout.right(number), "M": bottom}
    return {
        code: [arrow.words for arrow in arrows if arrow.source != "M"]
        for code, arrows in found.items()
    }


@pytest.mark.parametrize("name", IDEF0)
def test_each_box_has_a_control_and_an_output(name):
    diagram = IDEF0[name]
    for number in range(1, len(diagram.boxes) + 1):
        found = sides(diagram, number)
        assert found["C"], f"box {number} lacks a control"
        assert found["O"], f"box {number} lacks an output"


@pytest.mark.parametrize("name", IDEF0)
def test_a_diagram_has_three_to_six_boxes_and_the_context_one(name):
    diagram = IDEF0[name]
    assert len(diagram.boxes) == 1 if diagram.node == "A-0" else 3 <= len(diagram.boxes) <= 6


def test_numbers_are_unique_and_the_context_says_purpose_and_viewpoint():
    numbers = [diagram.number for diagram in IDEF0.values()]
    assert len(set(numbers)) == len(numbers)
    assert BY_NODE["A-0"].purpose
    assert BY_NODE["A-0"].viewpoint


@pytest.mark.parametrize(
    ("parent", "number", "child"), PARENTS, ids=lambda v: getattr(v, "node", v)
)
def test_the_arrows_at_the_edges_of_a_child_are_those_around_its_parents_box(parent, number, child):
    around = sides(parent, number)
    edge = {code: [] for code in "ICOM"}
    for arrow in child.arrows:
        if not arrow.box:
            edge[arrow.kind].append((arrow.source, arrow.words))
        edge["O"] += [(end.role, arrow.words) for end in arrow.ends if not end.box]
    for code, arrows in edge.items():
        numbered = [(f"{code}{n}", label) for n, label in enumerate(around[code], start=1)]
        assert sorted(a for a in arrows if a[0] != "M") == numbered
    assert child.title == parent.boxes[number - 1].words


def test_every_diagram_but_the_context_has_a_parent():
    assert {child.node for *_, child in PARENTS} == set(BY_NODE) - {"A-0"}


@pytest.mark.parametrize("name", IDEF0)
def test_arrows_enter_and_leave_boxes_on_the_sides_of_the_standard(name):
    diagram = IDEF0[name]
    layout = Layout(diagram, 0)
    for arrow in diagram.arrows:
        for end in arrow.ends:
            way = layout.way(arrow, end)
            assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(way))
            if arrow.box:
                assert way[0][0] == layout.place(arrow.box).right
            if end.box:
                box, (x, y) = layout.place(end.box), way[-1]
                at = {"input": x == box.left, "control": y == box.top, "mechanism": y == box.bottom}
                assert at[end.role]


# --- IEC 60848 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAFCET)
def test_a_chart_has_one_initial_step_in_its_main_part(name):
    main = GRAFCET[name].parts[0]
    assert [step.initial for step in main if isinstance(step, grafcet.Step)].count(True) == 1


def test_the_charts_show_alternative_and_simultaneous_ways():
    for chart in GRAFCET.values():
        splits = {item.kind for part in chart.parts for item in part if hasattr(item, "kind")}
        assert splits == {"either", "both"}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("step 0 initial a: x\nstep 1 b: y", "cannot follow a step"),
        ("step 0 initial a: x\nwhen c\nwhen d", "cannot follow a when"),
        ("step 0 initial a: x\nboth\nstep 1 b: y\nand\nstep 2 c: z\nend", "must follow a when"),
        ("step 0 initial a: x\nwhen c\nto 7", "not there"),
        ("step 0 initial a: x\nwhen c\nstep 0 b: y", "same number"),
        ("step 0 initial a: x\neither\nwhen c\nor\nwhen d\nstep 1 b: y\nend", "end differently"),
        ("step 0 initial a: x\nperhaps", "not a line"),
    ],
)
def test_a_chart_that_breaks_a_rule_is_refused(lines, complaint):
    with pytest.raises(ValueError, match=complaint):
        grafcet.parse(lines)


def test_a_line_that_is_no_arrow_is_refused():
    with pytest.raises(ValueError, match="not a line"):
        idef0.parse("node A0\nC1 towards 2: nothing")


def test_the_picture_of_mlp_and_kan_is_drawn_from_networks():
    import kan_and_mlp

    x, _ = kan_and_mlp.data(50)
    mlp = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.GELU(), torch.nn.Linear(5, 1))
    root = ElementTree.fromstring(
        kan_and_mlp.draw(mlp, kan_and_mlp.KAN([2, 1, 1]).double(), x, "x")
    )
    curves = [c.get("points") for c in root.iterfind(".//{*}polyline")]
    assert len(curves) == 5 + 3
    assert len(set(curves[:5])) == 5  # in five places
    assert (ROOT / "docs" / "images" / "kan_and_mlp.svg").exists()
