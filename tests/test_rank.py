"""`pretrained.py --rank` compares weights on the photos of a folder, as train.py does."""

import sys

import pytest
import torch

import pretrained
from vit_model import create_model

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("one.pth", "two.pth", "a,b.pth"):
        torch.save(create_model("custom", 3, **SIZES).state_dict(), tmp_path / name)
    return tmp_path


def test_files_are_ranked_on_the_photos_of_a_folder(files, make_photos, capfd, monkeypatch):
    make_photos(files / "photos", per_class=10)
    before = sorted(path.name for path in files.rglob("*"))
    words = ["--rank", "one.pth", "two.pth", "--data-path", "photos"]
    monkeypatch.setattr(sys, "argv", ["pretrained.py", *words])
    assert pretrained.main() == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    [heads] = [row for row in rows if row[:2] == ["weights", "accuracy"]]
    first, second = rows[rows.index(heads) + 1 :][:2]
    assert {first[0], second[0]} == {"one.pth", "two.pth"}
    assert 1 >= float(first[1]) >= float(second[1]) > 0
    assert sorted(path.name for path in files.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name one FILE, or several: --rank FILE"),
        (["one.pth", "--rank", "two.pth", "--data-path", "empty"], "name one FILE, or several"),
        (["--rank", "one.pth", "two.pth"], "--rank FILE ... needs --data-path DIR"),
        (["one.pth", "--data-path", "empty"], "--data-path DIR needs --rank FILE"),
        (["--rank", "a,b.pth", "--data-path", "empty"], "a name without a comma is needed"),
        (["--rank", "one.pth", "--data-path", "nowhere"], "nowhere does not exist"),
        (["--rank", "none.pth", "--data-path", "empty"], "none.pth does not exist"),
        (["--rank", "one.pth", "--data-path", "empty", "--save", "x"], "--save and --num-heads"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_one_sentence(files, call, words, said):
    status, out, errors = call(pretrained.main, *words)
    assert status == 2
    assert said in errors
    assert out == ""
