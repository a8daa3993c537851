"""The small file of what was trained: its size, its answers, and its backbone by digest."""

import json
import re

import pytest
import safetensors.torch
import torch
from torch import nn

from formats import adapter_file
from formats.adapter_file import find_backbone, part_of, record_of, save_adapter
from formats.checkpoints import checkpoint_facts
from formats.fitting import load_into
from formats.reading import read_weights
from imaging.preprocess import Preprocess
from pretrained import load_model
from training.optim import freeze
from vit_model import create_model

MICRO = "vit_micro_patch8_64"
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
FORMS = {
    "head": {},
    "lora": {"adapt": "lora", "lora_rank": 2},
    "affine beside splines": {"adapt": "affine", "mlp": "gkan", "kan_groups": "feature"},
    "some blocks": {"mlp": "kan", "kan_rank": 2, "kan_blocks": "last:2", "kan_at": "all"},
}


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """A backbone of 64 pixels in tmp_path/was, with the current folder beside; caches are empty."""
    (tmp_path / "here").mkdir()
    (tmp_path / "was").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(adapter_file, "caches", lambda: [tmp_path / "cache"])
    model = create_model(MICRO, num_classes=7)
    nn.init.normal_(model.head.weight)
    path = tmp_path / "was/micro.pth"
    torch.save(model.state_dict(), path)
    return path


def trained(backbone, **form):
    """A model of 48 pixels on the backbone, after something was trained; what stayed; its facts."""
    weights = read_weights(backbone).merged()
    form = {"adapt": "none"} | form
    model = create_model(**weights.config | {"img_size": 48, "num_classes": 3} | form).eval()
    names = freeze(model, load_into(model, weights, ["a", "b", "c"]).from_file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for module in model.modules():
            if hasattr(module, "set_range"):
                low = torch.rand(len(module.grid)) - 3
                module.set_range(low, low + 1 + 4 * torch.rand(len(low)))
    frozen = {name for name, _ in model.named_parameters()} - set(names)
    facts = checkpoint_facts(model, ["a", "b", "c"], Preprocess(48), 1, {"val_acc": 0.5})
    return model, frozen, facts


def saved(backbone, folder, **form):
    """Writes an adapter into a new folder; returns its path and the whole model."""
    model, frozen, facts = trained(backbone, **form)
    folder.mkdir()
    path = folder / adapter_file.ADAPTER
    save_adapter(path, part_of(model.state_dict(), frozen), facts, record_of(backbone))
    return path, model


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_answers_are_those_of_the_whole_checkpoint(backbone, tmp_path, form):
    path, model = saved(backbone, tmp_path / "run", **form)
    loaded = load_model(path)
    assert torch.equal(loaded.model(IMAGES), model(IMAGES))
    assert loaded.classes == ["a", "b", "c"]
    assert path.stat().st_size < 0.3 * backbone.stat().st_size
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name


def test_a_hundred_thousand_numbers_take_less_than_a_megabyte(tmp_path):
    with torch.device("meta"):
        model = create_model(
            "deit_tiny_patch16_224", num_classes=5, mlp="gkan", kan_groups="feature"
        )
    frozen = {n for n, _ in model.named_parameters() if "spline" not in n and "head" not in n}
    part = {n: torch.zeros(v.shape) for n, v in part_of(model.state_dict(), frozen).items()}
    for name in part:
        if name.endswith(".grid"):
            part[name] = adapter_file.uniform_knots(
                -1 - torch.rand(len(part[name])), torch.rand(len(part[name])), 5, 3
            )
    facts = checkpoint_facts(model, list("abcde"), Preprocess(224), 1, {})
    record = {"name": "x", "path": "/x", "bytes": 1, "sha256": "0" * 64}
    save_adapter(tmp_path / "adapter.safetensors", part, facts, record)
    numbers = sum(v.numel() for n, v in part.items() if not n.endswith(".grid"))
    assert 90_000 < numbers < 110_000
    assert (tmp_path / "adapter.safetensors").stat().st_size < 550_000


def test_knots_that_are_not_uniform_are_kept_whole(backbone, tmp_path):
    model, frozen, facts = trained(backbone, mlp="gkan", kan_groups="feature")
    with torch.no_grad():
        model.blocks[1].mlp.fc2.grid[:, 6] += 0.1
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, part_of(model.state_dict(), frozen), facts, record_of(backbone))
    assert torch.equal(load_model(path).model(IMAGES), model(IMAGES))


