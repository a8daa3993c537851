"""Resuming a run whose photos lie elsewhere now: it goes on, or says truly what is missing."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import train
from imaging.splitting import prepare_data
from system.flags import flag_of
from training.flags import Options
from training.resuming import changed, check_still_there, moved

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]


@pytest.fixture
def run(tmp_path, monkeypatch, call, make_photos):
    """Returns run(*flags) -> (exit status, output, errors) in a folder beside tmp_path/photos."""
    make_photos(tmp_path / "photos", per_class=3)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    monkeypatch.setattr(train, "write_results", lambda *_: None)
    return lambda *words: call(train.main, *words)


def test_a_run_goes_on_where_its_data_lie_now(run, tmp_path):
    photos, new = tmp_path / "photos", tmp_path / "new"
    assert run("--data-path", photos, *FAST, "--epochs", 1, "--output", "run")[0] == 0
    shutil.move(photos, new)
    before = Path("run/last.pth").read_bytes()

    status, _, err = run("--resume", "run", "--epochs", 2)
    assert status == 2
    assert f"photos are gone from {photos}, for instance {photos}" in err
    assert "if they moved, resume with --data-path where all of them are now" in err
    assert Path("run/last.pth").read_bytes() == before

    status, out, err = run("--resume", "run", "--epochs", 2, "--data-path", new)
    assert (status, err) == (0, "")
    assert f"--data-path: {new} instead of {photos}" in out
    last = torch.load("run/last.pth", weights_only=True)
    assert last["epoch"] == 2
    assert last["args"]["data_path"] == str(new)  # found there from now on


def test_a_run_whose_validation_folder_stayed_goes_on_again_and_again(run, tmp_path, make_photos):
    make_photos(tmp_path / "val", per_class=2, seed=1)
    lies, again = tmp_path / "photos", ["--resume", "run", "--epochs"]
    words = ["--data-path", lies, "--val-path", tmp_path / "val", *FAST, "--epochs", 0]
    assert run(*words, "--output", "run")[0] == 0
    for epochs, new in ((1, tmp_path / "deep" / "er"), (3, tmp_path / "moved")):
        new.parent.mkdir(exist_ok=True)
        lies = Path(shutil.move(lies, new))
        assert run(*again, epochs, "--data-path", lies)[::2] == (0, "")
        assert run(*again, epochs + 1)[::2] == (0, "")


@pytest.mark.parametrize(
    ("val", "to", "val_to"),
    [
        (None, "p2", None),
        (None, "photos/inside", None),
        ("val", "p2", "val"),
        ("val", "photos", "v2"),
        ("val", "p2", "v2"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_each_folder_may_move(tmp_path, monkeypatch, make_photos, val, to, val_to, relative):
    monkeypatch.chdir(tmp_path)

    def place(name):
        return name if relative or name is None else str(tmp_path / name)

    for folder, seed in (("photos", 0), *([(val, 1)] if val else [])):
        make_photos(tmp_path / folder, seed=seed)
    split = prepare_data(place("photos"), place(val))
    begun = Options(data_path=place("photos"), val_path=place(val))
    now = Options(data_path=place(to), val_path=place(val_to))
    for old, new in ((val, val_to), ("photos", to)):
        if old != new:
            os.rename(old, "moving")
            Path(new).parent.mkdir(exist_ok=True)
            os.rename("moving", new)
    data = moved(type(split).from_dict(split.to_dict(), begun.data_path), begun, now)
    check_still_there(data, now)
    assert data.root == place(to)
    assert data.to_dict()["train"] == split.to_dict()["train"]
    assert (data.train.labels, data.val.labels) == (split.train.labels, split.val.labels)


def test_what_is_missing_at_the_new_place_is_counted_and_named(tmp_path, make_photos):
    root = str(make_photos(tmp_path / "photos"))
    split = prepare_data(root)
    gone, count = split.val.paths[0], len(split.val.paths + split.train.paths)
    os.unlink(gone)
    with pytest.raises(FileNotFoundError, match=rf"^1 of .* {count} photos .* instance {gone}: "):
        check_still_there(split, Options(data_path=root))
    nowhere = Options(data_path=str(tmp_path / "nowhere"), val_path=str(tmp_path / "val"))
    there = moved(split, Options(data_path=root), nowhere)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere and .*val, .* --data-path and --val-path "
    ):
        check_still_there(there, nowhere)


@pytest.mark.parametrize("name", ["val_path", "test_path"])
def test_a_run_without_a_folder_to_judge_gets_none(tmp_path, name):
    typed = Options(**{name: "other"}, given=frozenset({name}))
    with pytest.raises(ValueError, match=rf"{flag_of(name)} other .* would make it another run"):
        changed(Options(), typed, tmp_path)


@pytest.mark.parametrize("begun", [{"folds": 3}, {"kan_reg": 1e-4}, {"cache_views": 2}])
def test_a_flag_that_contradicts_the_run_is_refused(tmp_path, begun):
    saved = Options(weights="w.pth", **begun)
    typed = Options(fsdp=True, resume="run", given=frozenset({"resume", "fsdp"}))
    with pytest.raises(ValueError, match=r"(?=.*--fsdp)(?=.*--(folds|kan-reg|cache-views))"):
        changed(saved, typed, tmp_path)
    assert changed(Options(), typed, tmp_path).fsdp
