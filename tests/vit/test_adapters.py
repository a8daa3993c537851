"""Adapters change nothing when they are put on, do what their formula says, and merge exactly."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kan import GroupKANLinear, KANLinear
from vit.adapters import ALPHA, add_adapters, is_adapter, merged
from vit_model import create_model

FORMS = {
    "mlp": {},
    "kan": {"mlp": "kan", "kan_rank": 3},
    "a spline per feature": {"mlp": "gkan", "kan_groups": "feature", "kan_at": "all"},
    "some blocks": {"mlp": "gkan", "kan_blocks": "1,2", "kan_at": "hidden"},
}
KINDS = {
    "lora": {"adapt": "lora", "lora_rank": 3, "lora_at": "all"},
    "attention": {"adapt": "lora", "lora_rank": 2, "lora_at": "attention"},
    "affine": {"adapt": "affine"},
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def model_of(**options) -> nn.Module:
    """A small model, the same for the same blocks, whose logits are not all zero."""
    torch.manual_seed(0)
    model = create_model("vit_micro_patch8_64", num_classes=5, **options).eval()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    return model


def shake(model: nn.Module, names=lambda name: True) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names(name):
                parameter.add_(torch.randn_like(parameter) * 0.2)


PAIRS = {
    f"{kind}, {form}": (FORMS[form], KINDS[kind])
    for kind in KINDS
    for form in FORMS
    if kind != "attention" or form == "mlp"
}


@pytest.mark.parametrize(("form", "kind"), PAIRS.values(), ids=PAIRS)
def test_new_adapters_change_no_logit_and_merged_ones_the_same(form, kind):
    plain, model = model_of(**form), model_of(**form, **kind)
    assert torch.equal(plain(IMAGES), model(IMAGES))
    assert plain.state_dict().keys() == {n for n in model.state_dict() if not is_adapter(n)}
    shake(model, lambda name: is_adapter(name) or "spline" in name)
    logits = model(IMAGES)
    logits.square().sum().backward()
    adapters = {n: p for n, p in model.named_parameters() if is_adapter(n)}
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    plain.load_state_dict(merged(model.state_dict()))
    assert (logits - model_of(**form)(IMAGES)).abs().max() > 0.1
    torch.testing.assert_close(plain(IMAGES), logits, rtol=0, atol=1e-3)
    again = create_model(**model.config).eval()  # as every checkpoint does
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IMAGES), logits)
    assert torch.equal(copy.deepcopy(model)(IMAGES), logits)  # as an average does


def layer_of(kind, layer, rank=3):
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": layer, "fc2": nn.Linear(5, 2)})})
    add_adapters([block], kind, rank, "mlp")
    shake(layer)
    return layer


def test_lora_is_a_product_of_two_factors_beside_the_weight():
    layer, x = layer_of("lora", nn.Linear(7, 5)), torch.randn(4, 7)
    change = ALPHA / 3 * layer.lora_up @ layer.lora_down
    torch.testing.assert_close(layer(x), x @ (layer.weight + change).T + layer.bias)


def test_affine_scales_and_shifts_what_the_map_takes():
    layer, x = layer_of("affine", nn.Linear(7, 5)), torch.randn(4, 7)
    inputs = x * layer.affine_scale + layer.affine_shift
    torch.testing.assert_close(layer(x), inputs @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("kind", ["lora", "affine"])
def test_beside_splines_of_groups_adapters_take_the_splines_in(kind):
    layer, x = layer_of(kind, GroupKANLinear(6, 5, groups=6)), torch.randn(4, 6)
    bare = GroupKANLinear(6, 5, groups=6)
    own = {n: v for n, v in layer.state_dict().items() if not is_adapter(n)}
    bare.load_state_dict(own | {"base_weight": torch.eye(6)[:5], "bias": torch.zeros(5)})
    inputs = [bare(x)]
    bare.base_weight.data = torch.eye(6).roll(1, 0)[:5]
    inputs = torch.cat([inputs[0], bare(x)[:, :1]], 1)  # the activation and spline of all six
    weight = layer.base_weight
    if kind == "lora":
        weight = weight + ALPHA / 3 * layer.lora_up @ layer.lora_down
    else:
        inputs = inputs * layer.affine_scale + layer.affine_shift
    torch.testing.assert_close(layer(x), inputs @ weight.T + layer.bias)


def test_beside_a_spline_per_edge_adapters_leave_the_splines_alone():
    layer, x = layer_of("affine", KANLinear(6, 5, bias=True)), torch.randn(4, 6)
    base = (F.silu(x) * layer.affine_scale + layer.affine_shift) @ layer.base_weight.T + layer.bias
    torch.testing.assert_close(layer(x), base + layer.compute_spline_output(x))


def test_a_step_at_the_same_rate_moves_every_rank_alike():
    """The factors count ALPHA / R times, so AdamW moves the product about as far at any rank."""
    moved = {}
    for rank in (1, 16):
        torch.manual_seed(1)
        layer, x = nn.Linear(64, 64), torch.randn(50, 64)
        block = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": layer, "fc2": nn.Linear(5, 2)})})
        add_adapters([block], "lora", rank, "mlp")
        before = layer(x).detach()
        optimizer = torch.optim.AdamW([layer.lora_up, layer.lora_down], lr=1e-2, weight_decay=0)
        layer(x).square().sum().backward()
        optimizer.step()
        moved[rank] = (layer(x) - before).norm()
    assert 0.4 < moved[1] / moved[16] < 5  # 1/16 were the product counted once


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"adapt": "bitfit"}, "adapt must be one of none, affine, lora, got 'bitfit'"),
        ({"adapt": ["lora"]}, "adapt must be one of"),
        ({"lora_at": "head"}, "lora_at must be one of mlp, attention, all"),
        ({"lora_rank": 0}, "lora_rank must be at least 1 and at most 4096"),
        ({"lora_rank": 2.0}, "lora_rank must be at least 1"),
    ],
)
def test_what_is_no_adapter_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model("vit_micro_patch8_64", **options)
