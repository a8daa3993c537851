"""Plain KANs read as formulas, after the KAN papers (arXiv 2404.19756, 2408.10205).

    model = KAN([2, 5, 1]); ...                    # trained on x (N, 2)
    small = prune_network(model, x)                # plain_kan: without nodes that do nothing
    formula = read_formula(small, x, y)            # each edge as one of LIBRARY's functions
    print(formula.expression())                    # sympy: 1.0*exp(x_1**2 + sin(3.14*x_0))
    print(formula.table())                         # R-squared of each edge

Letters in shape comments: N samples, I inputs and O outputs of a layer, A and B grid points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from explaining.fitting import minimise
from explaining.plain_kan import edge_curves
from kan import KAN
from system.terminal import table


class Shape(NamedTuple):
    """A function that an edge may be: c * function(a * x + b) + d."""

    name: str  # as sympy writes it, of the variable z
    function: Callable[[Tensor], Tensor]
    complexity: int  # the simplest that fits well is taken


LIBRARY = (
    Shape("z", lambda z: z, 1),
    Shape("z**2", torch.square, 2),
    Shape("z**3", lambda z: z**3, 3),
    Shape("z**4", lambda z: z**4, 4),
    Shape("sin(z)", torch.sin, 2),
    Shape("exp(z)", torch.exp, 2),
    Shape("log(z)", torch.log, 3),
    Shape("sqrt(z)", torch.sqrt, 3),
    Shape("1/z", torch.reciprocal, 3),
    Shape("tanh(z)", torch.tanh, 3),
    Shape("Abs(z)", torch.abs, 3),
    Shape("exp(-z**2)", lambda z: torch.exp(-z.square()), 4),
)
SHAPES = {shape.name: shape for shape in LIBRARY}
SAMPLES = 100  # of an edge, that its fit looks at
DEAD = 0.01  # an edge that varies less than this, compared to its layer's largest, is nothing


@dataclass(frozen=True)
class EdgeFit:
    """c * shape(a * x + b) + d and the share of the edge's variance that it explains."""

    shape: str
    a: float
    b: float
    c: float
    d: float
    r_squared: float

    def expression(self, x):
        """The edge as a sympy expression of x."""
        import sympy

        inside = sympy.Float(self.a) * x + sympy.Float(self.b)
        return self.c * sympy.sympify(self.shape).subs("z", inside) + self.d


def fit_edge(x: Tensor, y: Tensor, library: Sequence[Shape] = LIBRARY) -> EdgeFit:
    """The simplest function of `library` that describes the samples y (N,) at x (N,) well."""
    some = x.argsort()[torch.linspace(0, len(x) - 1, min(SAMPLES, len(x))).long()]
    x, y = x[some].double(), y[some].double()
    fits = {shape.name: search(x, y, shape) for shape in library}
    best = max(fit.r_squared for fit in fits.values())
    # What is left unexplained may be twice the best plus a little, for the sake of simplicity.
    enough = best - (1 - best) - 1e-4
    simple = sorted(library, key=lambda shape: (shape.complexity, -fits[shape.name].r_squared))
    return next(fits[s.name] for s in simple if fits[s.name].r_squared >= enough)


def search(x: Tensor, y: Tensor, shape: Shape, steps: int = 41, rounds: int = 6) -> EdgeFit:
    """The best a, b on a grid that closes in on the best point; c, d by linear regression."""
    low, high = torch.tensor([-8.0, -8.0]), torch.tensor([8.0, 8.0])
    best = EdgeFit(shape.name, 1.0, 0.0, 0.0, float(y.mean()), -torch.inf)
    for _ in range(rounds):
        a = torch.linspace(float(low[0]), float(high[0]), steps, dtype=x.dtype)
        b = torch.linspace(float(low[1]), float(high[1]), steps, dtype=x.dtype)
        values = shape.function(a[:, None, None] * x + b[:, None])  # (A, B, N)
        c, d, r_squared = regress(values, y)
        place = int(r_squared.argmax())
        i, j = divmod(place, steps)
        found = (float(a[i]), float(b[j]), float(c[i, j]), float(d[i, j]), float(r_squared[i, j]))
        if found[-1] > best.r_squared:
            best = EdgeFit(shape.name, *found)
        centre = torch.tensor([best.a, best.b])
        reach = (high - low) / 8
        low, high = centre - reach, centre + reach
    return best


