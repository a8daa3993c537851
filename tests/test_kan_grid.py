"""Grids of KAN layers: moved, refined, calibrated, and the function that stays."""

import numpy as np
import pytest
import torch

from kan import KAN, GroupKANLinear, KANLinear, calibrate


def relative_change(before, after):
    return ((after - before).norm() / before.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"enable_standalone_scale_spline": False}, {"spline_rank": 2}]
)
@pytest.mark.parametrize("outside", ["zero", "held", "linear"])
def test_update_grid_keeps_a_function_that_the_new_grid_can_represent(options, outside):
    layer = KANLinear(5, 4, outside=outside, init="glorot", **options)
    if layer.spline_scaler is not None:
        layer.spline_scaler.uniform_(0.5, 2)
    # One cubic polynomial on the whole range is a spline on every grid inside it.
    x = torch.rand(3, 200, 5) * 1.8 - 0.9
    points = torch.linspace(-1, 1, 50)[:, None].expand(-1, 5)
    target = points.unsqueeze(-1) ** 3 - points.unsqueeze(-1) * torch.randn(4)
    coefficients = layer.curve2coeff(points, target)
    if options.get("spline_rank"):
        layer.spline_down.copy_(coefficients[:2])
    else:
        layer.spline_weight.copy_(coefficients)
    before = layer(x)
    old = layer.grid.clone()
    layer.update_grid(x)
    assert (layer.grid - old).abs().max() > 0.05
    assert relative_change(before, layer(x)) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    "x",
    [
        torch.full((50, 3), 0.3),
        torch.full((50, 3), 1e4),
        torch.tensor([-0.5, 0.0, 0.5])[torch.randint(3, (100, 3))],
        torch.rand(2, 3),
        torch.rand(1, 3),
        torch.randn(4, 5, 6, 3),
        torch.rand(40, 3, dtype=torch.bfloat16),
        torch.cat([torch.rand(40, 3), torch.full((1, 3), torch.nan)]),
        torch.cat([torch.zeros(500, 3), torch.rand(3, 3) * 1e-5]),
    ],
    ids=["constant", "large", "repeated", "two", "one", "4-D", "bf16", "nan", "nearly constant"],
)
def test_update_grid_survives_any_samples(x):
    layer = KANLinear(3, 2, init="glorot")
    layer.update_grid(x)
    assert (layer.grid.diff(dim=1) > 0).all()
    assert all(p.isfinite().all() for p in layer.parameters())
    x = x.float().reshape(-1, 3)
    assert layer.coverage(x[x.isfinite().all(1)]) == 1
    layer.update_grid(torch.empty(0, 3))


@torch.no_grad()
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("outside", ["zero", "held", "linear"])
def test_refining_to_a_multiple_changes_nothing(order, outside):
    layer = KANLinear(3, 4, 4, order, outside=outside, init="glorot").double()
    layer.grid.copy_((torch.rand_like(layer.grid) + 0.3).cumsum(1))  # uneven cells
    low, high = layer.low, layer.high
    x = low + (high - low) * torch.rand(100, 3, dtype=torch.float64)
    if outside != "zero":
        x = torch.cat([x, low[None] - 3, high[None] + 3])
    before = layer(x)
    layer.refine(12)
    assert layer.grid_size == 12
    assert layer.spline_weight.shape == (4, 3, 12 + order)
    torch.testing.assert_close(layer(x), before, rtol=1e-9, atol=1e-9)
    layer.refine(17)  # does not nest: the nearest function
    assert relative_change(before, layer(x)) < 0.1


@torch.no_grad()
def test_set_range_keeps_the_function_and_takes_one_range_per_feature():
    layer = KANLinear(3, 2, outside="linear", init="glorot")
    low, high = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([1.0, 2.0, 0.5])
    layer.set_range(low, high)
    torch.testing.assert_close(layer.low, low)
    torch.testing.assert_close(layer.high, high)
    with pytest.raises(ValueError, match="low must be below high"):
        layer.set_range(high, low)
    layer = KANLinear(3, 2, init="glorot").double()
    x = torch.rand(60, 3, dtype=torch.float64) - 0.5
    before = layer(x)
    layer.set_range(-0.6, 0.6)  # narrower: cells fall inside cells, or nearly so
    assert relative_change(before, layer(x)) < 0.05


