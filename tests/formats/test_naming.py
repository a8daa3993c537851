"""Weights of every source give here what they give in the library they come from."""

import argparse
import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from formats.reading import read_weights
from formats.shapes import sizes_of
from pretrained import load_model
from vit_model import IMAGENET_MEAN, IMAGENET_STD, create_model

# Heads 64 wide, as the shapes of an unknown size are read; every size differs from the others.
SIZES = {"img_size": 40, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
CLASSES = 7


@pytest.fixture
def images():
    return torch.randn(2, 3, SIZES["img_size"], SIZES["img_size"])


def shaken(model: nn.Module) -> nn.Module:
    """Returns the model in eval mode with every parameter far from its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def timm_vit(**extra) -> nn.Module:
    return shaken(TimmViT(**SIZES, num_classes=CLASSES, **extra))


def logits(path, images) -> torch.Tensor:
    with torch.no_grad():
        return load_model(path).model(images)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert theirs.std() > 0.1, "logits that hardly differ prove nothing"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# --- timm, DeiT, the reference ------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_files_give_timms_logits(tmp_path, images, suffix):
    model = timm_vit()
    path = tmp_path / f"vit{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    assert_same(logits(path, images), model(images))
    assert read_weights(path).format == "timm"


@torch.no_grad()
def test_models_without_qkv_bias_and_with_layer_scale_load(tmp_path, images):
    model = timm_vit(qkv_bias=False, init_values=0.5)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    assert_same(logits(tmp_path / "vit.pth", images), model(images))


@torch.no_grad()
def test_deit_iii_names_of_layer_scale_load(tmp_path, images):
    model = timm_vit(init_values=0.5)
    state = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for k, v in model.state_dict().items()
    }
    torch.save(state, tmp_path / "deit3.pth")
    assert_same(logits(tmp_path / "deit3.pth", images), model(images))


@torch.no_grad()
def test_distilled_deit_gives_the_mean_of_its_two_heads(tmp_path, images):
    model = shaken(VisionTransformerDistilled(**SIZES, num_classes=CLASSES))
    torch.save({"model": model.state_dict()}, tmp_path / "distilled.pth")
    assert_same(logits(tmp_path / "distilled.pth", images), model(images))
    assert read_weights(tmp_path / "distilled.pth").family == "imagenet"


@torch.no_grad()
def test_registers_of_timm_load(tmp_path, images):
    model = timm_vit(reg_tokens=4, no_embed_class=True, init_values=0.5)
    torch.save(model.state_dict(), tmp_path / "reg.pth")
    assert_same(logits(tmp_path / "reg.pth", images), model(images))


@torch.no_grad()
@pytest.mark.parametrize("classes", [5, 21843])
def test_reference_checkpoint_with_pre_logits_keeps_them(tmp_path, images, classes):
    model = shaken(create_model("custom", classes, **SIZES, representation_size=96))
    torch.save(model.state_dict(), tmp_path / "model-9.pth")
    weights = read_weights(tmp_path / "model-9.pth")
    assert weights.config["representation_size"] == 96
    assert weights.family == "half"
    assert_same(logits(tmp_path / "model-9.pth", images), model(images), 1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model_ema": s, "model": {k: v * 0 for k, v in s.items()}},
        lambda s: {"teacher": {f"backbone.{k}": v for k, v in s.items()}, "student": {}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {"model": {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}}},
    ],
)
def test_wrappers_are_seen_through(tmp_path, wrap):
    state = timm_vit().state_dict()
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    found = read_weights(tmp_path / "wrapped.pth").state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)


def test_heads_come_from_the_table_of_variants_before_the_rule_of_64():
    with torch.device("meta"):
        huge = create_model("vit_huge_patch14_224_in21k", 2)
        other = create_model("custom", 2, embed_dim=256, depth=5, num_heads=2)
    assert sizes_of(huge.state_dict())["num_heads"] == 16  # 80 wide
    assert sizes_of(other.state_dict())["num_heads"] == 4


def test_blocks_of_different_widths_are_read_from_their_shapes():
    with torch.device("meta"):
        model = create_model("custom", 2, **SIZES, mlp_hidden=(24, 40, 56))
    assert sizes_of(model.state_dict())["mlp_hidden"] == (24, 40, 56)


# --- Hugging Face -------------------------------------------------------------------------------

HF_SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
    "num_labels": CLASSES,
}


@torch.no_grad()
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_vit_gives_its_logits(tmp_path, images, file):
    config = transformers.ViTConfig(**HF_SIZES, intermediate_size=512)
    model = shaken(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)  # with the older names
    if file == "pytorch_model.bin":
        torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), tmp_path / file)
    assert_same(logits(tmp_path / file, images), model(images).logits)
    assert read_weights(tmp_path / file).format == "Hugging Face"


@torch.no_grad()
def test_newer_names_of_hugging_face_load(tmp_path, images):
    config = transformers.ViTConfig(**HF_SIZES, intermediate_size=512)
    model = shaken(transformers.ViTForImageClassification(config))
    torch.save(model.state_dict(), tmp_path / "new.bin")  # as the modules are called in memory
    assert_same(logits(tmp_path / "new.bin", images), model(images).logits)


@torch.no_grad()
def test_hugging_face_distilled_deit_gives_its_logits(tmp_path, images):
    config = transformers.DeiTConfig(**HF_SIZES, intermediate_size=512)
    model = shaken(transformers.DeiTForImageClassificationWithTeacher(config))
    # transformers leaves the class head out when it saves this one: add it under its own name.
    model.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state |= {k: v for k, v in model.state_dict().items() if "classifier" in k}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(logits(tmp_path / "pytorch_model.bin", images), model(images).logits)


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_gives_hugging_faces_features(tmp_path, images, registers):
    kinds = {
        0: (transformers.Dinov2Config, transformers.Dinov2Model),
        4: (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
    }
    config_class, model_class = kinds[registers]
    model = shaken(model_class(config_class(**HF_SIZES)))
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path / "model.safetensors")
    assert weights.config["reg_tokens"] == registers
    assert weights.family == "imagenet"
    ours = create_model(**weights.config)
    ours.load_state_dict(weights.state)
    theirs = model(images).last_hidden_state
    assert_same(ours.eval().forward_features(images), theirs)


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_its_authors_gives_timms_features(tmp_path, images, registers):
    extra = {"reg_tokens": registers, "no_embed_class": registers > 0, "init_values": 0.5}
    model = shaken(TimmViT(**SIZES, num_classes=0, **extra))
    published = {
        k.replace("reg_token", "register_tokens"): v for k, v in model.state_dict().items()
    }
    published["mask_token"] = torch.zeros(1, SIZES["embed_dim"])
    if registers:  # published files give the class token a position; timm adds it to the token
        position = torch.randn(1, 1, SIZES["embed_dim"])
        published["cls_token"] = published["cls_token"] - position
        published["pos_embed"] = torch.cat([position, published["pos_embed"]], dim=1)
    torch.save(published, tmp_path / "dinov2_pretrain.pth")
    weights = read_weights(tmp_path / "dinov2_pretrain.pth")
    assert weights.format == "DINOv2"
    ours = create_model(**weights.config)
    ours.load_state_dict(weights.state)
    assert_same(ours.eval().forward_features(images), model.forward_features(images))


# --- torchvision --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("representation", [None, 96])
@pytest.mark.parametrize("names", ["new", "old"])
def test_torchvision_vit_gives_its_logits(tmp_path, images, representation, names):
    model = shaken(
        torchvision.models.VisionTransformer(
            40, 8, 3, 2, 128, 512, num_classes=CLASSES, representation_size=representation
        )
    )
    state = model.state_dict()
    if names == "old":  # before torchvision 0.13
        for new, old in ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2.")):
            state = {k.replace(new, old): v for k, v in state.items()}
    torch.save(state, tmp_path / "vit.pth")
    assert_same(logits(tmp_path / "vit.pth", images), model(images))
    assert read_weights(tmp_path / "vit.pth").family == "imagenet"


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_torchvision_models_of_full_size_are_recognised(tmp_path, name):
    model = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES).eval()
    model.heads.head.weight.normal_()
    torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    loaded = load_model(tmp_path / f"{name}.pth").model
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-4)


# --- Google's npz -------------------------------------------------------------------------------


def google_arrays(state: dict, heads: int) -> dict[str, np.ndarray]:
    """Lays a timm state dict out as Google's checkpoints: JAX kernels, a head axis, these names."""
    s = {k: v.numpy() for k, v in state.items()}
    width = s["cls_token"].shape[-1]
    arrays = {
        "cls": s["cls_token"],
        "Transformer/posembed_input/pos_embedding": s["pos_embed"],
        "embedding/kernel": s["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": s["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": s["norm.weight"],
        "Transformer/encoder_norm/bias": s["norm.bias"],
        "head/kernel": s["head.weight"].T,
        "head/bias": s["head.bias"],
    }
    if "pre_logits.fc.weight" in s:
        arrays["pre_logits/kernel"] = s["pre_logits.fc.weight"].T
        arrays["pre_logits/bias"] = s["pre_logits.fc.bias"]
    for n in range(sum(k.endswith("norm1.weight") for k in s)):
        block, theirs = f"blocks.{n}.", f"Transformer/encoderblock_{n}/"
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for i, part in enumerate(("query", "key", "value")):
            weight, bias = (np.split(s[f"{block}attn.qkv.{w}"], 3)[i] for w in ("weight", "bias"))
            arrays[f"{attention}{part}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}{part}/bias"] = bias.reshape(heads, -1)
        arrays[attention + "out/kernel"] = s[block + "attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[attention + "out/bias"] = s[block + "attn.proj.bias"]
        for ours, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}{name}/scale"] = s[f"{block}{ours}.weight"]
            arrays[f"{theirs}{name}/bias"] = s[f"{block}{ours}.bias"]
        for ours, name in (("mlp.fc1", "Dense_0"), ("mlp.fc2", "Dense_1")):
            arrays[f"{theirs}MlpBlock_3/{name}/kernel"] = s[f"{block}{ours}.weight"].T
            arrays[f"{theirs}MlpBlock_3/{name}/bias"] = s[f"{block}{ours}.bias"]
    return arrays


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_google_npz_gives_what_timm_reads_from_it(tmp_path, images, prefix):
    arrays = google_arrays(timm_vit().state_dict(), SIZES["num_heads"])
    path = tmp_path / "B_8.npz"
    np.savez(path, **{prefix + k: v for k, v in arrays.items()})
    theirs = TimmViT(**SIZES, num_classes=CLASSES).eval()
    theirs.load_pretrained(str(path))
    assert_same(logits(path, images), theirs(images))
    assert read_weights(path).format == "Google npz"


@torch.no_grad()
def test_google_npz_with_pre_logits_keeps_them(tmp_path, images):
    model = shaken(create_model("custom", CLASSES, **SIZES, representation_size=96))
    np.savez(tmp_path / "pre.npz", **google_arrays(model.state_dict(), SIZES["num_heads"]))
    assert_same(logits(tmp_path / "pre.npz", images), model(images), 1e-5)


# --- normalisation and class names --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("deit_tiny_patch16_224-a1311bcf.pth", "imagenet"),
        ("dino_deitsmall16_pretrain.pth", "imagenet"),
        ("jx_vit_base_patch16_224_in21k-e5005f0a.pth", "half"),
        ("vit_small_patch16_224.augreg_in21k.pth", "half"),
        ("model-9.pth", "half"),
    ],
)
def test_file_name_tells_the_family_where_nothing_else_does(tmp_path, name, family):
    torch.save(timm_vit().state_dict(), tmp_path / name)
    assert read_weights(tmp_path / name).family == family


def test_model_tells_the_family_of_a_nameless_file(tmp_path):
    torch.save(timm_vit().state_dict(), tmp_path / "x.pth")
    weights = read_weights(tmp_path / "x.pth", model="deit_tiny_patch16_224")
    assert (weights.family, weights.family_reason) == (
        "imagenet",
        "--model is deit_tiny_patch16_224",
    )


def test_config_beside_the_file_outweighs_its_name(tmp_path):
    path = tmp_path / "deit.safetensors"
    safetensors.torch.save_file(timm_vit().state_dict(), path)
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(
        json.dumps({"num_features": 128, "pretrained_cfg": half}), "utf-8"
    )
    assert read_weights(path).family == "half"


def test_preprocessor_config_of_hugging_face_sets_mean_and_std(tmp_path):
    safetensors.torch.save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images), "utf-8")
    weights = read_weights(tmp_path / "model.safetensors")
    assert (weights.family, weights.mean, weights.std) == (
        "custom",
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert load_model(tmp_path / "model.safetensors").preprocess.mean == (0.1, 0.2, 0.3)


def test_config_of_another_model_is_not_believed(tmp_path):
    safetensors.torch.save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    config = {"hidden_size": 768, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert read_weights(tmp_path / "model.safetensors").family == "half"


def test_metadata_of_safetensors_outweighs_the_name(tmp_path):
    metadata = {"mean": json.dumps(IMAGENET_MEAN), "std": json.dumps(IMAGENET_STD)}
    path = tmp_path / "jx_vit.safetensors"
    safetensors.torch.save_file(timm_vit().state_dict(), path, metadata)
    assert read_weights(path).family == "imagenet"


def test_class_names_of_hugging_face_are_found(tmp_path):
    safetensors.torch.save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    names = [f"flower {i}" for i in range(CLASSES)]
    config = {"hidden_size": 128, "id2label": {str(i): n for i, n in enumerate(names)}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert load_model(tmp_path / "model.safetensors").classes == names


# --- what is no weights file --------------------------------------------------------------------


class Payload:
    """Runs a command when unpickled by anything careless."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def test_pickle_with_a_payload_is_refused_and_never_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"model": timm_vit().state_dict(), "x": Payload(marker)}, path)
    with pytest.raises(
        ValueError, match=r"evil\.pth holds more than tensors \(posix\.system\).*safet"
    ):
        read_weights(path)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=r"bare\.bin holds more than tensors \(posix\.system\)"):
        read_weights(tmp_path / "bare.bin")
    assert not marker.exists()


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([Payload(tmp_path / "ran")], dtype=object))
    with pytest.raises(ValueError, match=r"evil\.npz holds pickled objects"):
        read_weights(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "x.safetensors", "x.npz"])
@pytest.mark.parametrize("share", [0.002, 0.5, 0.999])
def test_file_cut_short_is_said_to_be(tmp_path, kind, share):
    state, path = timm_vit().state_dict(), tmp_path / kind
    if kind.endswith(".pth"):
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip.pth")
    elif kind == "x.npz":
        np.savez_compressed(path, **google_arrays(state, 2))
    else:
        safetensors.torch.save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="is cut short or damaged"):
        read_weights(path)


@pytest.mark.parametrize("kind", ["x.pth", "x.npz"])
def test_flipped_bytes_are_noticed_where_the_format_checks_them(tmp_path, kind):
    state, path = timm_vit().state_dict(), tmp_path / kind
    if kind == "x.pth":
        torch.save(state, path)
    else:
        np.savez_compressed(path, **google_arrays(state, 2))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.\w+ is cut short or damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4000000]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_safetensors_header_that_lies_is_noticed(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match=r"lie\.safetensors is cut short or damaged"):
        read_weights(tmp_path / "lie.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("a.pth", b"these are no weights at all\n", "is a text file"),
        ("a.safetensors", b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
        ("a.npz", b"", "is empty"),
        ("a.bin", bytes(range(1, 256)), "is no weights file that can be read here"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.pth"):
        read_weights(tmp_path / "nowhere.pth")


def test_convolutional_network_is_refused_by_its_kind(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth holds a convolutional network .*conv1"):
        read_weights(tmp_path / "resnet.pth")


def test_relatives_with_other_arithmetic_are_refused(tmp_path):
    swin = timm.create_model("swin_tiny_patch4_window7_224").state_dict()
    torch.save(swin, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"is no complete Vision Transformer: it lacks blocks"):
        read_weights(tmp_path / "swin.pth")


@pytest.mark.parametrize("payload", [[1, 2], {"lr": 0.1}, torch.zeros(3)])
def test_pickles_without_named_tensors_are_refused(tmp_path, payload):
    torch.save(payload, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds"):
        read_weights(tmp_path / "x.pth")
