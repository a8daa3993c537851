"""Relevance by rules: against hand-made and slow references, completeness, every family's parts."""

import pytest
import torch
from test_families import FAMILIES, TINY
from torch import nn

from explaining import methods, relevance, rules
from explaining.attention_maps import class_logits
from explaining.rules import ATTN_LRP, ATTN_LRP_GAMMA, LIBRA, following
from kan import GroupKANLinear, KANLinear
from vit.adapters import add_adapters
from vit_model import create_model

KANS = {
    "kan": {"mlp": "kan"},
    "kan, rank": {"mlp": "kan", "kan_rank": 4, "kan_blocks": "last:1"},
    "kan before fc2": {"mlp": "kan", "kan_at": "hidden", "mlp_norm": True},
    "gkan": {"mlp": "gkan", "kan_groups": 4},
    "gkan everywhere": {"mlp": "gkan", "kan_groups": "feature", "kan_at": "all"},
    "gated gkan": {"mlp": "gkan", "kan_groups": 4, "swiglu": "packed"},
    "pre-logits": {"representation_size": 12},
}
ALL = FAMILIES | KANS
TARGETS = torch.tensor([1, 4])


def make_model(options, seed=0):
    """A small model in float64 whose numbers, splines included, are random and not tiny."""
    torch.manual_seed(seed)
    model = create_model("custom", num_classes=5, **TINY | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.25)
    return model.double().requires_grad_(False)


def photos(count=2):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)


# --------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", ALL)
def test_rules_change_slopes_and_nothing_else(name):
    model, images = make_model(ALL[name]), photos()
    before = model(images)
    for how in (LIBRA, ATTN_LRP, ATTN_LRP_GAMMA):
        with following(model, how):
            within = model(images)
            values = relevance.input_relevance(model, images, TARGETS, rules=None)
        assert torch.allclose(within, before, atol=1e-6)
        assert torch.equal(model(images), before)
        assert torch.isfinite(values).all()
        assert values.std() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ALL)
def test_libragrad_is_complete(name):
    """The logit is gradient times input, summed over the photo and all that is given for nothing:
    biases, special tokens and positions, and what a KAN layer gives at zero."""
    model, images = make_model(ALL[name]), photos()
    free = [p for n, p in model.named_parameters() if is_constant(model, n)]
    for parameter in free:
        parameter.requires_grad_()
    layers = [m for m in model.modules() if isinstance(m, (KANLinear, GroupKANLinear))]
    outputs = []
    with torch.enable_grad(), following(model, LIBRA):
        for layer in layers:
            layer.register_forward_hook(lambda m, args, out: outputs.append((m, out)))
        x = images.clone().requires_grad_()
        logits = class_logits(model, x, TARGETS)
        sources = [x, *free, *(out for _, out in outputs)]
        slopes = torch.autograd.grad(logits.sum(), sources, allow_unused=True)
    values = [x, *free]
    for layer, out in outputs:
        layer._forward_hooks.clear()
        values.append(
            layer(torch.zeros_like(out[..., :1]).expand(*out.shape[:-1], layer.in_features))
        )
    pairs = zip(values, slopes, strict=True)
    found = sum(float((v * slope).detach().sum()) for v, slope in pairs if slope is not None)
    assert found == pytest.approx(float(logits.detach().sum()), rel=1e-6, abs=1e-6)


def is_constant(model, name):
    """Whether a parameter is added to tokens as it is."""
    owner, _, last = name.rpartition(".")
    if last in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        return True
    return last == "bias" and not isinstance(
        model.get_submodule(owner), (KANLinear, GroupKANLinear)
    )


def test_plain_gradients_are_not_complete():
    """The control of the test above: without rules the same sum misses the logit."""
    model, images = make_model({}), photos()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_constant(model, name):
                parameter.zero_()
    logits = float(class_logits(model, images, TARGETS).sum())
    plain = float(relevance.input_relevance(model, images, TARGETS, rules=None).sum())
    ruled = float(relevance.input_relevance(model, images, TARGETS, rules=LIBRA).sum())
    assert ruled == pytest.approx(logits, rel=1e-6)
    assert abs(plain - logits) > 0.1 * abs(logits)


# --------------------------------------------------------------------------- single rules


