"""From a weights file into a model: heads, sizes, KAN blocks, reports, and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

import pretrained
from formats.fitting import load_into
from formats.reading import read_weights
from formats.resizing import fit_channels, resize_patches, resize_positions
from imaging.preprocess import Preprocess
from kan import KANLinear
from pretrained import calibrate, load_model
from training import optim
from vit_model import create_model

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"img_size": 40, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
CLASSES = ["daisy", "roses", "tulips"]
KAN_KINDS = [
    {"mlp": "kan"},
    {"mlp": "kan", "kan_rank": 3},
    {"mlp": "gkan"},
]


def shaken(model):
    """Returns the model in eval mode with every parameter far from its initial value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "spline" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def vit(num_classes=3, **extra):
    return shaken(create_model("custom", num_classes, **SIZES | extra))


def saved(model, path):
    torch.save(model.state_dict(), path)
    return read_weights(path)


def checkpoint(model, path, classes=CLASSES):
    """Writes `model` as train.py does."""
    facts = {"config": model.config, "classes": classes, "preprocess": Preprocess(40).to_dict()}
    facts |= {"epoch": 3, "metrics": {"val_acc": 0.5}, "version": 1}
    torch.save({"model": model.state_dict(), **facts}, path)
    return path


@pytest.fixture
def images():
    return torch.randn(2, 3, 40, 40)


# --- heads --------------------------------------------------------------------------------------


@torch.no_grad()
def test_head_of_the_same_class_count_is_kept(tmp_path, images):
    model = vit()
    ours = create_model("custom", 3, **SIZES).eval()
    report = load_into(ours, saved(model, tmp_path / "x.pth"), CLASSES)
    assert torch.equal(ours(images), model(images))
    assert not report.new
    assert not report.ignored


@torch.no_grad()
def test_head_of_another_class_count_starts_at_zero_and_is_said_to(tmp_path, images):
    weights = saved(vit(7), tmp_path / "x.pth")
    ours = vit(3)
    report = load_into(ours, weights, CLASSES)
    assert ours(images).abs().max() == 0
    assert set(report.new) == {"head.weight", "head.bias"}
    (line,) = [line for line in report.lines() if "head.weight" in line]
    assert line.startswith(
        "  new head.weight, head.bias: the file's head has 7 classes, the model 3"
    )


@torch.no_grad()
def test_head_with_other_class_names_starts_new(tmp_path, images):
    weights = read_weights(checkpoint(vit(), tmp_path / "x.pth"))
    ours = vit()
    report = load_into(ours, weights, ["cat", "dog", "horse"])
    assert report.new["head.weight"].startswith("the file's head has other class names")
    assert ours(images).abs().max() == 0


@torch.no_grad()
def test_head_with_the_same_names_in_another_order_is_put_in_order(tmp_path, images):
    model = vit()
    weights = read_weights(checkpoint(model, tmp_path / "x.pth"))
    ours = vit()
    load_into(ours, weights, ["tulips", "daisy", "roses"])
    torch.testing.assert_close(ours(images), model(images)[:, [2, 0, 1]])


def test_head_behind_pre_logits_is_not_kept_without_them(tmp_path):
    weights = saved(vit(representation_size=128), tmp_path / "x.pth")
    report = load_into(vit(), weights)
    assert "pre-logits" in report.new["head.weight"]
    assert "pre_logits.fc.weight" in report.ignored
    assert report.backbone_share == 1


# --- other sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [3, 5, 9, 14])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_positions_are_interpolated_as_in_timm(grid, prefix):
    positions = torch.randn(1, prefix + 25, 16)
    ours = resize_positions(positions, grid, prefix, prefix)
    theirs = resample_abs_pos_embed(positions, [grid, grid], num_prefix_tokens=prefix)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(ours[:, :prefix], positions[:, :prefix])


