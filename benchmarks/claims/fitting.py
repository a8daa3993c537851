"""Part a: the toy functions of arXiv 2404.19756, section 3.1; error against parameters.

Both sides: float64, the same data, the same number of random starts and of LBFGS iterations, and
one of three variants chosen on validation data with a seed of its own. A KAN spends its iterations
on finer and finer grids; every MLP, of each depth and width, has all of them.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from explaining.fitting import best_start, fit, fit_with_extension, parameter_count

from .networks import ACTIVATIONS, KAN_VARIANTS, hidden_sizes, make_kan, make_mlp
from .store import SEEDS, TUNING_SEED, Store, clock, median, table

THEORY = -4  # -(order + 1): the rate of cubic splines


@dataclass(frozen=True)
class Task:
    """A function of x (N, I) in [-1, 1], and the KAN that the paper draws for it."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    points: int
    finest: int


def bessel(x: Tensor) -> Tensor:
    return torch.special.bessel_j0(20 * x[:, 0])


def exponential(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1].square())


def product(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1]


def hundred(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(math.pi / 2 * x).square().mean(1))


def four(x: Tensor) -> Tensor:
    pairs = x.square().unflatten(1, (2, 2)).sum(2)
    return torch.exp(torch.sin(math.pi * pairs).sum(1) / 2)


# `finest` keeps the KANs with many edges to fewer coefficients than there are points.
TASKS = {
    "J0(20x)": Task(bessel, (1, 1), 1000, 1000),
    "exp(sin(pi x) + y^2)": Task(exponential, (2, 1, 1), 1000, 1000),
    "xy": Task(product, (2, 2, 1), 1000, 1000),
    "exp(mean sin^2(pi x_i / 2)), 100 variables": Task(hundred, (100, 1, 1), 2000, 10),
    "exp of two sines, 4 variables": Task(four, (4, 4, 2, 1), 1000, 20),
}


@dataclass(frozen=True)
class Scale:
    grids: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    iterations: int
    starts: int
    points: int  # times those of the task


SCALES = {
    "quick": Scale((3, 5, 10, 20, 50, 100), (2, 3, 4, 5), (5, 40), 900, 4, 1),
    "full": Scale(
        (3, 5, 10, 20, 50, 100, 200, 500, 1000), (2, 3, 4, 5), (5, 10, 20, 50, 100, 200), 3600, 10,
        5,
    ),
}  # fmt: skip
START_STEPS = 50
TUNING_MLP = (20, 3)  # width and depth on which an activation is chosen


def data(task: Task, seed: int, points: int, device: torch.device) -> dict[str, tuple]:
    """(x, y) for training, validation and test, the same for both sides."""
    generator = torch.Generator().manual_seed(seed)
    sets = {}
    for name in ("train", "validation", "test"):
        x = torch.rand(points, task.shape[0], generator=generator, dtype=torch.float64) * 2 - 1
        sets[name] = x.to(device), task.function(x)[:, None].to(device)
    return sets


@torch.no_grad()
def rmse(model, pair: tuple) -> float:
    x, y = pair
    return (model(x) - y).square().mean().sqrt().item()


