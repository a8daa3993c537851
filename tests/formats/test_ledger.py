"""Each tensor of a file is used, harmless or unknown, whatever scripts call it."""

import argparse
import datetime
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from oracles import assert_same, hugging_face, saved, vit
from torch import nn

from formats.fitting import load_into
from formats.ledger import check, one_model, with_one_head
from formats.reading import read_weights
from pretrained import load_model
from vit_model import create_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return vit()


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


def in_chunks(state: dict) -> dict:
    """Blocks in chunks of one, as DINOv2 trains them: blocks.0.0., blocks.1.1."""
    return {
        f"blocks.{name.split('.')[1]}.{name.removeprefix('blocks.')}"
        if name.startswith("blocks.")
        else name: value
        for name, value in state.items()
    }


def renamed_head(state: dict, new: str) -> dict:
    return {name.replace("head.", f"{new}."): value for name, value in state.items()}


def moved_head(state: dict, before: str, head: str) -> dict:
    """A backbone under a name of its own, the head beside it."""
    return {
        name.replace("head.", f"{head}.") if name.startswith("head.") else before + name: value
        for name, value in state.items()
    }


LAYOUTS = {
    "as it is": lambda s: s,
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s, "loss": 0.5},
    "a key of one's own": lambda s: {"my_vit": s, "epoch": 3},
    "Lightning": lambda s: {
        "state_dict": prefixed("model.", s) | {"criterion.weight": torch.ones(2)},
        "hyper_parameters": {"lr": 1e-3},
    },
    "DataParallel": lambda s: prefixed("module.", s),
    "torch.compile of blocks": lambda s: {
        name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in s.items()
    },
    "averaged": lambda s: {"n_averaged": torch.tensor(4)} | prefixed("module.", s),
    "timm_wrapper": lambda s: prefixed("timm_model.", s),
    "any prefix": lambda s: prefixed("net.encoder.vit.", s),
    "teacher in chunks": lambda s: {"teacher": prefixed("backbone.", in_chunks(s))},
    "teacher beside student": lambda s: {
        **prefixed("teacher.backbone.", s),
        **prefixed("student.backbone.", {k: v + 1 for k, v in s.items()}),
        "student.dino_head.mlp.0.weight": torch.ones(3, 3),
        "teacher.dino_head.mlp.0.weight": torch.ones(3, 3),
    },
    "average first": lambda s: (
        prefixed("ema.", s) | prefixed("net.", {k: v + 1 for k, v in s.items()})
    ),
    "classifier beside a backbone": lambda s: moved_head(s, "backbone.", "classifier"),
    "fc beside an encoder": lambda s: moved_head(s, "encoder.", "fc"),
    "Sequential(vit, linear)": lambda s: moved_head(s, "0.", "1"),
    "Sequential(dropout, linear)": lambda s: renamed_head(s, "head.1"),
    "head.fc": lambda s: renamed_head(s, "head.fc"),
    "profiled": lambda s: s | {"blocks.0.attn.total_ops": torch.zeros(1)},
    "with a decoder": lambda s: (
        s | {"decoder_embed.weight": torch.ones(3, 128), "mask_token": torch.zeros(1, 1, 128)}
    ),
    "beside a queue": lambda s: s | {"queue": torch.ones(2, 9), "queue_ptr": torch.zeros(1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_common_scripts_leave_gives_the_librarys_logits(tmp_path, model, layout):
    assert_same(saved(LAYOUTS[layout](model.state_dict()), tmp_path), model)


def test_torchvisions_vit_with_another_head_gives_its_logits(tmp_path):
    theirs = torchvision.models.VisionTransformer(64, 16, 2, 2, 128, 512)
    theirs.heads = nn.Linear(128, 2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert_same(saved(theirs.eval().state_dict(), tmp_path), theirs)


def test_hugging_face_with_another_classifier_gives_its_logits(tmp_path):
    theirs = hugging_face()
    state = theirs.state_dict()
    assert_same(
        saved({k.replace("classifier.", "classifier.1."): v for k, v in state.items()}, tmp_path),
        theirs,
    )


def test_a_head_without_a_bias_has_none(tmp_path, model):
    state = {k: v for k, v in model.state_dict().items() if k != "head.bias"}
    with torch.no_grad():
        theirs = model(torch.zeros(1, 3, 64, 64)) - model.head.bias
        ours = load_model(saved(state, tmp_path)).model(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_statistics_of_a_loss_are_no_normalisation(tmp_path, model):
    assert_same(saved({"model": model.state_dict(), "mean": 0.3, "std": 0.1}, tmp_path), model)


VALUES = {
    "np.float64": np.float64(0.5), "np.int64": np.int64(3), "np.bool_": np.bool_(True),
    "np.str_": np.str_("cats"), "array": np.ones((2, 2)), "words": np.array(["a", "b"]),
    "date": datetime.datetime(2026, 1, 1), "path": Path("photos"), "set": {1}, "slice": slice(1, 2),
    "counts": defaultdict(list, a=[1]), "version": torch.__version__, "type": int,
    "options": argparse.Namespace(lr=np.float64(0.1), out=Path("runs")),
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_plain_values_beside_the_weights_are_harmless(tmp_path, model, value):
    path = saved({"model": model.state_dict(), "value": VALUES[value]}, tmp_path)
    assert_same(path, model)


class Runs:
    def __reduce__(self):
        return (print, ("opened",))


@pytest.mark.parametrize("value", [Runs(), {"lr": [Runs()]}, np.array([Runs()])])
def test_values_that_would_run_are_refused_beside_plain_ones(tmp_path, model, value, capsys):
    path = saved({"model": model.state_dict(), "loss": np.float64(1), "x": value}, tmp_path)
    with pytest.raises(ValueError, match=r"holds more than tensors \(\w*\.?print\)"):
        read_weights(path)
    assert "opened" not in capsys.readouterr().out


# --- unknown ------------------------------------------------------------------------------------

STRANGERS = {
    "blocks.0.mlp.act1.weight_numerator": (torch.ones(1, 6), "rational activations"),
    "blocks.1.attn.q_norm.weight": (torch.ones(64), "a tensor that no model here has a place for"),
    "blocks.0.attn.gate.weight": (torch.ones(128), "gates behind its attention"),
    "blocks.0.attn.qkv.lora_A.weight": (torch.ones(4, 128), "LoRA.*adapter_config.json"),
    "patch_embed.backbone.stem.weight": (torch.ones(9), "convolutional network.*--list-models"),
    "blocks.0.in_proj.weight": (torch.ones(9, 128), "attention and MLP side by side"),
    "blocks.0.attn.lambda_q1": (torch.ones(64), "differential attention"),
    "blocks.1.norm3.weight": (torch.ones(128), "a tensor that no model here has a place for"),
    "temperature": (torch.ones(1), "a tensor that no model here has a place for"),
    "blocks.0.ls1.gamma": (torch.ones(128), "incomplete|place for|missing"),
    "norm_pre.weight": (torch.ones(128), r"incomplete: it lacks .*norm_pre\.bias"),
    "text.embedding.weight": (torch.ones(9, 128), "a tensor that no model here"),
    "normalize.mean": (torch.ones(3), "a tensor that no model here has a place for"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_an_unknown_tensor_refuses(tmp_path, model, name):
    value, words = STRANGERS[name]
    path = saved(model.state_dict() | {name: value}, tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_partial_files_are_trained_without_what_is_unknown(tmp_path):
    theirs = vit()
    stranger = {"blocks.1.attn.gate.weight": torch.ones(128)}
    path = saved(theirs.state_dict() | stranger, tmp_path)
    with pytest.raises(ValueError, match=r"gates behind its attention.*--allow-partial"):
        read_weights(path)
    weights = read_weights(path, allow_partial=True)
    ours = create_model(**weights.config)
    report = load_into(ours, weights, allow_partial=True)
    assert torch.equal(ours.blocks[1].attn.qkv.weight, theirs.blocks[1].attn.qkv.weight)
    assert any("attn.gate" in line and "ignored" in line for line in report.lines())


def test_adapters_alone_are_called_what_they_are(tmp_path):
    name = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
    with pytest.raises(ValueError, match=r"LoRA adapters alone .*adapter_config\.json .*folder"):
        read_weights(saved({name: torch.ones(4, 128)}, tmp_path))


def test_two_models_in_one_file_are_named(tmp_path, model):
    state = prefixed("left.", model.state_dict()) | prefixed("right.", model.state_dict())
    with pytest.raises(ValueError, match=r"holds several models \(left, right\)"):
        read_weights(saved(state, tmp_path))
    with pytest.raises(ValueError, match=r"holds several models \(a, b\)"):
        read_weights(saved({"a": model.state_dict(), "b": model.state_dict()}, tmp_path))


def test_a_teacher_of_other_sizes_is_no_copy_of_the_model(tmp_path, model):
    other = vit(embed_dim=192, depth=3, num_heads=3).state_dict()
    for student in ("student", "model"):
        several = rf"holds several models \(({student}|\(no prefix\)), teacher\)"
        with pytest.raises(ValueError, match=several):
            read_weights(saved({student: model.state_dict(), "teacher": other}, tmp_path))
        flat = prefixed(f"{student}.", model.state_dict()) | prefixed("teacher.", other)
        with pytest.raises(ValueError, match=several):
            read_weights(saved({"state_dict": flat}, tmp_path))


def test_copies_that_share_their_parts_are_looked_through_once(tmp_path, model):
    state = model.state_dict()
    for _ in range(40):  # each way to a tensor by itself would take until the sun goes out
        state = {"a": state, "b": state}
    with pytest.raises(ValueError, match=r"holds several models \(a, b\)"):
        read_weights(saved({"model": state, "teacher": state}, tmp_path))


def test_words_that_hold_the_letters_of_another_choose_no_model(tmp_path, model):
    state = prefixed("semantic_one.", model.state_dict()) | prefixed("two.", model.state_dict())
    with pytest.raises(ValueError, match=r"holds several models \(semantic_one, two\)"):
        read_weights(saved(state, tmp_path))


def test_a_block_that_lacks_a_tensor_is_said_to(tmp_path, model):
    state = model.state_dict()
    del state["blocks.1.attn.proj.bias"]
    weights = read_weights(saved(state, tmp_path))
    with pytest.raises(ValueError, match=r"incomplete: .*blocks\.1\.attn\.proj\.bias"):
        load_into(create_model(**weights.config), weights)


def test_a_typed_model_without_place_for_the_blocks_is_refused(tmp_path):
    weights = read_weights(saved(vit(init_values=0.5).state_dict(), tmp_path))
    plain = create_model(**weights.config | {"init_values": None})
    with pytest.raises(ValueError, match=r"no place for 4 tensors before its head.*leave --model"):
        load_into(plain, weights)


# --- heads that cannot serve --------------------------------------------------------------------

HEADS = {
    "two layers": {"head.0.weight": (64, 128), "head.0.bias": (64,), "head.3.weight": (2, 64)},
    "norm and linear": {"head.0.weight": (128,), "head.1.weight": (2, 128), "head.1.bias": (2,)},
    "another width": {"classifier.weight": (2, 96), "classifier.bias": (2,)},
    "on top of another": {
        "head.weight": (9, 128), "head.bias": (9,), "fc.weight": (2, 9), "fc.bias": (2,),
    },
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_cannot_serve_leaves_a_backbone_that_trains(tmp_path, model, head):
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    path = saved(state | {k: torch.ones(size) for k, size in HEADS[head].items()}, tmp_path)
    with pytest.raises(ValueError, match=r"cannot predict here: its head.*train\.py --weights"):
        load_model(path)
    weights = read_weights(path)
    ours = create_model(**weights.config | {"num_classes": 3})
    report = load_into(ours, weights, ["a", "b", "c"])
    assert report.backbone_share == 1
    assert set(report.new) == {"head.weight", "head.bias"}
    assert "its head" in report.new["head.weight"]


@pytest.mark.parametrize("registers", [0, 3])
def test_a_head_of_twice_the_width_reads_the_mean_beside_the_class_token(tmp_path, registers):
    more = {"num_register_tokens": registers} if registers else {}
    theirs = hugging_face("Dinov2WithRegisters" if registers else "Dinov2", **more)
    theirs.save_pretrained(tmp_path)
    assert_same(tmp_path / "model.safetensors", theirs)
    weights = read_weights(tmp_path / "model.safetensors")
    ours = create_model(**weights.config | {"num_classes": 3})
    assert load_into(ours, weights, ["a", "b", "c"]).new.keys() == {"head.weight", "head.bias"}


# --- the parts ----------------------------------------------------------------------------------


def test_copies_are_told_from_the_model():
    names = {f"{p}patch_embed.proj.weight": torch.ones(1) for p in ("student.", "teacher.")}
    state, harmless, _ = one_model(names | {"student.loss": torch.ones(1)})
    assert set(state) == {"patch_embed.proj.weight"}
    assert set(harmless) == {"student.patch_embed.proj.weight", "student.loss"}
    assert set(harmless.values()) == {"another copy of the model (student)"}


def test_one_linear_layer_becomes_the_head():
    state, why = with_one_head({"mlp_head.1.weight": torch.ones(3, 8)}, width=8)
    assert why is None
    assert state.keys() == {"head.weight", "head.bias"}


def test_check_lists_what_it_leaves_out():
    state = {"a": torch.ones(1), "b": torch.ones(1)}
    with pytest.raises(ValueError, match=r"holds a tensor .*\(b\)"):
        check(state, {"a"}, allow_partial=False)
    used, unknown = check(state, {"a"}, allow_partial=True)
    assert (set(used), set(unknown)) == ({"a"}, {"b"})
