"""Explanations: where the model looked, what each spline added, what the figures say."""

import json
import re
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image

import explain
from explaining import (
    attention_maps,
    covering,
    curves,
    kan_vit,
    methods,
    photo_figure,
    pruning,
    story,
    words,
)
from imaging.digests import digests
from imaging.preprocess import Preprocess
from predicting.classifier import Classifier, Seen
from predicting.inputs import Photo
from predicting.predictor import Predictor
from predicting.writers import Answer
from pretrained import load_model
from system import terminal
from vit_model import create_model

SIZES = {
    "embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": 32, "patch_size": 8, "num_classes": 5
}  # fmt: skip
KINDS = [
    {"mlp": "mlp"},
    {"mlp": "kan"},
    {"mlp": "kan", "kan_rank": 4, "kan_blocks": "last:2"},
    {"mlp": "gkan", "kan_groups": 4},
    {"mlp": "gkan", "kan_groups": "feature"},
]
KAN_KINDS = KINDS[1:]


def make_model(seed=0, **options):
    """A small model whose weights, splines included, are random and not tiny."""
    torch.manual_seed(seed)
    model = create_model("custom", **SIZES, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([1, 4])
NAMES = ["daisy", "郁金香", "roses", "tulips", "sun"]

# --------------------------------------------------------------------------- where it looked


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_method_gives_a_value_per_patch_and_leaves_the_model_alone(method, kind, images):
    model = make_model(**kind)
    before = model(images).detach()
    values = methods.METHODS[method](model, images, TARGETS)
    assert values.shape == (2, 16)
    assert torch.isfinite(values).all()
    assert values.std() > 0
    assert torch.equal(model(images), before)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(block.attn.qkv._forward_hooks for block in model.blocks)


@pytest.mark.parametrize("method", methods.METHODS)
def test_photos_of_a_batch_do_not_mix(method, images):
    model = make_model()
    both = methods.METHODS[method](model, images, TARGETS)
    alone = [
        methods.METHODS[method](model, images[n : n + 1], TARGETS[n : n + 1])[0] for n in (0, 1)
    ]
    assert torch.allclose(both, torch.stack(alone), atol=1e-5)


def test_recomputed_attention_is_what_the_model_used(images):
    model = make_model()
    seen = {}
    attn = model.blocks[1].attn
    attn.register_forward_hook(lambda module, args, out: seen.update(out=out))
    with torch.no_grad(), attention_maps.recording(model) as record:
        model(images)
        weights = attention_maps.attention_weights(record.qkv[1], attn, record.places[1])
        _, _, v = attn.split(record.qkv[1])
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, H, N, D) -> (B, N, H * D)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 17))
    assert torch.allclose(attn.proj(mixed), seen["out"], atol=1e-5)


def test_attention_gradients_are_those_of_an_attention_written_out(images):
    # One block, one photo: the map from the formula with autograd through an explicit softmax.
    model = make_model().requires_grad_(False)
    model.blocks = model.blocks[:1]
    block, attn = model.blocks[0], model.blocks[0].attn
    x = model.embed(images[:1])
    q, k, v = attn.split(attn.qkv(block.norm1(x)))
    weights = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1).requires_grad_()
    y = x + attn.proj((weights @ v).transpose(1, 2).flatten(2))
    y = y + block.mlp(block.norm2(y))
    logit = model.forward_head(model.norm(y))[0, 3]
    (gradient,) = torch.autograd.grad(logit, weights)
    wanted = (gradient * weights).clamp_min(0).mean(1)[:, 0, 1:]
    found = attention_maps.gradient_attention(model, images[:1], torch.tensor([3]))
    assert torch.allclose(found, wanted, atol=1e-6)


def test_integrated_gradients_add_up_to_the_difference_of_logits(images):
    model = make_model()
    values = attention_maps.integrated_gradients(model, images, TARGETS, steps=64)
    with torch.no_grad():
        logits = attention_maps.class_logits(model, images, TARGETS)
        empty = attention_maps.class_logits(model, torch.zeros_like(images), TARGETS)
    assert torch.allclose(values.sum(1), logits - empty, atol=2e-2)


