"""Draws docs/images/kan_and_mlp.svg: an MLP and a KAN, both fitted to the same formula.

    python docs/diagrams/kan_and_mlp.py        # half a minute; needs sympy

The curves, weights and the formula in the picture are those of the networks fitted here, each the
best of STARTS random starts.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from svg import WIDTH, Page, Point, Rect
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from explaining import formulas  # noqa: E402
from explaining.fitting import fit, fit_with_extension  # noqa: E402
from explaining.plain_kan import edge_curves  # noqa: E402
from kan import KAN  # noqa: E402

HEIGHT = 360
STARTS = 6
TOP, BOTTOM = 96, 288  # the output and the inputs


def data(count: int = 1000) -> tuple[Tensor, Tensor]:
    """Points (N, 2) and exp(sin(pi x) + y^2) there (N, 1): an example of the KAN paper."""
    x = torch.rand(count, 2, dtype=torch.float64) * 2 - 1
    return x, torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)


def wire(page: Page, a: Point, b: Point, style: str, width: float = 1.3) -> None:
    page.add(
        f'<path class="{style}" d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" '
        f'style="stroke-width:{width:.2f}"/>'
    )


def node(page: Page, at: Point, radius: float, words: str = "") -> None:
    page.add(f'<circle class="box" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}"/>')
    if words:
        page.text(words, at[0], at[1] + 4.5, 13, anchor="middle", bold=True)


def curve(page: Page, place: Rect, x: Iterable[float], y: Iterable[float], style: str) -> None:
    """A curve that fills a rectangle."""
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    order = x.argsort()[:: max(1, len(x) // 60)]
    x, y = x[order], y[order]
    left = place.left + (x - x.min()) / (x.max() - x.min()) * (place.right - place.left)
    top = place.bottom - (y - y.min()) / (y.max() - y.min()) * (place.bottom - place.top)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(left.tolist(), top.tolist(), strict=True))
    page.add(f'<polyline class="{style}" points="{points}" style="stroke-width:1.8"/>')


def draw_mlp(page: Page, model: nn.Sequential) -> None:
    """Edges as wide as their weights, blue above zero and brown below; the curve in each node."""
    inputs, output = [(65, BOTTOM), (155, BOTTOM)], (110, TOP)
    hidden = [(26 + 42 * number, (TOP + BOTTOM) / 2) for number in range(5)]
    layers = ((model[0].weight, inputs, hidden), (model[2].weight, hidden, [output]))
    for weight, before, after in layers:
        largest = weight.abs().max().item()
        for row, end in zip(weight.tolist(), after, strict=True):
            for value, start in zip(row, before, strict=True):
                wire(page, start, end, "li" if value > 0 else "lm", 0.5 + 3 * abs(value) / largest)
    x = torch.linspace(-3, 3, 40)
    for at in hidden:
        node(page, at, 16)
        place = Rect(at[0] - 9, at[1] - 9, at[0] + 9, at[1] + 8)
        curve(page, place, x, nn.functional.gelu(x), "lc")
    for at, words in zip([*inputs, output], ("x", "y", "f"), strict=True):
        node(page, at, 13, words)


def draw_kan(page: Page, model: KAN, x: Tensor) -> None:
    """The learned curve of each edge in its middle; nodes only add."""
    inputs, inner, output = [(290, BOTTOM), (380, BOTTOM)], (335, 200), (335, TOP)
    (first, curves), (second, last) = edge_curves(model, x)
    middle = [(290, 240), (380, 240), (335, 148)]
    for start, through, end in zip(
        [*inputs, inner], middle, [(322, 205), (348, 205), output], strict=True
    ):
        wire(page, start, through, "line")
        wire(page, through, end, "line")
    columns = [(first[:, 0], curves[:, 0, 0]), (first[:, 1], curves[:, 0, 1])]
    for at, (before, after) in zip(middle, [*columns, (second[:, 0], last[:, 0, 0])], strict=True):
        place = Rect(at[0] - 27, at[1] - 19, at[0] + 27, at[1] + 19)
        page.rect("box", place, radius=3)
        curve(page, place.grown(-5), before.tolist(), after.tolist(), "lc")
    node(page, inner, 13, "+")
    for at, words in zip([*inputs, output], ("x", "y", "f"), strict=True):
        node(page, at, 13, words)


def draw(mlp: nn.Sequential, kan: KAN, x: Tensor, formula: str) -> str:
    page = Page("An MLP and a KAN fitted to f = exp(sin(pi x) + y^2)")
    half = WIDTH / 2
    headings = (("MLP", "a number on each edge,", "the same curve in every node"),
                ("KAN", "a learned curve on each edge,", "nodes only add"))  # fmt: skip
    for middle, (title, *lines) in zip((half / 2, 1.5 * half), headings, strict=True):
        page.text(title, middle, 28, 15, anchor="middle", bold=True)
        for number, line in enumerate(lines):
            page.text(line, middle, 46 + 14 * number, 11.5, "soft", "middle")
    page.line("frame", "middle", [(half, 18), (half, HEIGHT - 44)])
    with torch.no_grad():
        draw_mlp(page, mlp)
        draw_kan(page, kan, x)
    page.text("21 numbers: weights and biases", half / 2, HEIGHT - 42, 11.5, "soft", "middle")
    page.text("three curves: sin, square, exp", 1.5 * half, HEIGHT - 42, 11.5, "soft", "middle")
    page.text(f"read off the KAN: f = {formula}", half, HEIGHT - 16, 12, anchor="middle", mono=True)
    return page.svg(HEIGHT)


def fitted_kan(seed: int, x: Tensor, y: Tensor) -> tuple[float, KAN]:
    torch.manual_seed(seed)
    model = KAN([2, 1, 1], grid_eps=1.0).double()
    return fit_with_extension(model, x, y, grids=(3, 5, 10), steps=100, rounds=2)[-1].rmse, model


def fitted_mlp(seed: int, x: Tensor, y: Tensor) -> tuple[float, nn.Sequential]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 1)).double()
    return fit(model, x, y, 300), model


def main() -> None:
    torch.manual_seed(0)
    x, y = data()
    found = {}
    for fitted in (fitted_mlp, fitted_kan):  # so small a network often ends in a poor minimum
        runs = [fitted(seed, x, y) for seed in range(STARTS)]
        print(fitted.__name__, "errors", *(f"{error:.2g}" for error, _ in runs))
        found[fitted] = min(runs, key=lambda run: run[0])[1]
    kan = found[fitted_kan]
    formula = formulas.read_formula(kan, x, y).expression(["x", "y"], digits=2)
    path = HERE.parent / "images" / "kan_and_mlp.svg"
    path.write_text(draw(found[fitted_mlp], kan, x, str(formula)), "utf-8")
    print(path.name, formula)


if __name__ == "__main__":
    main()
