"""Part b: Poisson's equation on the unit square, a KAN [2, 10, 1] against an MLP of 4 x 100.

    u_xx + u_yy = -2 pi^2 sin(pi x) sin(pi y),  u = 0 on the boundary,  u = sin(pi x) sin(pi y)

The loss is that of arXiv 2404.19756, section 3.4: 0.01 times the mean squared residual on a grid of
inner points plus the mean squared value on boundary points. Both sides: float64, the same points,
the same steps, by LBFGS and by Adam; variant and Adam's rate chosen with a seed of their own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explaining.fitting import derivatives, minimise, parameter_count
from kan import KAN

from .networks import ACTIVATIONS, KAN_VARIANTS, hidden_sizes, make_kan, make_mlp
from .store import SEEDS, TUNING_SEED, Store, clock, median, spread, table

SOURCE_WEIGHT = 0.01
RATES = (1e-3, 1e-2)  # of Adam, to choose from
GRIDS = {"KAN": (5,), "KAN, extended": (5, 10, 20), "MLP": (0,)}  # equal shares of the steps
NAMES = {
    "KAN": "KAN [2, 10, 1], grid 5",
    "KAN, extended": "KAN [2, 10, 1], grid 5, 10, 20",
    "MLP": "MLP 2-100-100-100-1",
}
KANS = ("KAN", "KAN, extended")
METHODS = {"LBFGS": ("KAN", "KAN, extended", "MLP"), "Adam": ("KAN", "MLP")}


@dataclass(frozen=True)
class Scale:
    inner: int  # points along an edge of the square
    lbfgs: int  # steps
    adam: int
    tuning: float  # share of the steps that tuning takes
    notes: int  # how often errors are noted


SCALES = {"quick": Scale(24, 400, 800, 0.25, 16), "full": Scale(64, 2000, 20000, 0.25, 40)}


def solution(x: Tensor) -> Tensor:
    """u at x (N, 2) -> (N,)."""
    return torch.sin(math.pi * x).prod(1)


@dataclass(frozen=True)
class Problem:
    inner: Tensor
    boundary: Tensor
    judged: Tensor  # where errors are measured, none of the inner points

    @classmethod
    def on_grid(cls, size: int, device: torch.device) -> "Problem":
        middle = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
        edge = torch.linspace(0, 1, size + 1, dtype=torch.float64, device=device)
        zero, one = torch.zeros_like(edge), torch.ones_like(edge)
        sides = ((edge, zero), (edge, one), (zero, edge), (one, edge))
        boundary = torch.cat([torch.stack(side, 1) for side in sides])
        finer = (torch.arange(41, dtype=torch.float64, device=device) + 0.5) / 41
        return cls(
            torch.cartesian_prod(middle, middle), boundary, torch.cartesian_prod(finer, finer)
        )

    def loss(self, model: nn.Module) -> Tensor:
        curvatures = derivatives(model, self.inner)[2]
        residual = curvatures.sum(1) + 2 * math.pi**2 * solution(self.inner)
        return SOURCE_WEIGHT * residual.square().mean() + model(self.boundary).square().mean()

    def errors(self, model: nn.Module) -> dict[str, float]:
        """The squared L2 and H1 norms of the difference to the solution."""
        value, slopes, _ = derivatives(model, self.judged)
        true, true_slopes, _ = derivatives(lambda x: solution(x)[:, None], self.judged)
        l2 = (value - true).square().mean()
        h1 = l2 + (slopes - true_slopes).square().sum(1).mean()
        return {"l2": l2.item(), "h1": h1.item()}


def create(side: str, variant: str) -> nn.Module:
    if side in KANS:
        return make_kan([2, 10, 1], variant, GRIDS[side][0], grid_range=(0, 1))
    return make_mlp(hidden_sizes(2, 100, 4), variant)


def adam(model: nn.Module, problem: Problem, steps: int, rate: float, every: int, watch) -> None:
    """Adam with a rate that falls to nothing along a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        problem.loss(model).backward()
        optimizer.step()
        schedule.step()
        if step % every == 0:
            watch(step)


def solve(
    side: str, variant: str, method: str, rate: float, seed: int, share: float, scale: Scale,
    device: torch.device,
) -> dict:  # fmt: skip
    """Errors along the way; measuring them is outside the clock."""
    problem = Problem.on_grid(scale.inner, device)
    torch.manual_seed(seed)
    model = create(side, variant).to(device)
    follow(model, problem)
    steps = int(share * (scale.lbfgs if method == "LBFGS" else scale.adam))
    every = steps // scale.notes
    curve, spent, begin = [], 0.0, clock(device)

    def note(step: int) -> None:
        nonlocal spent, begin
        spent += clock(device) - begin
        curve.append({"step": step, "seconds": spent} | problem.errors(model))
        begin = clock(device)

    if method == "Adam":
        adam(model, problem, steps, rate, every, note)
    else:
        lbfgs(model, problem, steps, GRIDS[side], every, note)
    return {
        "curve": curve,
        "parameters": parameter_count(model),
        "loss": problem.loss(model).item(),
    }


def follow(model: nn.Module, problem: Problem) -> None:
    """Moves a KAN's knots to where its activations are, above all those of the second layer."""
    if isinstance(model, KAN):
        with torch.no_grad():
            model(torch.cat([problem.inner, problem.boundary]), update_grid=True)


