"""splitting.py, data_report.py: bad photos out, copies on one side, the same split each time."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging import scanning
from imaging.data_report import KINDS, DataReport, Problem
from imaging.splitting import DataSplit, Samples, prepare_data


def kinds(split):
    """{kind: [paths below the root]} of the report."""
    found = {}
    for kind, path, _ in split.report.problems:
        found.setdefault(kind, []).append(os.path.relpath(path, split.root))
    return found


def names(samples, root):
    return {os.path.relpath(path, root).replace(os.sep, "/") for path in samples.paths}


def sides(split):
    return names(split.train, split.root), names(split.val, split.root)


def snapshot(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(root).rglob("*")}


# --- the split ---


def test_split_is_stratified_and_complete(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=10)
    split = prepare_data(root, val_split=0.2)
    assert split.classes == ["daisy", "roses", "tulips"]
    assert split.report.counts == {name: (8, 2) for name in split.classes}
    train, val = sides(split)
    assert not train & val
    assert len(train | val) == 30
    for samples in (split.train, split.val):
        for path, label in zip(*samples, strict=True):
            assert Path(path).parent.name == split.classes[label]


def test_split_follows_the_seed_alone(make_photos, tmp_path, monkeypatch):
    root = make_photos(tmp_path / "data", per_class=10)
    first = prepare_data(root, seed=3)
    moved = shutil.copytree(root, tmp_path / "moved")
    scandir_order = scanning._entries

    def shuffled(folder, problems):
        entries = scandir_order(folder, problems)
        random.Random(1).shuffle(entries)
        return entries

    monkeypatch.setattr(scanning, "_entries", shuffled)
    assert sides(prepare_data(moved, seed=3, workers=3)) == sides(first)
    assert sides(prepare_data(root, seed=4)) != sides(first)


def test_a_new_photo_or_class_moves_few_others(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=20)
    before = sides(prepare_data(root))[1]
    make_photos(tmp_path / "data", classes=("weeds",), per_class=5, seed=9)
    Image.new("RGB", (48, 48)).save(root / "daisy" / "new.png")
    after = sides(prepare_data(root))[1]
    assert len([name for name in before - after if not name.startswith("weeds")]) <= 1


@pytest.mark.parametrize("val_split", [0.01, 0.5, 0.99])
def test_each_class_keeps_a_photo_on_both_sides(make_photos, tmp_path, val_split):
    root = make_photos(tmp_path / "data", per_class=2)
    split = prepare_data(root, val_split=val_split)
    assert set(split.report.counts.values()) == {(1, 1)}


@pytest.mark.parametrize("val_split", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_val_split_is_refused(tmp_path, val_split):
    with pytest.raises(ValueError, match="--val-split must lie between 0 and 1"):
        prepare_data(tmp_path, val_split=val_split)


def test_class_with_a_single_photo_is_refused(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    (root / "rare").mkdir()
    Image.new("RGB", (32, 32)).save(root / "rare" / "1.png")
    with pytest.raises(ValueError, match="'rare' has too few photos"):
        prepare_data(root)


def test_class_whose_photos_are_all_the_same_is_refused(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    (root / "rare").mkdir()
    for number in range(3):
        shutil.copy(root / "roses" / "roses_00.jpg", root / "rare" / f"{number}.jpg")
    with pytest.raises(ValueError, match="'rare' has too few photos"):
        prepare_data(root)


# --- the check ---


def test_bad_and_odd_photos_are_named(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    roses = root / "roses"
    content = (roses / "roses_00.jpg").read_bytes()
    (roses / "short.jpg").write_bytes(content[: len(content) // 2])
    (roses / "empty.jpg").touch()
    (roses / "page.jpg").write_text("<html>not found</html>", "utf-8")
    Image.new("RGB", (300, 7), (9, 9, 9)).save(roses / "thin.png")
    Image.new("CMYK", (30, 30)).save(roses / "ink.jpg")
    Image.new("RGBA", (30, 30)).save(roses / "glass.png")
    Image.new("L", (30, 30)).save(roses / "grey.png")
    split = prepare_data(root)
    found = kinds(split)
    assert found["truncated"] == ["roses/short.jpg"]
    assert sorted(found["unreadable"]) == ["roses/empty.jpg", "roses/page.jpg"]
    assert found["tiny"] == ["roses/thin.png"]
    assert sorted(found["odd mode"]) == ["roses/glass.png", "roses/ink.jpg"]
    train, val = sides(split)
    assert {"roses/thin.png", "roses/ink.jpg", "roses/glass.png", "roses/grey.png"} <= train | val
    assert not {"roses/short.jpg", "roses/empty.jpg", "roses/page.jpg"} & (train | val)


def test_nothing_is_written_into_the_data(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    before = snapshot(root)
    prepare_data(root)
    assert snapshot(root) == before


def test_only_files_of_equal_size_are_hashed(make_photos, tmp_path, monkeypatch):
    root = make_photos(tmp_path / "data")
    shutil.copy(root / "roses" / "roses_00.jpg", root / "roses" / "copy.jpg")
    sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
    hashed = []
    monkeypatch.setattr("imaging.checking.file_digest", lambda path: hashed.append(path) or b"same")
    prepare_data(root)
    assert len(hashed) == sum(sizes.count(size) > 1 for size in sizes)


# --- copies ---


def test_copies_stay_on_one_side(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=6)
    for number in range(6):
        for copy in range(2):
            original = root / "roses" / f"roses_{number:02d}.jpg"
            shutil.copy(original, root / "roses" / f"copy_{number}_{copy}.jpg")
    split = prepare_data(root, val_split=0.5)
    train, val = sides(split)
    for number in range(6):
        copies = {f"roses/copy_{number}_{copy}.jpg" for copy in range(2)}
        group = copies | {f"roses/roses_{number:02d}.jpg"}
        assert group <= train or group <= val
    assert len(kinds(split)["copy"]) == 12
    assert split.report.counts["roses"] == (9, 9)


def test_photo_in_two_classes_is_named_and_only_trains(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=4)
    shutil.copy(root / "roses" / "roses_01.jpg", root / "tulips" / "again.jpg")
    for seed in range(6):
        split = prepare_data(root, val_split=0.6, seed=seed)
        assert {"roses/roses_01.jpg", "tulips/again.jpg"} <= sides(split)[0]
    assert [problem[:2] for problem in split.report.problems] == [
        ("conflict", str(root / "tulips" / "again.jpg"))
    ]
    assert "the same as roses/roses_01.jpg" in split.report.text()


# --- a validation folder ---


def test_given_validation_folder_is_used_as_it_is(make_photos, tmp_path):
    data = make_photos(tmp_path / "data")
    val = make_photos(tmp_path / "val", per_class=3, seed=1)
    split = prepare_data(data, val_path=val)
    assert split.report.counts == {name: (8, 3) for name in split.classes}
    assert names(split.val, val) == {
        f"{name}/{name}_{n:02d}.jpg" for name in split.classes for n in range(3)
    }


def test_validation_classes_are_matched_by_name_not_position(make_photos, tmp_path):
    make_photos(tmp_path / "train", classes=("b", "c", "d"))
    make_photos(tmp_path / "val", classes=("a", "c"), per_class=2, seed=1)
    split = prepare_data(tmp_path)
    assert split.classes == ["b", "c", "d"]
    assert set(split.val.labels) == {1}
    found = kinds(split)
    assert found["extra class"] == ["val/a"]
    assert [p.path for p in split.report.problems if p.kind == "missing class"] == ["b", "d"]


def test_leaking_photos_are_named_and_not_trained_on(make_photos, tmp_path):
    data = make_photos(tmp_path / "data")
    val = make_photos(tmp_path / "val", per_class=3, seed=1)
    shutil.copy(val / "roses" / "roses_00.jpg", data / "roses" / "leak.jpg")
    shutil.copy(val / "roses" / "roses_01.jpg", data / "tulips" / "leak.jpg")
    split = prepare_data(data, val_path=val)
    assert sorted(kinds(split)["leak"]) == ["roses/leak.jpg", "tulips/leak.jpg"]
    assert split.report.counts["roses"] == (8, 3)
    assert "leak.jpg" not in {os.path.basename(path) for path in split.train.paths}


def test_validating_on_the_training_photos_is_refused(make_photos, tmp_path):
    data = make_photos(tmp_path / "data")
    copy = shutil.copytree(data, tmp_path / "copy")
    with pytest.raises(ValueError, match="'daisy' has no photo to train on"):
        prepare_data(data, val_path=copy)


def test_unreadable_validation_photos_are_refused(make_photos, tmp_path):
    data = make_photos(tmp_path / "data")
    (tmp_path / "val" / "roses").mkdir(parents=True)
    (tmp_path / "val" / "roses" / "1.jpg").write_text("no", "utf-8")
    with pytest.raises(ValueError, match="none of the validation photos can be read"):
        prepare_data(data, val_path=tmp_path / "val")


# --- split.json ---


def test_split_travels_through_json_to_another_place(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    split = prepare_data(root)
    text = json.dumps(split.to_dict())
    assert str(tmp_path) not in text
    again = DataSplit.from_dict(json.loads(text), root)
    assert (again.classes, again.train, again.val) == (split.classes, split.train, split.val)
    assert again.report.counts == split.report.counts
    moved = root.rename(tmp_path / "moved")
    there = DataSplit.from_dict(json.loads(text), moved)
    assert all(os.path.isfile(path) for path in there.train.paths + there.val.paths)


def test_test_photos_and_groups_travel_through_json_and_move(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    split = prepare_data(root)
    apart, labels = split.train.paths[:3], split.train.labels[:3]
    split.test, split.groups = Samples(apart, labels), dict.fromkeys(apart, apart[0])
    again = DataSplit.from_dict(json.loads(json.dumps(split.to_dict())), root)
    assert (again.test, again.groups) == (split.test, split.groups)
    assert again.groups_of([apart[1], "alone.jpg"]) == [apart[0], "alone.jpg"]
    there = again.moved([(str(root), str(tmp_path / "moved"))])
    assert there.test.paths == [p.replace("data", "moved") for p in apart]
    assert set(there.groups) == set(there.test.paths)
    assert "test" not in prepare_data(root).to_dict()


def test_split_with_a_separate_folder_and_a_linked_root_finds_its_photos(make_photos, tmp_path):
    make_photos(tmp_path / "deep" / "er" / "data")
    val = make_photos(tmp_path / "val", per_class=2, seed=1)
    try:
        os.symlink(tmp_path / "deep" / "er" / "data", tmp_path / "link")
    except OSError:
        pytest.skip("no symbolic links here")
    split = prepare_data(tmp_path / "link", val_path=val)
    again = DataSplit.from_dict(split.to_dict(), tmp_path / "link")
    assert all(os.path.isfile(path) for path in again.val.paths)


def test_names_that_are_no_utf8_survive_json_and_can_be_printed(make_photos, tmp_path):
    root = make_photos(tmp_path / "data")
    try:
        (root / "roses" / "roses_00.jpg").rename(root / "roses" / os.fsdecode(b"\xff.jpg"))
        (root / "tulips").rename(root / os.fsdecode(b"t\xfclips"))
        (root / "daisy" / "daisy_00.jpg").write_text("no", "utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (root / os.fsdecode(b"t\xfclips") / "bad.jpg").touch()
    split = prepare_data(root)
    again = DataSplit.from_dict(json.loads(json.dumps(split.to_dict())), root)
    assert again.train == split.train
    text = "\n".join([*split.report.lines(), split.report.text()])
    assert "t\\xfclips" in text
    assert text.encode("utf-8")


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        {"classes": ["a", "b"]},
        {"classes": ["a", "b"], "train": {"a": []}, "val": {}},
        {"classes": ["a", 2], "train": {}, "val": {}},
        {"classes": ["a", "b"], "train": {"a": [1], "b": []}, "val": {"a": [], "b": []}},
        {"classes": ["a", "a"], "train": {"a": ["x"]}, "val": {"a": ["y"]}},
        {"classes": ["a"], "train": {"a": ["x"]}, "val": {"a": ["y"]}},
        {"classes": "ab", "train": {"a": "xy", "b": 5}, "val": {"a": [], "b": []}},
    ],
)
def test_nonsense_in_split_json_is_refused_with_a_sentence(values, tmp_path):
    with pytest.raises(ValueError, match="not a split as"):
        DataSplit.from_dict(values, tmp_path)


# --- the report ---


def test_short_report_names_the_first_few_and_the_long_one_all():
    problems = [Problem("unreadable", f"data/a/{n}.jpg", "it is empty") for n in range(5)]
    report = DataReport("data", {"a": (8, 2), "玫瑰": (7, 3)}, problems)
    lines = report.lines()
    assert lines[0] == "data: 20 photos in 2 classes, 15 for training, 5 for validation"
    assert lines[1] == (
        "unreadable, left out: 5 (a/0.jpg: it is empty; a/1.jpg: it is empty; "
        "a/2.jpg: it is empty; ...)"
    )
    assert all(f"a/{n}.jpg: it is empty\n" in report.text() for n in range(5))
    assert "玫瑰" in report.text()


def test_imbalance_is_said_from_three_times_on():
    assert DataReport("data", {"a": (20, 9), "b": (8, 2)}).imbalance() == ""
    line = DataReport("data", {"a": (20, 10), "b": (8, 2)}).lines()[1]
    assert line.startswith("imbalance: 'a' has 3.0 times as many photos as 'b' (30 and 10)")


def test_every_kind_of_problem_can_be_reported():
    problems = [Problem(kind, f"data/{kind}") for kind in reversed(KINDS)]
    report = DataReport("data", {"a": (1, 1)}, problems)
    assert len(report.lines()) == 1 + len(KINDS)
    assert all(kind in report.text() for kind in KINDS)


def test_a_clean_data_set_is_one_line(make_photos, tmp_path):
    assert len(prepare_data(make_photos(tmp_path / "data")).report.lines()) == 1


def test_noise_photos_of_many_formats_pass_the_check(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for end in ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm", "tga", "jp2"):
            noise = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
            noise.save(tmp_path / name / f"1.{end}")
    split = prepare_data(tmp_path, workers=2)
    assert split.report.counts == {"a": (7, 2), "b": (7, 2)}
    assert set(kinds(split)) <= {"odd mode"}