def regress(values: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares y = c * values + d along the last axis: c, d, R-squared (-inf if invalid)."""
    valid = torch.isfinite(values).all(-1)
    values = torch.where(valid[..., None], values, 0.0)
    mean, target = values.mean(-1), y.mean()
    deviation = values - mean[..., None]
    variance = deviation.square().mean(-1)
    usable = valid & (variance > 1e-12 * values.square().mean(-1)) & (variance > 1e-20)
    c = torch.where(usable, (deviation * (y - target)).mean(-1) / variance.clamp_min(1e-300), 0.0)
    residual = (deviation * c[..., None] - (y - target)).square().mean(-1)
    r_squared = 1 - residual / y.var(correction=0).clamp_min(1e-300)
    return c, target - c * mean, torch.where(usable, r_squared, -torch.inf)


class Formula:
    """A KAN whose every edge is a function of the library, or None where it does nothing.

    edges: per layer, per output, per input. biases: per layer, per output.
    """

    def __init__(self, edges: list[list[list[EdgeFit | None]]], biases: list[list[float]]):
        self.edges, self.biases = edges, biases

    def parameters(self) -> Tensor:
        """a, b, c, d of every living edge, one after the other."""
        return torch.tensor(
            [(e.a, e.b, e.c, e.d) for e in self._living()], dtype=torch.float64
        ).flatten()

    def _living(self) -> list[EdgeFit]:
        return [e for layer in self.edges for row in layer for e in row if e is not None]

    def __call__(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """(N, I) -> (N, O), with other parameters on request."""
        values = (self.parameters() if parameters is None else parameters).view(-1, 4)
        place = iter(values)
        for layer, biases in zip(self.edges, self.biases, strict=True):
            outputs = []
            for row, bias in zip(layer, biases, strict=True):
                total = x.new_full((len(x),), bias)
                for n, edge in enumerate(row):
                    if edge is not None:
                        a, b, c, d = next(place)
                        total = total + c * SHAPES[edge.shape].function(a * x[:, n] + b) + d
                outputs.append(total)
            x = torch.stack(outputs, -1)
        return x

    def refit(self, x: Tensor, y: Tensor, steps: int = 200) -> "Formula":
        """The same functions with a, b, c, d fitted together to y (N, O) by LBFGS."""
        x, y = x.double(), y.double()
        parameters = self.parameters().requires_grad_()

        def loss() -> Tensor:
            return (self(x, parameters) - y).square().mean()

        before = loss().item()
        if not math.isfinite(before) or not minimise(loss, [parameters], steps) < before:
            return self
        values = iter(parameters.detach().view(-1, 4).tolist())
        edges = [
            [
                [
                    edge and replace(edge, **dict(zip("abcd", next(values), strict=True)))
                    for edge in row
                ]
                for row in layer
            ]
            for layer in self.edges
        ]
        return Formula(edges, self.biases)

    def expression(self, names: Sequence[str] | None = None, output: int = 0, digits: int = 3):
        """The whole network as a sympy expression, numbers rounded to `digits` places."""
        import sympy

        width = len(self.edges[0][0])
        nodes = list(sympy.symbols(names or [f"x_{n}" for n in range(width)], real=True))
        for layer, biases in zip(self.edges, self.biases, strict=True):
            nodes = [
                bias + sum(e.expression(node) for e, node in zip(row, nodes, strict=True) if e)
                for row, bias in zip(layer, biases, strict=True)
            ]
        return tidy(nodes[output], digits)

    def table(self) -> list[str]:
        """A line per edge: where it is, which function, how much of its variance that explains."""
        rows = [("layer", "from", "to", "function", "R-squared")]
        for n, layer in enumerate(self.edges):
            for target, row in enumerate(layer):
                for source, edge in enumerate(row):
                    found = (edge.shape, f"{edge.r_squared:.6f}") if edge else ("nothing", "")
                    rows.append((str(n + 1), str(source), str(target), *found))
        return table(rows, ">>><<")


def tidy(expression, digits: int):
    """Products and sums multiplied out, exponents joined again, numbers rounded, zeros dropped."""
    import sympy

    expression = sympy.powsimp(sympy.expand(expression).evalf())
    rounded = expression.xreplace(
        {
            number: sympy.Float(round(float(number), digits), 15)
            for number in expression.atoms(sympy.Float)
        }
    )
    return sympy.powsimp(sympy.expand(rounded))


def read_formula(
    model: KAN, x: Tensor, y: Tensor | None = None, library: Sequence[Shape] = LIBRARY
) -> Formula:
    """A trained KAN as a formula, from its curves at x (N, I).

    With y (N, O), the numbers in the formula are then fitted to it, all together.
    """
    edges, biases = [], []
    for layer, (inputs, curves) in zip(model.layers, edge_curves(model, x), strict=True):
        spread = curves.std(0)
        rows, offsets = [], []
        for target in range(layer.out_features):
            row: list[EdgeFit | None] = []
            offset = 0.0 if layer.bias is None else layer.bias[target].item()
            for source in range(layer.in_features):
                curve = curves[:, target, source]
                if spread[target, source] < DEAD * spread.max():
                    row.append(None)
                    offset += float(curve.mean())
                else:
                    row.append(fit_edge(inputs[:, source], curve, library))
            rows.append(row)
            offsets.append(offset)
        edges.append(rows)
        biases.append(offsets)
    formula = Formula(edges, biases)
    return formula if y is None else formula.refit(x, y)