def fit_kan(task: Task, variant: str, seed: int, scale: Scale, device: torch.device) -> dict:
    sets = data(task, seed, task.points * scale.points, device)
    grids = [g for g in scale.grids if g <= task.finest * scale.points]
    torch.manual_seed(seed)
    begin = clock(device)
    model = best_start(
        lambda: make_kan(list(task.shape), variant, grids[0]), *sets["train"], scale.starts,
        START_STEPS,
    )  # fmt: skip
    curve = []

    def note(stage) -> None:
        errors = {name: rmse(model, pair) for name, pair in sets.items()}
        label = f"grid {stage.grid_size}"
        seconds = clock(device) - begin
        curve.append({"label": label, "parameters": stage.parameters, "seconds": seconds} | errors)

    fit_with_extension(model, *sets["train"], grids, scale.iterations // len(grids), 3, note)
    return {"shape": task.shape, "curve": curve}


def fit_mlp(
    task: Task, variant: str, width: int, depth: int, seed: int, scale: Scale, device: torch.device
) -> dict:
    sets = data(task, seed, task.points * scale.points, device)
    sizes = hidden_sizes(task.shape[0], width, depth)
    torch.manual_seed(seed)
    begin = clock(device)
    model = best_start(lambda: make_mlp(sizes, variant), *sets["train"], scale.starts, START_STEPS)
    fit(model, *sets["train"], scale.iterations)
    errors = {name: rmse(model, pair) for name, pair in sets.items()}
    entry = {"label": f"{depth} layers of {width}", "parameters": parameter_count(model)}
    return {"curve": [entry | {"seconds": clock(device) - begin} | errors]}


def run(store: Store, device: torch.device) -> None:
    scale = SCALES[store.scale]
    for name, task in TASKS.items():
        tuning = {"part": "a", "role": "tuning", "function": name}
        for variant in KAN_VARIANTS:
            store.once(
                tuning | {"side": "KAN", "variant": variant},
                lambda v=variant: fit_kan(task, v, TUNING_SEED, scale, device),  # noqa: B023
            )
        for variant in ACTIVATIONS:
            store.once(
                tuning | {"side": "MLP", "variant": variant},
                lambda v=variant: fit_mlp(task, v, *TUNING_MLP, TUNING_SEED, scale, device),  # noqa: B023
            )
        for seed in SEEDS:
            run_seed(store, name, seed, scale, device)


def run_seed(store: Store, name: str, seed: int, scale: Scale, device: torch.device) -> None:
    task, piece = TASKS[name], {"part": "a", "role": "test", "function": name, "seed": seed}
    kan, mlp = chosen(store, name, "KAN"), chosen(store, name, "MLP")
    store.once(
        piece | {"side": "KAN", "variant": kan}, lambda: fit_kan(task, kan, seed, scale, device)
    )
    for depth in scale.depths:
        for width in scale.widths:
            store.once(
                piece | {"side": "MLP", "variant": mlp, "depth": depth, "width": width},
                lambda d=depth, w=width: fit_mlp(task, mlp, w, d, seed, scale, device),
            )


def chosen(store: Store, name: str, side: str) -> str:
    """The variant with the lowest validation error in tuning."""
    rows = store.rows(part="a", role="tuning", function=name, side=side)
    return min(rows, key=lambda r: min(e["validation"] for e in r["curve"]))["piece"]["variant"]


# --- What came of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One network, its figures over the seeds."""

    label: str
    parameters: int
    errors: list[float]
    seconds: list[float]

    @property
    def error(self) -> float:
        return median(self.errors)


def points(store: Store, name: str, side: str) -> list[Point]:
    """The networks of one side, in the order in which they were measured."""
    found = defaultdict(list)
    for row in store.rows(part="a", role="test", function=name, side=side):
        for entry in row["curve"]:
            found[entry["label"], entry["parameters"]].append(entry)
    return [
        Point(*key, [e["test"] for e in entries], [e["seconds"] for e in entries])
        for key, entries in found.items()
    ]


def frontier(candidates: list[Point]) -> list[Point]:
    """Those that no network with as many parameters or fewer beats: what a side can do."""
    best: list[Point] = []
    for point in sorted(candidates, key=lambda p: (p.parameters, p.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    return best


def exponent(along: list[Point]) -> float:
    """The slope of log(error) over log(parameters) by least squares; NaN for a single point."""
    if len(along) < 2:
        return math.nan
    x = torch.tensor([math.log(p.parameters) for p in along])
    y = torch.tensor([math.log(p.error) for p in along])
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def tables(store: Store) -> str:
    rows = []
    for name, task in TASKS.items():
        sides = [points(store, name, side) for side in ("KAN", "MLP")]
        if not all(sides):
            continue
        cells = []
        for side, candidates in zip(("KAN", "MLP"), sides, strict=True):
            best = min(candidates, key=lambda p: p.error)
            cells += [
                f"{best.error:.1e}",
                f"{best.label}, {chosen(store, name, side)}",
                f"{best.parameters:,}",
                f"{round(exponent(frontier(candidates)), 1) + 0.0}",
            ]
        seeds = min(len(p.errors) for candidates in sides for p in candidates)
        rows.append([f"`{name}`", str(list(task.shape)), *cells, seeds])
    header = [
        "function", "KAN", "KAN: RMSE", "at", "parameters", "exponent", "MLP: RMSE", "at",
        "parameters", "exponent", "seeds",
    ]  # fmt: skip
    return table(header, rows)


def draw(store: Store, plt) -> object:
    """A panel per function: error over parameters of both sides, and the slope of -4."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    panels = axes.flatten()
    colours = plt.get_cmap("viridis")
    for panel, (name, task) in zip(panels[:-1], TASKS.items(), strict=True):
        kans, mlps = points(store, name, "KAN"), points(store, name, "MLP")
        if not kans or not mlps:
            continue
        bars(panel, kans, "#c0392b", "o-", "KAN")
        for depth in SCALES[store.scale].depths:
            some = [p for p in mlps if p.label.startswith(f"{depth} layers")]
            bars(panel, some, colours((5 - depth) / 4), "s--", f"MLP, {depth} layers")
        reference = [kans[0].parameters, kans[-1].parameters]
        theory = [3 * kans[0].error * (n / reference[0]) ** THEORY for n in reference]
        limits = panel.get_ylim()
        panel.plot(reference, theory, ":", color="black", label=f"slope {THEORY}")
        panel.set(
            xscale="log",
            yscale="log",
            title=f"{name}\nKAN {list(task.shape)}",
            ylim=(limits[0] / 2, limits[1] * 2),
        )
        panel.set(xlabel="parameters", ylabel="RMSE on test points")
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].axis("off")
    panels[-1].legend(handles, labels, loc="center")
    return figure


def bars(panel, some: list[Point], colour, style: str, label: str) -> None:
    """Medians with whiskers from the lowest to the highest seed."""
    errors = [p.error for p in some]
    low = [p.error - min(p.errors) for p in some]
    high = [max(p.errors) - p.error for p in some]
    panel.set_yscale("log")
    panel.errorbar(
        [p.parameters for p in some], errors, [low, high], fmt=style, color=colour, label=label,
        markersize=4, linewidth=1.2, capsize=2,
    )  # fmt: skip
