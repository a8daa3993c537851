"""Plain KANs read as formulas."""

import math

import pytest
import sympy
import torch

from explaining import formulas
from explaining.fitting import best_start, fit_with_extension
from kan import KAN


def test_the_papers_example_is_recovered_from_data():
    torch.manual_seed(0)
    # In float64, where the fit does not depend on the number of threads.
    x = torch.rand(1000, 2, dtype=torch.float64) * 2 - 1
    y = torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)
    model = best_start(lambda: KAN([2, 1, 1], init="glorot").double(), x, y, 4, 30)
    fit_with_extension(model, x, y, grids=(5, 10), steps=60, rounds=2)
    formula = formulas.read_formula(model, x, y)
    first, second = sympy.symbols("x y", real=True)
    found = formula.expression(["x", "y"], digits=2)
    wanted = sympy.exp(sympy.sin(3.14 * first) + second**2)
    for point in [(0.3, -0.8), (-0.7, 0.2), (0.9, 0.9)]:
        values = dict(zip((first, second), point, strict=True))
        assert float(found.subs(values)) == pytest.approx(float(wanted.subs(values)), rel=0.02)
    assert {type(part) for part in sympy.preorder_traversal(found)} >= {sympy.exp, sympy.sin}
    assert len(found.args) <= 2  # one exponential, at most with a factor
    assert formula(x) == pytest.approx(y, abs=1e-3)
    assert all("0.99" in line or "1.00" in line for line in formula.table()[1:])


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: 2 * x - 1, "z"),
        (lambda x: 3 * (x + 0.2) ** 2, "z**2"),
        (lambda x: torch.sin(5 * x + 1), "sin(z)"),
        (lambda x: torch.exp(-2 * x), "exp(z)"),
        (lambda x: -torch.log(x + 1.5), "log(z)"),
        (lambda x: (x - 0.1).abs(), "Abs(z)"),
    ],
)
def test_edges_are_recognised(function, name):
    x = torch.linspace(-1, 1, 300)
    found = formulas.fit_edge(x, function(x))
    assert found.r_squared > 0.9999
    assert found.shape == name
    z = sympy.symbols("z")
    at = float(found.expression(z).subs(z, 0.4))
    assert at == pytest.approx(float(function(torch.tensor(0.4))), abs=0.02)


def test_invalid_functions_are_never_chosen():
    x = torch.linspace(-1, 1, 50)
    values = torch.stack([x, torch.full_like(x, torch.nan), torch.full_like(x, torch.inf), 0 * x])
    _, _, r_squared = formulas.regress(values.double(), x.double())
    assert r_squared[0] == pytest.approx(1.0)
    assert torch.isinf(r_squared[1:]).all()


def test_a_formula_computes_what_its_expression_says():
    model, x = KAN([2, 1, 1], bias=True), torch.rand(100, 2)
    formula = formulas.read_formula(model, x)
    expression = formula.expression(digits=6)
    names = sympy.symbols("x_0 x_1", real=True)
    for row, value in zip(x[:3].tolist(), formula(x[:3].double()), strict=True):
        at = float(expression.subs(dict(zip(names, row, strict=True))))
        assert at == pytest.approx(float(value), abs=1e-3)


def test_edges_that_do_not_vary_become_constants():
    torch.manual_seed(0)
    model, x = KAN([1, 2, 1]), torch.rand(100, 1)
    with torch.no_grad():
        model.layers[1].base_weight[:, 1] = 0
        model.layers[1].spline_weight[:, 1] = 0
    formula = formulas.read_formula(model, x)
    assert formula.edges[1][0][1] is None
    assert any("nothing" in line for line in formula.table())