def test_attnlrp_of_attention_is_the_papers_relevance_written_out():
    q, k, v = (torch.randn(1, 1, n, 3, dtype=torch.float64).requires_grad_() for n in (4, 5, 5))
    out_relevance = torch.randn(4, 3, dtype=torch.float64)
    mixed = rules.attend(q, k, v, 0.7, None, "halves")
    slopes = torch.autograd.grad(mixed, (q, k, v), out_relevance / mixed.detach())
    found = [(x * slope)[0, 0].detach() for x, slope in zip((q, k, v), slopes, strict=True)]
    q, k, v = (x[0, 0].detach() for x in (q, k, v))
    logits = 0.7 * q @ k.t()
    weights, out = logits.softmax(-1), logits.softmax(-1) @ v
    to_q, to_k, to_v = (torch.zeros_like(x) for x in (q, k, v))
    for n in range(4):
        to_weights = torch.zeros(5, dtype=torch.float64)
        for m in range(5):
            for d in range(3):  # a product shares its relevance evenly
                part = weights[n, m] * v[m, d] / out[n, d] * out_relevance[n, d] / 2
                to_weights[m] += part
                to_v[m, d] += part
        # eq. 13: what the softmax's inputs get, the rest is its bias's
        to_logits = logits[n] * (to_weights - weights[n] * to_weights.sum())
        for m in range(5):
            for d in range(3):
                part = 0.7 * q[n, d] * k[m, d] / logits[n, m] * to_logits[m] / 2
                to_q[n, d] += part
                to_k[m, d] += part
    for one, wanted in zip(found, (to_q, to_k, to_v), strict=True):
        assert torch.allclose(one, wanted, atol=1e-10)


def test_constant_weights_give_all_relevance_to_the_values():
    q, k, v = (torch.randn(1, 2, 5, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
    mixed = rules.attend(q, k, v, 0.7, None, "values")
    slopes = torch.autograd.grad(mixed.sum(), (q, k, v), allow_unused=True)
    assert slopes[:2] == (None, None)
    assert float((v * slopes[2]).sum()) == pytest.approx(float(mixed.sum()))


def test_a_network_of_two_layers_by_hand():
    # 1 and 2 go through weights (2, -3) and (1, 1) and a ReLU, then (3, 5): hidden is 0 and 3.
    first = torch.tensor([[2.0, -3.0], [1.0, 1.0]])
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    hidden = rules.secant_of(torch.relu, x @ first.t())
    (slope,) = torch.autograd.grad((hidden @ torch.tensor([3.0, 5.0])).sum(), x)
    assert (x * slope).tolist() == [[5.0, 10.0]]  # 15, shared as 1 to 2


def test_what_a_function_gives_at_zero_is_no_inputs_relevance():
    x = torch.randn(9, dtype=torch.float64, requires_grad=True)
    y = rules.secant_of(nn.functional.softplus, x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(y, nn.functional.softplus(x))
    assert torch.allclose(x * slope, y - torch.tensor(2.0, dtype=torch.float64).log())


def test_gamma_by_hand():
    # y = 1 * 2 + 3 * -1 + 1 * 4 = 3. With gamma 1, contributions 2, -3, 4 count as 4, -3, 8.
    x, weight = torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[2.0, -1.0, 4.0]])
    x.requires_grad_()
    (slope,) = torch.autograd.grad(rules._Gamma.apply(x, weight, x.detach() @ weight.t(), 1.0), x)
    assert torch.allclose(x * slope, 3 * torch.tensor([[4.0, -3.0, 8.0]]) / 9)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 100.0])
def test_gamma_keeps_the_sum_for_inputs_and_outputs_of_either_sign(gamma):
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight, gradient = (torch.randn(s, dtype=torch.float64) for s in ((4, 5), (7, 4)))
    y = (x @ weight.t()).detach()
    (slope,) = torch.autograd.grad(rules._Gamma.apply(x, weight, y, gamma), x, gradient)
    assert torch.allclose((x * slope).sum(1), (y * gradient).sum(1))
    if not gamma:
        assert torch.allclose(slope, gradient @ weight)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("adapt", ["none", "lora", "affine"])