def test_an_adapter_is_trained_further_on_another(backbone, tmp_path):
    """The second is completed by the first, and that by the backbone, its LoRA merged."""
    first, _ = saved(backbone, tmp_path / "first", adapt="lora")
    second, model = saved(first, tmp_path / "second", adapt="affine")
    assert torch.equal(load_model(second).model(IMAGES), model(IMAGES))


@pytest.mark.parametrize("place", ["here/weights/sub", "cache", "run"])
def test_a_backbone_that_moved_is_found_by_its_digest(backbone, tmp_path, place):
    path, model = saved(backbone, tmp_path / "run")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    backbone.rename(tmp_path / place / "another.name")
    assert torch.equal(load_model(path).model(IMAGES), model(IMAGES))


def test_what_is_missing_is_said(backbone, tmp_path):
    path, _ = saved(backbone, tmp_path / "run")
    content = backbone.read_bytes()
    backbone.unlink()
    with pytest.raises(
        ValueError, match=r"needs its backbone micro.pth \(SHA-256 \w{16}\.\.\., "
    ) as e:
        load_model(path)
    assert f"{backbone} is gone" in str(e.value)
    assert str(path) in str(e.value)
    backbone.write_bytes(content[:-1] + b"!")  # of the same size
    with pytest.raises(ValueError, match=f"another file lies at {re.escape(str(backbone))}"):
        load_model(path)


def rewritten(path, **changes):
    """Writes the file anew with other facts."""
    with safetensors.safe_open(path, "pt") as file:
        told, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    told |= {key: json.dumps(value) for key, value in changes.items()}
    safetensors.torch.save_file(tensors, path, told)


BROKEN = {
    "no record": "micro.pth",
    "no digest": {"name": "x", "path": "/x", "bytes": 1, "sha256": "12"},
    "no name": {"path": "/x", "bytes": 1, "sha256": "0" * 64},
    "a number": {"name": 3, "path": "/x", "bytes": 1, "sha256": "0" * 64},
    "nul": {"name": "\0", "path": "/x", "bytes": 1, "sha256": "0" * 64},
}


@pytest.mark.parametrize("record", BROKEN.values(), ids=BROKEN)
def test_a_record_that_is_none_is_refused(backbone, tmp_path, record):
    path, _ = saved(backbone, tmp_path / "run")
    rewritten(path, backbone=record)
    with pytest.raises(ValueError, match="has a `backbone` that is not one of ours"):
        read_weights(path)


@pytest.mark.parametrize("place", ["/dev/zero", "/", "x" * 5000])
def test_a_record_of_no_file_ends_soon(backbone, tmp_path, place):
    record = record_of(backbone) | {"path": place, "sha256": "0" * 64, "bytes": 0}
    with pytest.raises(ValueError, match="needs its backbone"):
        find_backbone(record, tmp_path / "adapter.safetensors")


def test_a_backbone_of_another_form_is_refused(backbone, tmp_path):
    path, _ = saved(backbone, tmp_path / "run")
    other = create_model(MICRO, num_classes=3, depth=2)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    rewritten(path, backbone=record_of(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="is an adapter for another backbone, whose blocks"):
        read_weights(path)


def test_a_model_far_larger_than_its_backbone_is_refused(backbone, tmp_path):
    path, _ = saved(backbone, tmp_path / "run")
    rewritten(path, config=read_weights(path).config | {"img_size": 4096, "patch_size": 1})
    with pytest.raises(ValueError, match="is no complete Vision Transformer"):
        read_weights(path)
