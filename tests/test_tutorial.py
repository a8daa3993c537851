"""docs/tutorial.md: every command in it runs, on the sample flowers.

Two things differ from what a student types. The pretrained model is not fetched: a small file made
here stands in for it. And in the quick test, fewer flowers are drawn, and the commands run in this
process, which has loaded torch already; the slow one gives all of them to a shell as they stand.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from serving.server import Server
from vit_model import create_model

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
STAND_IN = {"--weights deit_tiny_patch16_224": "--weights stand_in.pth"}
# A port that is free, and an end: what a student ends by Ctrl-C.
HERE = {"python serve.py": "python serve.py --port 0"}
ENDED = {"python serve.py": "timeout -s INT --preserve-status 40 python serve.py --port 0"}
FEWER = {"--per-class 40": "--per-class 6", "--photos 32": "--photos 8", "--folds 5": "--folds 2"}


def commands(changes):
    """The lines of all shell blocks, in their order, with `changes` made in them."""
    script = "\n".join(re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL))
    script = re.sub(r"\\\n\s*", "", script)
    for old, new in changes.items():
        assert old in script, f"the tutorial no longer says {old}"
        script = script.replace(old, new)
    return list(filter(None, script.splitlines()))


def python_blocks():
    """What the tutorial has a notebook do, once its commands have run."""
    return re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)


def make_stand_in():
    model = create_model("vit_micro_patch8_64", num_classes=7)
    torch.save(model.state_dict(), "stand_in.pth")


def run_here(words, monkeypatch):
    """Runs `python FILE ...`, `-m MODULE ...` or `-c CODE` without starting another Python."""
    if words[1] == "-c":
        exec(words[2], {})
        return
    words = words[2:] if words[1] == "-m" else words[1:]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(Server, "serve_forever", interrupted)
    status = importlib.import_module(words[0].removesuffix(".py")).main()
    assert not status, shlex.join(words)


def interrupted(server):
    raise KeyboardInterrupt


def photos_of(folder):
    return list(Path(folder).glob("*/*.jpg"))


def check_results():
    """What the tutorial promises."""
    for run in ("head", "tested", "folds", "labels", "clean", "kan-start", "kan"):
        assert Path("weights", run, "report.html").exists()

    def metrics(run):
        return torch.load(f"weights/{run}/best.pth", weights_only=True)["metrics"]

    assert metrics("kan-start")["val_acc"] == metrics("head")["val_acc"]
    assert torch.load("weights/kan/last.pth", weights_only=True)["epoch"] == 6
    assert len(Path("answers.csv").read_text("utf-8").splitlines()) == 1 + 5 * 4
    assert list(Path("why").glob("*.png"))
    assert Path("nearest/cat.png").exists()
    with np.load("features.npz") as features:
        assert len(features["paths"]) == len(features["features"]) == len(photos_of("my_photos"))


def test_every_command_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_stand_in()
    for line in commands(STAND_IN | FEWER | HERE):
        words = shlex.split(line)
        if words[0] == "python":
            run_here(words, monkeypatch)
        else:
            subprocess.run(["bash", "-ec", line], check=True)
    said = capsys.readouterr().out
    assert "the nearest training photos are" not in said  # they are shown
    assert "the same photo in two classes" in said
    assert "daisy/daisy_0002.jpg: like daisy/again.jpg" in said or (
        "daisy/again.jpg: like daisy/daisy_0002.jpg" in said
    )
    check_results()
    for code in python_blocks():
        exec(code, {})
    answers = capsys.readouterr().out.splitlines()
    assert [answer.split()[0] for answer in answers] == [
        "new_photos/roses/roses_0001.jpg",
        "new_photos/daisy/daisy_0001.jpg",
    ]


@pytest.mark.slow
def test_the_tutorial_runs_in_a_shell(tmp_path, monkeypatch):
    shutil.copytree(
        ROOT, tmp_path, ignore=shutil.ignore_patterns(".*", "weights", "tests"), dirs_exist_ok=True
    )
    monkeypatch.chdir(tmp_path)
    make_stand_in()
    folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": folder + os.pathsep + os.environ["PATH"]}
    script = "\n".join(commands(STAND_IN | ENDED))
    subprocess.run(["bash", "-euc", script], check=True, env=environment)
    check_results()