def test_distilled_models_and_register_tokens_are_understood(images):
    for extra in ({"distilled": True}, {"reg_tokens": 4, "no_embed_class": True}):
        model = make_model(**extra)
        for method in methods.METHODS.values():
            assert method(model, images, TARGETS).shape == (2, 16)


# --------------------------------------------------------------------------- what splines added


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_contributions_are_the_logits_slope_along_each_curve(kind, images):
    # Scaling one curve by (1 + e) must change the logit by e times its contribution.
    model = make_model(**kind).double()
    records = curves.trace(model, images[0].double(), 2)
    for curve in curves.strongest(records, 5):
        layer = curves.kan_layers(model)[curve.layer_name]
        step = 1e-6
        logits = []
        with torch.no_grad():
            for factor in (1 + step, (1 - step) / (1 + step)):
                curves.coefficients(layer)[curve.index] *= factor
                logits.append(model(images[:1].double())[0, 2])
            curves.coefficients(layer)[curve.index] /= 1 - step
        slope = float(logits[0] - logits[1]) / (2 * step)
        assert slope == pytest.approx(curve.contribution, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_tokens_share_out_a_curves_contribution(kind, images):
    model = make_model(**kind)
    records = curves.trace(model, images[0], 2)
    for curve in curves.strongest(records, 4):
        layer = curves.kan_layers(model)[curve.layer_name]
        x, y = curves.per_token(curve, layer, records[curve.layer_name])
        assert x.shape[0] == 17
        assert float(y.sum()) == pytest.approx(curve.contribution, rel=1e-3, abs=1e-5)


def test_strongest_finds_the_largest_of_all_layers(images):
    model = make_model(mlp="kan")
    records = curves.trace(model, images[0], 0)
    everything = torch.cat([record.contributions.flatten() for record in records.values()])
    found = [abs(curve.contribution) for curve in curves.strongest(records, 7)]
    assert found == pytest.approx(everything.abs().topk(7).values.tolist())


def test_frozen_models_stay_frozen(images):
    model = make_model(mlp="kan").requires_grad_(False)
    curves.trace(model, images[0], 0)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_a_curve_evaluates_to_what_its_layer_adds(kind):
    model = make_model(**kind)
    name, layer = next(iter(curves.kan_layers(model).items()))
    last = tuple(size - 1 for size in curves.coefficients(layer).shape[:-1])
    curve = curves.Curve(name, last, 0.0)
    x = torch.linspace(-4, 4, 9)
    inputs = torch.zeros(9, layer.in_features)
    curves.acting_on(curve, layer, inputs)[:] = x[:, None]
    with torch.no_grad():
        whole = layer(inputs)
        curves.coefficients(layer)[curve.index] = 0
        without = layer(inputs)
        y = curves.evaluate(curve, make_layer_again(kind, name), x)
        if kind["mlp"] == "gkan":
            size = layer.in_features // layer.groups
            added = y[:, None] * layer.base_weight[:, -size:].sum(1)
        elif "kan_rank" in kind:
            added = y[:, None] * layer.spline_up[:, last[0]]
        else:
            added = torch.zeros_like(whole)
            added[:, last[0]] = y
    assert torch.allclose(whole - without, added, atol=1e-5)


def make_layer_again(kind, name):
    return curves.kan_layers(make_model(**kind))[name]


# --------------------------------------------------------------------------- figures


def predictor_of(model, classes=NAMES, **options):
    """A model as photo_figure needs it."""
    see = lambda images: Seen(model(images))  # noqa: E731
    classifier = Classifier(see, classes, Preprocess(img_size=32), {}, model)
    return Predictor(classifier, device="cpu", **options)


def write_figures(folder, model, names=("in/a.jpg", "in/b.jpg"), classes=NAMES):
    """Figures and JSON files of photos with these names; returns the JSON files' contents."""
    figures = photo_figure.Figures(str(folder), predictor_of(model, classes), None)
    top = [(1, classes[1], 0.8), (0, classes[0], 0.2)]
    for name in names:
        figures.write(Answer(name, top, image=Image.new("RGB", (60, 40), "orange")))
    figures.close()
    return {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_figure_is_written_for_every_photo(kind, tmp_path):
    write_figures(tmp_path / "out", make_model(**kind))
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["a.json", "a.png", "b.json", "b.png"]
    with Image.open(tmp_path / "out" / "a.png") as figure:
        assert figure.size > (800, 300)


def test_a_photo_that_cannot_be_read_has_no_figure(tmp_path):
    figures = photo_figure.Figures(str(tmp_path), predictor_of(make_model()), None)
    figures.write(Answer("in/broken.jpg", error="no photo"))
    figures.close()
    assert not list(tmp_path.iterdir())


def test_photos_of_one_name_have_a_figure_and_a_file_each(tmp_path):
    write_figures(tmp_path, make_model(), ("a/x.jpg", "b/x.jpg", "x-2.jpg"))
    stems = {path.stem for path in tmp_path.iterdir()}
    assert len(stems) == 3
    for stem in stems:
        assert (tmp_path / f"{stem}.png").exists()
        assert (tmp_path / f"{stem}.json").exists()


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_the_file_names_the_splines_that_speak_most_for_the_class(kind, tmp_path):
    model = make_model(**kind)
    told = write_figures(tmp_path, model)["a.json"]
    assert told["class"] == "郁金香"
    assert torch.tensor(told["map"]).shape == (4, 4)
    total = sum(
        p[..., 0].numel() for p in map(curves.coefficients, curves.kan_layers(model).values())
    )
    assert 0 < len(told["splines"]) <= max(1, round(total / 100))
    values = [one["contribution"] for one in told["splines"]]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0
    # By hand: scaling the first of them by 1 + e moves the logit by e times its contribution.
    first = told["splines"][0]
    layer = model.get_submodule(first["layer"])
    image = photo_figure.eval_transform(Preprocess(img_size=32))(
        Image.new("RGB", (60, 40), "orange")
    )
    model.double()
    with torch.no_grad():
        before = model(image[None].double())[0, 1]
        curves.coefficients(layer)[tuple(first["index"])] *= 1 + 1e-5
        after = model(image[None].double())[0, 1]
    assert float(after - before) / 1e-5 == pytest.approx(values[0], rel=1e-2)


def test_figure_and_file_say_what_the_logit_is_without_the_named_splines(tmp_path, monkeypatch):
    drawn, draw = [], photo_figure.draw
    monkeypatch.setattr(photo_figure, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    told = write_figures(tmp_path, make_model(**KAN_KINDS[3]))["a.json"]
    removed = told["removed"]
    assert removed["splines"] == len(told["splines"])
    assert removed["named"] < removed["whole"]
    caption = drawn[0].subfigs[1].get_suptitle()
    assert f"goes from {removed['whole']:.2f} to {removed['named']:.2f} without" in caption
    assert f"the {removed['splines']} of {removed['of']} splines" in caption
    assert f"to {removed['random']:.2f} without as many at random" in caption


@pytest.mark.parametrize("tta", [False, True])
def test_what_covering_does_starts_from_the_answer(tta, tmp_path):
    """With --tta, too: from the mean of the photo and its mirror."""
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    predictor = predictor_of(make_model(), tta=tta)
    (answer,) = predictor.answers([Photo("a.jpg", source=image)], keep_image=True)
    figures = photo_figure.Figures(str(tmp_path), predictor, None)
    figures.write(answer)
    figures.close()
    covered = json.loads((tmp_path / "a.json").read_text("utf-8"))["covered"]
    assert covered["whole"] == pytest.approx(answer.top[0][2], abs=1e-5)


def test_blocks_have_whole_numbers():
    from matplotlib.figure import Figure

    told = story.Story(1, torch.zeros(4, 4), 1, "any", by_block={9: 1.0, 10: -0.5, 11: 0.1})
    axes = Figure(figsize=(3, 2)).subplots()
    photo_figure.draw_blocks(axes, told, "daisy", words.words_for(NAMES))
    assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_figures_hook_no_module_that_other_threads_predict_with(kind, tmp_path):
    model = make_model(**kind)
    figures = photo_figure.Figures(str(tmp_path), predictor_of(model), None)
    for own in (figures.model, figures.stored):
        assert not set(own.modules()) & set(model.modules())
    assert all(a is b for a, b in zip(figures.stored.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_of_splines_as_before_training_it_is_said_that_nothing_was_learned(kind, tmp_path):
    model = create_model("custom", **SIZES, **kind).eval()  # splines are zero, as at step 0
    torch.nn.init.normal_(model.head.weight)
    told = write_figures(tmp_path, model)["a.json"]
    assert told["splines"] == []
    assert told["removed"] is None
    assert "nothing has been learned" in told["note"]
    assert "note" not in write_figures(tmp_path / "learned", make_model(**kind))["a.json"]
    layer = list(curves.kan_layers(model).values())[-1]
    with torch.no_grad():  # one spline of all is enough
        curves.coefficients(layer)[(0,) * (curves.coefficients(layer).ndim - 1)] = 1.0
        if "kan_rank" in kind:
            layer.spline_up[:, 0] = 1.0
    assert "note" not in write_figures(tmp_path / "one", model)["a.json"]


def test_of_low_rank_both_factors_make_the_splines():
    model = make_model(mlp="kan", kan_rank=4)
    assert curves.anything_learned(model)
    for layer in curves.kan_layers(model).values():
        torch.nn.init.zeros_(layer.spline_up)  # as at step 0, with spline_down drawn
    assert not curves.anything_learned(model)


def test_a_model_without_splines_says_nothing_of_them(tmp_path):
    told = write_figures(tmp_path, make_model())["a.json"]
    assert told["splines"] == []
    assert "note" not in told


def test_the_marked_fifth_is_covered_beside_a_fifth_by_chance():
    image, heat = torch.ones(3, 41, 41), torch.arange(25.0).view(5, 5)
    seen = []

    def probabilities(images):
        """The second class has as much as is seen of the last row of patches."""
        seen.append(images)
        share = images[:, :, 32:40, :40].mean((1, 2, 3))
        return torch.stack([1 - share, share], 1)

    found = covering.cover(probabilities, image, 1, heat)
    assert (found.patches, found.whole, found.marked) == (5, 1.0, 0.0)
    assert 0.5 < found.random < 1
    rest = [float(one[0, :40, :40].mean()) for one in seen[0][1:]]
    assert rest == pytest.approx([0.8] * 6)  # all cover as much
    assert seen[0][:, :, :, 40].min() == 1  # beside the patches


def test_marked_patches_are_chosen_by_what_speaks_against_the_class_too(monkeypatch):
    """Where fewer than a fifth speak for it, those that speak least against it come next."""
    relevance = torch.linspace(-2, 0.1, 16)  # the last alone speaks for the class
    monkeypatch.setitem(story.METHODS, "signed", lambda *_: relevance[None])
    monkeypatch.setattr(story, "serving", lambda model: "signed")
    seen = []

    def probabilities(images):
        seen.append(images[1, 0, ::8, ::8].flatten())
        return torch.full((len(images), 2), 0.5)

    (told,) = story.explain(
        make_model(), torch.ones(1, 3, 32, 32), torch.tensor([1]), probabilities=probabilities
    )
    assert (told.half, int((told.heat > 0).sum())) == (1, 1)
    assert seen[0].tolist() == [1] * 13 + [0] * 3


def test_where_no_patch_speaks_for_the_class_it_is_said(tmp_path):
    model = make_model()
    torch.nn.init.zeros_(model.head.weight)  # as before training: nothing moves the answer
    told = write_figures(tmp_path, model)["a.json"]
    assert told["covered"] is None
    assert {value for row in told["map"] for value in row} == {0}


def test_a_patch_that_stands_out_leaves_the_others_visible():
    heat, only = torch.full((10, 10), 0.1), torch.zeros(10, 10)
    heat[3, 4], only[3, 4] = 1.0, 0.5
    assert photo_figure.shades(heat).min() == 1
    assert torch.equal(photo_figure.shades(only), only)


def test_words_are_in_the_language_of_the_class_names(tmp_path):
    assert words.language_of(["daisy", "郁金香", "roses"]) == "en"
    assert words.language_of(["雛菊", "郁金香", "roses"]) == "zh-Hant"
    assert words.language_of(["ひなぎく", "桜", "薔薇"]) == "en"
    assert words.language_of(["雛菊", "roses"]) == "en"
    assert words.language_of([]) == "en"
    model = create_model("custom", **SIZES, mlp="kan").eval()
    told = write_figures(tmp_path, model, classes=["雛菊", "郁金香", "玫瑰", "向日葵", "蒲公英"])
    assert told["a.json"]["note"].startswith("這個模型的樣條")


def test_both_languages_have_the_same_words_with_the_same_gaps():
    english, chinese = words.WORDS.values()
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert set(re.findall(r"\{\d\}", text)) == set(re.findall(r"\{\d\}", chinese[key])), key


def test_terms_of_the_figures_are_those_of_the_page():
    page = (ROOT / "serving" / "page" / "words.js").read_text("utf-8").split('"zh-Hant": {')[1]
    for key in ("fc1", "fc2", "feature", "features", "part", "unsure", "unknown", "looked"):
        assert f'{key}: "{words.WORDS["zh-Hant"][key]}"' in page


def test_the_class_to_explain_is_found_by_name_or_refused_with_the_nearest():
    classes = ["daisy", "roses", "tulips"]
    assert photo_figure.class_index(None, classes) is None
    assert photo_figure.class_index("tulips", classes) == 2
    with pytest.raises(ValueError, match="did you mean roses"):
        photo_figure.class_index("rose", classes)


def test_half_of_the_relevance_is_counted_from_the_strongest_patch():
    assert story.patches_for_half(torch.tensor([0.1, 0.6, 0.1, 0.2])) == 1
    assert story.patches_for_half(torch.full((16,), 1.0)) == 8
    assert story.patches_for_half(torch.tensor([0.3, -5.0, 0.4, -0.1])) == 1
    assert story.patches_for_half(torch.tensor([0.0, -5.0, 0.0, -0.1])) == 0


def test_a_map_has_its_patches_in_reading_order():
    heat = story.heat_map(torch.tensor([0.0, 1.0, 2.0, 4.0]))
    assert heat.tolist() == [[0.0, 0.25], [0.5, 1.0]]


# --------------------------------------------------------------------------- the model itself


def test_usage_is_the_spread_of_each_curve_and_does_not_depend_on_chunks():
    model = make_model(mlp="kan")
    layer = model.blocks[0].mlp.fc2
    values = torch.randn(50, layer.in_features)
    found = curves.usage(layer, values)
    assert torch.allclose(found, curves.usage(layer, values, most=50), atol=1e-6)
    index = (3, 70)
    curve = curves.evaluate(curves.Curve("blocks.0.mlp.fc2", index, 0.0), layer, values[:, 70])
    assert float(found[index]) == pytest.approx(float(curve.std()), rel=1e-4)


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_without_splines_a_block_computes_its_base_alone(kind, images):
    model = make_model(**kind)
    bare = make_model(**kind)
    for layer in curves.kan_layers(bare).values():
        for parameter in layer.spline_parameters():
            torch.nn.init.zeros_(parameter)
    layers = list(curves.kan_layers(model).values())
    with torch.no_grad(), kan_vit.without_splines(layers):
        assert torch.allclose(model(images), bare(images), atol=1e-5)
    assert not torch.allclose(model(images), bare(images), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_pruning_nothing_changes_nothing(kind, images):
    model = make_model(**kind)
    same = pruning.prune(model, images, 0.0)
    assert torch.allclose(same(images), model(images), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dead_units_can_be_pruned_without_any_change(kind, images):
    # Units whose outgoing edges are all zero, a quarter of each block, must be the ones to go.
    model = make_model(**kind)
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.mlp.fc2.parameters():
                if parameter.shape[1:2] == (96,):  # the second axis counts hidden units
                    parameter[:, ::4] = 0
    small = pruning.prune(model, images, 0.25)
    assert [block.mlp.fc1.out_features for block in small.blocks] == [72, 72, 72]
    assert torch.allclose(small(images), model(images), atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_importance_is_the_squared_effect_of_a_units_variation(kind, images):
    model = make_model(**kind).double()
    image = images[:1].double()
    found = pruning.unit_importance(model, image)[1]
    seen = []
    with pruning.second_layers(model, seen):
        (gradients,) = torch.autograd.grad(
            pruning.margin(model(image.requires_grad_())).sum(), seen[1][1]
        )
    hidden, fc2 = seen[1][0].detach()[0], model.blocks[1].mlp.fc2
    unit = 5
    with torch.no_grad():
        alone = torch.zeros_like(hidden)
        alone[:, unit] = hidden[:, unit]
        at_mean = fc2(alone).mean(0)
        effect = ((fc2(alone) - at_mean) * gradients[0]).sum(-1)
    assert float(found[unit]) == pytest.approx(float(effect.square().sum()), rel=1e-4)


def test_what_removed_units_gave_on_average_stays_in_the_bias(images):
    model = make_model()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.weight[:48] = 0  # half of the units are constant
            block.mlp.fc1.bias[:48] = 1.5
    small = pruning.prune(model, images, 0.5)
    assert torch.allclose(small(images), model(images), atol=1e-4)


def test_groups_of_a_gkan_stay_equally_large(images):
    model = make_model(mlp="gkan", kan_groups=4)
    kept = pruning.units_to_keep(model, pruning.unit_importance(model, images), 0.3)
    for keep in kept:
        assert torch.bincount(keep // 24, minlength=4).tolist() == [17, 17, 17, 17]


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_explain_draws_prunes_and_saves_a_checkpoint_that_loads(
    kind, tmp_path, monkeypatch, capsys
):
    model = make_model(**kind)
    write_checkpoint(tmp_path / "best.pth", model)
    for folder in ("daisy", "roses"):
        for n, colour in enumerate(["red", "green", "blue"]):
            path = tmp_path / "data" / folder / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), colour).save(path)
    run(monkeypatch, tmp_path / "best.pth", "--data", tmp_path / "data", "--prune", 0.5)
    out = capsys.readouterr().out
    pruned = load_model(tmp_path / "explain" / "pruned.pth")
    assert [block.mlp.fc1.out_features for block in pruned.model.blocks] == [48, 48, 48]
    assert pruned.classes == NAMES
    assert "before" in out
    assert "after" in out
    pictures = {path.name for path in (tmp_path / "explain").glob("*.png")}
    if kind["mlp"] == "kan":
        assert {"importance.png", "block_03.png"} <= pictures


def test_what_pruning_costs_is_judged_on_photos_not_trained_on(tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "best.pth", make_model(mlp="mlp"))
    paths = [tmp_path / "data" / name / "1.png" for name in ("daisy", "roses")]
    for path, colour in zip(paths, ("red", "green"), strict=True):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), colour).save(path)
    state = torch.load(tmp_path / "best.pth", weights_only=True)
    for trained, accuracy in ((1, (0, 1)), (2, (None,))):
        torch.save(state | {"trained_on": digests(paths[:trained])}, tmp_path / "best.pth")
        run(monkeypatch, tmp_path / "best.pth", "--data", tmp_path / "data", "--prune", 0.5)
        assert f"not judged: {trained} that the model was trained on" in capsys.readouterr().out
        kept = load_model(tmp_path / "explain" / "pruned.pth").facts["metrics"]
        assert kept["accuracy_on_data"] in accuracy


def test_explain_works_without_photos(tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "best.pth", make_model(mlp="kan", kan_rank=3))
    assert run(monkeypatch, tmp_path / "best.pth", "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "block_01.png").exists()


@pytest.mark.parametrize(
    ("flags", "kind", "sentence"),
    [
        ((), {"mlp": "mlp"}, "no KAN layers"),
        (("--prune", "0.5"), {"mlp": "kan"}, "--data"),
        (("--prune", "1.5"), {"mlp": "kan"}, "out of range"),
    ],
)
def test_explain_names_what_is_missing(tmp_path, monkeypatch, capsys, flags, kind, sentence):
    write_checkpoint(tmp_path / "best.pth", make_model(**kind))
    assert run(monkeypatch, tmp_path / "best.pth", *flags) == 2
    assert sentence in capsys.readouterr().err


def write_checkpoint(path, model):
    facts = {"classes": NAMES, "preprocess": Preprocess(img_size=32).to_dict()}
    facts |= {"epoch": 1, "metrics": {}, "version": 1}
    torch.save({"model": model.state_dict(), "config": model.config, **facts}, path)


def run(monkeypatch, *argv) -> int:
    monkeypatch.setattr(sys, "argv", ["explain.py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        terminal.run_cli(explain.main)
    return exit_.value.code
