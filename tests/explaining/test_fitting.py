"""Fits of plain networks: LBFGS that does no harm, grid extension, derivatives of any network."""

import math

import pytest
import torch
from torch import nn

from explaining.fitting import (
    best_start,
    derivatives,
    fit,
    fit_with_extension,
    minimise,
    parameter_count,
)
from kan import KAN


def plain_kan(sizes, **options):
    return KAN(sizes, enable_standalone_scale_spline=False, grid_eps=1.0, **options).double()


def wave(points=400):
    x = torch.linspace(-1, 1, points, dtype=torch.float64)[:, None]
    return x, torch.sin(4 * x)


def test_minimise_finds_the_minimum_of_a_narrow_valley():
    p = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    found = minimise(lambda: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, [p], 200)
    assert found < 1e-20
    torch.testing.assert_close(p.detach(), torch.ones(2, dtype=torch.float64))


def test_minimise_goes_on_where_errors_are_tiny():
    """torch's LBFGS by itself drops the curvature of so small a loss and creeps."""
    p = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    steepness = 1e-12 * torch.logspace(0, 4, 10, dtype=torch.float64)

    def loss():
        return (steepness * (p - 1).square()).sum()

    assert minimise(loss, [p], 100) < 1e-28


def test_minimise_leaves_the_best_when_values_stop_being_numbers():
    p = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    calls = []

    def loss():
        calls.append(None)
        value = p.square().sum()
        return value * math.nan if len(calls) > 3 else value

    found = minimise(loss, [p], 20)
    assert math.isfinite(found)
    assert p.item() ** 2 == pytest.approx(found)
    assert p.grad is None


def test_minimise_refuses_a_start_that_is_no_number():
    p = torch.tensor([math.nan], requires_grad=True)
    with pytest.raises(ValueError, match="must be finite at the start, got nan"):
        minimise(p.sum, [p], 3)


def test_minimise_leaves_frozen_parameters_alone():
    x, y = wave()
    model = plain_kan([1, 1])
    model.layers[0].base_weight.data.zero_()
    model.layers[0].base_weight.requires_grad_(False)
    assert fit(model, x, y, 30) < 1e-2
    assert not model.layers[0].base_weight.any()
    assert parameter_count(model) == 5 + 3


def test_minimise_reports_along_the_way():
    x, y = wave()
    model, seen = plain_kan([1, 1]), []
    fit(model, x, y, 35, every=10, watch=seen.append)
    assert seen == [10, 20, 30]


def test_finer_grids_divide_the_error_as_cubic_splines_do():
    x, y = wave()
    stages = fit_with_extension(plain_kan([1, 1]), x, y, grids=(8, 16, 32), steps=100)
    assert [s.grid_size for s in stages] == [8, 16, 32]
    assert [s.parameters for s in stages] == [12, 20, 36]
    first, second, third = (s.rmse for s in stages)
    assert first / second == pytest.approx(16, rel=0.4)
    assert second / third == pytest.approx(16, rel=0.4)


def test_extension_moves_hidden_ranges_to_the_activations():
    x, y = wave()
    model = plain_kan([1, 3, 1], outside="zero")
    seen = []
    stages = fit_with_extension(model, x, y, (3, 6), steps=40, rounds=2, watch=seen.append)
    assert seen == stages
    assert model.layers[1].coverage(model.layers[0](x)) > 0.9
    with torch.no_grad():
        error = (model(x) - y).square().mean().sqrt().item()
    assert error == pytest.approx(stages[-1].rmse)
    assert error < 1e-2


@pytest.mark.parametrize("points", [40, 70_000])  # the torch path and, with a compiler, native.c
def test_derivatives_are_those_of_the_formula(points):
    """The second derivatives of a spline that was fitted closely, against calculus."""
    x, y = wave(300)
    model = plain_kan([1, 1])
    fit_with_extension(model, x, y, grids=(10, 40), steps=80)
    at = torch.linspace(-0.9, 0.9, points, dtype=torch.float64)[:, None]
    value, slope, curvature = derivatives(model, at)
    torch.testing.assert_close(value.detach(), torch.sin(4 * at[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(slope.detach(), 4 * torch.cos(4 * at), atol=1e-3, rtol=0)
    torch.testing.assert_close(curvature.detach(), -16 * torch.sin(4 * at), atol=0.1, rtol=0)


def test_derivatives_agree_with_finite_differences_in_every_variable():
    model = plain_kan([3, 4, 1], grid_range=(-2, 2))
    x = torch.rand(7, 3, dtype=torch.float64) - 0.5
    value, slopes, curvatures = derivatives(model, x)
    assert (value.shape, slopes.shape, curvatures.shape) == ((7,), (7, 3), (7, 3))
    step = 1e-4
    for n in range(3):
        shift = step * nn.functional.one_hot(torch.tensor(n), 3).double()
        with torch.no_grad():
            before, middle, after = (model(x + s * shift)[:, 0] for s in (-1, 0, 1))
        torch.testing.assert_close((after - before) / (2 * step), slopes[:, n], atol=1e-6, rtol=0)
        second = (after - 2 * middle + before) / step**2
        torch.testing.assert_close(second, curvatures[:, n], atol=1e-4, rtol=0)


def test_a_differential_equation_is_solved_through_its_derivatives():
    """u'' = -u with u(0) = 0 and u'(0) = 1, whose solution is the sine."""
    x = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]
    model = plain_kan([1, 1], grid_size=8, grid_range=(0, 1), outside="linear")

    def loss():
        value, slope, curvature = derivatives(model, x)
        start = value[0].square() + (slope[0, 0] - 1) ** 2
        return (curvature[:, 0] + value).square().mean() + start

    minimise(loss, model.parameters(), 150)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.sin(x), atol=1e-3, rtol=0)


def test_the_best_of_several_starts_is_kept():
    x, y = wave()
    models = [plain_kan([1, 1], grid_size=g) for g in (2, 12, 3)]
    unused = iter(models)
    assert best_start(lambda: next(unused), x, y, starts=3, steps=20) is models[1]
    mlp = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    assert best_start(lambda: mlp, x, y, starts=1, steps=5) is mlp
