"""Photos are prepared as timm's and Hugging Face's configs say: compared with what they make."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from oracles import TINY, as_hub, hugging_face, saved, vit
from PIL import Image
from timm.models import save_for_hf

import train
from formats.facts import Source
from formats.preparing import UNTOLD, preparation
from formats.reading import read_weights
from imaging.preprocess import Preprocess, eval_transform
from pretrained import load_model, save_weights

CENTRE = {"crop_size": {"height": 64, "width": 64}, "do_center_crop": True}
SMALLER = {"crop_size": {"height": 32, "width": 32}}
SHORT, SQUARE = {"size": {"shortest_edge": 64}}, {"size": {"height": 64, "width": 64}}


def photo(width: int = 211, height: int = 160) -> Image.Image:
    """Shapes and noise, as sharp as photos are."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((width, height))
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def levels_apart(ours: torch.Tensor, theirs: torch.Tensor, preprocess: Preprocess) -> float:
    """How far two normalised images are apart, in the 256 levels of a pixel."""
    std = torch.tensor(preprocess.std).view(3, 1, 1)
    assert ours.shape == theirs.shape
    return ((ours - theirs) * std * 255).abs().max().item()


@pytest.mark.parametrize(
    "told",
    [
        {"crop_pct": 0.9, "interpolation": "bicubic"},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bicubic"},
        {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "lanczos"},
        {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bilinear"},
    ],
)
def test_photos_are_prepared_as_timm_does(tmp_path, told):
    told = {"mean": (0.48, 0.45, 0.4), "std": (0.27, 0.26, 0.28), "input_size": (3, 64, 64)} | told
    model = timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay=told, **TINY)
    save_for_hf(model, tmp_path, safe_serialization=True)
    preprocess = load_model(tmp_path).preprocess
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    ours, theirs = eval_transform(preprocess)(photo()), transform(photo())
    assert levels_apart(ours, theirs, preprocess) <= 1.01  # rounding
    assert preprocess.interpolation == told["interpolation"]


@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        ("ViT", SQUARE, 1),
        ("DeiT", {"size": {"height": 73, "width": 73}} | CENTRE, 1),
        ("CLIP", SHORT | CENTRE, 1),
        ("Bit", {"size": {"shortest_edge": 73}} | CENTRE, 1),
        ("Siglip", SQUARE, 1),
        ("Beit", SQUARE | CENTRE | {"do_center_crop": False}, 1),
        ("DINOv3ViT", SQUARE, 1),  # it scales before it rounds
    ],
)
def test_photos_are_prepared_as_transformers_does(tmp_path, kind, options, most):
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    hugging_face().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    preprocess = load_model(tmp_path).preprocess
    theirs = processor(photo(), return_tensors="pt")["pixel_values"][0]
    ours = eval_transform(preprocess)(photo())
    assert levels_apart(ours, theirs, preprocess) <= most + 0.01
    assert "preprocessor_config.json" in read_weights(tmp_path).photos_from


FEATURE = {"do_resize": True, "resample": 3, "do_normalize": True}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2} | FEATURE
         | {"resample": 2}, "both sides to 224 pixels, bilinear"),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224,
          "do_center_crop": True} | FEATURE, "short side to 224 pixels, centre 224, bicubic"),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224,
          "do_center_crop": True} | FEATURE, "both sides to 256 pixels, centre 224, bicubic"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224},
          "crop_pct": 0.875} | FEATURE, "short side to 256 pixels, centre 224, bicubic"),
        ({"image_processor_type": "ViTImageProcessor", "size": [224, 224], "resample": 1},
         "both sides to 224 pixels, lanczos"),
        ({"crop_pct": 0.9}, "short side to 248 pixels, centre 224, bicubic"),
        ({"interpolation": "bilinear"}, "short side to 256 pixels, centre 224, bilinear"),
        ({"pretrained_cfg": {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "random"}},
         "both sides to 224 pixels, bicubic"),
        ({"image_processor": {"image_processor_type": "SiglipImageProcessor", "resample": 2,
                              "size": {"height": 224, "width": 224}}},
         "both sides to 224 pixels, bilinear"),
    ],
)  # fmt: skip
def test_older_and_other_spellings_are_understood(config, words):
    told = preparation([[], [Source.of("config.json", config)]])
    assert Preprocess(224, **told.fields(224)).words == words
    assert not told.not_followed


@pytest.mark.parametrize("config", [{}, {"size": 224}, {"do_resize": False}, {"crop_pct": None}])
def test_what_tells_nothing_leaves_the_default(config):
    assert preparation([[Source.of("config.json", config)]]) is None


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"do_resize": True, "size": {"height": 64, "width": 96}}, "size"),
        ({"do_resize": True, "size": {"longest_edge": 64}}, "size"),
        ({"do_resize": True, "size": 64, "resample": 5}, "interpolation 5"),
        ({"crop_pct": 7, "interpolation": "bilinear"}, "crop_pct 7"),
        ({"crop_pct": 0.9, "crop_mode": "spiral"}, "crop_mode 'spiral'"),
    ],
)
def test_what_cannot_be_followed_is_said_and_does_not_refuse(tmp_path, config, what):
    path = as_hub(vit().state_dict(), tmp_path, **config)
    (note,) = [note for note in read_weights(path).assumptions if "cannot be followed" in note]
    assert note.startswith(what)
    assert note.endswith(load_model(path).preprocess.words)


