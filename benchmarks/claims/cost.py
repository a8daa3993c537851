"""Part d: what a training step costs, and what the same accuracy costs on both sides.

Times of steps are measured here, on a machine that should do nothing else meanwhile. The cost at
equal accuracy comes from the runs of part a.
"""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from explaining.fitting import parameter_count

from .fitting import TASKS, Point, points
from .networks import make_kan, make_mlp
from .store import Store, clock, table


@dataclass(frozen=True)
class Case:
    sizes: tuple[int, int, int]
    rows: int
    dtype: torch.dtype
    steps: int


CASES = {
    "formula": Case((2, 10, 1), 1000, torch.float64, 100),
    "small network": Case((64, 64, 64), 1000, torch.float32, 60),
    "block of a ViT-S": Case((384, 1536, 384), 256, torch.float32, 8),
}


def networks(case: Case) -> dict:
    """A KAN, and MLPs with SiLU of the same width and of as many parameters."""
    inputs, width, outputs = case.sizes
    kan = make_kan([inputs, width, outputs], "even knots", 5)
    wide = round((parameter_count(kan) - outputs) / (inputs + outputs + 1))
    return {
        "KAN, grid 5": kan,
        "MLP, same width": make_mlp([inputs, width, outputs], "SiLU"),
        "MLP, same parameters": make_mlp([inputs, wide, outputs], "SiLU"),
    }


def step_times(case: Case, device: torch.device) -> dict:
    """Milliseconds of a step of Adam for each network, in turns: all see the same machine."""
    torch.manual_seed(0)
    x = (torch.rand(case.rows, case.sizes[0]) * 2 - 1).to(device, case.dtype)
    y = torch.randn(case.rows, case.sizes[2]).to(device, case.dtype)
    models = {name: model.to(device, case.dtype) for name, model in networks(case).items()}
    optimizers = {name: torch.optim.Adam(m.parameters(), 1e-4) for name, m in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(case.steps + 2):
        for name, model in models.items():
            begin = clock(device)
            train_step(model, optimizers[name], x, y)
            times[name].append(1000 * (clock(device) - begin))
    return {
        name: {
            "ms": statistics.median(values[2:]),
            "ms_low": min(values[2:]),
            "ms_high": max(values[2:]),
            "parameters": parameter_count(models[name]),
        }
        for name, values in times.items()
    }


def train_step(model, optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()


def run(store: Store, device: torch.device) -> None:
    for name, case in CASES.items():
        store.once(
            {"part": "d", "case": name},
            lambda c=case: {"networks": step_times(c, device)},
        )


# --- What came of it -----------------------------------------------------------------------------


def tables(store: Store) -> str:
    return steps_table(store) + "\n\n" + accuracy_table(store)


def steps_table(store: Store) -> str:
    rows = []
    for row in store.rows(part="d"):
        case = CASES[row["piece"]["case"]]
        base = row["networks"]["MLP, same width"]["ms"]
        for name, found in row["networks"].items():
            rows.append([
                f"{row['piece']['case']} {list(case.sizes)}, {case.rows} rows, "
                f"{str(case.dtype).removeprefix('torch.')}",
                name, f"{found['parameters']:,}",
                f"{found['ms']:.2f} ({found['ms_low']:.2f} to {found['ms_high']:.2f})",
                f"{found['ms'] / base:.1f}",
            ])  # fmt: skip
    header = ["case", "network", "parameters", "ms a step", "times the MLP of the same width"]
    return table(header, rows)


def accuracy_table(store: Store) -> str:
    """What each side needs to be as accurate as the better one of the less accurate side."""
    rows = []
    for name in TASKS:
        kan, mlp = points(store, name, "KAN"), points(store, name, "MLP")
        if not kan or not mlp:
            continue
        goal = max(min(p.error for p in side) for side in (kan, mlp))
        cells = []
        for side in (kan, mlp):
            reached = [p for p in side if p.error <= goal]
            cells += [
                f"{min(p.parameters for p in reached):,}",
                f"{min(map(seconds, reached)):.1f}",
            ]
        rows.append([f"`{name}`", f"{goal:.1e}", *cells])
    header = [
        "function", "RMSE", "KAN: parameters", "KAN: seconds", "MLP: parameters", "MLP: seconds",
    ]  # fmt: skip
    return table(header, rows)


def seconds(point: Point) -> float:
    return statistics.median(point.seconds)
