"""The house: doors at the root, a room behind each door, imports that go one way."""

import ast
import importlib.metadata
import re
import sys
from functools import cache

import pytest
from conftest import ROOT

# Each may import only what stands before it, and a room what is in it.
LOWER = "system splines kan vit vit_model parallel imaging my_dataset formats pretrained utils"
UPPER = "reporting training predicting explaining serving train predict explain export serve"
ORDER = [*LOWER.split(), *UPPER.split()]
DOORS = {"train", "predict", "explain", "export", "serve", "pretrained", "kan", "vit_model"}
DOORS |= {"my_dataset", "utils"}
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
# A user works in this directory, where a folder of his must not hide one of ours.
USERS_FOLDERS = (
    "data dataset datasets photos images pictures models checkpoints runs output outputs"
)
USERS_FOLDERS += " results logs train val test flowers flower_photos examples"
MOST_LINES = {"vit_model.py": 700}
LOOPS = {"train_one_epoch"}  # the one obvious loop: parameters and docstring are half of it


@cache
def tree(path):
    return ast.parse(path.read_text("utf-8"))


def sources():
    return sorted([*ROOT.glob("*.py"), *(f for room in ROOMS for f in ROOT.glob(f"{room}/*.py"))])


def place(name):
    """The place in ORDER of a module, None for one that is not ours."""
    top = name.split(".")[0]
    return ORDER.index(top) if top in DOORS | ROOMS else None


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path):
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = set(map(module_of, sources()))
            names = [name for name in inner if name in modules] or [node.module]
        yield from (name for name in names if place(name) is not None)


def test_the_root_shows_the_doors_alone():
    assert {path.stem for path in ROOT.glob("*.py")} == DOORS
    assert not ROOMS - set(ORDER)
    visible = [path for path in ROOT.iterdir() if not path.name.startswith((".", "__pycache__"))]
    kept = {path.name for path in visible if not is_ignored(path)}
    assert len(kept) <= 36, sorted(kept)


def is_ignored(path):
    """Whether .gitignore names what lies at the root: what runs and tools leave there."""
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    return any(line.strip("/") == path.name for line in lines)


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_go_down_the_order(path):
    own = module_of(path)
    for name in imported(path):
        same_room = "." in own and name.split(".")[0] == own.split(".")[0]
        assert same_room or place(name) < place(own), f"{own} imports {name}"


def test_no_imports_form_a_circle():
    """Within a room, too; late imports count."""
    graph = {module_of(path): set(imported(path)) for path in sources()}
    done: set[str] = set()
    while ready := [
        name
        for name in graph
        if name not in done and not (graph[name] & graph.keys()) - done - {name}
    ]:
        done |= set(ready)
    assert done == graph.keys(), f"in a circle: {sorted(graph.keys() - done)}"


def test_a_late_import_of_ours_hides_no_wrong_dependency():
    """What is imported inside a function could stand at the top, but for the time that it takes."""
    late = set()
    for path in sources():
        at_top = {id(node) for node in tree(path).body}
        for node in ast.walk(tree(path)):
            ours = isinstance(node, ast.ImportFrom) and place(node.module) is not None
            if ours and id(node) not in at_top:
                late.add((module_of(path), node.module))
    assert late <= {
        ("predict", "explaining.photo_figure"),  # which few predictions want
        ("splines.triton_splines", "splines"),  # its kernels: not everyone has Triton
    }


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_rooms_name_is_nobody_elses(name):
    assert name not in sys.stdlib_module_names
    assert name not in USERS_FOLDERS.split()
    wanted = re.findall(r"^([\w-]+)[><=]", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    brought = importlib.metadata.packages_distributions()
    assert not {d.lower() for d in brought.get(name, [])} & {w.lower() for w in wanted}
    assert name not in brought, f"{brought.get(name)} brings a module {name}"


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_no_file_is_longer_than_a_reader_bears(path):
    most = MOST_LINES.get(path.name, 500)
    assert len(path.read_text("utf-8").splitlines()) <= most
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            # A kernel's arguments are many lines: it takes every stride by name.
            kernel = any(ast.unparse(d) == "triton.jit" for d in node.decorator_list)
            long = kernel or node.name in ("__init__", "__post_init__", "main")
            most = 60 if long else 40
            lines = node.end_lineno - node.lineno + 1
            assert lines <= most or node.name in LOOPS, f"{node.name} in {path}"
