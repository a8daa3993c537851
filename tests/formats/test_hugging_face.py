"""Models of transformers give the library's logits and features, under older and newer names.

Small ones with every number by chance, written by save_pretrained as a folder (the older names),
and as the model itself calls its tensors (the newer ones).
"""

import json
import re

import pytest
import safetensors.torch
import torch
import transformers
from oracles import IMAGES, shaken

from formats.fitting import load_into
from formats.reading import read_weights
from pretrained import load_model
from vit_model import create_model

# Unlike each other, so that no swapped axis passes; heads are not 64 wide.
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
DINOV2 = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT |= {"vocab_size": 30, "max_position_embeddings": 8}
RELATIVE = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
SILU = {"use_gated_mlp": True, "hidden_act": "silu"}


def build(kind: str, head: str, sizes: dict, towers: bool = False, **options):
    """Returns a model of transformers in eval mode; towers: its config has one of images inside."""
    config = getattr(transformers, f"{kind}Config")
    if towers:
        text = TEXT if head == "Model" else {}
        made = config(vision_config=sizes | options, text_config=text, num_labels=5)
    else:
        made = config(**sizes, **options, num_labels=5)
    name = kind.removesuffix("Vision") + head if head.startswith("Vision") else kind + head
    return shaken(getattr(transformers, name)(made))


