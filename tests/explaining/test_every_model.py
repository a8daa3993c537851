"""Where a model looked, for every family and every form of KAN: maps, and what they add up to."""

from itertools import product

import pytest
import torch
from test_families import FAMILIES, SAMPLE, TINY, shaken
from torch import nn

from explaining import methods, relevance, rules
from explaining.parts import told_apart
from explaining.photo_figure import Figures
from explaining.pruning import prune
from explaining.rules import LIBRA, following
from imaging.preprocess import Preprocess
from predicting.classifier import Classifier
from predicting.predictor import Predictor
from splines.layer import SplineLayer
from vit.adapters import merged
from vit_model import create_model

SPLINES = {
    "full": {"mlp": "kan"},
    "rank": {"mlp": "kan", "kan_rank": 3},
    "groups": {"mlp": "gkan", "kan_groups": 4},
    "feature": {"mlp": "gkan", "kan_groups": "feature"},
}
FORMS = {
    f"{form}, {at}{', gated' * bool(gated)}": SPLINES[form] | {"kan_at": at} | gated
    for form, at, gated in product(SPLINES, ("mlp", "hidden", "all"), ({}, {"swiglu": "packed"}))
}
ODD = {
    "one patch": {"img_size": 8},
    "five by five": {"img_size": 40},
    "patches of seven": {"img_size": 21, "patch_size": 7},
    "one class": {"num_classes": 1},
    "two classes": {"num_classes": 2},
    "classes apart": {"answers": "sigmoid"},
    "one block": {"depth": 1},
    "last block": {"mlp": "kan", "kan_blocks": "last:1", "mlp_hidden": [24, 40]},
}
QUICK = {*SAMPLE, *ODD, "rank, all", "groups, mlp, gated", "feature, hidden"}
ALL = FAMILIES | FORMS | ODD
EACH = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ALL]
HELD = [
    pytest.param(n, marks=pytest.mark.slow if "gated" in n and n not in QUICK else ()) for n in ALL
]
MARGIN = "LibraGrad, all layers, margin"
SHOWN = sorted({MARGIN, methods.DEFAULT, methods.NEXT_BEST})


def model_of(name, **more):
    """A model of that row whose numbers, splines included, are random and not tiny."""
    torch.manual_seed(0)
    model = create_model("custom", **TINY | {"num_classes": 5} | ALL[name] | more)
    return shaken(model).requires_grad_(False)


def photos_of(model, count=2):
    """Photos (count, 3, S, S), and for each a class."""
    side = model.sizes.img_size
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(count) % model.num_classes


def assert_maps(model, names=methods.METHODS):
    images, targets = photos_of(model)
    for name in names:
        values = methods.METHODS[name](model, images, targets)
        assert values.shape == (2, model.patch_embed.num_patches), name
        assert values.isfinite().all(), name
        if name in SHOWN:  # of one photo as of many
            alone = methods.METHODS[name](model, images[1:], targets[1:])
            assert torch.allclose(values[1:], alone, atol=1e-3 * float(values.abs().max())), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", EACH)
def test_every_method_gives_every_model_a_map_of_its_patches(name):
    model = model_of(name)
    assert rules.uncovered(model) == []
    assert {methods.serving(model, one) for one in methods.METHODS} == set(methods.METHODS)
    assert_maps(model)


@pytest.mark.parametrize("name", HELD)
def test_before_each_block_tokens_and_what_is_added_later_make_the_margin(name):
    """LibraGrad loses nothing: in front of any block the margin, its log-sum at its slope, is
    gradient times token, and what later biases and splines at zero give for nothing."""
    model = model_of(name).double()
    assert rules.uncovered(model) == []
    images, targets = (x.double() if x.is_floating_point() else x for x in photos_of(model))
    tokens, outputs, free = [], {}, added_as_they_are(model)
    hooks = [b.register_forward_pre_hook(lambda m, args: tokens.append(args[0]))
             for b in model.blocks]  # fmt: skip
    with torch.enable_grad(), following(model, LIBRA):
        for layer_name, layer in model.named_modules():
            if isinstance(layer, SplineLayer):
                hooks.append(layer.register_forward_hook(
                    lambda m, args, out, n=layer_name: outputs.update({n: (m, args[0], out)})
                ))  # fmt: skip
        for parameter in free.values():
            parameter.requires_grad_()
        total = relevance.class_margins(model, images.requires_grad_(), targets).sum()
        asked = [*tokens, *free.values(), *(out for _, _, out in outputs.values())]
        slopes = iter(torch.autograd.grad(total, asked, allow_unused=True))
    for hook in hooks:
        hook.remove()
    parts = [(x * slope).sum(-1).detach() for x, slope in zip(tokens, slopes, strict=False)]
    given = {n: worth(p, next(slopes)) for n, p in free.items()}
    for layer_name, (layer, x, _) in outputs.items():
        given[layer_name] = worth(layer(torch.zeros_like(x)), next(slopes))
    for number, part in enumerate(parts):
        later = sum(value for name, value in given.items() if comes_after(name, number))
        wanted = linear_margin(model(images).detach(), targets, model.sizes.answers)
        assert float(part.sum()) + later == pytest.approx(float(wanted), rel=1e-6, abs=1e-6)
    found = methods.METHODS[MARGIN](model, images.detach(), targets)
    assert torch.allclose(found, sum(parts)[:, model.num_prefix_tokens :], atol=1e-9)


