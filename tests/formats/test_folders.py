"""A folder as libraries write it stands for its weights, also where they are several files."""

import json

import pytest
import torch
from oracles import as_timm, assert_same, hugging_face, saved, vit

import explain
import export
import predict
import pretrained
import train
from formats.adapter_file import record_of
from pretrained import read_weights


@pytest.fixture
def sharded(tmp_path):
    """A ViT of transformers in several files, and the folder that has them."""
    theirs = hugging_face()
    theirs.save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return theirs, tmp_path


def test_folders_of_timm_and_hugging_face_stand_for_their_weights(tmp_path):
    theirs = vit()
    as_timm(theirs, tmp_path / "timm")
    assert_same(tmp_path / "timm", theirs)
    theirs = hugging_face()
    theirs.save_pretrained(tmp_path / "transformers")
    assert_same(tmp_path / "transformers", theirs)


def test_folder_of_a_run_stands_for_its_best(tmp_path):
    theirs = vit()
    saved(theirs.state_dict(), tmp_path, "best.pth")
    saved({}, tmp_path, "last.pth")
    assert_same(tmp_path, theirs)


def test_the_only_weights_file_of_a_folder_is_taken(tmp_path):
    theirs = vit()
    saved(theirs.state_dict(), tmp_path, "mine.pth")
    (tmp_path / "notes.txt").write_text("about it", "utf-8")
    assert_same(tmp_path, theirs)


def test_weights_in_several_files_give_the_librarys_logits(sharded):
    theirs, folder = sharded
    assert_same(folder, theirs)
    assert_same(folder / "model.safetensors.index.json", theirs)


def test_pickles_in_several_files_load(sharded):
    theirs, folder = sharded
    state = list(theirs.state_dict().items())
    halves = {
        "pytorch_model-00001-of-00002.bin": state[:9],
        "pytorch_model-00002-of-00002.bin": state[9:],
    }
    for path in folder.glob("model*"):
        path.unlink()
    for file, half in halves.items():
        torch.save(dict(half), folder / file)
    places = {name: file for file, half in halves.items() for name, _ in half}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    assert_same(folder, theirs)


def test_an_index_without_its_files_says_which_is_missing(sharded):
    _, folder = sharded
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 are not beside it, such as {gone.name}; get"):
        read_weights(folder)


def test_files_without_their_index_are_refused(sharded):
    _, folder = sharded
    with pytest.raises(ValueError, match="one of several files of a model: name their folder"):
        read_weights(sorted(folder.glob("model-*.safetensors"))[0])
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors\.index\.json that says"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("[]", "is no index of weights"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "is no index of weights"),
        ('{"weight_map": {"a": 3}}', "is no index of weights"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "is no index of weights"),
        ("{", "is no index of weights"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, told, message):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(told, "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(tmp_path)
    assert str(index) in str(caught.value)


def test_an_index_of_another_model_is_refused(sharded):
    _, folder = sharded
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text("utf-8"))
    told["weight_map"]["vit.layers.77.bias"] = next(iter(told["weight_map"].values()))
    index.write_text(json.dumps(told), "utf-8")
    with pytest.raises(ValueError, match="names tensors that its files lack"):
        read_weights(folder)


def test_a_folder_of_several_weights_or_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a weights file"):
        read_weights(tmp_path)
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"is a folder; name one of .*\(a\.pth, b\.safetensors\)"):
        read_weights(tmp_path)


def test_a_backbone_in_a_folder_has_a_digest_if_it_is_one_file(tmp_path, sharded):
    path = as_timm(vit(), tmp_path / "timm")
    assert record_of(tmp_path / "timm")["sha256"] == record_of(path)["sha256"]
    with pytest.raises(ValueError, match="several files, and --save-adapter names one"):
        record_of(sharded[1])


def test_commands_take_a_folder_where_they_take_a_file(tmp_path, call, make_photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_timm(vit(), tmp_path / "timm")
    make_photos(tmp_path / "photos", classes=("daisy", "roses"), per_class=3)
    photos = tmp_path / "photos"
    commands = [
        (pretrained.main, "timm"),
        (predict.main, photos, "--weights", "timm", "--csv", "out.csv"),
        (explain.main, "timm", "--data", photos, "--prune", "0.2", "--output", "x"),
        (export.main, "timm", "--output", "out.safetensors"),
        (train.main, "--weights", "timm", "--data-path", photos, "--epochs", 0, "--output", "run"),
    ]
    for command in commands:
        status, out, errors = call(*command)
        assert status in (0, None), (command, out, errors)
