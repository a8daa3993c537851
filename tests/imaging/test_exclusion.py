"""exclusion.py: photos that a file lists are left out, however the file spells them."""

import os
from pathlib import Path

import pytest

from imaging.exclusion import Exclusion, listed_in
from imaging.splitting import DataSplit, prepare_data
from system.files import safe_cell, unsafe_cell, write_table

HEAD = ["image", "label", "likely", "score"]


@pytest.fixture
def data(make_photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "data", ("daisy", "roses"), per_class=10)
    return "data"


def some(data, count=3):
    return sorted(str(path) for path in Path(data).rglob("*.jpg"))[:count]


def split_without(data, content, **more):
    Path("list").write_bytes(content if isinstance(content, bytes) else content.encode())
    return prepare_data(data, exclude=Exclusion.of_files(["list"]), **more)


def all_paths(split):
    return {path for samples in split.sides.values() for path in samples.paths}


def as_csv(paths, separator=",", line_end="\n"):
    rows = [HEAD, *([path, "daisy", "roses", "0.97"] for path in paths)]
    return line_end.join(separator.join(row) for row in rows) + line_end


def spelt(data):
    """Ways to list the same three photos."""
    paths = some(data)
    inside = [os.path.relpath(path, data) for path in paths]
    return {
        "as the run writes them": as_csv(paths),
        "a path a line": "\n".join(paths),
        "relative to the data": "\n".join(inside) + "\n",
        "absolute": "\n".join(map(os.path.abspath, paths)),
        "with dots": "\n".join(f"./{data}/../{path}" for path in paths),
        "saved by a spreadsheet": b"\xef\xbb\xbf" + as_csv(paths, line_end="\r\n").encode(),
        "with semicolons": as_csv(paths, ";", "\r\n"),
        "as Unicode text": as_csv(paths, "\t", "\r\n").encode("utf-16"),
        "without the head": as_csv(paths).split("\n", 1)[1],
        "quoted": '"image","label"\n' + "".join(f'"{path}","daisy"\n' for path in paths),
        "column moved": "label,Image\n" + "".join(f"daisy,{path}\n" for path in paths),
        "comments and empty lines": "# wrong\n\n" + "\r\n\r\n".join(paths) + "\n  \n",
        "named twice": "\n".join(paths * 2),
    }


@pytest.mark.parametrize("way", spelt("."))
def test_however_a_list_spells_photos_they_are_left_out(way, data):
    split = split_without(data, spelt(data)[way])
    assert all_paths(split) == {*some(data, 20)} - {*some(data)}
    assert split.excluded == some(data)
    assert split.report.notes == ["--exclude list: 3 photos left out"]
    assert sum(map(sum, split.report.counts.values())) == 17


def test_a_link_to_the_data_is_the_data(data):
    os.symlink(data, "link", target_is_directory=True)
    split = split_without("link", "\n".join(some(data)))
    assert split.excluded == some("link")


@pytest.mark.parametrize("name", ["=1+1.png", "'=x.jpg", "@a, b.jpg", "-\u00e9.jpg", " x .jpg"])
def test_names_that_a_table_escapes_are_read_back(name, data, make_photos):
    path = Path(data, "daisy", name)
    Path(some(data, 1)[0]).rename(path)
    written = [HEAD, [safe_cell(os.path.join("daisy", name)), "daisy", "roses", "1"]]
    write_table("table.csv", written)
    split = prepare_data(data, exclude=Exclusion.of_files(["table.csv"]))
    assert split.excluded == [str(path)]
    split = prepare_data("data/daisy/..", exclude=Exclusion.of_files(["table.csv"]))
    assert len(split.excluded) == 1


@pytest.mark.skipif(os.name == "nt", reason="names of any bytes")
def test_a_name_that_is_no_unicode_is_found_as_the_table_writes_it(data):
    path = Path(os.fsdecode(b"data/daisy/caf\xe9.jpg"))
    Path(some(data, 1)[0]).rename(path)
    write_table("table.csv", [HEAD, [str(path), "daisy", "roses", "1"]])
    split = prepare_data(data, exclude=Exclusion.of_files(["table.csv"]))
    assert split.excluded == [str(path)]


def test_escaping_is_undone():
    for text in ("=1", "+1", "-1", "@x", "\tx", "x", "'x", "", "'"):
        assert unsafe_cell(safe_cell(text)) == text


def test_several_files_add_up(data):
    first, second, third = some(data)
    Path("a").write_text(first)
    Path("b").write_text(f"{second}\n{third}\n")
    split = prepare_data(data, exclude=Exclusion.of_files(["a", "b"]))
    assert split.excluded == some(data)
    assert split.report.notes == ["--exclude a b: 3 photos left out"]


def test_lines_that_name_no_photo_are_counted(data):
    split = split_without(data, "\n".join([*some(data), "daisy/gone.png", "x"]))
    told = "--exclude list: 3 photos left out; 2 lines named no photo (such as 'daisy/gone.png')"
    assert split.report.notes == [told]


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "": "list lists no photo",
        "\n \n# nothing\n": "list lists no photo",
        ",".join(HEAD): "list lists no photo",
        "daisy/gone.png\nx": "none of 2 lines names a photo of data, for instance 'daisy/gone.png'",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff": "list",
        b"daisy/\xff.png": "list is not text in UTF-8",
        "daisy": "none of 1 line names a photo",
    }.items(),
)
def test_a_list_of_nothing_is_refused_naming_it(content, said, data):
    with pytest.raises(ValueError, match=r"^(--exclude )?list") as refused:
        split_without(data, content)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_and_a_missing_file_are_refused(data):
    with pytest.raises(ValueError, match="--exclude data is a folder"):
        listed_in(data)
    with pytest.raises(FileNotFoundError):
        listed_in("nowhere")


def test_a_class_or_side_without_a_photo_is_refused(data, make_photos, tmp_path):
    daisies = [path for path in some(data, 20) if "daisy" in path]
    with pytest.raises(ValueError, match="leaves no photo of class 'daisy'"):
        split_without(data, "\n".join(daisies))
    make_photos(tmp_path / "val", ("daisy", "roses"), per_class=2, seed=3)
    with pytest.raises(ValueError, match="leaves no photo in the folder of val"):
        split_without(data, "\n".join(some("val", 9)), val_path="val")
    split = split_without(data, "\n".join(some("val", 3)), val_path="val")
    assert len(split.val.paths) == 1


def test_what_is_left_must_be_enough(data):
    with pytest.raises(ValueError, match="class 'daisy' has too few photos"):
        split_without(data, "\n".join(path for path in some(data, 9)))


def test_the_split_keeps_what_was_left_out_also_when_moved(data):
    split = split_without(data, "\n".join(some(data)))
    values = split.to_dict()
    assert values["excluded"] == [path.removeprefix("data/") for path in some(data)]
    back = DataSplit.from_dict(values, "elsewhere")
    assert back.excluded == [path.replace("data", "elsewhere", 1) for path in some(data)]
    moved = split.moved([("data", "there")])
    assert moved.excluded == [path.replace("data", "there", 1) for path in some(data)]
    values.pop("excluded")  # older runs know none
    assert DataSplit.from_dict(values, data).excluded == []
