"""docs/notebook.ipynb: every cell runs, on the sample flowers, without Jupyter.

What a notebook adds to Python is done here: `!line` goes to a shell, in the quick test to this
process, which has loaded torch already; `%pip` is left out. Pictures that it shows are noted.
"""

import http.client
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from PIL import Image

import serve
from imaging.sample_flowers import draw_samples

BOOK = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
CODE = [cell.source for cell in BOOK.cells if cell.cell_type == "code"]
FEWER = {
    'DATA = "sample"': 'DATA = "sample_flowers"',
    "--epochs 18": "--epochs 1",
    "FOLDS = 5": "FOLDS = 2",
    'predict.py "{PHOTOS}"': 'predict.py "{PHOTOS}/roses"',
}


def as_python(code):
    """A cell with `!` and `%` as calls of `shell`, as IPython reads them."""
    line = re.compile(r"^(\s*)[!%](.*)$", re.MULTILINE)
    return line.sub(lambda found: f"{found[1]}shell(f'''{found[2]}''')", code)


def run_cells(cells, shell, monkeypatch, changes=FEWER):
    """Runs cells as one notebook; returns its names and what it displayed."""
    displayed = []
    stub = types.ModuleType("IPython.display")
    stub.display = displayed.append
    stub.Image = lambda filename, width: Path(filename)
    stub.HTML = str
    monkeypatch.setitem(sys.modules, "IPython.display", stub)
    monkeypatch.setattr("builtins.input", lambda said: "")
    names = {"shell": shell}
    for code in cells:
        for old, new in changes.items():
            code = code.replace(old, new)
        exec(compile(as_python(code), "notebook", "exec"), names)
    return names, displayed


def shell_here(monkeypatch):
    """Returns a shell that runs `python FILE ...` and `python -m MODULE ...` in this process.

    What trains for every fold is only tried dry: the slow test does all of it.
    """

    def shell(line):
        words = shlex.split(line)
        if words[:2] == ["pip", "install"]:
            assert Path(words[-1]).is_file()
            return
        assert words.pop(0) == "python", line
        if words[0] == "-m":
            words.pop(0)
        words += ["--dry-run"] if "--folds" in words else []
        monkeypatch.setattr(sys, "argv", words)
        assert not importlib.import_module(words[0].removesuffix(".py")).main(), line

    return shell


def clone(folder, flowers=6):
    """Makes a folder look like a clone, with fewer sample flowers than there would be drawn."""
    for name in ("train.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    draw_samples(folder / "sample_flowers", per_class=flowers)


def test_the_notebook_is_valid_and_keeps_no_output():
    nbformat.validate(BOOK)
    assert len(CODE) <= 16
    for cell in BOOK.cells:
        assert len(cell.source.splitlines()) <= 20
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    assert "README.zh-TW.md" in BOOK.cells[0].source


def test_links_of_the_notebook_lead_somewhere():
    for cell in BOOK.cells:
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            assert (ROOT / "docs" / target).exists(), target


def test_every_cell_runs_and_shows_its_pictures(tmp_path, monkeypatch):
    clone(tmp_path)
    monkeypatch.chdir(tmp_path)
    started = []

    class Started:
        def __init__(self, words):
            started.append(words)

        def terminate(self):
            started.append("ended")

    monkeypatch.setattr(subprocess, "Popen", Started)
    names, displayed = run_cells(CODE, shell_here(monkeypatch), monkeypatch)
    check(names, displayed, explained=2)
    (python, script, *words), end = started
    assert (python, script, end) == (sys.executable, "serve.py", "ended")
    assert serve.parse_args(words).port == 8000


def check(names, displayed, explained):
    """What the notebook promises to show and to leave."""
    pictures = [one for one in displayed if isinstance(one, Path)]
    assert {"curves.png", "confusion.png"} <= {one.name for one in pictures}
    assert sum(one.parent.name == "why" for one in pictures) == explained
    for one in pictures:
        with Image.open(one) as image:
            image.verify()
    pages = [one for one in displayed if isinstance(one, str)]
    assert "&lt;!doctype html&gt;" in pages[0]
    assert '"' not in pages[0].split('srcdoc="')[1].split('"></iframe>')[0]
    with zipfile.ZipFile("my_model.zip") as packed:
        assert {"best.pth", "report.html"} <= set(packed.namelist())


@pytest.mark.parametrize("inside", ["", "photos/"])
def test_photos_come_as_a_zip_with_or_without_a_folder_around(tmp_path, monkeypatch, inside):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("mine.zip", "w") as packed:
        for name in ("cats/1.jpg", "dogs/1.jpg"):
            packed.writestr(inside + name, b"")
            packed.writestr(f"__MACOSX/{inside}{name}", b"")
    said = []
    check_photos = next(code for code in CODE if "unpack_archive" in code)
    cells = ["from pathlib import Path\nDATA, TRAIN = 'mine.zip', '--aug none'", check_photos]
    names, _ = run_cells(cells, said.append, monkeypatch)
    assert {one.name for one in Path(names["DATA"]).iterdir()} >= {"cats", "dogs"}
    assert said == [f'python train.py --data-path "{names["DATA"]}" --aug none --dry-run']


def get_project():
    return next(code for code in CODE if "git clone" in code)


@pytest.mark.parametrize("place", [".", "docs"])
def test_a_notebook_in_a_clone_takes_that(tmp_path, monkeypatch, place):
    (tmp_path / "docs").mkdir()
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path / place)
    run_cells(["REPOSITORY = ''", get_project()], pytest.fail, monkeypatch)
    assert Path.cwd() == tmp_path


def test_a_notebook_elsewhere_clones_what_it_is_told_to(tmp_path, monkeypatch):
    for place in ("origin", "here"):
        (tmp_path / place).mkdir()
    (tmp_path / "origin" / "train.py").touch()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path / "origin")]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.chdir(tmp_path / "here")
    cells = [f"REPOSITORY = {(tmp_path / 'origin').as_uri()!r}", get_project()]
    run_cells(cells, lambda line: subprocess.run(shlex.split(line), check=True), monkeypatch)
    assert Path.cwd() == tmp_path / "here" / "project"


def test_a_notebook_elsewhere_without_an_address_says_where_to_write_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="REPOSITORY"):
        run_cells(["REPOSITORY = ''", get_project()], pytest.fail, monkeypatch)


@pytest.mark.slow
def test_the_notebook_runs_with_a_shell_and_its_page_answers(tmp_path, monkeypatch):
    for path in [*ROOT.glob("*.py"), *(init.parent for init in ROOT.glob("*/__init__.py"))]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "requirements.txt").symlink_to(ROOT / "requirements.txt")
    monkeypatch.chdir(tmp_path)

    def shell(line):
        if not line.startswith("pip"):
            words = [sys.executable if word == "python" else word for word in shlex.split(line)]
            subprocess.run(words, check=True)

    *cells, end = CODE
    changes = {"FOLDS = 5": "FOLDS = 2", "--epochs 18": "--epochs 3"}
    names, displayed = run_cells(cells, shell, monkeypatch, changes)
    try:
        check(names, displayed, explained=5)
        assert names["run"] != names["newest"]("report.html").parent  # the folds made a run, too
        assert healthy(8000)
    finally:
        exec(end, names)
    assert names["server"].wait(30) is not None


def healthy(port, seconds=120):
    """Whether the page's server answers in time."""
    for _ in range(seconds):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            time.sleep(1)
    return False
