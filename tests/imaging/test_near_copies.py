"""near_copies.py, relations.py: what belongs together stands on one side of the split."""

import os

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from imaging import near_copies as module
from imaging.near_copies import fingerprint, near_copies
from imaging.splitting import prepare_data

EXIF_TIME = 36867


def scene(seed, size=(160, 120)):
    """A picture of smooth random colours with finer ones above, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 255, (n, n, 3), np.uint8)).resize(size, Image.BICUBIC)
        for n in (4, 9, 17)
    ]
    return Image.blend(Image.blend(layers[0], layers[1], 0.5), layers[2], 0.3)


def crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height))


WAYS = {
    "same": lambda image: image,
    "smaller": lambda image: image.resize((70, 52)),
    "squeezed": lambda image: image.resize((100, 120)),
    "cropped": lambda image: crop(image, 0.05, 0.05, 0.05, 0.05),
    "corner": lambda image: crop(image, 0.1, 0, 0, 0.1),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "mirrored": ImageOps.mirror,
}


def photos(root, per_class=30, classes=("a", "b")):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            scene(1000 * number + n).save(root / name / f"{n:02d}.jpg", quality=90)
    return root


def side_of(split):
    return {
        os.path.relpath(path, split.root): s for s, some in split.sides.items() for path in some[0]
    }


def kinds(split):
    found = {}
    for kind, path, detail in split.report.problems:
        found.setdefault(kind, {})[os.path.relpath(path, split.root)] = detail
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_copy_is_found_and_nothing_else(way):
    images = [scene(seed) for seed in range(40)]
    copies = [WAYS[way](image) for image in images[:10]]
    prints = np.stack([fingerprint(image) for image in images + copies])
    assert near_copies(prints) == [(n, 40 + n) for n in range(10)]


def test_copies_are_found_among_cells_of_many_photos(monkeypatch):
    monkeypatch.setattr(module, "MANY", 100)
    monkeypatch.setattr(module, "CELL", 8)
    images = [scene(seed, (40, 40)) for seed in range(300)]
    copies = [ImageOps.mirror(crop(image, 0.04, 0, 0, 0.03)) for image in images[:50]]
    prints = np.stack([fingerprint(image) for image in images + copies])
    assert len(set(near_copies(prints)) & {(n, 300 + n) for n in range(50)}) >= 49


def test_flat_pictures_and_single_ones_are_no_copies():
    flat = np.full((5, module.SIDE, module.SIDE), 255, np.uint8)
    assert near_copies(flat) == near_copies(flat[:1]) == []


def test_near_copies_stand_on_one_side_and_are_named_in_pairs(tmp_path):
    root = photos(tmp_path)
    for n in range(30):
        WAYS[list(WAYS)[1 + n % 6]](scene(n)).save(root / "a" / f"{n:02d}_copy.jpg", quality=70)
    for seed in range(2):
        split = prepare_data(root, val_split=0.4, test_split=0.2, seed=seed)
        side = side_of(split)
        assert all(side[f"a/{n:02d}.jpg"] == side[f"a/{n:02d}_copy.jpg"] for n in range(30))
    assert kinds(split)["near copy"]["a/07_copy.jpg"] == "like a/07.jpg"
    assert split.groups_of([str(root / "a/07_copy.jpg")]) == [str(root / "a/07.jpg")]
    old = side_of(prepare_data(root, val_split=0.4, group_by="none"))
    assert any(old[f"a/{n:02d}.jpg"] != old[f"a/{n:02d}_copy.jpg"] for n in range(30))


def test_without_near_copies_the_split_is_that_of_before(tmp_path):
    root = photos(tmp_path, 12)
    for seed in range(3):
        now, before = (prepare_data(root, seed=seed, group_by=how) for how in (None, "none"))
        assert (now.train, now.val) == (before.train, before.val)


def test_many_that_look_alike_are_reported_and_not_joined(tmp_path):
    root = photos(tmp_path)
    for n in range(6):
        scene(5).save(root / "a" / f"again_{n}.jpg", quality=60 + 5 * n)
    split = prepare_data(root)
    assert list(kinds(split)["look-alikes"]) == ["a/05.jpg"]
    assert split.groups == {}


def test_near_copies_in_two_classes_only_train(tmp_path):
    root = photos(tmp_path, 12)
    scene(5).save(root / "b" / "x.jpg", quality=50)
    for seed in range(2):
        split = prepare_data(root, val_split=0.6, seed=seed)
        assert {side_of(split)[path] for path in ("a/05.jpg", "b/x.jpg")} == {"train"}
    assert kinds(split)["near conflict"] == {"b/x.jpg": "like a/05.jpg"}


def test_near_copies_across_given_folders_are_leaks(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "val", 0)
    photos(tmp_path / "test", 0)
    for seed, place in ((100, "val/a"), (200, "val/b"), (300, "test/a"), (400, "test/b")):
        scene(seed).save(tmp_path / place / "1.jpg")
    WAYS["cropped"](scene(3)).save(tmp_path / "val/a/3.jpg")
    WAYS["mirrored"](scene(4)).save(tmp_path / "test/a/4.jpg")
    split = prepare_data(tmp_path)
    assert kinds(split)["near leak"] == {
        "train/a/03.jpg": "there a/3.jpg",
        "train/a/04.jpg": "there a/4.jpg",
    }
    assert split.report.counts["a"] == (28, 2, 2)


def test_many_near_leaks_are_reported_and_trained_on(tmp_path):
    photos(tmp_path / "train", 20)
    photos(tmp_path / "val", 0)
    for n in range(10):
        WAYS["cropped"](scene(n)).save(tmp_path / "val/a" / f"{n}.jpg")
    split = prepare_data(tmp_path)
    assert len(kinds(split)["near leak kept"]) == 10
    assert split.report.counts["a"] == (20, 10)


def test_more_photos_than_are_compared_by_default_are_told_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr("imaging.splitting.MOST_COMPARED", 10)
    root = photos(tmp_path, 6)
    scene(2).save(root / "a" / "x.jpg", quality=50)
    split = prepare_data(root)
    assert any("--group-by near-copies" in line for line in split.report.lines())
    assert split.groups == {}
    assert split.choice == {"val_split": 0.2, "seed": 0}


# --- groups that the user names ---


def test_folders_in_class_folders_stay_whole(tmp_path):
    for name in "ab":
        for clip in range(5):
            (tmp_path / name / f"clip{clip}").mkdir(parents=True)
            for n in range(4):
                seed = 100 * clip + n + 1000 * (name == "b")
                scene(seed, (32, 32)).save(tmp_path / name / f"clip{clip}" / f"{n}.png")
    split = prepare_data(tmp_path, group_by="folder")
    assert split.report.counts == {"a": (16, 4), "b": (16, 4)}
    side = side_of(split)
    assert len({(os.path.dirname(path), s) for path, s in side.items()}) == 10
    assert "--group-by folder: 40 photos stand in 10 groups" in split.report.notes


def test_what_file_names_tell_stays_whole_across_classes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for n in range(24):
            file = f"patient{n // 3}_{n}.png" if n < 21 else f"{n}.png"
            scene(n + 1000 * (name == "b"), (32, 32)).save(tmp_path / name / file)
    for seed in range(3):
        split = prepare_data(tmp_path, group_by=r"patient(\d+)", test_split=0.2, seed=seed)
        homes = {(path.split("/")[1].split("_")[0], s) for path, s in side_of(split).items()}
        assert len([home for home in homes if home[0].startswith("patient")]) == 7
        assert all(len(samples.paths) >= 2 for samples in split.sides.values())
    with pytest.raises(ValueError, match="finds nothing in any photo's file name"):
        prepare_data(tmp_path, group_by="folders")
    with pytest.raises(ValueError, match="no class folder holds folders"):
        prepare_data(tmp_path, group_by="folder")
    with pytest.raises(ValueError, match="no photo says when it was taken"):
        prepare_data(tmp_path, group_by="time")


def test_bursts_stay_whole(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for n in range(12):  # four shots 5 s apart, each minute
            exif = Image.Exif()
            exif.get_ifd(0x8769)[EXIF_TIME] = (
                f"2024:05:0{1 + (name == 'b')} 10:0{n // 4}:{5 * (n % 4):02d}"
            )
            image = scene(n + 1000 * (name == "b"), (32, 32))
            image.save(tmp_path / name / f"{n}.jpg", exif=exif)
    split = prepare_data(tmp_path, group_by="time", val_split=0.3)
    assert split.report.counts == {"a": (8, 4), "b": (8, 4)}
    groups = split.groups_of([str(tmp_path / "a" / f"{n}.jpg") for n in range(12)])
    assert [len(set(groups[k : k + 4])) for k in (0, 4, 8)] == [1, 1, 1]
    assert len(set(groups)) == 3


def test_a_class_in_one_group_gets_a_sentence(tmp_path):
    for name, clips in (("a", 3), ("b", 1)):
        for clip in range(clips):
            (tmp_path / name / f"clip{clip}").mkdir(parents=True)
            for n in range(3):
                scene(n + 10 * clip, (32, 32)).save(tmp_path / name / f"clip{clip}" / f"{n}.png")
    with pytest.raises(ValueError, match="class 'b' has too few groups of photos"):
        prepare_data(tmp_path, group_by="folder")


# --- a test set ---


def test_a_test_set_is_split_off_beside_the_same_validation_photos(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=20)
    without, split = (prepare_data(root, test_split=share) for share in (0, 0.1))
    assert split.val == without.val
    assert split.report.counts == {name: (14, 4, 2) for name in split.classes}
    assert not {*split.test.paths} & {*split.val.paths, *split.train.paths}
    assert split.choice == {
        "val_split": 0.2,
        "test_split": 0.1,
        "seed": 0,
        "group_by": "near-copies",
    }
    assert (
        "60 photos in 3 classes, 42 for training, 12 for validation, 6 for testing"
        in (split.report.lines()[0])
    )


def test_a_test_folder_without_a_validation_folder_leaves_validation_to_the_split(
    make_photos, tmp_path
):
    make_photos(tmp_path / "Training", per_class=10)
    make_photos(tmp_path / "Testing", ("daisy", "tulips", "roses"), per_class=3, seed=1)
    split = prepare_data(tmp_path)
    assert split.report.counts == {name: (8, 2, 3) for name in split.classes}
    (line,) = [line for line in split.report.lines() if "--val-path" in line]
    assert f"--val-path {tmp_path / 'Testing'} validates on it instead" in line
    old = prepare_data(tmp_path, val_path=tmp_path / "Testing")
    assert old.report.counts == {name: (10, 3) for name in split.classes}


def test_photos_of_a_separate_test_folder_that_also_train_are_leaks(make_photos, tmp_path):
    root = make_photos(tmp_path / "data", per_class=10)
    test = make_photos(tmp_path / "test", per_class=2, seed=1)
    (test / "roses" / "leak.jpg").write_bytes((root / "roses" / "roses_03.jpg").read_bytes())
    split = prepare_data(root, test_path=test)
    assert kinds(split)["leak"] == {"roses/roses_03.jpg": "there roses/leak.jpg"}
    assert sum(split.report.counts["roses"]) == 9 + 3
