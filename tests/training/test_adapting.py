"""train.py --adapt and --save-adapter: what trains, what is left behind, how it goes on."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import export
import predict
import pretrained
import train
from formats import adapter_file
from pretrained import load_model
from training.choices import Case, choose
from training.optim import freeze
from vit.adapters import is_adapter
from vit_model import HEADS, create_model, is_spline

FAST = ["--batch-size", "4", "--workers", "0", "--amp", "off", "--device", "cpu", "--epochs", "1"]


@pytest.fixture
def place(tmp_path, make_photos, monkeypatch):
    """The current folder, with photos/ and micro.pth in it; caches are empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapter_file, "caches", lambda: [])
    make_photos("photos", per_class=5, size=32)
    model = create_model("vit_micro_patch8_64", num_classes=7, img_size=32)
    nn.init.normal_(model.head.weight)
    torch.save(model.state_dict(), "micro.pth")
    return tmp_path


@pytest.fixture
def run(place, monkeypatch, call):
    """Returns run(*flags) of train.py -> (exit status, output, errors), without its pictures."""
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    monkeypatch.setattr(train, "write_results", lambda *_: None)

    def run(*words, weights="micro.pth"):
        return call(train.main, "--data-path", "photos", "--weights", weights, *FAST, *words)

    return run


def load(path):
    return torch.load(path, weights_only=True)


TRAINS = {
    "bias": (["bias"], lambda name: name.endswith(".bias")),
    "affine": (["affine"], is_adapter),
    "lora": (["lora", "--lora-rank", "2", "--lora-at", "attention"], is_adapter),
    "lora beside splines": (
        ["lora", "--mlp", "gkan", "--kan-groups", "8"],
        lambda name: is_adapter(name) or is_spline(name),
    ),
}


@pytest.mark.parametrize(("words", "trains"), TRAINS.values(), ids=TRAINS)
def test_what_an_adapter_names_trains_and_nothing_else(run, words, trains):
    status, _, err = run("--output", "run", "--adapt", *words)
    assert status == 0, err
    state, before = load("run/last.pth"), load("micro.pth")
    assert all(trains(name) or name.startswith(HEADS) for name in state["trainable"])
    kept = {
        name.replace(".weight", ".base_weight") if is_linear(name, state["model"]) else name: value
        for name, value in before.items()
        if not name.startswith(HEADS)
    }
    changed = {name for name, value in kept.items() if not torch.equal(state["model"][name], value)}
    assert changed == {name for name in kept if trains(name)}
    # splines and `lora_up` begin at zero, the rest of the adapters elsewhere
    new = [n for n in state["trainable"] if n.endswith(("lora_up", "spline_weight", "_shift"))]
    assert all(state["model"][name].any() for name in new)
    assert load_model("run/best.pth").model.sizes.adapt == state["config"]["adapt"]


def is_linear(name, state) -> bool:
    return name.endswith(".weight") and name not in state


def test_flags_reach_the_adapters(run):
    run("--output", "run", "--adapt", "lora", "--lora-rank", "3", "--lora-at", "all")
    model = load("run/best.pth")["model"]
    assert model["blocks.2.attn.qkv.lora_down"].shape == (3, 128)
    assert model["blocks.2.mlp.fc2.lora_up"].shape == (128, 3)


def interrupted(run, call, monkeypatch, *flags):
    """Trains one of two epochs into "parts", then the other."""

    class Stop(Exception):
        pass

    saved = train.assemble

    def assemble(*args):
        trainer = saved(*args)
        validate = trainer.validate

        def once():
            if trainer.epoch == 1:
                raise Stop
            return validate()

        trainer.validate = once
        return trainer

    monkeypatch.setattr(train, "assemble", assemble)
    with pytest.raises(Stop):
        train.main(["--data-path", "photos", "--weights", "micro.pth", *FAST, *flags])
    monkeypatch.setattr(train, "assemble", saved)
    return call(train.main, "--resume", "parts")


def test_a_small_run_goes_on_bit_for_bit(run, call, monkeypatch):
    flags = ["--adapt", "lora", "--save-adapter", "--epochs", "2", "--ema", "0.9"]
    assert run("--output", "whole", *flags)[0] == 0
    status, out, err = interrupted(run, call, monkeypatch, *flags, "--output", "parts")
    assert (status, "resuming parts at epoch 2" in out) == (0, True), err
    for file in ("best.pth", "last.pth"):
        whole, parts = load(f"whole/{file}")["model"], load(f"parts/{file}")["model"]
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    held = [load("whole/last.pth").get(part) or {} for part in ("model", "raw_model", "ema")]
    assert not any(name.endswith(("qkv.weight", "norm1.bias")) for part in held for name in part)


def test_the_small_files_predict_as_the_whole_one_does(run, place, call):
    assert run("--output", "run", "--adapt", "affine", "--save-adapter")[0] == 0
    whole = load_model("run/best.pth")
    images = torch.randn(2, 3, 32, 32)
    for file in ("run/adapter.safetensors", "run/last.pth"):
        loaded = load_model(file)
        assert torch.equal(loaded.model(images), whole.model(images))
        assert loaded.classes == whole.classes
    assert (place / "run/adapter.safetensors").stat().st_size < 100_000
    (place / "weights").mkdir()
    (place / "micro.pth").rename("weights/renamed.pth")
    photo = "photos/daisy/daisy_00.jpg"
    status, _, err = call(predict.main, photo, "--weights", "run/adapter.safetensors")
    assert status == 0, err
    (place / "weights/renamed.pth").unlink()
    for main, words in (
        (predict.main, [photo, "--weights", "run/adapter.safetensors"]),
        (export.main, ["run/adapter.safetensors"]),
        (train.main, ["--resume", "run", "--epochs", "2"]),
    ):
        status, _, err = call(main, *words)
        assert status == 2
        assert re.search(r"needs its backbone micro.pth \(SHA-256", err), err


