"""Splines turned down: what a logit loses without them, against models that never had them."""

import pytest
import torch
from test_explain import KAN_KINDS, make_model

from explaining import curves
from explaining.attribution import Strengths, name_curves, take, with_own_modules


@pytest.fixture
def image():
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def tiny(kind):
    return make_model(**kind).double().requires_grad_(False)


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_a_logit_without_curves_is_that_of_a_model_without_them(kind, image):
    model = tiny(kind)
    strengths = Strengths(model)
    removed = torch.tensor([0, len(strengths) // 2, len(strengths) - 1])
    before = model(image[None])[0, 2]
    found = strengths.logit(image, 2, strengths.without(removed))
    assert float(before) == pytest.approx(strengths.logit(image, 2, strengths.full))
    assert torch.equal(model(image[None])[0, 2], before)  # the model itself is left alone
    every = [curve for layer in curves.kan_layers(model).values() for curve in of(layer)]
    for number in removed.tolist():
        every[number].zero_()
    assert found == pytest.approx(float(model(image[None])[0, 2]))
    assert abs(found - float(before)) > 1e-6


def of(layer):
    """The coefficients of each curve of a layer, to be changed in place."""
    return coefficients_of(layer).flatten(0, -2)


def coefficients_of(layer):
    return curves.coefficients(layer).detach()


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_at_full_strength_the_slopes_are_the_contributions_of_a_trace(kind, image):
    model = tiny(kind)
    strengths = Strengths(model)
    found = strengths.by_layer(strengths.slopes(image, 2, strengths.full))
    records = curves.trace(model, image, 2)
    assert found.keys() == records.keys()
    for name, record in records.items():
        assert torch.allclose(found[name], record.contributions)


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_slopes_are_those_of_the_logit_at_any_strength(kind, image):
    strengths = Strengths(tiny(kind))
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(len(strengths), generator=generator).double()
    along = torch.randn(len(strengths), generator=generator).double()
    slopes = strengths.slopes(image, 1, some)
    before, after = (strengths.logit(image, 1, some + e * along) for e in (-1e-5, 1e-5))
    assert (after - before) / 2e-5 == pytest.approx(float(slopes @ along), rel=1e-5)


def test_modules_of_its_own_share_the_tensors_and_no_hook():
    model = tiny(KAN_KINDS[1])
    other = with_own_modules(model)
    assert not set(model.modules()) & set(other.modules())
    tensors = model.state_dict(keep_vars=True)
    assert all(value is tensors[name] for name, value in other.state_dict(keep_vars=True).items())
    other.blocks[0].register_forward_hook(lambda *_: None)
    assert not model.blocks[0]._forward_hooks


def test_the_model_whose_curves_are_turned_down_can_still_be_trained(image):
    model = tiny(KAN_KINDS[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strengths = Strengths(model.requires_grad_())
    strengths.logit(image, 1, 0 * strengths.full)
    strengths.slopes(image, 1, strengths.full)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_what_is_measured_is_the_logit_of_a_model_without_the_named_curves(kind, image):
    model = tiny(kind)
    found, removed = name_curves(Strengths(model), image, 2)
    total = sum(len(of(layer)) for layer in curves.kan_layers(model).values())
    assert removed.splines == len(found) == max(1, round(total / 100))
    assert removed.of == total
    assert removed.whole == pytest.approx(float(model(image[None])[0, 2]))
    for curve in found:
        coefficients_of(model.get_submodule(curve.layer_name))[curve.index].zero_()
    assert removed.named == pytest.approx(float(model(image[None])[0, 2]))
    assert removed.named < min(removed.whole, removed.random)
    assert removed.random != removed.whole


@pytest.mark.parametrize("kind", KAN_KINDS, ids=str)
def test_a_contribution_is_what_the_logit_loses_without_the_curve(kind, image):
    # Exact ablation of the best ones, one by one; the splines are small, so that first order holds.
    model = tiny(kind)
    for layer in curves.kan_layers(model).values():
        coefficients_of(layer).mul_(0.01)
    before = float(model(image[None])[0, 2])
    for curve in name_curves(Strengths(model), image, 2)[0][:3]:
        own = coefficients_of(model.get_submodule(curve.layer_name))[curve.index]
        kept = own.clone()
        own.zero_()
        fall = before - float(model(image[None])[0, 2])
        own.copy_(kept)
        assert curve.contribution == pytest.approx(fall, rel=0.05)


def test_curves_that_stand_in_for_each_other_are_judged_without_those_taken():
    strengths = Doubled()
    assert take(strengths, None, 0, 2, parts=1)[0].tolist() == [0, 1]
    taken, added = take(strengths, None, 0, 2, parts=2)
    assert taken.tolist() == [0, 2]
    assert added.tolist() == pytest.approx([2.0, 1.5])


def test_curves_that_speak_against_the_class_are_never_taken():
    taken, added = take(Doubled(), None, 0, 4, parts=2)
    assert sorted(taken.tolist()) == [0, 1, 2]
    assert added.min() > 0


class Doubled(Strengths):
    """Four curves by their slopes: the second adds little once the first is gone."""

    def __init__(self):
        self.stored, self.sizes = {"blocks.0.mlp.fc1": torch.zeros(4, 1)}, [4]

    def slopes(self, image, target, strengths):
        slopes = torch.tensor([2.0, 1.9, 1.5, -1.0])
        return slopes - torch.tensor([0, 1.5, 0, 0]) * (1 - strengths[0])


def test_where_nothing_speaks_for_a_class_nothing_is_named_and_nothing_measured(image):
    model = tiny(KAN_KINDS[0])
    model.head.weight.zero_()
    assert name_curves(Strengths(model), image, 2) == ([], None)