@pytest.mark.parametrize("patch", [4, 8, 14, 16])
def test_patch_projection_is_resampled_as_in_timm(patch):
    weight = torch.randn(6, 3, 8, 8)
    theirs = resample_patch_embed(weight, [patch, patch])
    torch.testing.assert_close(resize_patches(weight, patch), theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_grey_photos_give_the_tokens_of_their_colour_copies():
    weight, grey = torch.randn(6, 3, 8, 8), torch.randn(2, 1, 40, 40)
    conv = torch.nn.functional.conv2d
    colour = conv(grey.expand(-1, 3, -1, -1), weight, stride=8)
    torch.testing.assert_close(conv(grey, fit_channels(weight, 1), stride=8), colour)


def test_all_sizes_are_adapted_at_once_and_listed(tmp_path):
    weights = saved(vit(), tmp_path / "x.pth")
    ours = create_model("custom", 3, **SIZES | {"img_size": 96, "patch_size": 16, "in_chans": 4})
    report = load_into(ours, weights)
    adapted = {a.name: (a.before, a.after) for a in report.adapted}
    assert adapted == {
        "pos_embed": ((1, 26, 128), (1, 37, 128)),
        "patch_embed.proj.weight": ((128, 3, 8, 8), (128, 4, 16, 16)),
    }
    assert report.backbone_share == 1
    assert {"pos_embed", "patch_embed.proj.weight"} <= set(report.from_file)


def test_distilled_file_fills_a_plain_model_and_the_other_way_round(tmp_path):
    plain, distilled = vit(), vit(distilled=True)
    report = load_into(vit(), saved(distilled, tmp_path / "d.pth"))
    assert set(report.ignored) == {"dist_token", "head_dist.weight", "head_dist.bias"}
    target = vit(distilled=True)
    load_into(target, saved(plain, tmp_path / "p.pth"))
    assert torch.equal(target.pos_embed[:, 2:], plain.pos_embed[:, 1:])
    assert torch.equal(target.pos_embed[:, 0], plain.pos_embed[:, 0])


def test_file_of_another_size_is_refused_with_what_it_holds(tmp_path):
    weights = saved(vit(), tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"x\.pth holds custom \(128 wide, 3 blocks.*fills only"
    ) as e:
        load_into(create_model("vit_tiny_patch16_224", 3, depth=2), weights)
    assert "leave --model out" in str(e.value)


def test_partial_file_is_taken_only_when_asked_for(tmp_path):
    model = vit()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("blocks.2.")}
    torch.save(state, tmp_path / "x.pth")
    weights = read_weights(tmp_path / "x.pth")
    ours = vit()
    with pytest.raises(ValueError, match=r"fills only 6\d\.\d% of custom"):
        load_into(ours, weights)
    before = ours.blocks[2].mlp.fc1.weight.clone()
    report = load_into(ours, weights, allow_partial=True)
    assert torch.equal(ours.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert torch.equal(ours.blocks[2].mlp.fc1.weight, before)
    assert "blocks.2.mlp.fc1.weight" in report.new


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    model = vit()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[3, 4] = value
    weights = saved(model, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"x\.pth is spoilt: blocks\.1\.attn\.qkv\.weight has 1 val"
    ):
        load_into(vit(), weights)


def test_half_precision_files_fill_a_float32_model(tmp_path):
    model = vit().to(torch.bfloat16)
    ours = create_model("custom", 3, **SIZES)
    load_into(ours, saved(model, tmp_path / "x.pth"))
    assert ours.norm.weight.dtype == torch.float32
    assert torch.equal(ours.norm.weight, model.norm.weight.float())


# --- KAN ----------------------------------------------------------------------------------------

FAMILIES = {
    "plain": {},
    "pre-logits": {"representation_size": 96},
    "distilled": {"distilled": True},
    "registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "no qkv bias": {"qkv_bias": False},
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", ["all", "last:1"])
@pytest.mark.parametrize("kind", KAN_KINDS, ids=["full", "rank", "gkan"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kan_vit_starts_with_the_logits_of_the_vit(tmp_path, images, family, kind, blocks, dtype):
    model = vit(**FAMILIES[family])
    weights = saved(model, tmp_path / "x.pth")
    kan = create_model(**weights.config | kind | {"kan_blocks": blocks}).eval()
    report = load_into(kan, weights)
    assert report.backbone_share == 1
    assert all("spline" in name or name.endswith("grid") for name in report.new)
    model, kan, images = model.to(dtype), kan.to(dtype), images.to(dtype)
    calibrate(kan, [torch.randn(4, 3, 40, 40, dtype=dtype)])
    expected = model(images)
    assert expected.std() > 0.1
    tolerance = 1e-4 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(kan(images), expected, rtol=0, atol=tolerance)


def test_matched_width_starts_new_in_its_blocks_and_says_so(tmp_path):
    model = vit()
    weights = saved(model, tmp_path / "x.pth")
    kan = create_model(
        **weights.config | {"mlp": "kan", "kan_hidden": "match", "kan_blocks": "0,2"}
    )
    report = load_into(kan, weights)
    assert report.backbone_share == 1  # of what is not new by intent
    assert torch.equal(kan.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert any(
        line.startswith("  new mlp.fc1.base_weight") and "(2 blocks): file and model differ" in line
        for line in report.lines()
    )


@torch.no_grad()
def test_kan_file_fills_a_kan_of_another_kind_without_its_splines(tmp_path, images):
    model = vit(mlp="kan", kan_rank=2)
    for name, parameter in model.named_parameters():
        if "spline" in name:
            parameter.normal_()
    weights = read_weights(checkpoint(model, tmp_path / "x.pth"))
    same = create_model(**weights.config).eval()
    load_into(same, weights)
    assert torch.equal(same(images), model(images))
    other = create_model(**weights.config | {"mlp": "mlp"})
    report = load_into(other, weights)
    assert "blocks.0.mlp.fc1.spline_up" in report.ignored
    assert torch.equal(other.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.base_weight)


@torch.no_grad()
@pytest.mark.parametrize("change", [{"kan_grid": 7}, {"kan_rank": 3}, {"kan_rank": None}])
def test_splines_of_another_grid_or_rank_start_anew_together(tmp_path, images, change):
    model = vit(mlp="kan", kan_rank=2, kan_blocks="last:2")
    base = model(images)
    for name, parameter in model.named_parameters():
        if "spline" in name:
            parameter.normal_()
    weights = read_weights(checkpoint(model, tmp_path / "x.pth"))
    other = create_model(**weights.config | change).eval()
    report = load_into(other, weights)
    torch.testing.assert_close(other(images), base, rtol=0, atol=1e-4)
    assert "file and model differ in grid, rank" in report.new["blocks.1.mlp.fc1.grid"]


@pytest.mark.parametrize("kind", [{}, *KAN_KINDS], ids=["mlp", "full", "rank", "gkan"])
def test_frozen_means_that_what_came_from_the_file_stays_bit_for_bit(tmp_path, images, kind):
    weights = saved(vit(7), tmp_path / "x.pth")
    model = create_model(**weights.config | kind | {"num_classes": 3, "img_size": 48})
    report = load_into(model, weights)
    optim.freeze(model, report.from_file)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = optim.param_groups(model, 0.1, 0.1, 1.0, 1.0)
    optimizer = optim.create_optimizer("adamw", groups)
    for _ in range(3):
        logits = model(torch.nn.functional.interpolate(images, size=48))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
        optimizer.step()
    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert {
        name for name in changed if not name.startswith("head.") and "spline" not in name
    } == set()
    assert {"head.weight", "head.bias"} <= changed
    assert not kind or any("spline" in name for name in changed)
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_calibration_covers_what_photos_bring(tmp_path):
    model = create_model("custom", 3, **SIZES, mlp="kan", kan_rank=2)
    load_into(model, saved(vit(), tmp_path / "x.pth"))
    photos = torch.randn(8, 3, 40, 40)
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, KANLinear):
            layer.register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0]}))
    report = calibrate(model, photos.split(4))
    assert len(report.ranges) == 2 * SIZES["depth"]
    assert report.images == 8
    model.eval()(photos)
    for name, values in seen.items():
        layer = model.get_submodule(name)
        assert layer.coverage(values) > 0.97
        inside = (values >= layer.low) & (values <= layer.high)
        assert inside.flatten(0, 1).float().mean(0).min() > 0.9  # in every feature
    assert "calibrated the grids of 6 KAN layers on 8 photos" in report.lines()[0]