def test_lora_is_merged_at_export_and_on_request(run, call):
    assert run("--output", "run", "--adapt", "lora", "--save-adapter")[0] == 0
    images = torch.randn(2, 3, 32, 32)
    wanted = load_model("run/best.pth").model(images)
    assert call(export.main, "run/adapter.safetensors", "--output", "a.safetensors")[0] == 0
    assert call(pretrained.main, "run/best.pth", "--save", "b.pth", "--merge")[0] == 0
    for file in ("a.safetensors", "b.pth"):
        model = load_model(file).model
        assert not any(is_adapter(name) for name in model.state_dict())
        assert model.sizes.adapt == "none"
        torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e-4)
    assert call(pretrained.main, "run/best.pth", "--save", "c.pth")[0] == 0
    assert load_model("c.pth").model.sizes.adapt == "lora"
    status, _, err = call(pretrained.main, "run/best.pth", "--merge")
    assert (status, "--merge needs --save OUT" in err) == (2, True)


def test_a_new_run_merges_what_its_weights_have_and_adapts_anew(run):
    assert run("--output", "first", "--adapt", "lora", "--save-adapter")[0] == 0
    first = load_model("first/best.pth", merge=True).model.state_dict()
    status, _, err = run("--output", "second", "--adapt", "lora", weights="first/best.pth")
    assert status == 0, err
    second = load("second/best.pth")["model"]
    assert torch.equal(second["blocks.0.mlp.fc1.weight"], first["blocks.0.mlp.fc1.weight"])
    status, _, err = run("--output", "third", weights="first/adapter.safetensors")
    assert status == 0, err
    assert load("third/best.pth")["config"]["adapt"] == "none"


REFUSED = {
    "a rank of nothing": (["--lora-rank", "4"], "--lora-rank needs --adapt lora"),
    "a place of nothing": (["--adapt", "bias", "--lora-at", "all"], "--lora-at needs --adapt lora"),
    "nothing stays": (
        ["--freeze-layers", "false", "--save-adapter"],
        "--save-adapter needs layers",
    ),
    "biases train anyway": (
        ["--freeze-layers", "false", "--adapt", "bias"],
        "--adapt needs layers that stay as they are",
    ),
    "no rank": (["--adapt", "lora", "--lora-rank", "0"], "argument --lora-rank: 0 is out of range"),
    "no such": (["--adapt", "dora"], "--adapt"),
    "told by the file": (["--eval", "--adapt", "lora"], "--adapt and --eval exclude each other"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_flags_without_effect_are_refused(run, words, sentence):
    status, _, err = run("--dry-run" if "--eval" not in words else "--eval", *words)
    assert status == 2
    assert sentence in err


@pytest.mark.parametrize(
    "words",
    [
        ["--adapt", "none", "--freeze-layers", "false"],
        ["--adapt", "lora", "--freeze-layers", "false"],
        ["--adapt", "affine", "--layer-decay", "0.9"],
        ["--adapt", "lora", "--mlp", "kan", "--kan-rank", "2", "--kan-blocks", "last:1"],
    ],
)
def test_flags_with_effect_are_taken(run, words):
    status, _, err = run("--dry-run", *words)
    assert status == 0, err


def test_biases_are_spared_where_asked():
    model = create_model("vit_micro_patch8_64", num_classes=3)
    names = [name for name, _ in model.named_parameters()]
    assert freeze(model, names) == ["head.weight", "head.bias"]
    assert set(freeze(model, names, biases=True)) == {
        "head.weight", *(name for name in names if name.endswith(".bias"))
    }  # fmt: skip


def test_rates_are_those_that_were_measured_for_each_adapter():
    def rate(**case):
        return choose(Case("head", 1000, 10, **case), {})["lr"][0]

    assert (rate(), rate(adapt="lora")) == (3e-3, 5e-3)
    assert rate(adapt="bias") == rate(adapt="affine") == 0.02
    for adapt in ("bias", "affine", "lora"):  # a new head's stays; one from the file trains along
        words = choose(Case("head", 1000, 10, adapt=adapt, new_head=True), {})
        assert words["lr"][0] * words["head_lr_scale"][0] == pytest.approx(3e-3)
        assert choose(Case("head", 1000, 10, adapt=adapt), {})["head_lr_scale"][0] == 1
    case = Case("fine-tune", 1000, 10, adapt="lora")
    assert choose(case, {})["lr"] == choose(Case("fine-tune", 1000, 10), {})["lr"]
    words = choose(Case("head", 1000, 10, "low-rank", adapt="bias"), {})
    assert words["lr"][1].startswith("head, splines and biases:")
    assert words["lr"][0] * words["kan_lr_scale"][0] == pytest.approx(3e-3)  # as without biases


def test_without_the_flag_a_run_leaves_whole_files(run):
    assert run("--output", "run", "--adapt", "lora")[0] == 0
    whole = load("micro.pth").keys()
    assert "backbone" not in load("run/last.pth")
    assert whole <= load("run/last.pth")["model"].keys()
    assert load_model("run/last.pth").classes == ["daisy", "roses", "tulips"]
    assert not (Path("run") / adapter_file.ADAPTER).exists()
