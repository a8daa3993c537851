"""Runs and checkpoints of commit b7f96e5 go on as they would have gone on there (see make.py)."""

import json
import os
import shutil
import subprocess
import sys

import make
import pytest
import torch
from conftest import ROOT


@pytest.fixture(scope="module", params=make.RUNS)
def resumed(request, tmp_path_factory):
    """Returns (what make.py noted of a run, the folder in which it was finished just now)."""
    name, folder = request.param, tmp_path_factory.mktemp("before")
    shutil.copytree(make.HERE / "photos", folder / "photos")
    shutil.copytree(make.HERE / name, folder / name)
    words = [sys.executable, str(ROOT / "train.py"), "--resume", name]
    quiet = os.environ | {"KAN_COMPILE": "0", "OMP_NUM_THREADS": "1"}
    told = subprocess.check_output(words, cwd=folder, env=quiet, text=True)
    assert "at epoch 2: 1 epoch to go" in told
    end = json.loads((folder / name / "end.json").read_text("utf-8"))
    return end, folder / name


def on_this_machine(end):
    """Whether a machine such as this one finished the run, whose kernels round alike."""
    here = make.machine() | {"threads": 1}  # of the run, not of the tests
    return end["machine"] == here


def test_a_run_begun_before_ends_the_same(resumed):
    end, folder = resumed
    last = torch.load(folder / "last.pth", weights_only=True)
    # Splines without a compiler have rounded otherwise since: bases are computed all at once.
    if on_this_machine(end) and folder.name != "gkan":
        assert make.digests(last["model"]) == end["model"]
    here = torch.tensor(make.logits(folder / "last.pth", make.HERE / "photos"))
    torch.testing.assert_close(here, torch.tensor(end["logits"]), atol=1e-4, rtol=0)
    assert last["epoch"] == 2
    assert last["best"]["epoch"] == end["best_epoch"]
    for name in ("train_loss", "val_loss", "val_acc", "learning_rate"):
        assert last["metrics"][name] == pytest.approx(end["metrics"][name], abs=1e-4)


@pytest.mark.parametrize("name", make.RUNS)
def test_a_checkpoint_of_before_has_its_logits(name):
    end = json.loads((make.HERE / name / "end.json").read_text("utf-8"))
    here = torch.tensor(make.logits(make.HERE / name / "best.pth", make.HERE / "photos"))
    torch.testing.assert_close(here, torch.tensor(end["logits_before"]), atol=1e-4, rtol=0)


def test_predictions_are_told_as_before(resumed):
    end, folder = resumed
    for weights, told in (
        (make.HERE / folder.name / "best.pth", end["predictions_before"]),
        (folder / "last.pth", end["predictions"]),
    ):
        here = make.predictions(ROOT, make.HERE, weights)
        assert [answer["image"] for answer in here] == [answer["image"] for answer in told]
        for answer, before in zip(here, told, strict=True):
            for one, other in zip(answer["predictions"], before["predictions"], strict=True):
                assert (one["class"], one["index"]) == (other["class"], other["index"])
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
