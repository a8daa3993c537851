"""Fits plain networks to formulas and equations: LBFGS, grid extension, derivatives of any network.

    model = best_start(lambda: KAN([2, 1, 1], grid_eps=1.0, init="glorot").double(), x, y)
    stages = fit_with_extension(model, x, y, grids=(3, 5, 10, 20))
    value, slopes, curvatures = derivatives(model, x)

What the small experiments of "KAN: Kolmogorov-Arnold Networks" (arXiv 2404.19756, section 3) need,
for networks of any kind, so that others can be treated alike. A fit that shall reach errors below
1e-4 belongs in float64: call `.double()` on the model and the data.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kan import KAN

# torch's LBFGS drops what it learned of the curvature where the product of step and change of the
# gradient is below 1e-10, as it soon is for a mean squared error. A larger loss is none the worse.
SCALED_TO = 1e6


def minimise(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    steps: int,
    *,
    history: int = 100,
    every: int | None = None,
    watch: Callable[[int], None] | None = None,
) -> float:
    """Returns the least value of loss() that `steps` iterations of LBFGS found, and leaves it set.

    loss: a non-negative scalar of the parameters, always from the same data. history: pairs of
    vectors that the approximation of the curvature remembers. watch: called with the iterations
    done, after each `every` of them. A line search that goes astray, also to values that are no
    numbers, does no harm: parameters end as the best that were tried. Raises ValueError where the
    loss is no number at the start.
    """
    start, parameters = loss().item(), [p for p in parameters if p.requires_grad]
    if not math.isfinite(start):
        raise ValueError(f"minimise: the loss must be finite at the start, got {start}")
    best = Best(start, parameters)
    every = min(every or steps, steps)  # iterations between two calls of `watch`
    optimizer = lbfgs(parameters, every, history)

    @torch.enable_grad()
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        scaled = value * (SCALED_TO / max(start, 1e-200))
        scaled.backward()
        best.see(value.item())
        return scaled.detach()

    for done in range(every, steps + 1, every):
        optimizer.step(closure)
        if watch is not None:
            watch(done)
    optimizer.zero_grad()
    best.put_back()
    return best.value


def lbfgs(parameters: list[Tensor], steps: int, history: int) -> torch.optim.LBFGS:
    """Returns the optimiser of whose calls each takes `steps` iterations."""
    return torch.optim.LBFGS(
        parameters, max_iter=steps, max_eval=4 * steps, history_size=history,
        tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip


class Best:
    """The parameters that gave the least value so far."""

    def __init__(self, value: float, parameters: list[Tensor]) -> None:
        self.value, self.parameters = value, parameters
        self.kept = [p.detach().clone() for p in parameters]

    def see(self, value: float) -> None:
        if value < self.value:
            self.value, self.kept = value, [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def put_back(self) -> None:
        for p, value in zip(self.parameters, self.kept, strict=True):
            p.copy_(value)


def fit(model: nn.Module, x: Tensor, y: Tensor, steps: int = 200, **options) -> float:
    """Fits model(x) (N, I) -> (N, O) to y by `minimise`; returns the root mean squared error."""

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    return minimise(loss, model.parameters(), steps, **options) ** 0.5


@dataclass(frozen=True)
class Stage:
    """What `fit_with_extension` reached with one grid size, on the data that it was given."""

    grid_size: int
    parameters: int
    rmse: float


def fit_with_extension(
    model: KAN,
    x: Tensor,
    y: Tensor,
    grids: Sequence[int] = (3, 5, 10, 20, 50),
    steps: int = 200,
    rounds: int = 4,
    watch: Callable[[Stage], None] | None = None,
) -> list[Stage]:
    """Fits a KAN to y (N, O) at x (N, I), with finer and finer grids; returns what each reached.

    Every size in `grids` gets `steps` iterations in so many `rounds`, and the function found so
    far is where it starts. Before a round knots move to where the activations are now, as far as
    `grid_eps` of the layers wants: 1.0, even knots over their range, suits smooth functions best.
    """
    stages = []
    for grid_size in grids:
        model.refine(grid_size)
        for part in range(rounds):
            with torch.no_grad():
                model(x, update_grid=True)
            rmse = fit(model, x, y, steps * (part + 1) // rounds - steps * part // rounds)
        stages.append(Stage(grid_size, parameter_count(model), rmse))
        if watch is not None:
            watch(stages[-1])
    return stages


def best_start(
    create: Callable[[], nn.Module], x: Tensor, y: Tensor, starts: int = 5, steps: int = 50
) -> nn.Module:
    """The one of `starts` random networks that is closest to y after so many steps each.

    Narrow networks, KANs above all, end in very different minima: of three starts of KAN([2, 1, 1])
    one or two never get below an error of 0.5.
    """
    candidates = []
    for _ in range(starts):
        model = create().to(x.device)
        if isinstance(model, KAN):
            grid_size = model.layers[0].grid_size
            rmse = fit_with_extension(model, x, y, (grid_size,), steps, rounds=2)[-1].rmse
        else:
            rmse = fit(model, x, y, steps)
        candidates.append((rmse, model))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def parameter_count(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (N,), gradient (N, I) and pure second derivatives (N, I) of a scalar function at x.

    function: (N, I) -> (N, 1), each row by itself. The results can be differentiated again, with
    respect to what the function is made of, so a differential equation can stand in a loss.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(x).sum(-1)
        (slopes,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        curvatures = [
            torch.autograd.grad(slope.sum(), x, create_graph=True)[0][:, number]
            for number, slope in enumerate(slopes.unbind(-1))
        ]
    return value, slopes, torch.stack(curvatures, -1)
