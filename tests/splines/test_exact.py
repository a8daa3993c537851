"""Devices without float64: what layers do in it is done on the CPU, with the same result."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kan import GroupKANLinear, KANLinear
from splines.exact import exact
from splines.starts import noisy


class Mps(Tensor):
    """Numbers on the CPU that say they lie on a GPU of Apple."""

    device = torch.device("mps")


class WithMps(TorchFunctionMode):
    """A torch that has such a GPU, without float64 and apart from the CPU's tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is Tensor.cpu:
            return function(*args).as_subclass(Tensor)
        if function is Tensor.to and isinstance(args[1], Tensor):
            return args[0].as_subclass(Tensor).to(args[1].dtype).as_subclass(type(args[1]))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [isinstance(t, Mps) for t in tensors]
        apart = any(there) and any(t.ndim for t in tensors if not isinstance(t, Mps))
        assert not apart or function is Tensor.copy_, f"{function} of tensors on two devices"
        makes = str(kwargs.get("device", "")) == "mps"
        result = function(*args, **kwargs | ({"device": "cpu"} if makes else {}))
        for t in tree_leaves(result):
            if (makes or any(there)) and isinstance(t, Tensor) and t.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64")
        return result.as_subclass(Mps) if makes else result


def on_mps(layer):
    """The layer, with its numbers there."""
    layer = copy.deepcopy(layer).requires_grad_(False)
    for name, parameter in layer.named_parameters():
        setattr(layer, name, nn.Parameter(there(parameter.data), requires_grad=False))
    layer.grid = there(layer.grid)
    return layer


def there(x):
    return x.as_subclass(Mps)


def here(x):
    assert isinstance(x, Mps)
    return x.as_subclass(Tensor)


LAYERS = {
    "full": lambda: KANLinear(6, 5, init="glorot"),
    "low rank": lambda: KANLinear(6, 5, init="glorot", spline_rank=2),
    "groups": lambda: GroupKANLinear(6, 5, 2),
}


@pytest.fixture(params=LAYERS)
def pair(request):
    """A layer, and the same one on MPS."""
    layer = LAYERS[request.param]().requires_grad_(False)
    with WithMps():
        yield layer, on_mps(layer)


def same(layer, other):
    torch.testing.assert_close(here(other.grid), layer.grid)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(here(q), p)


def test_grids_are_refined_and_moved(pair):
    layer, other = pair
    x = torch.randn(60, 6)
    for finer in (10, 7):
        layer.refine(finer)
        other.refine(finer)
        same(layer, other)
    layer.update_grid(x)
    other.update_grid(there(x))
    same(layer, other)
    layer.set_range(-1.5, 2.0)
    other.set_range(-1.5, 2.0)
    same(layer, other)


def test_coefficients_are_fitted_and_compressed():
    layer, x, y = LAYERS["full"](), torch.rand(80, 6) - 0.5, torch.randn(80, 6, 5)
    with WithMps():
        other = on_mps(layer)
        fitted = other.curve2coeff(there(x), there(y))
        small, error = other.compress(3)
    torch.testing.assert_close(here(fitted), layer.curve2coeff(x, y))
    expected, expected_error = layer.compress(3)
    assert error == pytest.approx(expected_error)
    found, wanted = (s.scaled_spline_weight for s in (small, expected))
    torch.testing.assert_close(found.as_subclass(Tensor), wanted)


def test_noisy_starts_are_drawn():
    layer = LAYERS["full"]()
    with WithMps():
        other = on_mps(layer)
        drawn = noisy(other.spline_weight, other.grid[:1], 3, "zero", 0.1)
    assert 0 < here(drawn).abs().max() < 1


def test_this_imitation_refuses_float64_and_two_devices():
    with WithMps():
        x = there(torch.randn(3, 4))
        assert x.device.type == (x + 1).device.type == exact(x).to(x).device.type == "mps"
        for use in (
            x.double,
            lambda: x.to(torch.float64),
            lambda: x.new_ones(2, dtype=torch.double),
        ):
            with pytest.raises(TypeError, match="float64"):
                use()
        with pytest.raises(AssertionError, match="two devices"):
            x + torch.randn(3, 4)


def test_where_there_is_float64_it_is_used_in_place():
    assert exact(torch.zeros(2, device="meta")).device.type == "meta"
    x = torch.zeros(2, dtype=torch.float64)
    assert exact(x) is x
