"""A run with folds says which labels are likely wrong: suspects.csv, the page, the last lines."""

import csv
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from training import advice, results

FAST = [
    "--img-size",
    "16",
    "--workers",
    "0",
    "--amp",
    "off",
    "--batch-size",
    "8",
    "--device",
    "cpu",
]
FAST += ["--epochs", "4", "--warmup-epochs", "0", "--lr", "3e-3", "--model", "vit_micro_patch8_64"]
FOLDS = ["--folds", "2", "--output", "run"]


@pytest.fixture
def data(tmp_path, make_photos, monkeypatch):
    """24 photos of two classes that a tiny model tells apart, two of them in the other's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    make_photos(tmp_path / "data", ("cats", "dogs"), per_class=12, size=32)
    shutil.move("data/cats/cats_03.jpg", "data/dogs/cats_03.jpg")
    shutil.move("data/dogs/dogs_05.jpg", "data/cats/=dogs_05.jpg")
    return "data"


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the pictures and the page that other tests look at."""
    for name in ("draw_plots", "draw_photos", "write_report"):
        monkeypatch.setattr(results, name, lambda *_, **__: None)


def run(call, *words):
    status, out, err = call(train.main, *words)
    assert status == 0, err
    return out


def begin(call, *words):
    return run(call, "--data-path", "data", *FAST, *FOLDS, *words)


def rows():
    with open("run/suspects.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_labels_exchanged_on_purpose_are_found_and_left_out_by_the_command_told(
    data, call, monkeypatch
):
    for name in ("draw_plots", "draw_photos"):
        monkeypatch.setattr(results, name, lambda *_: None)
    out = begin(call)
    head, *found = rows()
    assert head == ["image", "label", "likely", "score"]
    assert {row[0] for row in found} == {"data/cats/=dogs_05.jpg", "data/dogs/cats_03.jpg"}
    assert {tuple(row[1:3]) for row in found} == {("cats", "dogs"), ("dogs", "cats")}
    scores = [float(row[3]) for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0.5 < score <= 1 for score in scores)
    assert "2 of 24 labels are to be checked: see run/suspects.html" in out
    assert Path("run/suspects.html").read_text("utf-8").count("data:image/jpeg") == 2
    assert 'href="suspects.html"' in Path("run/report.html").read_text("utf-8")
    (line,) = [line for line in out.splitlines() if line.startswith("train without them")]
    _, _, *words = shlex.split(line.partition("): ")[2])
    assert words[-2:] == ["--exclude", "run/suspects.csv"]
    assert "--lr" in words
    assert "--weight-decay" not in words  # which was chosen
    monkeypatch.setattr(results, "write_report", lambda *_, **__: None)
    out = run(call, *words, "--workers", "0", "--output", "again")
    assert "--exclude run/suspects.csv: 2 photos left out" in out
    assert "none of 22 labels looks wrong: see again/suspects.html" in out


def test_the_command_leaves_out_what_the_run_had_left_out_too(data, call, quick):
    Path("list.txt").write_text("data/cats/cats_00.jpg\n")
    Path("data/dogs").rename("data/=dogs")  # which a spreadsheet must not run
    out = begin(call, "--exclude", "list.txt")
    assert "--exclude list.txt run/suspects.csv" in out
    assert {*rows()[1][1:3]} == {"cats", "'=dogs"}


@pytest.mark.parametrize("group_by", ["near-copies", "none", "(\\d+)"])
def test_copies_of_two_labels_come_first_however_photos_are_grouped(group_by, data, call, quick):
    shutil.copy("data/cats/cats_07.jpg", "data/dogs/dogs_copy_07.jpg")
    scene = np.random.default_rng(0).integers(256, size=(5, 6, 3), dtype="uint8")
    scene = Image.fromarray(scene).resize((160, 120), Image.Resampling.BICUBIC)
    scene.save("data/dogs/scene.jpg")
    scene.resize((100, 75)).save("data/cats/scene_small.jpg")
    begin(call, "--group-by", group_by)
    _, *found = rows()
    both = {"data/cats/cats_07.jpg", "data/dogs/dogs_copy_07.jpg"}
    pairs = [both, {"data/dogs/scene.jpg", "data/cats/scene_small.jpg"}]
    known = pairs if group_by == "near-copies" else pairs[:1]
    assert [row[3] == "1.000000" for row in found[: 2 * len(known) + 1]].count(True) == 2 * len(
        known
    )
    with open("run/out_of_fold.csv", encoding="utf-8", newline="") as file:
        belief = {row["image"]: float(row[row["label"]]) for row in csv.DictReader(file)}
    for at in range(0, 2 * len(known), 2):
        one, other = found[at : at + 2]
        assert {one[0], other[0]} in known
        assert one[1:3] == other[1:3][::-1]
        assert belief[one[0]] <= belief[other[0]]
    Path("run/suspects.csv").unlink()
    run(call, "--resume", "run", "--workers", "0")
    assert rows()[1:] == found


def test_a_run_without_folds_writes_none(data, call, quick):
    out = run(call, "--data-path", "data", *FAST, "--output", "run")
    assert not list(Path("run").glob("suspects*"))
    assert "labels" not in out


def test_the_flags_of_a_run_are_told_as_they_are_typed():
    typed = [
        "--data-path",
        "a b",
        "--folds",
        "3",
        "--mlp",
        "kan",
        "--kan-range",
        "-2,2",
        "--decay-all",
    ]
    typed += [
        "--freeze-layers",
        "false",
        "--weights",
        __file__,
        "--ensemble",
        "--exclude",
        __file__,
    ]
    options = train.parse_args(typed)
    words = advice.words_of(options, {named.name for named, _ in options.rows()})
    assert train.parse_args(list(map(str, words))) == options
