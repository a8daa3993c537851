"""--exclude FILE: listed photos are in no part of a run, nor of what goes on from it."""

import json
from pathlib import Path

import pytest

import train

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]
FAST += ["--batch-size", "8", "--device", "cpu", "--epochs", "1"]


@pytest.fixture
def data(tmp_path, make_photos, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "data", ("cats", "dogs"), per_class=10, size=16)
    return "data"


@pytest.fixture
def listed(data):
    """Three photos that a file lists."""
    paths = sorted(str(path) for path in Path(data).rglob("*.jpg"))[:3]
    Path("list.txt").write_text("\n".join(paths))
    return paths


def run(call, *words):
    status, out, err = call(train.main, *words)
    assert status == 0, err
    return out


def paths_of(folder):
    sides = json.loads(Path(folder, "split.json").read_text("utf-8"))
    return {
        str(Path("data", path))
        for side in ("train", "val")
        for paths in sides[side].values()
        for path in paths
    }


def begin(call, *words):
    return run(call, "--data-path", "data", *FAST, "--output", "run", *words)


@pytest.mark.parametrize("folds", [[], ["--folds", "2"]])
def test_a_run_knows_nothing_of_listed_photos_and_the_data_stay(folds, listed, call):
    before = sorted(Path("data").rglob("*"))
    out = begin(call, "--exclude", "list.txt", *folds)
    assert "--exclude list.txt: 3 photos left out" in out
    assert len(paths_of("run")) == 17
    assert not paths_of("run") & {*listed}
    assert json.loads(Path("run/args.json").read_text())["exclude"] == ["list.txt"]
    assert json.loads(Path("run/results.json").read_text())["trained_on"] == (17 if folds else 14)
    assert sorted(Path("data").rglob("*")) == before
    if folds:
        table = Path("run/out_of_fold.csv").read_text()
        assert not any(path in table for path in listed)


def test_a_dry_run_says_the_same(listed, call):
    words = ["--data-path", "data", *FAST, "--dry-run", "--exclude", "list.txt"]
    assert "--exclude list.txt: 3 photos left out" in run(call, *words)


@pytest.mark.parametrize("gone", [False, True])
def test_a_resumed_run_keeps_to_the_list_as_it_was(gone, listed, call):
    begin(call, "--exclude", "list.txt")
    kept = paths_of("run")
    Path("list.txt").unlink() if gone else Path("list.txt").write_text("nonsense")
    run(call, "--resume", "run", "--epochs", "2", "--workers", "0")
    assert paths_of("run") == kept
    Path("other.txt").write_text(listed[0])
    status, _, err = call(train.main, "--resume", "run", "--exclude", "other.txt")
    assert status == 2
    assert "--exclude" in err
    assert "another run" in err


def test_eval_judges_none_of_what_the_run_left_out(listed, call):
    begin(call, "--exclude", "list.txt")
    judge = ["--eval", "--weights", "run/best.pth", "--workers", "0", "--data-path", "data"]
    out = run(call, *judge)
    assert "left out by --exclude, now or in the run: 3" in out
    val = json.loads(Path("run/split.json").read_text())["val"]["cats"]
    count = sum(map(len, json.loads(Path("run/split.json").read_text())["val"].values()))
    assert f"on {count} validation photos" in out
    Path("more.txt").write_text(val[0])
    out = run(call, *judge, "--exclude", "more.txt")
    assert "--exclude more.txt: 1 photo left out" in out
    assert f"on {count - 1} validation photos" in out


def test_eval_of_a_folder_leaves_out_what_the_run_left_out(listed, call, make_photos):
    make_photos(Path("val"), ("cats", "dogs"), per_class=10, size=16, seed=5)
    first = sorted(Path("val").rglob("*.jpg"))[0]
    Path("list.txt").write_text(str(first))
    begin(call, "--val-path", "val", "--group-by", "none", "--exclude", "list.txt")
    judge = ["--eval", "--weights", "run/best.pth", "--workers", "0", "--data-path", "data"]
    out = run(call, *judge, "--val-path", "val", "--group-by", "none")
    assert "as in the run of these weights: 1 photo left out" in out
    assert "on 19 validation photos" in out


def test_a_list_of_every_photo_to_judge_is_refused(listed, call):
    begin(call)
    val = json.loads(Path("run/split.json").read_text())["val"]
    Path("all.txt").write_text("\n".join(path for paths in val.values() for path in paths))
    judge = ["--eval", "--weights", "run/best.pth", "--workers", "0", "--data-path", "data"]
    status, _, err = call(train.main, *judge, "--exclude", "all.txt")
    assert (status, err.count("\n")) == (2, 1)
    assert "--exclude all.txt leaves no photo to judge" in err
