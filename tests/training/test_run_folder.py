"""The folder of a run: names, refusals, the lock, class_indices.json."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from training.run_folder import (
    RunLog,
    check_output,
    find_run,
    locked,
    new_run_dir,
    write_class_indices,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_are_numbered():
    names = [new_run_dir(None, "vit", "photos/my flowers", []).name for _ in range(3)]
    assert names == ["vit-my_flowers-1", "vit-my_flowers-2", "vit-my_flowers-3"]


def test_a_folder_with_a_run_is_refused_and_one_without_is_used():
    Path("out").mkdir()
    assert new_run_dir("out", "vit", "photos", []) == Path("out")
    Path("out/last.pth").touch()
    with pytest.raises(ValueError, match="--resume out"):
        new_run_dir("out", "vit", "photos", [])


@pytest.mark.parametrize("name", ["best.pth", "results.json", "args.json", "fold2/best.pth"])
def test_a_file_that_no_killed_run_left_is_named_and_stays(name):
    Path("models/fold2").mkdir(parents=True)
    Path("models", name).touch()
    with pytest.raises(ValueError, match=rf"would replace models/{name}, which is there already"):
        new_run_dir("models", "vit", "photos", [])


def test_a_run_killed_before_it_saved_begins_again_but_not_over_what_it_reads():
    Path("run").mkdir()
    for name in (".lock", "args.json", "best.pth", "metrics.csv"):
        Path("run", name).touch()
    check_output("run", [], [None, "other/best.pth"])
    for read in ("run/best.pth", "run"):
        with pytest.raises(ValueError, match=r"would replace run/best\.pth"):
            check_output("run", [], [None, read])
    Path("run/results.json").touch()  # one that had ended
    with pytest.raises(ValueError, match=r"would replace run/best\.pth"):
        check_output("run", [])


def test_the_current_folder_may_be_that_of_a_run():
    Path("class_indices.json").touch()  # of any run begun here
    assert new_run_dir(".", "vit", "photos", []) == Path()


def test_what_writers_left_is_cleared_and_what_others_left_is_not():
    Path("run/fold1").mkdir(parents=True)
    ours = {".best.pth.x1.tmp", ".features-0-0.tmp", "fold1/.last.pth.x2.tmp"}
    others = {".notes.tmp", "notes.tmp", ".my.best.pth.tmp", "fold1/.notes.x.tmp"}
    for name in ours | others:
        Path("run", name).touch()
    with locked(Path("run")):
        left = {path.relative_to("run").as_posix() for path in Path("run").rglob("*.tmp")}
        assert left == others


@pytest.mark.parametrize("output", ["photos", "photos/roses", "./photos/../photos/x"])
def test_nothing_is_written_into_the_data(output):
    Path("photos/roses").mkdir(parents=True)
    with pytest.raises(ValueError, match="inside the data photos"):
        new_run_dir(output, "vit", "photos", ["photos"])


def test_the_default_folder_is_refused_when_it_would_lie_in_the_data(monkeypatch):
    Path("photos").mkdir()
    monkeypatch.chdir("photos")
    with pytest.raises(ValueError, match="inside the data"):
        new_run_dir(None, "vit", ".", ["."])
    assert write_nothing_here()


def write_nothing_here():
    Path("../run").mkdir()
    write_class_indices(["a"], Path("../run"), ["."])
    return os.listdir(".") == []


def test_the_newest_run_is_found():
    for name in ("old", "new"):
        Path("weights", name).mkdir(parents=True)
        Path("weights", name, "last.pth").touch()
    os.utime("weights/old/last.pth", (1, 1))
    assert find_run("newest") == Path("weights/new")
    assert find_run("weights/old/last.pth") == Path("weights/old")


def test_no_run_to_resume_is_said():
    with pytest.raises(FileNotFoundError, match="no run to resume under weights"):
        find_run("newest")
    with pytest.raises(FileNotFoundError, match=r"elsewhere holds no last\.pth"):
        find_run("elsewhere")


def hold(folder, seconds):
    with locked(Path(folder)):
        Path(folder, "held").touch()
        time.sleep(seconds)


def start_holder(folder):
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(folder, 60))
    process.start()
    while not Path(folder, "held").exists():
        time.sleep(0.02)
    return process


@pytest.mark.skipif(os.name == "nt", reason="Windows has no record locks")
def test_a_second_run_is_refused_until_the_first_dies(tmp_path):
    Path("run").mkdir()
    Path("run/.last.pth.xyz.tmp").touch()
    holder = start_holder("run")
    try:
        with (
            pytest.raises(ValueError, match="another process is training into run"),
            locked(Path("run")),
        ):
            pass
    finally:
        holder.kill()
        holder.join()
    with locked(Path("run")):
        assert not Path("run/.last.pth.xyz.tmp").exists()


def test_class_indices_are_rewritten_only_when_they_change():
    Path("run").mkdir()
    assert "2 classes, 雛菊, roses" in write_class_indices(["雛菊", "roses"], Path("run"), [])
    assert write_class_indices(["雛菊", "roses"], Path("run"), []) is None
    for path in ("class_indices.json", "run/class_indices.json"):
        assert json.loads(Path(path).read_text("utf-8")) == {"0": "雛菊", "1": "roses"}


def test_a_file_of_that_name_that_is_no_json_stays():
    Path("run").mkdir()
    Path("class_indices.json").write_text("my notes", "utf-8")
    assert write_class_indices(["a"], Path("run"), []) is None
    assert Path("class_indices.json").read_text("utf-8") == "my notes"


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_a_resumed_log_has_each_epoch_once(tmp_path):
    history = []
    log = RunLog(tmp_path, history)
    for epoch in (1, 2, 3):
        history.append({"epoch": epoch, "train_loss": 1 / epoch, "val_acc": 0.5})
        log.epoch()
    log.text("data", ["<script>alert(1)</script>"])
    log.close()
    time.sleep(1.1)  # event files are ordered by the second in their names
    history = history[:2]  # killed before the third was saved
    log = RunLog(tmp_path, history)
    history.append({"epoch": 3, "train_loss": 0.25, "val_acc": 0.5})
    log.epoch()
    log.close()
    lines = (tmp_path / "metrics.csv").read_text("utf-8").splitlines()
    assert lines == ["epoch,train_loss,val_acc", "1,1.0,0.5", "2,0.5,0.5", "3,0.25,0.5"]
    scalars = events(tmp_path).Scalars("train_loss")
    assert [(s.step, s.value) for s in scalars] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert b"<script>" not in b"".join(p.read_bytes() for p in tmp_path.glob("events*"))
