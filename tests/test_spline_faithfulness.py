"""The benchmark of splines: its namings on tiny models, its falls, lines and tables."""

from argparse import Namespace

import pytest
import torch

from benchmarks import spline_faithfulness as script
from benchmarks.faithful import namings
from benchmarks.runs import read_lines
from explaining.curves import coefficients, kan_layers
from kan import calibrate
from vit_model import create_model

SIZES = {
    "num_classes": 3, "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3
}  # fmt: skip
KINDS = [
    {"mlp": "kan"},
    {"mlp": "kan", "kan_rank": 4},
    {"mlp": "gkan", "kan_groups": 4},
    {"mlp": "gkan", "kan_groups": "feature"},
]
forms = pytest.mark.parametrize("kind", KINDS, ids=str)
PHOTOS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tiny(kind):
    torch.manual_seed(0)
    model = create_model("custom", **SIZES, **kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
        calibrate(model, [PHOTOS])
    return namings.Model(model.requires_grad_(False), PHOTOS[1:])


def without(model, layers):
    """The logit of the first photo with the splines of these layers at zero."""
    kept = [coefficients(layer).clone() for layer in layers]
    for layer in layers:
        coefficients(layer).zero_()
    logit = float(model(PHOTOS[:1])[0, 2])
    for layer, coef in zip(layers, kept, strict=True):
        coefficients(layer).copy_(coef)
    return logit


@forms
def test_integrated_gradients_add_up_to_what_all_splines_are_worth(kind, monkeypatch):
    model = tiny(kind)
    monkeypatch.setattr(namings, "STEPS", 32)
    layers = list(kan_layers(model.model).values())
    worth = float(model.model(PHOTOS[:1])[0, 2]) - without(model.model, layers)
    found = namings.integrated(model, PHOTOS[0], 2)
    assert float(found.sum()) == pytest.approx(worth, rel=0.02, abs=1e-3)


@forms
def test_shares_of_a_block_add_up_to_its_exact_fall(kind):
    model = tiny(kind)
    values = namings.by_block(model, PHOTOS[0], 2)
    whole = float(model.model(PHOTOS[:1])[0, 2])
    for block in (0, 1):
        layers = [m for n, m in kan_layers(model.model).items() if n.startswith(f"blocks.{block}")]
        fall = whole - without(model.model, layers)
        assert float(values[model.block == block].sum()) == pytest.approx(fall, abs=1e-4)


@forms
def test_a_patched_curve_gives_its_mean_over_other_photos(kind):
    # In the last layer, its splines in double precision and so small that first order holds.
    model = tiny(kind).model.double()
    name, layer = list(kan_layers(model).items())[-1]
    coefficients(layer).mul_(0.01)
    layer.set_range(-100.0, 100.0)  # bases add up to one everywhere: equal coefficients, a constant
    model = namings.Model(model, PHOTOS[1:].double())
    own = coefficients(layer)[(1,) * (coefficients(layer).ndim - 1)]
    values = model.strengths.by_layer(namings.patched(model, PHOTOS[0].double(), 2))[name]
    mean = float(model.means[name][(1,) * values.ndim])
    before = float(model.model(PHOTOS[:1].double())[0, 2])
    own.fill_(mean)
    fall = before - float(model.model(PHOTOS[:1].double())[0, 2])
    assert float(values[(1,) * values.ndim]) == pytest.approx(fall, rel=0.02)


def test_the_largest_are_those_by_coefficients_times_weights():
    model = tiny(KINDS[2])
    layer = model.layers["blocks.1.mlp.fc2"]
    coefficients(layer)[3] *= 100
    assert int(namings.sizes(model, PHOTOS[0], 0).argmax()) == 4 * 3 + 3
    layer.base_weight[:, -24:] = 0.0  # what the last of four groups passes through
    assert int(namings.sizes(model, PHOTOS[0], 0).argmax()) != 4 * 3 + 3


@pytest.mark.parametrize("method", namings.NAMINGS)
def test_every_naming_gives_as_many_numbers_as_asked_for(method):
    model = tiny(KINDS[3])
    found = namings.NAMINGS[method](model, PHOTOS[0], 1, 12)
    assert len(found.unique()) == len(found) == 12


@forms
def test_a_fall_is_that_of_the_logit_without_the_curves(kind):
    model = tiny(kind)
    size = model.strengths.sizes[0]
    first = next(iter(kan_layers(model.model).values()))
    whole = float(model.model(PHOTOS[:1])[0, 2])
    found = namings.falls(model, PHOTOS[0], 2, [torch.arange(size), torch.arange(0)], whole)
    assert found == pytest.approx([whole - without(model.model, [first]), 0.0], abs=1e-5)


def test_of_late_splines_alone_only_the_late_blocks_are_computed():
    model = tiny({"mlp": "kan", "kan_rank": 4, "kan_blocks": "last:1"})
    whole = model.whole(PHOTOS)
    calls = []
    model.whole.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    tokens = model.prepared(PHOTOS)
    assert len(calls) == 1
    assert torch.allclose(model.model(tokens), whole, atol=1e-5)
    fall = namings.falls(model, tokens[0], 2, [torch.arange(len(model.strengths))], 0.0)[0]
    assert -fall == pytest.approx(
        without(model.whole, list(kan_layers(model.whole).values())), abs=1e-5
    )
    assert len(calls) == 2  # that one


# --------------------------------------------------------------------------- lines and tables


def line(method, photo, *falls, seconds=0.5):
    about = {"model": "groups", "method": method, "photo": photo}
    return about | {"falls": list(falls), "seconds": seconds, "key": f"{method} {photo}"}


def test_deviations_are_those_of_the_falls_by_chance_of_the_same_photo():
    assert script.beyond(7.0, [0.0, 1.0, 2.0]) == pytest.approx(6.0)
    lines = [line("chance", "a", 0.0, 1.0, 2.0), line("chance", "b", 0.0, 10.0, 20.0)]
    lines += [line("first order", "a", 7.0), line("first order", "b", 20.0)]
    lines += [line("largest", "a", 6.0), line("largest", "b", 16.0)]
    lines += [line("greedy, 4 parts", "a", 8.0), line("greedy, 4 parts", "b", 21.0)]
    table = script.show(lines).splitlines()
    rows = {cells[0]: cells[1:] for cells in (row.strip("| ").split(" | ") for row in table[2:])}
    assert list(rows)[2:4] == ["greedy, 4 parts", "first order"]  # the largest fall first
    assert rows["first order"][:2] == ["13.500 ± 6.500", "3.5 ± 2.5"]
    assert rows["first order"][3] == "2.500 ± 1.500 (+1.7 SE)"
    assert rows["greedy, 4 parts"][3] == "3.500 ± 1.500 (+2.3 SE)"
    assert rows["chance"][:2] == ["5.500 ± 4.500", "(one is 5.500 ± 4.500)"]


@pytest.fixture
def setting(tmp_path, make_photos) -> Namespace:
    """A data set, a tiny model that has seen none of it, and the arguments that measure both."""
    data = make_photos(tmp_path / "flowers", per_class=8)
    model = tiny(KINDS[2]).model
    facts = {"classes": ["daisy", "roses", "tulips"], "epoch": 1, "metrics": {}, "version": 1}
    state = {"model": model.state_dict(), "config": model.config, "preprocess": {"img_size": 32}}
    torch.save(state | facts, tmp_path / "groups.pth")
    words = ["--data", str(data), "--models", str(tmp_path), "--kinds", "groups", "--photos", "4"]
    words += ["--results", str(tmp_path / "lines.jsonl"), "--methods", "chance", "first order"]
    return script.parse_args(words)


def test_workers_share_the_photos_and_a_stopped_run_goes_on_with_other_methods(setting):
    setting.workers = 2
    script.work(setting, 0)
    script.work(setting, 1)
    lines = read_lines(setting.results)
    assert len(lines) == 1 + 4 * 2
    assert lines[0]["splines"] == 2 * 2 * 4
    assert all(len(one["falls"]) == 20 for one in lines if one["method"] == "chance")
    setting.workers, setting.methods = 1, ["first order", "largest"]
    script.work(setting, 0)
    lines = read_lines(setting.results)
    assert len({one["key"] for one in lines}) == len(lines) == 1 + 4 * 3
    assert "16 splines in 4 layers" in script.show(lines)


def test_photos_that_the_model_was_trained_on_are_not_measured(setting, monkeypatch):
    class Half:
        def __init__(self, facts):
            pass

        def among(self, paths):
            return [number % 2 == 0 for number in range(len(paths))]

    monkeypatch.setattr(script, "TrainedOn", Half)
    classifier = script.open_classifier(
        str(setting.models / "groups.pth"), None, torch.device("cpu")
    )
    photos = script.Photos(setting.data, classifier)
    assert len(photos.new) == len(photos.seen) == 12
    assert not {photo.path for photo in photos.seen} & {p.path for p in photos.new.values()}


def test_a_model_that_nobody_trains_must_be_there(setting):
    setting.kinds = ["mine"]
    with pytest.raises(SystemExit, match=r"mine\.pth does not exist"):
        script.make_models(setting)
    left_out = (setting.models / "left_out.txt").read_text("utf-8").split()
    assert left_out == []  # of 8 photos of a class all may be trained on
