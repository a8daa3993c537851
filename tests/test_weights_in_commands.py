"""A weights file means the same to every command that opens it, and an unclear one to none."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explain
import export
import predict
import pretrained
import train

sys.path.insert(0, str(Path(__file__).parent / "formats"))
from oracles import as_timm, hugging_face, saved, vit

from imaging.decoding import load_image
from imaging.preprocess import eval_transform
from pretrained import load_model


@pytest.fixture
def photos(make_photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_photos(tmp_path / "photos", ("cats", "dogs"), 4, 64)


def pixels(path, weights) -> torch.Tensor:
    """The photos below a folder as the model in a file sees them, (B, 3, 64, 64)."""
    transform = eval_transform(load_model(weights).preprocess)
    paths = sorted(path.glob("*/*"))
    return torch.stack([transform(load_image(photo, transform.min_size)) for photo in paths])


def probabilities(call, weights, photos) -> torch.Tensor:
    """What predict.py answers, (B, classes) in the order of the classes."""
    status, out, err = call(predict.main, photos, "--weights", weights, "--json")
    assert status == 0, err
    rows = [json.loads(line)["predictions"] for line in out.splitlines()]
    ordered = [sorted(row, key=lambda answer: answer["index"]) for row in rows]
    return torch.tensor([[answer["probability"] for answer in row] for row in ordered])


@torch.no_grad()
def test_one_logit_gives_two_answers_by_its_sigmoid(call, photos, tmp_path):
    theirs = vit(num_classes=1)
    path = as_timm(theirs, tmp_path / "hub")
    yes = theirs(pixels(photos, path)).sigmoid()
    found = probabilities(call, path, photos)
    torch.testing.assert_close(found, torch.cat([1 - yes, yes], 1), rtol=0, atol=1e-4)


@torch.no_grad()
def test_many_labels_are_answered_each_by_itself(call, photos, tmp_path):
    theirs = hugging_face(num_labels=3, problem_type="multi_label_classification")
    theirs.save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    right = theirs(pixels(photos, path)).logits.sigmoid()
    found = probabilities(call, path, photos)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-4)
    call(pretrained.main, path, "--save", tmp_path / "ours.pth")  # the meaning travels
    found = probabilities(call, tmp_path / "ours.pth", photos)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-4)


UNCLEAR = {
    "gates": lambda p: saved(
        vit().state_dict() | {"blocks.0.attn.gate.weight": torch.ones(128, 128)}, p
    ),
    "rational": lambda p: saved(
        vit().state_dict() | {"blocks.0.mlp.act1.weight_numerator": torch.ones(1, 6)}, p
    ),
    "grey": lambda p: saved(vit(in_chans=1).state_dict(), p),
    "activation": lambda p: as_timm(vit(act_layer="elu"), p / "hub"),
}
COMMANDS = {
    "predict": (predict.main, "{photos}", "--weights", "{file}"),
    "pretrained": (pretrained.main, "{file}"),
    "dry run": (train.main, "--data-path", "{photos}", "--weights", "{file}", "--dry-run"),
    "eval": (train.main, "--data-path", "{photos}", "--weights", "{file}", "--eval"),
    "export": (export.main, "{file}", "--output", "out.onnx"),
    "explain": (explain.main, "{file}", "--output", "out"),
}


@pytest.mark.parametrize("what", ["gates", "rational", "grey", "activation"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_unclear_file_is_refused_by_every_command(call, photos, tmp_path, what, command):
    path = UNCLEAR[what](tmp_path)
    main, *words = COMMANDS[command]
    words = [word.format(photos=photos, file=path) for word in words]
    status, _, err = call(main, *words)
    assert status == 2
    assert path.name in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def train_on(call, photos, path, *more):
    return call(
        train.main, "--data-path", photos, "--weights", path, "--epochs", 0, "--output", "run",
        "--workers", 1, "--device", "cpu", *more,
    )  # fmt: skip


def test_allow_partial_trains_what_a_model_here_has_a_place_for(call, photos, tmp_path):
    path = UNCLEAR["gates"](tmp_path)
    assert train_on(call, photos, path)[0] == 2
    status, out, _ = train_on(call, photos, path, "--allow-partial")
    assert status == 0
    assert "attn.gate.weight" in out
    assert "unknown" in out


@torch.no_grad()
def test_distilled_deit_with_one_classifier_starts_a_run_with_its_logits(call, photos, tmp_path):
    theirs = hugging_face("DeiT", id2label={0: "cats", 1: "dogs"})
    theirs.save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    status, _, err = train_on(call, photos, path)
    assert status == 0, err
    images = pixels(photos, path)
    ours = load_model(tmp_path / "run" / "best.pth").model(images)
    torch.testing.assert_close(ours, theirs(images).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_nameless_head_has_the_datas_order_in_every_command(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(str(n) for n in range(11))  # as text: 0, 1, 10, 2 ...
    rng = np.random.default_rng(0)
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        colour = rng.integers(30, 225, 3)
        for number in range(5):
            noise = rng.integers(-20, 20, (64, 64, 3))
            photo = Image.fromarray((colour + noise).clip(0, 255).astype("uint8"))
            photo.save(tmp_path / "photos" / name / f"{number}.png")
    theirs = vit(num_classes=11)
    path = as_timm(theirs, tmp_path / "hub")
    features = theirs.forward_features(pixels(tmp_path / "photos", path))[:, 0]
    centres = features.reshape(11, 5, -1).mean(1)
    theirs.head.weight.copy_(centres)  # the nearest centre wins
    theirs.head.bias.copy_(-centres.square().sum(1) / 2)
    path = as_timm(theirs, tmp_path / "hub")

    out = call(predict.main, "photos", "--weights", path)[1]
    assert "class names: those of the data, in text order (0, 1, 10 ...)" in out
    assert "accuracy 1.0000" in out
    status, out, err = call(train.main, "--data-path", "photos", "--weights", path, "--eval")
    assert status == 0, err
    assert "accuracy 1.0000" in out
    assert "class names: those of the data" in out
    assert train_on(call, "photos", path)[0] == 0
    best = torch.load(tmp_path / "run" / "best.pth", weights_only=True)
    assert best["metrics"]["val_acc"] == 1
    assert best["classes"] == names


def test_pretrained_lists_what_it_believes_and_what_it_ignores(call, tmp_path):
    path = as_timm(vit(num_heads=8), tmp_path / "hub", colour_of_the_cat="black")
    status, out, _ = call(pretrained.main, path)
    assert status == 0
    assert "attention heads: 8 (model_args.num_heads in config.json beside the file)" in out
    assert "ignored in config.json beside the file: " in out
    assert "colour_of_the_cat" in out
    assert "classes: not named" in out


def test_heads_that_are_only_assumed_can_be_typed(call, tmp_path):
    path = saved(vit(num_heads=8).state_dict(), tmp_path)
    assert "attention heads 2 (64 wide" in call(pretrained.main, path)[1]
    ours = tmp_path / "ours.pth"
    assert call(pretrained.main, path, "--num-heads", 8, "--save", ours)[0] == 0
    assert load_model(ours).model.sizes.num_heads == 8


def test_names_from_the_current_folder_are_said_to_be(call, photos, tmp_path):
    path = saved(vit().state_dict(), tmp_path)
    Path("class_indices.json").write_text('{"0": "apple", "1": "pear"}', "utf-8")
    out = call(predict.main, next(photos.glob("*/*")), "--weights", path)[1]
    assert "class names: class_indices.json in the current folder" in out
    assert "apple" in out
