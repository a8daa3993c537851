"""Which inputs have splines and how many: each form in every room that meets a KAN-ViT."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from explaining.curves import kan_layers, strongest, trace
from explaining.kan_vit import layer_inputs, report, survey
from explaining.pruning import prune
from formats.facts import Decided
from formats.fitting import load_into
from formats.portable import portable
from formats.reading import read_weights
from kan import GroupKANLinear
from pretrained import calibrate
from training import feature_cache, optim
from training.choices import Case, choose
from training.flags import Options, parse_args
from training.setup import model_config
from vit_model import create_model

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
FORMS = {
    "hidden": {"mlp": "gkan", "kan_groups": "feature", "kan_at": "hidden", "kan_blocks": "last:2"},
    "all": {"mlp": "gkan", "kan_groups": "feature", "kan_at": "all", "qkv_bias": False},
    "all in groups": {"mlp": "gkan", "kan_groups": 6, "kan_at": "all", "kan_blocks": "1"},
    "edges": {"mlp": "kan", "kan_at": "all", "kan_blocks": "0,2"},
    "rank": {"mlp": "kan", "kan_at": "hidden", "kan_rank": 2},
}
INPUTS = {"hidden": ["fc2"], "mlp": ["fc1", "fc2"], "all": ["qkv", "proj", "fc1", "fc2"]}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def vit(**options):
    """A model in eval mode none of whose numbers are zero, splines excepted."""
    model = create_model("custom", 4, **SIZES | options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "spline" not in name:
                parameter.normal_(0, 0.2)
    return model


@torch.no_grad()
def trained(**form):
    model = vit(**form)
    calibrate(model, [torch.randn(8, 3, 16, 16)])
    for name, parameter in model.named_parameters():
        if "spline" in name:
            parameter.normal_(0, 0.3)
    return model


def checkpoint(model, path):
    facts = {"config": model.config, "classes": list("abcd"), "version": 1}
    torch.save({"model": model.state_dict(), **facts}, path)
    return path


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16)


@torch.no_grad()
@each_form
def test_a_vit_becomes_it_without_losing_anything(tmp_path, images, form):
    plain = vit(qkv_bias=form.get("qkv_bias", True))
    torch.save(plain.state_dict(), tmp_path / "x.pth")
    weights = read_weights(tmp_path / "x.pth")
    model = create_model(**weights.config | {"num_heads": 3} | form).eval()
    loaded = load_into(model, weights)
    assert loaded.backbone_share == 1
    assert all("spline" in name or name.endswith("grid") for name in loaded.new)
    calibrate(model, [images])
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=1e-5)


@torch.no_grad()
@each_form
def test_splines_stand_before_the_maps_that_were_named_and_are_told_by_tensors(tmp_path, form):
    model = trained(**form)
    places = [(int(n.split(".")[1]), n.split(".")[-1]) for n in kan_layers(model)]
    assert places == [
        (block, part) for block in model.sizes.kan_numbers for part in INPUTS[form["kan_at"]]
    ]
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    told = read_weights(tmp_path / "bare.pth").config
    blocks = list(model.sizes.kan_numbers)
    expected = {key: form[key] for key in form if key != "kan_blocks"} | {"kan_blocks": blocks}
    assert {key: told[key] for key in expected} == expected


@torch.no_grad()
@each_form
def test_a_file_fills_the_same_form_whole(tmp_path, images, form):
    model = trained(**form)
    weights = read_weights(checkpoint(model, tmp_path / "x.pth"))
    again = create_model(**weights.config).eval()
    assert not load_into(again, weights).new
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_splines_of_a_file_stay_where_more_are_asked_for(tmp_path, images):
    model = trained(mlp="gkan", kan_groups="feature")
    weights = read_weights(checkpoint(model, tmp_path / "x.pth"))
    wider = create_model(**weights.config | {"kan_at": "all"}).eval()
    loaded = load_into(wider, weights)
    assert {name.split(".")[3] for name in loaded.new} == {"qkv", "proj"}
    assert len(calibrate(wider, [images]).ranges) == 2 * SIZES["depth"]
    torch.testing.assert_close(wider(images), model(images), rtol=0, atol=1e-5)


@torch.no_grad()
@each_form
def test_portable_operators_compute_the_same(images, form):
    model = trained(**form)
    torch.testing.assert_close(portable(model)(images), model(images), rtol=1e-4, atol=1e-4)


@each_form
def test_it_is_explained_and_pruned(images, form):
    model = trained(**form)
    layers = kan_layers(model)
    surveys = {name: survey(layers[name], x) for name, x in layer_inputs(model, images).items()}
    effects = dict.fromkeys(model.sizes.kan_numbers, (0.0, 0.0))
    assert [line.split()[1] for line in report(surveys, effects)[2:]] == [
        name.split(".")[-1] for name in layers
    ]
    curve = strongest(trace(model, images[0], 1), 1)[0]
    assert curve.describe(layers[curve.layer_name]).startswith("block ")
    with torch.no_grad():
        small = prune(model, images, 0.5)
        assert small.sizes.kan_at == form["kan_at"]
        assert small(images).shape == (6, 4)
        assert small.blocks[1].mlp.fc1.out_features == 48


@pytest.mark.parametrize(("blocks", "kept"), [("last:1", 2), ("1", 1), ("all", 0)])
def test_frozen_layers_below_the_first_spline_run_once(blocks, kept):
    model = vit(mlp="gkan", kan_groups="feature", kan_at="all", kan_blocks=blocks)
    names = [name for name, _ in model.named_parameters() if "spline" not in name]
    assert feature_cache.plan(model, optim.freeze(model, names)) == kept


# --- what stands unless it is typed ---------------------------------------------------------------


GROUPED = {"mlp": "gkan", "kan_groups": 8, "kan_at": "hidden"}


@pytest.mark.parametrize(
    ("words", "held", "form"),
    [
        ("--mlp gkan", None, ("feature", "all")),
        ("--mlp gkan", {}, ("feature", "all")),
        ("--mlp gkan --kan-at mlp", {}, ("feature", "mlp")),
        ("--mlp gkan --kan-groups 4", {}, (4, "mlp")),
        ("--mlp gkan --kan-groups 4 --kan-at all", {}, (4, "all")),
        ("", GROUPED, (8, "hidden")),
        ("--mlp gkan", GROUPED, (8, "hidden")),
        ("--kan-groups feature", GROUPED, ("feature", "hidden")),
        ("--kan-at all", GROUPED, (8, "all")),
        ("--mlp gkan", {"mlp": "kan", "kan_at": "all"}, ("feature", "all")),
        ("--mlp gkan --model vit_micro_patch8_64", GROUPED, (8, "hidden")),
    ],
)
def test_a_new_conversion_gets_the_recommended_form_and_splines_keep_theirs(words, held, form):
    weights = None if held is None else SimpleNamespace(config=vit(**held).config, facts=Decided())
    options = parse_args(["--weights", "x.pth", *words.split()] if weights else words.split())
    model = create_model(**model_config(options, weights, 4))
    assert model.sizes.mlp == "gkan"
    assert (model.sizes.kan_groups, model.sizes.kan_at) == form


def test_configs_of_before_mean_what_they_meant():
    sizes = create_model("custom", 4, **SIZES, mlp="gkan").sizes
    assert (sizes.kan_groups, sizes.kan_at) == (8, "mlp")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"kan_groups": 7},
            "kan_groups 7 does not divide the 24 and 96 inputs of the layers: feature, 4, 6",
        ),
        ({"kan_groups": 32}, "kan_groups 32 does not divide"),
        ({"kan_groups": 32, "kan_at": "hidden", "kan_hidden": 48}, "the 48 inputs"),
        ({"kan_at": "attn"}, "kan_at must be one of mlp, hidden, all"),
        ({"kan_at": None}, "kan_at must be one of"),
    ],
)
def test_a_form_that_cannot_be_is_named_with_what_can(wrong, message):
    with pytest.raises(ValueError, match=message):
        create_model("custom", 4, **SIZES, **{"mlp": "gkan"} | wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"kan_groups": 32, "kan_at": "hidden"},
        {"kan_groups": 24, "kan_at": "all"},
        {"kan_groups": 7, "mlp": "mlp"},
        {"kan_groups": "feature", "kan_hidden": 7},
        {"kan_groups": 8, "kan_hidden": "match"},
    ],
)
def test_forms_that_can_be_are_built(right):
    model = create_model("custom", 4, **SIZES, **{"mlp": "gkan"} | right)
    assert create_model(**model.config).config == model.config


# --- the rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_curve_trains_as_if_its_coefficients_counted_in_its_inputs_deviation(kind):
    x, y = torch.randn(64, 6) * torch.logspace(-1, 1, 6), torch.randn(64, 3)
    layer = GroupKANLinear(6, 3, 6, scale_noise=0.0)
    layer.set_range(*(x.std(0) * end for end in (-3, 3)))
    unit = ((layer.high - layer.low) / optim.DEVIATIONS)[:, None]
    scaled = torch.zeros_like(layer.spline_weight).requires_grad_()
    groups = [{"params": [layer.spline_weight], "lr": 0.05, "weight_decay": 0.0}]
    ours = optim.create_optimizer(kind, groups)
    optim.CurveRates(layer, kind).watch(ours)
    plain = optim.create_optimizer(kind, [{**groups[0], "params": [scaled]}])
    for _ in range(4):
        for optimizer in (ours, plain):
            optimizer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        at = {"spline_weight": scaled * unit}
        F.mse_loss(torch.func.functional_call(layer, at, x), y).backward()
        ours.step()
        plain.step()
    assert scaled.abs().max() > 0.05
    torch.testing.assert_close(layer.spline_weight / unit, scaled, rtol=0.01, atol=1e-3)


def test_curves_that_do_not_train_stay():
    layer = GroupKANLinear(6, 3, 6).requires_grad_(False)
    assert optim.CurveRates(layer, "adamw").layers == []


@pytest.mark.parametrize("kind", ["head", "fine-tune", "scratch"])
def test_grouped_splines_have_one_rate_whatever_that_of_all_else(kind):
    rates = set()
    for lr in (None, 1e-3, 0.1):
        case = Case(kind, 800, 5, "group")
        chosen = choose(case, {"lr": lr, "batch_size": 32})
        rates.add(round((lr or chosen["lr"][0]) * chosen["kan_lr_scale"][0], 3))
    assert len(rates) == 1


def test_a_saved_run_says_its_form_and_older_ones_say_none():
    options = parse_args(["--mlp", "gkan"])
    assert options.kan_groups is None
    saved = options.settled(kan_groups="feature").to_dict()
    assert Options.from_dict(saved).kan_groups == "feature"
    del saved["kan_groups"]
    assert Options.from_dict(saved).kan_groups is None