CLASSIFIERS = {
    "ViT": ("ViT", SIZES, {}),
    "ViT, no biases": ("ViT", SIZES, {"qkv_bias": False}),
    "ViT, tanh": ("ViT", SIZES, {"hidden_act": "gelu_pytorch_tanh"}),
    "ViT, gelu_new": ("ViT", SIZES, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "DeiT": ("DeiT", SIZES, {}),
    "MSN": ("ViTMSN", SIZES, {}),
    "I-JEPA": ("IJepa", SIZES, {}),
    "DINOv2": ("Dinov2", DINOV2, {}),
    "DINOv2 giant": ("Dinov2", DINOV2, {"use_swiglu_ffn": True}),
    "DINOv2 with registers": ("Dinov2WithRegisters", DINOV2, {"num_register_tokens": 3}),
    "DINOv2, 9 patches and 5 tokens": (
        "Dinov2WithRegisters",
        DINOV2 | {"image_size": 48},
        {"num_register_tokens": 4},
    ),
    "DINOv2 giant with registers": ("Dinov2WithRegisters", DINOV2, {"use_swiglu_ffn": True}),
    "BEiT": ("Beit", SIZES, RELATIVE),
    "BEiT, shared": ("Beit", SIZES, SHARED),
    "BEiT, class token": ("Beit", SIZES, RELATIVE | {"use_mean_pooling": False}),
    "data2vec": ("Data2VecVision", SIZES, RELATIVE),
    "data2vec, class token": ("Data2VecVision", SIZES, SHARED | {"use_mean_pooling": False}),
    "BEiT, no positions": ("Beit", SIZES, {}),
    "BEiT, plain": ("Beit", SIZES, {"layer_scale_init_value": 0.0} | SHARED),
}
FEATURES = {
    "ViT": ("ViT", "Model", SIZES, {}),
    "MAE": ("ViTMAE", "Model", SIZES, {"mask_ratio": 0.0}),
    "DINOv2": ("Dinov2", "Model", DINOV2, {}),
    "DINOv3": ("DINOv3ViT", "Model", SIZES, {"num_register_tokens": 3}),
    "DINOv3, gated": ("DINOv3ViT", "Model", SIZES, SILU),
    "DINOv3, all biases": ("DINOv3ViT", "Model", SIZES, {"key_bias": True, "rope_theta": 30.0}),
    "DINOv3, biases of values": ("DINOv3ViT", "Model", SIZES, {"query_bias": False}),
    "DINOv3, few biases": ("DINOv3ViT", "Model", SIZES, {"proj_bias": False, "mlp_bias": False}),
    "DINOv3, no biases": ("DINOv3ViT", "Model", SIZES, {"query_bias": False, "value_bias": False}),
    "SigLIP": ("SiglipVision", "VisionModel", SIZES, {}),
    "SigLIP, no pooling": ("SiglipVision", "VisionModel", SIZES, {"vision_use_head": False}),
    "CLIP": ("CLIPVision", "VisionModel", SIZES, {}),
    "CLIP, gelu": ("CLIPVision", "VisionModel", SIZES, {"hidden_act": "gelu"}),
    "MetaCLIP 2": ("MetaClip2Vision", "VisionModel", SIZES, {}),
    "CLIP, projection": ("CLIPVision", "VisionModelWithProjection", SIZES, {"projection_dim": 24}),
    "BEiT": ("Beit", "Model", SIZES, RELATIVE),
    "BEiT, class token": ("Beit", "Model", SIZES, SHARED | {"use_mean_pooling": False}),
}
FAST = {"DINOv2 giant with registers", "BEiT", "DINOv3, gated", "SigLIP", "CLIP", "MAE"}


def sample(cases: dict) -> list:
    """Returns the cases of a table, all but a few of them slow."""
    marks = {name: () if name in FAST else pytest.mark.slow for name in cases}
    return [pytest.param(*cases[name], id=name, marks=marks[name]) for name in cases]


def written(model, folder, names: str):
    """Writes a model as save_pretrained does, or under the names that it has in memory."""
    model.save_pretrained(folder)
    if names == "newer":
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Asserts that two outputs differ by less than 1e-4 of their spread."""
    assert theirs.std() > 0.01, "outputs that hardly differ prove nothing"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.std().item())


@torch.no_grad()
def features(folder, **told) -> torch.Tensor:
    """What a headless file's model gives: (B, embed_dim)."""
    weights = read_weights(folder, **told)
    assert weights.config["num_classes"] == 0
    model = create_model(**weights.config | {"img_size": 64}).eval()
    assert not load_into(model, weights).new
    return model(IMAGES)


@torch.no_grad()
def theirs_of(model) -> torch.Tensor:
    """What a bare model gives a classifier: its pooled output, else the class token or the mean."""
    noise = {"noise": torch.arange(16.0).expand(3, 16)} if "MAE" in type(model).__name__ else {}
    out = model(IMAGES, **noise)
    pooled = getattr(out, "pooler_output", None)
    if type(model).__name__ == "ViTModel":  # the pooler of its pretraining is left out
        pooled = None
    if type(model).__name__ == "CLIPVisionModelWithProjection":
        pooled = model.vision_model(IMAGES).pooler_output
    if pooled is None and "Siglip" in type(model).__name__:
        return out.last_hidden_state.mean(1)
    return out.last_hidden_state[:, 0] if pooled is None else pooled


@pytest.mark.parametrize("names", ["older", "newer"])
@pytest.mark.parametrize(("kind", "sizes", "options"), sample(CLASSIFIERS))
def test_classifiers_give_their_logits(tmp_path, kind, sizes, options, names):
    theirs = build(kind, "ForImageClassification", sizes, **options)
    folder = written(theirs, tmp_path, names)
    images = IMAGES[..., : sizes["image_size"], : sizes["image_size"]]
    with torch.no_grad():
        assert_close(load_model(folder).model(images), theirs(images).logits)


def test_a_class_token_of_half_precision_takes_its_position_unrounded(tmp_path):
    theirs = build("Dinov2WithRegisters", "ForImageClassification", DINOV2).bfloat16()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(load_model(tmp_path).model(IMAGES), theirs.float()(IMAGES).logits)


@pytest.mark.parametrize(
    "kind",
    ["CLIP", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Siglip", "MetaClip2"))],
)
def test_classifiers_on_a_tower_of_images_give_their_logits(tmp_path, kind):
    theirs = build(kind, "ForImageClassification", SIZES, towers=True)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(load_model(tmp_path).model(IMAGES), theirs(IMAGES).logits)
    left = read_weights(tmp_path).ignored
    assert all("classifier" in why for why in left.values())
    assert all(
        name in {n.removeprefix("vision_model.") for n in theirs.state_dict()} for name in left
    )
    assert any("probe" in name or "post_layernorm" in name for name in left)


@pytest.mark.slow
def test_distilled_deit_gives_the_mean_of_its_heads(tmp_path):
    theirs = build("DeiT", "ForImageClassificationWithTeacher", SIZES)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(load_model(tmp_path).model(IMAGES), theirs(IMAGES).logits)


@pytest.mark.parametrize("names", ["older", "newer"])
@pytest.mark.parametrize(("kind", "head", "sizes", "options"), sample(FEATURES))
def test_bare_models_give_their_features(tmp_path, kind, head, sizes, options, names):
    theirs = build(kind, head, sizes, **options)
    folder = written(theirs, tmp_path, names)
    assert_close(features(folder), theirs_of(theirs))


@pytest.mark.parametrize(
    "kind",
    ["CLIP", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Siglip", "MetaClip2"))],
)
def test_the_text_tower_is_left_out_and_that_is_said(tmp_path, kind):
    theirs = build(kind, "Model", SIZES, towers=True)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(features(tmp_path), theirs.vision_model(IMAGES).pooler_output)
    ignored = read_weights(tmp_path).ignored
    assert {n for n in ignored if n.startswith("text_model.")}
    assert "the text tower, which reads no photos" in ignored.values()
    assert not {n for n in ignored if n.startswith("vision_model.")}
    weights = read_weights(tmp_path)
    (line,) = [
        line
        for line in load_into(create_model(**weights.config), weights).lines()
        if "the text tower" in line
    ]
    assert re.search(r"ignored (text\S+, ){3}\d+ more: the text tower, which reads no photos", line)


@pytest.mark.parametrize("name", sample({name: (name,) for name in FEATURES}))
def test_bare_models_without_a_config_are_known_by_their_tensors(tmp_path, name):
    kind, head, sizes, options = FEATURES[name]
    told_alone = {"hidden_act", "rope_theta"} - ({"hidden_act"} if options is SILU else set())
    options = {key: value for key, value in options.items() if key not in told_alone}
    theirs = build(kind, head, sizes, **options)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert_close(features(tmp_path, num_heads=4), theirs_of(theirs))


def refused(model, folder) -> str:
    """Returns the sentence with which a model's folder is refused."""
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors ") as caught:
        read_weights(folder)
    return str(caught.value)


def test_other_models_are_refused_by_what_they_are(tmp_path):
    sam = transformers.SamVisionConfig(**SIZES, output_channels=8, global_attn_indexes=[1])
    sentence = refused(shaken(transformers.SamVisionModel(sam)), tmp_path / "sam")
    assert "is the encoder of SAM or ViTDet, whose attention works in windows" in sentence
    text = transformers.LlamaConfig(**TEXT)
    vision = transformers.CLIPVisionConfig(**SIZES)
    llava = transformers.LlavaConfig(vision_config=vision, text_config=text)
    model = transformers.LlavaForConditionalGeneration(llava)
    assert "kind of model: llava" in refused(model, tmp_path / "llava")
    gated = build("DINOv3ViT", "Model", SIZES, use_gated_mlp=True)
    assert "gated by gelu: only silu is supported" in refused(gated, tmp_path / "dinov3")
    naflex = {key: value for key, value in SIZES.items() if key != "image_size"}
    siglip2 = build("Siglip2Vision", "VisionModel", naflex, num_patches=16)
    assert "kind of model: siglip2_vision_model" in refused(siglip2, tmp_path / "siglip2")
    oblong = build("ViT", "Model", SIZES | {"image_size": [64, 32]})
    assert "sides of the image: [64, 32]" in refused(oblong, tmp_path / "oblong")


def test_tensors_that_the_class_does_not_have_are_refused(tmp_path):
    folder = written(build("Beit", "Model", SIZES, **RELATIVE), tmp_path, "older")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    extra = {"encoder.layer.1.attention.attention.gate.weight": torch.ones(3)}
    safetensors.torch.save_file(state | extra, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no model here has a place for .*gate"):
        read_weights(folder)


class Own(torch.nn.Module):
    """A user's module: a model of the library, and a head on what it pools."""

    def __init__(self, model, tower: str, head: str):
        super().__init__()
        self.names = tower, head
        self.add_module(tower, model)
        self.add_module(head, torch.nn.Linear(48, 5))

    def forward(self, images):
        tower, head = map(self.get_submodule, self.names)
        return head(tower(images).pooler_output)


@pytest.mark.parametrize("head", ["fc", "classifier"])
@pytest.mark.parametrize("kind", ["CLIPVision", "SiglipVision", "DINOv3ViT"])
def test_a_users_head_reads_what_the_model_pools_whatever_it_is_called(tmp_path, kind, head):
    theirs = shaken(Own(build(kind, "Model", SIZES), "tower", head))
    if kind == "DINOv3ViT":  # whose side no tensor tells
        config = {"model_type": "dinov3_vit", "image_size": 64, "num_attention_heads": 4}
        (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    weights = read_weights(tmp_path / "own.pth", num_heads=4)
    ours = create_model(**weights.config).eval()
    assert not load_into(ours, weights).new
    with torch.no_grad():
        assert_close(ours(IMAGES), theirs(IMAGES))


def test_a_librarys_classifier_inside_a_users_module_pools_as_its_class(tmp_path):
    theirs = build("CLIP", "ForImageClassification", SIZES, towers=True)
    state = {f"net.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    weights = read_weights(tmp_path / "net.pth", num_heads=4)
    ours = create_model(**weights.config).eval()
    assert not load_into(ours, weights).new
    with torch.no_grad():
        assert_close(ours(IMAGES), theirs(IMAGES).logits)


def test_a_head_beside_a_pooler_is_not_believed_for_nothing_tells_what_it_reads(tmp_path):
    theirs = shaken(Own(build("ViT", "Model", SIZES), "vit", "fc"))
    torch.save(theirs.state_dict(), tmp_path / "own.pth")
    weights = read_weights(tmp_path / "own.pth")
    assert weights.config["num_classes"] == 0
    assert "has a pooler (vit.pooler.dense.weight)" in weights.no_head
    with pytest.raises(ValueError, match=r"cannot predict here: the file has a pooler"):
        load_model(tmp_path / "own.pth")
