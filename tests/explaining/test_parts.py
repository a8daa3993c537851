"""What is drawn of a KAN-ViT depends on what it computes, not on how that is stored."""

import copy
import sys

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

import explain
import predict
from explaining import curves, parts
from imaging.preprocess import Preprocess
from kan import KANLinear
from system import terminal
from vit_model import create_model

SIZES = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 8}
RANK = 4


def make_model(seed=0, up=0.3, **options):
    """A small model of low rank: all weights the same but for `spline_down`, drawn by the seed."""
    torch.manual_seed(0)
    model = create_model("custom", num_classes=3, mlp="kan", kan_rank=RANK, **SIZES, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.5)
        for layer in curves.kan_layers(model).values():
            layer.spline_down.normal_(0, 0.3, generator=generator)
            layer.spline_up.normal_(0, up) if up else layer.spline_up.zero_()
    return model.eval()


def mixed(model):
    """The same function: each layer's parts mixed with one another."""
    model = copy.deepcopy(model)
    mix = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for layer in curves.kan_layers(model).values():
            layer.spline_up.copy_(layer.spline_up @ mix)
            layer.spline_down.copy_(torch.einsum("qr,rik->qik", mix.inverse(), layer.spline_down))
    return model


def test_the_copy_computes_the_same_and_the_model_stays():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(parts.told_apart(model)(images), model(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    plain = create_model("custom", num_classes=3, **SIZES)
    assert parts.told_apart(plain) is plain


def test_one_function_has_one_form_however_its_parts_are_mixed():
    model = make_model()
    of_one, of_other = (parts.told_apart(m) for m in (model, mixed(model)))
    for name, layer in curves.kan_layers(of_one).items():
        other = curves.kan_layers(of_other)[name]
        torch.testing.assert_close(layer.spline_down, other.spline_down, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(layer.spline_up, other.spline_up, rtol=1e-3, atol=1e-3)
        sizes = layer.spline_down.flatten(1).norm(dim=1)
        assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
        torch.testing.assert_close(layer.spline_up.norm(dim=0), torch.ones(RANK))


def test_a_rank_above_the_sizes_of_a_layer_is_told_apart_too():
    layer = KANLinear(5, 3, spline_rank=6)
    model = torch.nn.ModuleDict({"fc1": layer})
    x = torch.randn(9, 5)
    torch.testing.assert_close(parts.told_apart(model)["fc1"](x), layer(x), rtol=1e-4, atol=1e-5)


def test_an_edge_whose_factor_is_zero_has_a_flat_curve():
    layer = KANLinear(4, 3)
    with torch.no_grad():
        layer.spline_scaler.zero_()
    shown = parts.told_apart(torch.nn.ModuleDict({"fc1": layer}))["fc1"]
    assert not curves.coefficients(shown).any()


def write(path, model):
    preprocess = Preprocess(32, "squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    facts = {"config": model.config, "classes": ["a", "b", "c"], "version": 1}
    facts |= {"preprocess": preprocess.to_dict()}
    torch.save({"model": model.state_dict(), **facts}, path)


def call(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["x.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        terminal.run_cli(main)
    assert end.value.code == 0


def assert_same_pictures(one, other):
    names = sorted(path.name for path in one.glob("*.png"))
    assert names
    for name in names:
        pair = [Image.open(folder / name).convert("RGB") for folder in (one, other)]
        grey = ImageStat.Stat(ImageChops.difference(*pair)).mean
        assert max(grey) < 0.3, name  # of 255: rounding moves a line by less than a pixel


def store(tmp_path, up):
    """Two files of one function; returns their paths."""
    first = make_model(seed=0, up=up)
    second = mixed(first) if up else make_model(seed=1, up=0)
    for number, model in enumerate((first, second)):
        write(tmp_path / f"{number}.pth", model)
        yield tmp_path / f"{number}.pth"


@pytest.mark.parametrize("up", [0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_two_ways_to_store_one_function_give_equal_pictures(up, tmp_path, monkeypatch, capsys):
    for weights in store(tmp_path, up):
        call(monkeypatch, explain.main, weights, "--output", weights.with_suffix(""))
        said = capsys.readouterr().out
        assert ("the splines of 2 of 2 KAN layers are zero" in said) == (not up)
    assert_same_pictures(tmp_path / "0", tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize("up", [0, 0.3])
def test_so_do_the_figures_of_a_photo(up, tmp_path, monkeypatch):
    Image.linear_gradient("L").resize((40, 32)).save(tmp_path / "x.png")
    for weights in store(tmp_path, up):
        folder = weights.with_suffix("")
        call(
            monkeypatch, predict.main, tmp_path / "x.png", "--weights", weights, "--explain", folder
        )
    assert_same_pictures(tmp_path / "0", tmp_path / "1")