@pytest.mark.parametrize("name", ["kan", "kan, rank", "gkan", "gkan everywhere"])
def test_an_input_of_a_kan_layer_gets_what_its_edges_add_beyond_zero(name, adapt, gamma):
    model = make_model(KANS[name])
    add_adapters(model.blocks, adapt, 2, "mlp")
    for layer in (model.blocks[-1].mlp.fc1, model.blocks[-1].mlp.fc2):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.data = torch.randn_like(parameter.double()) * 0.3
            x = 2 * torch.randn(6, layer.in_features, dtype=torch.float64)
            y, gradient = layer(x), torch.randn(6, layer.out_features, dtype=torch.float64)
            slope = rules.of_edges(layer, x, y, gradient, gamma)
            if gamma:  # shared otherwise, and the same in all: what the layer gives at zero apart
                layer.bias.data -= layer(torch.zeros_like(x[:1]))[0]
                y = layer(x)
                slope = rules.of_edges(layer, x, y, gradient, gamma)
                assert torch.allclose((x * slope).sum(1), (y * gradient).sum(1), atol=1e-7)
                continue
            nothing = layer(torch.zeros_like(x))
            for i in range(layer.in_features):
                alone = torch.zeros_like(x)
                alone[:, i] = x[:, i]  # edges add up, so one input at a time shows its own
                wanted = ((layer(alone) - nothing) * gradient).sum(1)
                assert torch.allclose(x[:, i] * slope[:, i], wanted, atol=1e-7)


def test_slopes_of_edges_stay_bounded_where_inputs_are_zero():
    layer = make_model(KANS["kan"]).blocks[0].mlp.fc2
    x = torch.zeros(3, layer.in_features, dtype=torch.float64)
    slope = rules.of_edges(layer, x, layer(x), torch.ones(3, layer.out_features).double())
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        (tangent,) = torch.autograd.grad(layer(point).sum(), point)
    assert torch.allclose(slope, tangent, atol=1e-5)


# --------------------------------------------------------------------------- maps


def test_legrad_is_each_layers_positive_gradient_written_out():
    model, images = make_model({}), photos(1)
    x, maps = model.embed(images), []
    for block in model.blocks:
        attn = block.attn
        q, k, v = attn.split(attn.qkv(block.norm1(x)))
        weights = (q @ k.transpose(-2, -1) * attn.scale).softmax(-1).requires_grad_()
        y = x + attn.proj((weights @ v).transpose(1, 2).flatten(2))
        y = y + block.mlp(block.norm2(y))
        logit = model.head(model.norm(y)[:, 0])[0, 3]
        (slope,) = torch.autograd.grad(logit, weights)
        maps.append(slope.clamp_min(0).mean((1, 2))[:, 1:])
        x = y.detach()
    found = relevance.legrad(model, images, torch.tensor([3]))
    assert torch.allclose(found, torch.stack(maps).mean(0), atol=1e-12)


def test_layers_relevance_at_the_first_block_is_that_of_its_tokens():
    model, images = make_model({}), photos()
    with torch.enable_grad(), following(model, LIBRA):
        x = model.embed(images).requires_grad_()
        logits = model.forward_rest(x).gather(1, TARGETS[:, None]).sum()
        (slope,) = torch.autograd.grad(logits, x)
    first = (x * slope).sum(-1)[:, 1:]
    both = relevance.layer_relevance(model, images, TARGETS, rules=LIBRA)
    second = relevance.layer_relevance(model, images, TARGETS, rules=LIBRA, skip=0.5)
    assert torch.allclose(both - second, first)


def test_margins_leave_the_others_out_and_of_classes_apart_are_logits():
    model, images = make_model({}), photos()
    logits = model(images)
    probability = logits.softmax(1).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(relevance.class_margins(model, images, TARGETS), probability.logit())
    model = make_model({"answers": "sigmoid"})
    wanted = class_logits(model, images, TARGETS)
    assert torch.equal(relevance.class_margins(model, images, TARGETS), wanted)


def test_occlusion_finds_the_one_patch_that_is_seen():
    class Corner(nn.Module):
        """A model that sees one patch of 4 x 4."""

        def __init__(self):
            super().__init__()
            self.patch_embed = make_model({}).patch_embed
            self.sizes = make_model({}).sizes

        def forward(self, x):
            seen = x[:, :, 8:16, 16:24].sum((1, 2, 3))
            return torch.stack([seen, 0 * seen], 1)

    found = methods.METHODS["occlusion"](Corner(), torch.ones(1, 3, 32, 32), torch.tensor([0]))
    assert float(found[0, 6]) == float(found.max()) == 3 * 8 * 8
    assert float(found[0, 8:].max()) < float(found[0, 6])  # from two rows on squares miss it


def test_where_a_rule_is_missing_the_next_best_serves_by_name():
    model = make_model({})
    assert methods.serving(model, "LibraGrad") == "LibraGrad"
    model.blocks[1].mlp.act = nn.Softplus()
    assert rules.uncovered(model) == ["blocks.1.mlp.act"]
    assert methods.serving(model, "LibraGrad") == methods.NEXT_BEST
    assert methods.serving(model, "LeGrad") == "LeGrad"