@torch.no_grad()
def test_coverage_counts_what_lies_between_low_and_high():
    layer = KANLinear(2, 2)
    assert layer.coverage(torch.tensor([[0.0, -1.0], [1.0, 1.1], [-3.0, 0.5], [0, 0]])) == 0.75
    group = GroupKANLinear(4, 2, 2)
    assert group.coverage(torch.tensor([[0.0, 2.0, 0.0, 1.0]])) == 0.75


@torch.no_grad()
@pytest.mark.parametrize("zero", [True, False])
def test_calibration_leaves_one_percent_outside(zero):
    noise = {"scale_noise": 0.0} if zero else {"init": "glorot"}
    model = torch.nn.Sequential(
        KANLinear(8, 16, outside="linear", **noise),
        torch.nn.LayerNorm(16),
        GroupKANLinear(16, 8, 4, scale_noise=0.0 if zero else 0.1),
        KANLinear(8, 3, spline_rank=2, outside="linear", **noise),
    ).train()
    batches = [torch.randn(400, 8) * (1 + i) + 5 for i in range(3)]
    before = model(batches[0])
    ranges = calibrate(model, batches)
    assert model.training
    assert list(ranges) == ["0", "2", "3"]
    if zero:
        torch.testing.assert_close(model(batches[0]), before)
    for x in batches:
        for layer in model:
            if hasattr(layer, "coverage"):
                assert layer.coverage(x) > 0.98999
            x = layer(x)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.01, 0.25])
def test_calibration_ends_at_the_inputs_that_leave_half_the_share_out_on_either_side(share):
    layer, x = KANLinear(3, 2, scale_noise=0.0), torch.randn(999, 3) * torch.tensor([1, 0.1, 50])
    calibrate(layer, [x], outside_share=share)
    ranked = np.sort(x.numpy(), axis=0)
    left = int(share / 2 * 999)
    np.testing.assert_allclose(layer.low, ranked[left], rtol=1e-5)
    np.testing.assert_allclose(layer.high, ranked[998 - left], rtol=1e-5)


@torch.no_grad()
def test_calibration_gives_a_constant_feature_room():
    layer = KANLinear(2, 2, scale_noise=0.0)
    calibrate(layer, [torch.tensor([[0.0, 1e3]]).expand(50, -1)])
    assert (layer.grid.diff(dim=1) > 0).all()


@torch.no_grad()
def test_compression_to_full_rank_is_exact_and_else_tells_its_error():
    layer = KANLinear(6, 5, bias=True, outside="held", init="glorot")
    x = torch.randn(40, 6)
    small, error = layer.compress(5)
    assert error < 1e-6
    torch.testing.assert_close(small(x), layer(x))
    small, error = layer.compress(2)
    singular = torch.linalg.svdvals(layer.scaled_spline_weight.flatten(1))
    torch.testing.assert_close(error, (singular[2:].norm() / singular.norm()).item())
    assert small.spline_down.shape == (2, 6, 8)


def test_curve2coeff_fits_curves_and_survives_repeated_samples():
    layer = KANLinear(2, 3).double()
    x = torch.rand(80, 2, dtype=torch.float64) * 2 - 1
    coefficients = torch.randn(3, 2, 8, dtype=torch.float64)
    y = torch.einsum("nij,oij->nio", layer.b_splines(x), coefficients)
    torch.testing.assert_close(layer.curve2coeff(x, y), coefficients, rtol=1e-6, atol=1e-6)
    few = layer.curve2coeff(x[:1].expand(5, 2), y[:1].expand(5, 2, 3))
    torch.testing.assert_close(
        torch.einsum("nij,oij->nio", layer.b_splines(x[:1]), few), y[:1], rtol=1e-6, atol=1e-6
    )


@torch.no_grad()
def test_kan_updates_and_refines_all_layers():
    model = KAN([2, 5, 1], grid_size=3)
    x = torch.rand(100, 2) * 4
    model(x, update_grid=True)
    assert model.layers[0].coverage(x) == 1
    model.refine(6)
    assert [layer.grid_size for layer in model.layers] == [6, 6]
    assert model(x).shape == (100, 1)
