"""What explain.py does with a network of plain KAN layers: a graph, a pruned copy, a formula.

Points (--data FILE.csv) have a column per input, in the network's order, and may have one per
output behind them; a first row of names is allowed. Without points the network is looked at over
the range of its first grids, and compared with itself.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from explaining.fitting import parameter_count
from explaining.formulas import read_formula
from explaining.plain_kan import MOST_DRAWN, Network, draw_network, prune_network, save_network
from kan import KAN
from reporting.plots import save
from system.files import read_csv
from system.fonts import use_fonts

POINTS = 1000  # drawn where no --data is given
MOST_READ = 60  # edges: each takes a third of a second to be read as a function


def read_points(path: Path, inputs: int, outputs: int) -> tuple[Tensor, Tensor | None, list[str]]:
    """x (N, inputs), y (N, outputs) or None, and the names in the first row ([] if it has none).

    Raises ValueError, naming the line, for anything that is not a table of numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--data {path}: a plain KAN needs a CSV file of points here")
    rows, names = [], []
    for number, cells in read_csv(path):
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError:
            if rows or names:
                raise ValueError(f"{path}, line {number}: not all cells are numbers") from None
            names = cells
            continue
        if len(cells) not in (inputs, inputs + outputs):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} columns, where the network has {inputs} "
                f"inputs and {outputs} outputs"
            )
    if len({len(row) for row in rows}) != 1 or len(rows) < 2:
        raise ValueError(f"{path} must hold at least two points, all with as many columns")
    table = torch.tensor(rows, dtype=torch.float64)
    if not table.isfinite().all():
        raise ValueError(f"{path} holds cells that are not finite numbers")
    y = table[:, inputs:] if table.shape[1] > inputs else None
    return table[:, :inputs], y, names[:inputs]


def points_on_grid(model: KAN) -> Tensor:
    """Points (POINTS, I) spread evenly over the grids of the first layer."""
    first = model.layers[0]
    low, high = first.low, first.high
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(POINTS, len(low), generator=generator).to(low)


@torch.no_grad()
def rmse(model: KAN, x: Tensor, y: Tensor) -> float:
    return float((model(x) - y).square().mean().sqrt())


def describe(name: str, model: KAN, error: float) -> str:
    """A line of the table: sizes, edges, numbers, distance to the wanted outputs."""
    widths = [model.layers[0].in_features, *(layer.out_features for layer in model.layers)]
    edges = sum(layer.in_features * layer.out_features for layer in model.layers)
    return f"{name:7s}  {widths!s:20s}  {edges:6d}  {parameter_count(model):10d}  {error:12.3e}"


def draw(network: Network, x: Tensor, path: Path) -> None:
    """Writes the graph, or says why there is none."""
    edges = max(layer.in_features * layer.out_features for layer in network.model.layers)
    if edges > MOST_DRAWN:
        print(
            f"not drawn: a layer has {edges} edges, and {MOST_DRAWN} fit (--prune P removes some)"
        )
        return
    save(draw_network(network.model, x, network.inputs), path)
    print(f"picture: {path}")


def print_formula(network: Network, x: Tensor, y: Tensor) -> None:
    """Each edge as a function with its R-squared, then each output as an expression."""
    model = network.model
    edges = sum(layer.in_features * layer.out_features for layer in model.layers)
    if edges > MOST_READ:
        print(f"no formula: {edges} edges are too many to read, at most {MOST_READ} (--prune P)")
        return
    formula = read_formula(model, x, y)
    error = (formula(x.double()) - y).square().mean().sqrt()
    print(*formula.table(), sep="\n")
    print(f"all numbers fitted together: RMSE {float(error):.3e}")
    for output in range(model.layers[-1].out_features):
        print(f"y_{output} = {formula.expression(symbols(network.inputs), output)}")


def symbols(names: Sequence[str]) -> list[str]:
    """`names` as sympy takes them: none empty, no spaces, none of the marks that it expands."""
    kept = (re.sub(r"[^\w.]+", "_", name).strip("_") for name in names)
    return [name or f"x_{number}" for number, name in enumerate(kept)]


def explain_network(network: Network, data: str | None, folder: Path, prune: float | None) -> None:
    """Draws the network and reads it as a formula; with --prune, a copy without idle nodes."""
    use_fonts()
    model, names = network
    first, last = model.layers[0], model.layers[-1]
    y = None
    if data:
        x, y, named = read_points(Path(data), first.in_features, last.out_features)
        names = named or names
    else:
        x = points_on_grid(model)
        print("no --data FILE.csv: points are drawn over the range of the first grids")
    x = x.to(first.base_weight)
    with torch.no_grad():
        y = model(x) if y is None else y.to(x)
    print("         sizes                  edges  parameters   RMSE to y")
    print(describe("network", model, rmse(model, x, y)))
    draw(Network(model, names), x, folder / "network.png")
    if prune is not None:
        model = prune_network(model, x, prune)
        print(describe("pruned", model, rmse(model, x, y)))
        draw(Network(model, names), x, folder / "pruned.png")
        save_network(folder / "pruned.pth", model, names)
        print(f"saved: {folder / 'pruned.pth'}")
    print_formula(Network(model, names), x, y)
