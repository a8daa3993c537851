"""scanning.py: finds what is there, names what it leaves out, opens nothing and never hangs."""

import os
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from imaging.scanning import File, find_sides, match_classes, require_classes, scan_classes


def touch(root, *names):
    """Empty files: a scan never looks into them."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def scanned(root):
    """Returns ({class: [paths inside it]}, {kind: [paths below root]})."""
    problems = []
    classes = scan_classes(str(root), problems)
    found = {
        name: [os.path.relpath(file.path, os.path.join(root, name)) for file in files]
        for name, files in classes.items()
    }
    kinds = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(os.path.relpath(problem.path, root))
    return found, kinds


def link(target, path):
    try:
        os.symlink(target, path)
    except (OSError, NotImplementedError):
        pytest.skip("no symbolic links here")


def test_classes_and_photos_are_sorted_as_in_imagefolder(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "B/1.png", "a/z.jpg", "a/inner/c.jpg", "Ä/1.jpg")
    from torchvision.datasets import ImageFolder

    reference = ImageFolder(tmp_path)
    classes = scan_classes(str(tmp_path), [])
    assert list(classes) == reference.classes
    files = [file.path for photos in classes.values() for file in photos]
    assert sorted(files) == sorted(path for path, _ in reference.samples)
    assert [file.path for file in classes["b"]] == sorted(file.path for file in classes["b"])


def test_any_readable_extension_in_any_case_counts(tmp_path):
    touch(tmp_path, *(f"a/1{end}" for end in (".JPG", ".Jpeg", ".PnG", ".webp", ".TIF", ".jp2")))
    touch(tmp_path, "a/玫瑰 é.jpg", "a/notes.txt", "a/photo", "a/plan.pdf", "a/raw.heif2")
    found, kinds = scanned(tmp_path)
    assert len(found["a"]) == 7
    assert sorted(kinds["unsupported"]) == ["a/notes.txt", "a/photo", "a/plan.pdf", "a/raw.heif2"]


def test_sizes_are_those_of_the_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x" * 137)
    assert scan_classes(str(tmp_path), [])["a"] == [File(str(tmp_path / "a" / "1.jpg"), 137)]


def test_hidden_loose_and_foreign_things_are_named(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "a/.DS_Store", "a/._1.jpg", "b/.thumbs/1.jpg")
    touch(tmp_path, ".ipynb_checkpoints/1.jpg", "__pycache__/1.jpg", "__MACOSX/a/1.jpg")
    touch(tmp_path, "loose.jpg", "LICENSE.txt")
    (tmp_path / "empty").mkdir()
    found, kinds = scanned(tmp_path)
    assert found == {"a": ["1.jpg"], "b": ["1.jpg"]}
    hidden = [".ipynb_checkpoints", "a/.DS_Store", "a/._1.jpg", "b/.thumbs"]
    assert sorted(kinds["hidden"]) == hidden
    assert sorted(kinds["not a class"]) == ["__MACOSX", "__pycache__"]
    assert kinds["loose"] == ["loose.jpg"]
    assert kinds["unsupported"] == ["LICENSE.txt"]
    assert kinds["empty class"] == ["empty"]


def test_folders_that_look_like_a_wrong_level_are_named(tmp_path):
    touch(tmp_path, "roses/1.jpg", "runs/1.jpg", "train/1.jpg")
    touch(tmp_path, "flowers/daisy/1.jpg", "flowers/tulips/1.jpg", "oaks/old/1.jpg")
    touch(tmp_path, "trees/1.jpg", "trees/pine/1.jpg", "trees/fir/1.jpg")
    found, kinds = scanned(tmp_path)
    assert len(found) == 6  # named only: it may be meant
    assert sorted(kinds["wrong level"]) == ["flowers", "runs", "train"]


def test_runs_without_photos_is_no_class(tmp_path):
    touch(tmp_path, "roses/1.jpg", "runs/events.out", "runs/more/log.txt")
    found, kinds = scanned(tmp_path)
    assert list(found) == ["roses"]
    assert kinds["empty class"] == ["runs"]


def test_links_are_followed_and_loops_noticed(tmp_path):
    touch(tmp_path, "elsewhere/2.jpg", "data/a/1.jpg", "data/a/inner/3.jpg", "data/b/1.jpg")
    data = tmp_path / "data"
    link(tmp_path / "elsewhere", data / "c")  # a class that is a link
    link(tmp_path / "elsewhere" / "2.jpg", data / "a" / "linked.jpg")
    link(data / "a", data / "a" / "inner" / "again")  # a circle
    link(data, data / "a" / "root")  # would bring the other classes in
    link("/", data / "b" / "everything")
    link(tmp_path / "self", tmp_path / "self")
    link(tmp_path / "self", data / "b" / "self.jpg")
    link(tmp_path / "gone.jpg", data / "b" / "gone.jpg")
    found, kinds = scanned(data)
    assert found == {"a": ["1.jpg", "inner/3.jpg", "linked.jpg"], "b": ["1.jpg"], "c": ["2.jpg"]}
    assert sorted(kinds["loop"]) == ["a/inner/again", "a/root", "b/everything"]
    assert sorted(kinds["not a file"]) == ["b/gone.jpg", "b/self.jpg"]


def test_a_lattice_of_links_is_walked_in_linear_time(tmp_path):
    """30 floors with two links up each: 2 ** 30 paths, but 30 folders."""
    floors = [tmp_path / "tower" / f"{number:02d}" for number in range(30)]
    for floor in floors:
        floor.mkdir(parents=True)
        touch(floor, "1.jpg")
    for lower, upper in pairwise(floors):
        link(upper, lower / "x")
        link(upper, lower / "y")
    (tmp_path / "data").mkdir()
    link(floors[0], tmp_path / "data" / "a")
    found, _ = scanned(tmp_path / "data")
    assert len(found["a"]) == 30


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_is_named_not_opened(tmp_path):
    touch(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    found, kinds = scanned(tmp_path)
    assert found == {"a": ["1.jpg"]}
    assert kinds["not a file"] == ["a/2.jpg"]


def test_names_that_are_no_utf8_are_found(tmp_path):
    try:
        touch(tmp_path, os.fsdecode(b"a/\xff\xfe.jpg"), os.fsdecode(b"b\xe9/1.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found, _ = scanned(tmp_path)
    assert found == {"a": ["\udcff\udcfe.jpg"], "b\udce9": ["1.jpg"]}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open all")
def test_closed_folder_is_named(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/inner/1.jpg")
    (tmp_path / "b" / "inner").chmod(0)
    try:
        _, kinds = scanned(tmp_path)
    finally:
        (tmp_path / "b" / "inner").chmod(0o700)
    assert kinds["closed"] == ["b/inner"]


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found, kinds = scanned(tmp_path)
    assert list(found) == ["a"]
    assert kinds["closed"] == ["b"]


def test_path_too_long_for_the_system_does_not_stop_the_scan(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    deep = os.open(tmp_path / "b", os.O_RDONLY)
    for _ in range(30):  # 30 * 200 characters: more than PATH_MAX
        os.mkdir("d" * 200, dir_fd=deep)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    found, kinds = scanned(tmp_path)
    assert found == {"a": ["1.jpg"], "b": ["1.jpg"]}
    assert len(kinds["closed"]) == 1


# --- layouts ---


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_train_and_validation_folders_are_recognised(tmp_path, name):
    touch(tmp_path, "train/a/1.jpg", f"{name}/a/1.jpg")
    sides = find_sides(str(tmp_path), None, [])
    assert sides == (str(tmp_path / "train"), str(tmp_path / name), None)


@pytest.mark.parametrize(("name", "other"), [("train", "Train"), ("val", "VAL")])
def test_two_folders_of_one_side_are_both_named(tmp_path, name, other):
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "roses/1.jpg", "Roses/1.jpg")
    if (tmp_path / "ROSES").exists():
        pytest.skip("capital letters make no other name here")
    problems = []
    find_sides(str(tmp_path), None, problems)
    assert [Path(problem.path).name for problem in problems] == ["Roses", "roses"]
    (tmp_path / other).symlink_to(tmp_path / name, target_is_directory=True)
    assert find_sides(str(tmp_path), None, []).val
    (tmp_path / other).unlink()
    touch(tmp_path, f"{other}/a/1.jpg")
    with pytest.raises(ValueError, match="differ in capital letters alone") as error:
        find_sides(str(tmp_path), None, [])
    assert all(str(tmp_path / one) in str(error.value) for one in (name, other))


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "TESTING")])
def test_a_test_folder_is_for_testing_with_a_validation_folder_and_without(tmp_path, train, test):
    touch(tmp_path, f"{train}/a/1.jpg", f"{test}/a/1.jpg")
    assert find_sides(str(tmp_path), None, []) == (
        str(tmp_path / train),
        None,
        str(tmp_path / test),
    )
    touch(tmp_path, "val/a/1.jpg", "roses/1.jpg")
    problems = []
    assert find_sides(str(tmp_path), None, problems) == tuple(
        str(tmp_path / name) for name in (train, "val", test)
    )
    assert [Path(problem.path).name for problem in problems] == ["roses"]


def test_a_test_folder_can_still_be_validated_on(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "test/a/1.jpg")
    train, test = str(tmp_path / "train"), str(tmp_path / "test")
    assert find_sides(str(tmp_path), test, []) == (train, test, None)


def test_an_unlabelled_test_folder_is_named_and_ignored(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "Testing/1.jpg", "Testing/2.jpg")
    problems = []
    assert find_sides(str(tmp_path), None, problems) == (str(tmp_path / "train"), None, None)
    assert [(p.kind, Path(p.path).name, p.detail) for p in problems] == [
        ("unlabelled", "Testing", "its photos: 2")
    ]


def test_separate_test_folder_is_taken(tmp_path):
    touch(tmp_path, "data/a/1.jpg", "mine/a/1.jpg", "split/train/a/1.jpg", "split/test/a/1.jpg")
    data, mine = str(tmp_path / "data"), str(tmp_path / "mine")
    assert find_sides(data, None, [], mine) == (data, None, mine)
    train = str(tmp_path / "split" / "train")
    assert find_sides(str(tmp_path / "split"), None, [], mine) == (train, None, mine)
    with pytest.raises(ValueError, match="--test-path is --val-path itself"):
        find_sides(data, mine, [], mine)
    with pytest.raises(ValueError, match="--test-path is --data-path itself"):
        find_sides(data, None, [], data)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: --test-path"):
        find_sides(data, None, [], str(tmp_path / "nowhere"))


def test_a_class_called_train_is_a_class(tmp_path):
    touch(tmp_path, "train/1.jpg", "bus/1.jpg", "mine/train/1.jpg")
    assert find_sides(str(tmp_path), None, []).train == str(tmp_path)
    mine = str(tmp_path / "mine")
    assert find_sides(str(tmp_path), None, [], mine) == (str(tmp_path), None, mine)


def test_separate_validation_folder_is_taken(tmp_path):
    touch(tmp_path, "data/a/1.jpg", "mine/a/1.jpg", "split/train/a/1.jpg", "split/val/a/1.jpg")
    mine = str(tmp_path / "mine")
    assert find_sides(str(tmp_path / "data"), mine, []) == (str(tmp_path / "data"), mine, None)
    train = str(tmp_path / "split" / "train")
    assert find_sides(str(tmp_path / "split"), mine, []) == (train, mine, None)


@pytest.mark.parametrize("names", [["train"], ["test", "val"]])
def test_sides_without_a_partner_get_a_sentence(tmp_path, names):
    touch(tmp_path, *(f"{name}/a/1.jpg" for name in names))
    with pytest.raises(ValueError, match=f"holds {' and '.join(names)} where class folders"):
        find_sides(str(tmp_path), None, [])


def test_no_folder_gets_a_sentence(tmp_path):
    touch(tmp_path, "file.jpg")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: --data-path"):
        find_sides(str(tmp_path / "nowhere"), None, [])
    with pytest.raises(FileNotFoundError, match=r"file\.jpg is not a folder: --val-path"):
        find_sides(str(tmp_path), str(tmp_path / "file.jpg"), [])


def raises_for(root, message):
    problems = []
    found = scan_classes(str(root), problems)
    with pytest.raises(ValueError, match=message):
        require_classes(str(root), found, problems)


def test_nothing_or_one_class_gets_a_sentence(tmp_path):
    raises_for(tmp_path, "there is no photo in")
    touch(tmp_path, "1.jpg", "2.jpg")
    raises_for(tmp_path, "holds 2 photos but no folder of photos")
    touch(tmp_path, "flowers/roses/1.jpg", "flowers/tulips/1.jpg")
    raises_for(tmp_path, "one class only, 'flowers'.*inside .*flowers, give that")


def test_validation_classes_are_matched_by_name(tmp_path):
    touch(tmp_path, "val/roses/1.jpg", "val/e\u0301clair/1.jpg", "val/weeds/1.jpg")
    problems = []
    val = scan_classes(str(tmp_path / "val"), [])
    matched = match_classes(["daisy", "roses", "\u00e9clair"], val, "val", problems)
    assert list(matched) == ["\u00e9clair", "roses"]  # macOS decomposes accents
    assert [(p.kind, Path(p.path).name, p.detail) for p in problems] == [
        ("extra class", "weeds", "its photos: 1")
    ]
    with pytest.raises(ValueError, match=r"no photo of any training class \(oak"):
        match_classes(["oak"], val, "val", [])


def test_folders_of_one_visible_name_are_one_class(tmp_path):
    folders = [tmp_path / name for name in ("caf\u00e9", "cafe\u0301", "tea")]
    touch(tmp_path, *(f"{folder.name}/{n}.jpg" for n, folder in enumerate(folders)))
    found = scan_classes(str(tmp_path), [])
    assert [unicodedata.normalize("NFC", name) for name in found] == ["caf\u00e9", "tea"]
    photos, _ = found.values()
    assert [Path(photo.path).name for photo in photos] == ["1.jpg", "0.jpg"]
    assert list(match_classes(["caf\u00e9"], found, "val", []).values()) == [photos]


def test_the_scan_reads_no_file(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("opened a photo"))
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: pytest.fail("opened a file"))
    assert len(scan_classes(str(tmp_path), [])) == 2