def lbfgs(model, problem: Problem, steps: int, grids: tuple[int, ...], every: int, watch) -> None:
    """LBFGS, begun anew where the grid is refined."""
    share = steps // len(grids) // every * every
    for number, grid_size in enumerate(grids):
        done = number * share
        if number:
            model.refine(grid_size)
            follow(model, problem)
        minimise(
            lambda: problem.loss(model), model.parameters(),
            steps - done if number == len(grids) - 1 else share, every=every,
            watch=lambda step, done=done: watch(done + step),
        )  # fmt: skip


def run(store: Store, device: torch.device) -> None:
    scale = SCALES[store.scale]
    for side, variants in (("KAN", KAN_VARIANTS), ("MLP", ACTIVATIONS)):
        for variant in variants:
            tune(store, side, variant, "LBFGS", 0.0, scale, device)
        for rate in RATES:
            tune(store, side, chosen(store, side, "LBFGS")[0], "Adam", rate, scale, device)
    for seed in SEEDS:
        for method, sides in METHODS.items():
            for side in sides:
                variant, rate = chosen(store, side, method)
                piece = {"part": "b", "role": "test", "side": side, "method": method, "seed": seed}
                store.once(
                    piece | {"variant": variant, "rate": rate},
                    lambda s=side, v=variant, m=method, r=rate, n=seed: solve(
                        s, v, m, r, n, 1.0, scale, device
                    ),
                )


def tune(store: Store, side: str, variant: str, method: str, rate: float, scale, device) -> None:
    piece = {"part": "b", "role": "tuning", "side": side, "method": method}
    store.once(
        piece | {"variant": variant, "rate": rate},
        lambda: solve(side, variant, method, rate, TUNING_SEED, scale.tuning, scale, device),
    )


def chosen(store: Store, side: str, method: str) -> tuple[str, float]:
    """Variant and rate with the lowest loss in tuning; the solution has no say in it."""
    side = "KAN" if side in KANS else side
    rows = store.rows(part="b", role="tuning", side=side, method=method)
    best = min(rows, key=lambda row: row["loss"])["piece"]
    return best["variant"], best["rate"]


# --- What came of it -----------------------------------------------------------------------------


def tables(store: Store) -> str:
    rows = []
    for method, sides in METHODS.items():
        for side in sides:
            found = store.rows(part="b", role="test", side=side, method=method)
            if not found:
                continue
            ends = [row["curve"][-1] for row in found]
            variant, rate = found[0]["piece"]["variant"], found[0]["piece"]["rate"]
            seconds = median([end["seconds"] for end in ends])
            rows.append([
                NAMES[side], variant, method + (f", {rate:g}" if rate else ""),
                f"{found[0]['parameters']:,}",
                spread([end["l2"] for end in ends]), spread([end["h1"] for end in ends]),
                f"{seconds:.0f}", f"{1000 * seconds / ends[0]['step']:.0f}", len(ends),
            ])  # fmt: skip
    header = [
        "network", "variant", "by", "parameters", "squared L2 error", "squared H1 error", "seconds",
        "ms a step", "seeds",
    ]  # fmt: skip
    return table(header, rows) + "\n\n" + ratios(store)


def ratios(store: Store) -> str:
    """A line for each pair: errors of both sides at equal steps and at equal time."""
    lines = []
    pairs = [(m, side) for m, sides in METHODS.items() for side in sides if side in KANS]
    for method, side in pairs:
        kan, mlp = (store.rows(part="b", role="test", side=s, method=method) for s in (side, "MLP"))
        if not kan or not mlp:
            continue
        time = min(median([r["curve"][-1]["seconds"] for r in side]) for side in (kan, mlp))
        steps = [
            median([r["curve"][-1][e] for r in mlp]) / median([r["curve"][-1][e] for r in kan])
            for e in ("l2", "h1")
        ]
        timed = [
            median([at_time(r, e, time) for r in mlp]) / median([at_time(r, e, time) for r in kan])
            for e in ("l2", "h1")
        ]
        lines.append(
            f"{NAMES[side]}, {method}: the MLP's error over the KAN's is {steps[0]:.3g} (L2) and "
            f"{steps[1]:.3g} (H1) after the same number of steps, {timed[0]:.3g} and "
            f"{timed[1]:.3g} after the same {time:.0f} seconds."
        )
    return "\n".join(f"- {line}" for line in lines)


def at_time(row: dict, error: str, seconds: float) -> float:
    """The error at the last note before `seconds`."""
    before = [entry for entry in row["curve"] if entry["seconds"] <= seconds * 1.001]
    return (before or row["curve"][:1])[-1][error]


def draw(store: Store, plt) -> object:
    """Squared L2 and H1 errors over steps and over time, a thin line for each seed."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained", sharey="row")
    styles = {"LBFGS": "-", "Adam": ":"}
    for (side, name), colour in zip(NAMES.items(), ("#c0392b", "#e08e45", "#2c5f8a"), strict=True):
        for row in store.rows(part="b", role="test", side=side):
            method, first = row["piece"]["method"], row["piece"]["seed"] == SEEDS[0]
            for i, error in enumerate(("l2", "h1")):
                for j, along in enumerate(("step", "seconds")):
                    axes[i, j].plot(
                        [e[along] for e in row["curve"]], [e[error] for e in row["curve"]],
                        styles[method], color=colour, linewidth=1.2,
                        label=f"{name}, {method}" if first else None,
                    )  # fmt: skip
    for i, title in enumerate(("squared L2 error", "squared H1 error")):
        axes[i, 0].set(ylabel=title, yscale="log")
        for j, along in enumerate(("training steps", "seconds of one processor core")):
            axes[i, j].set_xlabel(along)
            axes[i, j].grid(alpha=0.3)
    axes[0, 0].legend()
    return figure
