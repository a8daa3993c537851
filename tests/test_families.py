"""Each capability with each family of Vision Transformers, tiny: a sample here, all in test-all."""

import copy
import json

import numpy as np
import pytest
import torch

import explain
import export
import predict
import train
from explaining import attention_maps, methods
from explaining.pruning import prune
from formats.fitting import load_into
from formats.onnx_files import onnx_session, session_forward
from formats.portable import norms_folded
from formats.reading import WeightsFile, read_weights
from imaging.preprocess import Preprocess
from pretrained import calibrate
from training.feature_cache import Tail, run_frozen
from training.optim import param_groups
from vit.adapters import is_adapter, merged
from vit_model import VisionTransformer, create_model, is_spline

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
EVA02 = {"rope": "cat", "rope_ref_grid": 2, "swiglu": "unpacked", "mlp_norm": True}
DINOV3 = {"rope": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True}
GAP = {"class_token": False, "global_pool": "avg"}
FAMILIES = {
    "ViT": {},
    "DeiT, distilled": {"distilled": True},
    "DINOv2": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5, "swiglu": "packed",
               "global_pool": "token+avg"},
    "DINOv3": DINOV3 | {"reg_tokens": 2, "pos_embed": False, "init_values": 0.5,
                        "swiglu": "unpacked", "global_pool": "avg"},
    "CLIP": {"norm_pre": True, "act": "quick_gelu", "norm_eps": 1e-5},
    "CLIP's classifier": {"norm_pre": True, "act": "quick_gelu", "global_pool": "avg",
                          "final_norm": False},
    "SigLIP": {"class_token": False, "global_pool": "map", "act": "gelu_tanh", "pool_hidden": 24},
    "Perception Encoder": {"norm_pre": True, "global_pool": "map", "pool_prefix": True,
                           "pool_heads": 4, "rope": "cat", "rope_grid_indexing": "xy",
                           "rope_grid_offset": 1.0, "rope_ref_grid": 3},
    "EVA-02": EVA02 | {"global_pool": "avg", "final_norm": False, "fc_norm": True},
    "EVA-02 of CLIP": EVA02 | {"attn_norm": True},
    "BEiT": {"pos_embed": False, "rel_pos": "block", "init_values": 0.5, "global_pool": "avg",
             "final_norm": False, "fc_norm": True},
    "BEiT, shared": {"pos_embed": False, "rel_pos": "shared"},
    "BEiT-3": {"attn_norm": True, "mlp_norm": True, "global_pool": "avg", "fc_norm": True,
               "final_norm": False},
    "MAE": {"global_pool": "avg", "final_norm": False, "fc_norm": True},
    "RoPE-ViT": {"rope": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy"},
    "AIMv2": GAP | {"norm": "rms", "patch_norm": True, "swiglu": "unpacked", "act": "silu"},
    "Sapiens2": DINOV3 | {"norm": "rms", "qk_norm": True, "pos_embed": False, "init_values": 0.5,
                          "mlp_scale": False, "swiglu": "packed"},
    "heads of their own width": {"head_dim": 12, "qkv_bias": False},
}  # fmt: skip
SAMPLE = ("DINOv3", "SigLIP", "EVA-02", "BEiT")
EACH = [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in FAMILIES]
SPLINES = {
    "kan": {"mlp": "kan"},
    "low rank": {"mlp": "kan", "kan_rank": 3},
    "gkan": {"mlp": "gkan", "kan_groups": 4},
    "all maps": {"mlp": "gkan", "kan_groups": "feature", "kan_at": "all"},
    "hidden": {"mlp": "gkan", "kan_groups": "feature", "kan_at": "hidden"},
}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
CLASSES = ["a", "b", "c", "d", "e"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model_of(family: str, **more) -> VisionTransformer:
    """A model of the family far from its first values, the same for the same family."""
    torch.manual_seed(0)
    model = create_model("custom", num_classes=5, **TINY | FAMILIES[family] | more)
    return shaken(model, lambda name: not is_spline(name) and not is_adapter(name))


@torch.no_grad()
def shaken(model: VisionTransformer, names=lambda name: True) -> VisionTransformer:
    for name, parameter in model.named_parameters():
        if names(name):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def weights_of(model: VisionTransformer, folder) -> WeightsFile:
    """What read_weights makes of a checkpoint of that model."""
    return read_weights(written(model, folder))


def written(model: VisionTransformer, folder):
    preprocess = Preprocess(img_size=model.sizes.img_size).to_dict()
    facts = {"classes": CLASSES, "preprocess": preprocess, "epoch": 0, "metrics": {}, "version": 1}
    path = folder / "best.pth"
    torch.save({"model": model.state_dict(), "config": model.config} | facts, path)
    return path


def same(ours, wanted, tolerance=1e-5):
    torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("splines", SPLINES)
def test_splines_start_lossless_and_every_parameter_trains(tmp_path, family, splines):
    plain = model_of(family)
    weights = weights_of(plain, tmp_path)
    ours = create_model(**weights.config | SPLINES[splines]).eval()
    load_into(ours, weights, CLASSES)
    calibrate(ours, [IMAGES])
    with torch.no_grad():
        same(ours(IMAGES), plain(IMAGES))
    shaken(ours).train()
    ours(IMAGES).square().sum().backward()
    still = {n for n, p in ours.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


@pytest.mark.parametrize("family", EACH)
@torch.no_grad()
def test_another_image_size_adapts_what_knows_of_places(tmp_path, family):
    weights = weights_of(model_of(family), tmp_path)
    larger = create_model(**weights.config | {"img_size": 48}).eval()
    report = load_into(larger, weights, CLASSES)
    assert not report.new
    assert all("interpolation" in adapted.how for adapted in report.adapted)
    assert larger(torch.zeros(1, 3, 48, 48)).isfinite().all()


@pytest.mark.parametrize("family", EACH)
@torch.no_grad()
def test_frozen_layers_run_once(family):
    model = model_of(family)
    for skip in (1, 2, 3):  # the last: heads alone train
        features = run_frozen(model, skip, IMAGES)
        same(Tail(model, skip)(features), model(IMAGES))
    assert run_frozen(model, 3, IMAGES).shape[1] == 1 + model.sizes.distilled


@pytest.mark.parametrize("family", EACH)
def test_layers_have_rates_by_their_depth(family):
    model = model_of(family)
    groups = param_groups(model, 1.0, 0.05, 0.5, 1.0)
    rate = {name: group["lr"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert rate.keys() == dict(model.named_parameters()).keys()
    for name, value in rate.items():
        first = name.startswith(("blocks.", "norm.", "fc_norm.", "attn_pool.", "head"))
        wanted = 0.5 ** (2 - int(name.split(".")[1])) if name.startswith("blocks.") else 1.0
        assert value == (wanted if first else 0.125), name
    still = {n for n, p in model.named_parameters() if p.ndim > 1 and not decay[n]}
    assert {n.rsplit(".", 1)[-1] for n in still} <= {
        "cls_token", "dist_token", "reg_token", "pos_embed", "freqs", "latent",
        "relative_position_bias_table",
    }  # fmt: skip


@pytest.mark.parametrize("family", EACH)
def test_the_last_block_computes_what_the_head_reads_and_no_gradient_changes(family):
    model, seen, gradients = model_of(family).train(), [], []
    model.blocks[-1].mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    for forward in (model, lambda x: model.forward_head(model.forward_features(x))):
        model.zero_grad()
        forward(IMAGES).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    if model.sizes.global_pool == "token":
        assert seen[0] == model.readers
    assert seen[1] == 16 + model.num_prefix_tokens
    for one, other in zip(*gradients, strict=True):
        same(one, other, 1e-4)


@pytest.mark.parametrize("family", EACH)
def test_checkpointed_blocks_give_the_same_gradients(family):
    model, gradients = model_of(family).train(), []
    for model.grad_checkpointing in (False, True):
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("splines", ["none", "low rank"])
def test_photos_are_explained(family, splines):
    model = shaken(model_of(family, **SPLINES.get(splines, {})))
    targets = torch.tensor([1, 0, 4])
    with torch.no_grad(), attention_maps.recording(model) as record:
        out = []
        attn = model.blocks[1].attn
        attn.register_forward_hook(lambda _, args, result: out.append(result))
        logits = model(IMAGES)
        weights = attention_maps.attention_weights(record.qkv[1], attn, record.places[1])
        _, _, v = attn.split(record.qkv[1])
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        same(attn.proj(attn.norm(mixed)), out[0], 1e-4)
    maps = {name: method(model, IMAGES, targets) for name, method in methods.METHODS.items()}
    assert all(found.shape == (3, 16) and found.isfinite().all() for found in maps.values())
    assert not any(found.requires_grad for found in maps.values())
    assert (maps["roll-out"].sum(1) <= 1 + 1e-5).all()
    if splines == "none":
        with torch.no_grad():
            empty = model(torch.zeros_like(IMAGES))
        added = attention_maps.integrated_gradients(model, IMAGES, targets, steps=128).sum(1)
        same(added, (logits - empty).gather(1, targets[:, None])[:, 0], 0.1)


def test_explanations_of_a_mean_start_from_all_patches():
    model, relevance = model_of("BEiT"), torch.rand(2, 17, 17)
    same(attention_maps.to_patches(relevance, model), relevance[:, 1:, 1:].mean(1))
    relevance = relevance[:, :16, :16]
    same(attention_maps.to_patches(relevance, model_of("SigLIP")), relevance.mean(1))


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("splines", ["none", "kan", "gkan", "all maps"])
@torch.no_grad()
def test_hidden_units_are_pruned(family, splines):
    model = shaken(model_of(family, **SPLINES.get(splines, {})))
    same(prune(model, IMAGES, 0)(IMAGES), model(IMAGES), 1e-4)
    small = prune(model, IMAGES, 0.5)
    assert small.blocks[0].mlp.fc2.in_features == 32
    assert small(IMAGES).isfinite().all()


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("adapt", ["lora", "affine"])
@torch.no_grad()
def test_adapters_start_lossless_and_merge(family, adapt):
    plain = model_of(family)
    model = create_model(**plain.config | {"adapt": adapt, "lora_at": "all"}).eval()
    model.load_state_dict(model.state_dict() | plain.state_dict())
    same(model(IMAGES), plain(IMAGES))
    shaken(model, is_adapter)
    assert (model(IMAGES) - plain(IMAGES)).abs().max() > 1e-3
    plain.load_state_dict(merged(model.state_dict()))
    same(plain(IMAGES), model(IMAGES), 1e-4)


@pytest.mark.parametrize("family", EACH)
@torch.no_grad()
def test_norms_fold_into_what_reads_them(family):
    model = model_of(family)
    folded = norms_folded(copy.deepcopy(model))
    same(folded(IMAGES), model(IMAGES), 1e-4)
    if model.sizes.norm == "layer":
        assert torch.equal(folded.blocks[0].norm2.weight, torch.ones(16))


@pytest.mark.parametrize("family", EACH)
def test_constructors_work_on_the_meta_device(family):
    ours = model_of(family)
    with torch.device("meta"):
        model = create_model(**ours.config)
        assert model.train()(torch.empty(2, 3, 32, 32)).shape == (2, 5)
    model.to_empty(device="cpu").load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(IMAGES), ours(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("splines", ["none", "kan", "gkan"])
def test_onnx_gives_the_same_logits(family, splines):
    check_onnx(shaken(model_of(family, **SPLINES.get(splines, {}))))


def test_onnx_gives_the_same_logits_of_one():
    check_onnx(model_of("Perception Encoder", swiglu="packed"))


def check_onnx(model):
    pytest.importorskip("onnxruntime")
    data = export.onnx_bytes(model, IMAGES[:2], {"config": model.config})
    with torch.no_grad():
        wanted = model(IMAGES)
    found = torch.as_tensor(np.asarray(session_forward(onnx_session(data))(IMAGES)))
    assert (found - wanted).abs().max() < 1e-4 * wanted.std().clamp_min(1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_commands_take_the_family(family, tmp_path, make_photos, call, monkeypatch):
    """Train with splines, frozen and resumed, then all layers; predict and explain."""
    monkeypatch.chdir(tmp_path)
    photos = make_photos(tmp_path / "photos", per_class=6, size=40)
    weights = written(model_of(family), tmp_path)
    shared = ["--data-path", photos, "--weights", weights, "--device", "cpu", "--workers", 0]
    shared += ["--batch-size", 8, "--img-size", 48]
    first, second = tmp_path / "first", tmp_path / "second"
    splines = ["--mlp", "gkan", "--kan-groups", "feature", "--kan-blocks", "last:1"]
    code, out, err = call(train.main, *shared, *splines, "--epochs", 1, "--output", first)
    assert code == 0, err
    code, _, err = call(train.main, "--resume", first, "--epochs", 2)
    assert code == 0, err
    all_layers = ["--freeze-layers", "false", "--layer-decay", 0.7, "--epochs", 1]
    code, _, err = call(train.main, *shared, *all_layers, "--output", second)
    assert code == 0, err
    photo, figures = next(photos.rglob("*.jpg")), tmp_path / "figures"
    for run in (first, second):
        words = ["--weights", run / "best.pth", "--json", "--explain", figures]
        code, out, err = call(predict.main, photo, *words)
        assert code == 0, err
        assert abs(sum(p["probability"] for p in json.loads(out)["predictions"]) - 1) < 1e-3
    words = ["--data", photos, "--prune", 0.25, "--output", tmp_path / "explained"]
    code, _, err = call(explain.main, first / "best.pth", *words)
    assert code == 0, err
    code, _, err = call(export.main, first / "best.pth", "--output", tmp_path / "model.onnx")
    assert code == 0, err