def test_two_preparations_at_one_level_are_refused_and_equal_ones_taken(tmp_path):
    config = {
        "pretrained_cfg": {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
    }
    path = as_hub(vit().state_dict(), tmp_path, **config)
    other = {"do_resize": True, "resample": 3, **SQUARE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(other), "utf-8")
    assert read_weights(path).preparation.words == "both sides to 64 pixels, bicubic"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(other | {"resample": 2}), "utf-8")
    with pytest.raises(ValueError, match=r"prepared in two ways, by config\.json .* and by prep"):
        read_weights(path)


def test_the_file_is_believed_before_its_config(tmp_path):
    payload = {"state_dict": vit().state_dict(), "args": {"crop_pct": 0.8, "crop_mode": None}}
    path = saved(payload, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"crop_pct": 1.0}), "utf-8")
    assert read_weights(path).photos == (
        "short side to 80 pixels, centre 64, bicubic (the file itself)"
    )


def test_files_that_tell_nothing_keep_the_references_preparation(tmp_path):
    weights = read_weights(saved(vit().state_dict(), tmp_path))
    assert weights.photos == f"short side to 73 pixels, centre 64, bilinear ({UNTOLD})"


def test_a_square_that_patches_do_not_fill_keeps_its_scale(tmp_path):
    model = hugging_face(image_size=70)  # 4 patches of 16 pixels, and 6 left over
    model.save_pretrained(tmp_path)
    size = {"size": {"height": 70, "width": 70}}
    transformers.ViTImageProcessor(**size).save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.config["img_size"] == 64
    assert weights.preparation.words == "both sides to 70 pixels, centre 64, bilinear"
    assert not [note for note in weights.notes if "positions" in note]


def test_photos_of_another_size_than_the_positions_are_told(tmp_path):
    hugging_face().save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"shortest_edge": 37}, **SMALLER).save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.preparation.words == "short side to 74 pixels, centre 64, bicubic"
    (note,) = weights.notes
    assert note.endswith("positions are for 64: --img-size 32 of train.py follows it")


def test_our_files_keep_a_preparation_of_others(tmp_path):
    path = as_hub(vit().state_dict(), tmp_path, crop_pct=0.9, interpolation="bicubic")
    loaded = load_model(path)
    for name in ("ours.pth", "ours.safetensors"):
        save_weights(tmp_path / name, loaded)
        again = load_model(tmp_path / name)
        assert again.preprocess == loaded.preprocess
        assert again.weights.photos.startswith("short side to 71 pixels, centre 64, bicubic")


def test_training_prepares_photos_as_the_weights_file_says_unless_flags_do(
    tmp_path, make_photos, call, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    monkeypatch.setattr(train, "write_results", lambda *_: None)
    photos = make_photos(tmp_path / "photos", classes=("a", "b"), per_class=3)
    as_hub(vit().state_dict(), tmp_path / "hub", crop_pct=0.9, interpolation="bicubic")

    def chosen(*flags):
        words = ["--weights", "hub", "--data-path", photos, "--epochs", 0, "--workers", 0, *flags]
        status, out, err = call(
            train.main, *words, "--output", f"run{len(list(tmp_path.iterdir()))}"
        )
        assert status in (0, None), out + err
        newest = max(tmp_path.glob("run*/best.pth"), key=lambda path: path.stat().st_mtime)
        kept = torch.load(newest, weights_only=True)["preprocess"]
        return kept, out

    kept, out = chosen()
    assert (kept["resize_mode"], kept["resize"], kept["interpolation"]) == ("crop", 71, "bicubic")
    assert "photos: short side to 71 pixels, centre 64, bicubic (config.json beside" in out
    kept, out = chosen("--img-size", 96)
    assert (kept["img_size"], kept["resize"]) == (96, 106)
    assert "photos: short side to 106 pixels, centre 96, bicubic" in out
    kept, out = chosen("--resize-mode", "pad")
    assert (kept["resize_mode"], kept["resize"], kept["interpolation"]) == ("pad", None, "bicubic")
    assert "photos: long side to 64 pixels, bicubic (--resize-mode)" in out


@pytest.mark.parametrize(
    "config",
    [
        {"crop_mode": [1], "interpolation": {"a": 1}},
        {"preprocess_cfg": {"resize_mode": {"a": 1}, "interpolation": ["b"]}},
        {"do_resize": True, "size": {"height": "a", "width": "a"}, "resample": [3]},
        {"crop_pct": True, "input_size": [[1]], "crop_mode": 7},
        {"image_processor_type": [1, 2], "size": "large"},
    ],
)
def test_configs_that_hold_nonsense_are_followed_by_nothing(tmp_path, config):
    path = as_hub(vit().state_dict(), tmp_path, **config)
    assert read_weights(path).preparation.img_size == 64