@pytest.mark.parametrize("kind", KAN_KINDS, ids=["full", "rank", "gkan"])
def test_splines_learn_after_calibration(tmp_path, images, kind):
    model = create_model("custom", 3, **SIZES, **kind)
    load_into(model, saved(vit(), tmp_path / "x.pth"))
    calibrate(model, [images])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # of low rank the first step moves one factor, the second the other
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 2])).backward()
        optimizer.step()
    gradients = {n: p.grad.abs().max() for n, p in model.named_parameters() if "spline" in n}
    assert all(gradients.values()), gradients


def test_calibration_without_a_photo_says_so():
    with pytest.raises(ValueError, match="no photo to calibrate"):
        calibrate(create_model("custom", 3, **SIZES, mlp="kan"), [])


@torch.no_grad()
def test_calibration_leaves_trained_splines_alone(images):
    model = create_model("custom", 3, **SIZES, mlp="gkan")
    trained = model.blocks[1].mlp.fc1
    for name, parameter in trained.named_parameters():
        if "spline" in name:
            parameter.normal_()
    grid = trained.grid.clone()
    report = calibrate(model, [images])
    assert report.skipped == ["blocks.1.mlp.fc1"]
    assert torch.equal(trained.grid, grid)
    assert "left 1 KAN layers alone" in "\n".join(report.lines())