def added_as_they_are(model) -> dict:
    """The parameters that are added to tokens: biases, but those of spline layers."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith("bias")
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), SplineLayer)
    }


def worth(value, slope) -> float:
    return 0.0 if slope is None else float((value * slope).detach().sum())


def comes_after(name: str, block: int) -> bool:
    """Whether a part of the model acts on the tokens that go into the block, or later."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) >= block
    return name.startswith(("norm.", "fc_norm.", "attn_pool.", "head", "pre_logits."))


def linear_margin(logits, targets, answers):
    """The margins of all photos added up, the other classes' log-sum at its slope."""
    own = logits.gather(1, targets[:, None])
    if answers == "sigmoid" or logits.shape[1] == 1:
        return own.sum()
    shares = logits.scatter(1, targets[:, None], -torch.inf).softmax(1)
    return (own - (shares * logits).sum(1, keepdim=True)).sum()


@pytest.mark.parametrize("adapt", ["lora", "affine"])
@pytest.mark.parametrize("name", ["ViT", "full, all", "rank, mlp", "feature, mlp"])
def test_adapters_are_explained_as_what_they_merge_into(name, adapt):
    at = "mlp" if adapt == "affine" or ALL[name].get("kan_at") != "all" else "all"
    model = model_of(name, adapt=adapt, lora_at=at).double()
    plain = model_of(name).double()
    plain.load_state_dict(merged(model.state_dict()))
    images, targets = photos_of(model)
    for one in (*SHOWN, "AttnLRP, all layers, margin", "LeGrad"):
        both = [methods.METHODS[one](each, images.double(), targets) for each in (model, plain)]
        assert torch.allclose(*both, rtol=1e-4, atol=1e-6), one


@pytest.mark.parametrize("name", ["full, all", "rank, all"])
def test_a_model_whose_curves_are_told_apart_looks_where_it_looked(name):
    model = model_of(name).double()
    images, targets = photos_of(model)
    for one in (*SHOWN, "AttnLRP, gamma"):
        each = (model, told_apart(model))
        both = [methods.METHODS[one](m, images.double(), targets) for m in each]
        assert torch.allclose(*both, atol=1e-9), one


def test_pruned_models_are_explained():
    model = model_of("groups, mlp")
    assert_maps(prune(model, photos_of(model)[0], 0.5), SHOWN)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ViT", "EVA-02", "full, mlp", "rank, all", "feature, mlp"])
def test_half_precision_gives_nearly_the_same_map(name, dtype):
    model = model_of(name)
    images, targets = photos_of(model)
    for one in SHOWN:
        wanted = methods.METHODS[one](model, images, targets)
        model = model.to(dtype)
        found = methods.METHODS[one](model, images.to(dtype), targets).float()
        model = model.float()
        both = torch.stack([wanted.flatten(), found.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.95


@pytest.mark.parametrize("part", [nn.Softplus(), nn.PReLU(), nn.BatchNorm1d(17)])
def test_a_part_without_a_rule_is_served_by_the_next_best_under_its_name(part):
    model = model_of("ViT")
    model.blocks[0].mlp.act = part.eval()
    assert rules.uncovered(model) == ["blocks.0.mlp.act"]
    assert methods.serving(model, MARGIN) == methods.NEXT_BEST
    assert_maps(model, [methods.NEXT_BEST])


def test_what_is_no_single_model_is_refused_in_words(tmp_path):
    """An exported file, of 8 bits or not, and an ensemble: classifiers without a model."""
    model = model_of("ViT")
    facts = {"config": model.config}
    exported = Classifier(model, list("abcde"), Preprocess(img_size=32), facts)
    with pytest.raises(ValueError, match="needs one model's checkpoint: an exported file shows no"):
        Figures(str(tmp_path), Predictor(exported, device="cpu"), None)
