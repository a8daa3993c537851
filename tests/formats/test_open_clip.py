"""Files of OpenAI's CLIP and of OpenCLIP give the features that timm finds in them."""

import json
import re

import pytest
import safetensors.torch
import torch
from oracles import IMAGES, vit

from formats.open_clip import OPEN_CLIP
from formats.reading import read_weights
from pretrained import load_into
from vit_model import create_model

TEXT = {
    "transformer.resblocks.0.attn.in_proj_weight": torch.ones(6, 2), "logit_scale": torch.ones([]),
    "token_embedding.weight": torch.ones(5, 2), "positional_embedding": torch.ones(4, 2),
    "text_projection": torch.ones(2, 3), "ln_final.weight": torch.ones(2),
}  # fmt: skip


def open_clip(model) -> dict[str, torch.Tensor]:
    """Returns the state dict of timm's model under OpenCLIP's names, with a text tower."""
    state = {}
    for name, value in model.state_dict().items():
        for theirs, ours in OPEN_CLIP:
            plain = re.sub(r"\(\?:\w\|?\w*\)|[\^$]", "", theirs).replace(r"\.", ".")
            number = re.sub(r"\\(\d)", r"(\\w+)", ours.replace(".", r"\."))
            groups = iter(re.findall(r"\([^)]*\)", plain))
            for n, group in enumerate(groups, 1):
                plain = plain.replace(group, rf"\g<{n}>", 1)
            name = re.sub(number + ("$" if theirs.endswith("$") else ""), plain, name)
        state[name] = value.squeeze(0) if "embedding" in name else value
    state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
    return state | TEXT | {"visual.proj": torch.ones(128, 24)}


def written(state: dict, folder, **config):
    folder.mkdir(exist_ok=True)
    state = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    if config:
        (folder / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    return folder


@torch.no_grad()
def assert_same_features(folder, theirs) -> None:
    weights = read_weights(folder)
    model = create_model(**weights.config).eval()
    assert not load_into(model, weights).new
    torch.testing.assert_close(model(IMAGES), theirs(IMAGES), rtol=0, atol=1e-4)


@pytest.mark.parametrize("quick", [True, False])
def test_features_are_timms_and_the_text_tower_is_left_out(tmp_path, quick):
    name = f"vit_base_patch16_clip{'_quickgelu' * quick}_224"
    theirs = vit(name, num_classes=0)
    state = open_clip(theirs)
    assert {"visual.transformer.resblocks.1.mlp.c_fc.weight", "visual.ln_pre.bias"} <= state.keys()
    written(state, tmp_path, model_cfg={"embed_dim": 24, "quick_gelu": quick})
    assert_same_features(tmp_path, theirs)
    ignored = read_weights(tmp_path).ignored
    assert ignored.keys() == {*TEXT, "visual.proj"}


def test_timms_models_in_open_clip_are_found(tmp_path):
    theirs = vit("vit_base_patch16_siglip_224", num_classes=0)
    state = {f"visual.trunk.{name}": value for name, value in theirs.state_dict().items()}
    text = {f"text.{name}": value for name, value in TEXT.items() if name != "logit_scale"}
    cfg = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}
    photos = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    written(state | text, tmp_path, model_cfg={"vision_cfg": cfg}, preprocess_cfg=photos)
    assert_same_features(tmp_path, theirs)
    assert read_weights(tmp_path).preparation.words == "both sides to 64 pixels, bicubic"


def test_files_without_a_config_have_clips_epsilon_and_normalisation(tmp_path):
    weights = read_weights(written(open_clip(vit("vit_base_patch16_clip_224")), tmp_path))
    assert weights.config["norm_eps"] == 1e-5
    assert weights.config["act"] == "gelu"
    assert weights.family_reason == "it is in the format of a CLIP"
    assert weights.mean == (0.48145466, 0.4578275, 0.40821073)


def test_another_config_is_believed_before_open_clips(tmp_path):
    state = open_clip(vit("vit_base_patch16_clip_224"))
    photos = {"preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    written(state, tmp_path, model_cfg={"quick_gelu": False}, **photos)
    config = {"pretrained_cfg": {"crop_pct": 0.9, "mean": [0.4] * 3, "std": [0.3] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    weights = read_weights(tmp_path)
    assert weights.mean == (0.4, 0.4, 0.4)
    assert weights.preparation.words == "short side to 71 pixels, centre 64, bicubic"


def test_a_norm_behind_the_pooling_is_refused(tmp_path):
    cfg = {"final_ln_after_pool": True, "pool_type": "avg"}
    state = open_clip(vit("vit_base_patch16_clip_224"))
    with pytest.raises(ValueError, match="norm behind the pooling: True"):
        read_weights(written(state, tmp_path, model_cfg={"vision_cfg": cfg}))


def test_heads_are_told_by_their_width(tmp_path):
    theirs = vit("vit_base_patch16_clip_224", num_classes=0, num_heads=4)
    vision = {"image_size": 64, "layers": 2, "width": 128, "head_width": 32, "patch_size": 16}
    folder = written(open_clip(theirs), tmp_path, model_cfg={"vision_cfg": vision})
    assert read_weights(folder).config["num_heads"] == 4
    assert_same_features(folder, theirs)