# --- whole models from files --------------------------------------------------------------------


@pytest.fixture
def describe(monkeypatch, capsys):
    """Runs pretrained.py with the arguments and returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pretrained.py", *map(str, arguments)])
        pretrained.main()
        return capsys.readouterr().out

    return run


def test_what_is_read_is_never_written_over(tmp_path, monkeypatch, capsys):
    checkpoint(vit(), tmp_path / "best.pth")
    before = (tmp_path / "best.pth").read_bytes()
    for source in (tmp_path / "best.pth", tmp_path):
        words = ["pretrained.py", str(source), "--save", str(tmp_path / "best.pth")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(ValueError, match=r"--save \S+best\.pth is what is read; name another"):
            pretrained.main()
    assert (tmp_path / "best.pth").read_bytes() == before


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, *KAN_KINDS], ids=["mlp", "full", "rank", "gkan"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoint_survives_description_and_saving(tmp_path, images, kind, suffix, describe):
    model = vit(**kind)
    checkpoint(model, tmp_path / "best.pth")
    out = tmp_path / f"out{suffix}"
    told = describe(tmp_path / "best.pth", "--save", out)
    for words in (
        "format: ours",
        "daisy, roses, tulips",
        "epoch: 3",
        "'val_acc': 0.5",
        "3 classes",
    ):
        assert words in told
    loaded = load_model(out)
    assert torch.equal(loaded.model(images), model(images))
    assert loaded.classes == CLASSES
    assert loaded.preprocess == Preprocess(40)
    assert loaded.model.config == model.config
    assert loaded.weights.meta["metrics"] == {"val_acc": 0.5}


def test_foreign_file_is_saved_with_its_head_and_normalisation(tmp_path, describe):
    model = vit(4)
    torch.save(model.state_dict(), tmp_path / "deit.pth")
    told = describe(tmp_path / "deit.pth", "--save", tmp_path / "ours.pth")
    assert "normalisation: imagenet" in told
    loaded = load_model(tmp_path / "ours.pth")
    assert torch.equal(loaded.model.head.weight, model.head.weight)
    assert loaded.preprocess.mean == (0.485, 0.456, 0.406)
    assert loaded.classes == ["0", "1", "2", "3"]


def test_numbers_in_place_of_names_do_not_drop_a_head(tmp_path):
    model = vit()
    weights = read_weights(checkpoint(model, tmp_path / "x.pth", ["0", "1", "2"]))
    assert not load_into(vit(), weights, CLASSES).new


def test_file_without_a_head_is_described_and_saved_but_cannot_predict(tmp_path, describe):
    torch.save(vit(0).state_dict(), tmp_path / "x.pth")
    assert "no head" in describe(tmp_path / "x.pth", "--save", tmp_path / "y.pth")
    with pytest.raises(ValueError, match="cannot tell classes apart before it is fine-tuned"):
        load_model(tmp_path / "y.pth")


def test_mistakes_of_the_command_line_are_one_sentence(tmp_path):
    (tmp_path / "x.pth").write_text("nothing of use", "utf-8")
    command = [sys.executable, ROOT / "pretrained.py", tmp_path / "x.pth"]
    run = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
    assert run.returncode == 2
    assert (
        run.stderr
        == f"pretrained.py: error: {tmp_path / 'x.pth'} is a text file, not a weights file\n"
    )


def test_class_names_come_from_class_indices_where_the_file_has_none(tmp_path):
    torch.save(vit().state_dict(), tmp_path / "model-9.pth")
    names = tmp_path / "class_indices.json"
    names.write_text(json.dumps({"0": "daisy", "1": "roses", "2": "tulips"}), "utf-8")
    assert load_model(tmp_path / "model-9.pth", names).classes == CLASSES
    assert load_model(tmp_path / "model-9.pth").classes == ["0", "1", "2"]
    names.write_text(json.dumps({"0": "daisy", "1": "roses"}), "utf-8")
    with pytest.raises(ValueError, match=r"names 2 classes, but .*model-9\.pth has 3"):
        load_model(tmp_path / "model-9.pth", names)
    names.write_text("[", "utf-8")
    with pytest.raises(ValueError, match=r"class_indices\.json is not a table of class names"):
        load_model(tmp_path / "model-9.pth", names)
    with pytest.raises(FileNotFoundError, match="does not name its 3 classes and there is no"):
        load_model(tmp_path / "model-9.pth", tmp_path / "nowhere.json")


def test_names_in_a_checkpoint_win_over_class_indices(tmp_path):
    checkpoint(vit(), tmp_path / "best.pth")
    names = tmp_path / "class_indices.json"
    names.write_text(json.dumps({"0": "a", "1": "b", "2": "c"}), "utf-8")
    assert load_model(tmp_path / "best.pth", names).classes == CLASSES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "was written by a newer version"),
        ({"config": {"name": "vit_nonsense"}}, "unknown model"),
        ({"config": {"name": "custom", "legs": 4}}, "no argument legs"),
        ({"config": 3}, "`config` that is not one of ours"),
        ({"classes": ["a", "b"]}, "names 2 classes for a head of 3"),
        ({"classes": None}, "names 0 classes for a head of 3"),
    ],
)
def test_checkpoint_that_contradicts_itself_is_refused(tmp_path, change, message):
    payload = torch.load(checkpoint(vit(), tmp_path / "best.pth"), weights_only=True)
    torch.save(payload | change, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "best.pth")
    assert "best.pth" in str(caught.value)


@pytest.mark.parametrize("name", ["blocks.1.norm1.weight", "head.bias"])
def test_checkpoint_with_missing_tensors_is_refused(tmp_path, name):
    payload = torch.load(checkpoint(vit(), tmp_path / "best.pth"), weights_only=True)
    del payload["model"][name]
    torch.save(payload, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=rf"incomplete: it lacks 1 tensor, such as {name}"):
        load_model(tmp_path / "best.pth")


def test_weights_of_our_own_training_in_progress_load(tmp_path):
    payload = torch.load(checkpoint(vit(), tmp_path / "last.pth"), weights_only=True)
    extras = {"optimizer": {"state": {0: torch.ones(3)}}, "ema": {"x": torch.ones(3)}, "rng": {}}
    torch.save(payload | extras, tmp_path / "last.pth")
    kept = {"epoch", "metrics", "version", "temperature", "trained_on", "known"}
    assert load_model(tmp_path / "last.pth").weights.meta.keys() == kept


def test_kan_state_dict_without_a_config_is_recognised_from_its_shapes(tmp_path, images):
    for number, kind in enumerate(KAN_KINDS):
        model = vit(**kind, kan_grid=4, kan_order=2, kan_blocks="0,2")
        torch.save(model.state_dict(), tmp_path / f"{number}.pth")
        loaded = load_model(tmp_path / f"{number}.pth").model
        assert torch.equal(loaded(images), model(images))
