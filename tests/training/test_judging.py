"""Which photos --eval judges, and what becomes of every other photo that is there."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import draw_class_photo

import train
from imaging.digests import digests
from training import judging

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]


@pytest.fixture
def data(tmp_path, make_photos, monkeypatch, no_pictures):
    """20 photos of noise in each of two classes: a model knows the answer of those it saw alone."""
    monkeypatch.chdir(tmp_path)
    return make_photos(tmp_path / "data", ("cats", "dogs"), per_class=20, size=16)


@pytest.fixture
def trained(data, call):
    """A run that kept other photos than the defaults would, and the accuracy it found on them."""
    words = ["--data-path", data, *FAST, "--epochs", "1", "--seed", "3", "--val-split", "0.4"]
    assert call(train.main, *words, "--output", "run")[0] == 0
    return found("run/best.pth")["val_acc"], found("run/best.pth")["val_loss"]


def found(path):
    return torch.load(path, weights_only=True)["metrics"]


def judge(call, path, weights="run/best.pth", *words):
    status, out, err = call(
        train.main, "--data-path", path, "--eval", "--weights", weights, "--workers", "0", *words
    )
    return status, out + err


def numbers(out):
    told = re.search(r"on (\d+) validation photos? of .*: accuracy ([\d.]+), loss ([\d.]+)", out)
    return int(told[1]), float(told[2]), float(told[3])


@pytest.mark.parametrize("place", ["beside", "away", "moved", "folder"])
def test_eval_judges_what_the_run_kept_for_validation(place, data, trained, call):
    weights = "run/best.pth"
    if place == "away":  # no split.json beside it
        weights = shutil.copy(weights, "copy.pth")
    if place == "moved":
        data = data.rename("elsewhere")
    if place == "folder":
        weights = "run"
    status, out = judge(call, data, weights)
    assert status == 0
    assert numbers(out) == (
        16,
        pytest.approx(trained[0], abs=1e-4),
        pytest.approx(trained[1], abs=1e-4),
    )


def test_last_pth_and_exported_weights_know_their_photos_too(data, trained, call):
    import pretrained

    assert numbers(judge(call, data, "run/last.pth")[1])[:2] == (
        16,
        pytest.approx(trained[0], abs=1e-4),
    )
    assert call(pretrained.main, "run/best.pth", "--save", "x.safetensors")[0] == 0
    assert numbers(judge(call, data, "x.safetensors")[1])[:2] == (
        16,
        pytest.approx(trained[0], abs=1e-4),
    )


def test_every_photo_of_the_data_is_judged_or_counted_under_a_reason(data, trained, call):
    split = train.read_split(Path("run"), str(data), ["cats", "dogs"])
    Path(split.val.paths[0]).unlink()
    Path(split.val.paths[1]).write_bytes(b"no photo")
    draw_class_photo(np.random.default_rng(0), 0, 16).save(data / "cats" / "later.jpg")
    status, out = judge(call, data)
    assert (status, numbers(out)[0]) == (0, 14)
    assert "15 photos that the run of run/best.pth kept for validation; it was trained on 24" in out
    assert "left out by the run, or new since: 1 (such as cats/later.jpg)" in out
    assert "no longer there, so not judged: 1" in out
    assert f"not judged, for it cannot be read: {split.val.paths[1]}" in out


def test_flags_that_would_judge_trained_photos_are_refused_and_equal_ones_taken(
    data, trained, call
):
    for weights in ("run/best.pth", shutil.copy("run/best.pth", "copy.pth")):
        status, out = judge(call, data, weights, "--seed", "4")
        assert status == 2
        assert "--seed 4 would judge photos that" in out
        assert judge(call, data, weights, "--val-split", "0.2")[0] == 2
        assert judge(call, data, weights, "--seed", "3", "--val-split", "0.4")[0] == 0


def test_other_data_and_folders_for_validation_are_judged_as_they_are(
    data, trained, call, make_photos, tmp_path
):
    other = make_photos(tmp_path / "other", ("cats", "dogs"), per_class=5, size=16, seed=8)
    assert numbers(judge(call, data, "run/best.pth", "--val-path", str(other))[1])[0] == 10
    for n, path in enumerate(sorted(other.glob("*/*.jpg"))):
        path.rename(path.with_name(f"unlike_{n}.jpg"))
    status, out = judge(call, other)  # without a word on any run's photos in it
    assert (status, "kept for validation" in out) == (0, False)


def test_a_run_with_a_folder_for_validation_keeps_no_choice(data, call, make_photos, tmp_path):
    other = make_photos(tmp_path / "val", ("cats", "dogs"), per_class=3, size=16, seed=5)
    words = ["--data-path", data, "--val-path", other, *FAST, "--epochs", "0", "--output", "run"]
    assert call(train.main, *words)[0] == 0
    assert not {"seed", "val_split"} & found("run/best.pth").keys()
    assert numbers(judge(call, data)[1])[0] == 6  # split.json knows the folder


def test_an_unlabelled_test_folder_is_named_and_left_out(data, call, tmp_path):
    for name in ("train/cats", "train/dogs", "test"):
        (tmp_path / "kaggle" / name).mkdir(parents=True)
    for name in ("cats", "dogs"):
        for n, photo in enumerate(sorted((data / name).iterdir())):
            shutil.copy(photo, tmp_path / "kaggle" / ("test" if n > 11 else f"train/{name}"))
    words = ["--data-path", tmp_path / "kaggle", *FAST, "--epochs", "0", "--output", "run"]
    status, out, _ = call(train.main, *words)
    assert status == 0
    assert "24 photos in 2 classes, 20 for training, 4 for validation" in out
    assert "without class folders, left out: 1 (test: its photos: 16)" in out
    assert numbers(judge(call, tmp_path / "kaggle")[1])[0] == 4


def test_classes_with_too_few_photos_are_named_together(data, call):
    for name in ("birds", "fish"):
        (data / name).mkdir()
        shutil.copy(data / "cats" / f"cats_{len(name):02d}.jpg", data / name)
        draw_class_photo(np.random.default_rng(len(name)), 1, 16).save(data / name / "one.jpg")
        (data / name / f"cats_{len(name):02d}.jpg").unlink()
    status, _, err = call(train.main, "--data-path", data, *FAST, "--epochs", "0")
    assert status == 2
    assert "class 'birds' has too few photos" in err
    assert "the same goes for 'fish'" in err


def test_other_data_that_is_split_by_the_same_numbers_did_not_choose_the_epoch(tmp_path):
    ours, theirs = tmp_path / "ours.jpg", tmp_path / "theirs.jpg"
    ours.write_bytes(b"ours")
    theirs.write_bytes(b"theirs")
    choice = {"val_split": 0.2, "seed": 1}
    meta = {"metrics": choice | {"chosen_among": 4}, "trained_on": digests([str(ours)])}

    def caveat(path):
        data = SimpleNamespace(choice=choice, train=SimpleNamespace(paths=[str(path)]))
        return judging._caveat(meta, data)

    assert "chosen among 4 by them" in caveat(ours)
    assert caveat(theirs) == ""
