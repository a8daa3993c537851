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

    loss: computes a non-negative scalar from the parameters, always from the same data.
    history: pairs of vectors that the approximation of the curvature remembers.
    watch: called with the number of iterations done, after each `every` of them.
    A line search that goes astray, also to values that are no numbers, does no harm: parameters
    end as the best that were tried. Raises ValueError where the loss is no number at the start.
    """
    parameters = [p for p in parameters if p.requires_grad]
    start = loss().item()
    if not math.isfinite(start):
        raise ValueError(f"minimise: the loss must be finite at the start, got {start}")
    factor = SCALED_TO / max(start, 1e-200)
    best, kept = start, [p.detach().clone() for p in parameters]
    every = min(every or steps, steps)  # iterations between two calls of `watch`
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=every, max_eval=4 * every, history_size=history,
        tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    @torch.enable_grad()
    def closure() -> Tensor:
        nonlocal best, kept
        optimizer.zero_grad()
        value = loss()
        (factor * value).backward()
        if value.item() < best:
            best, kept = value.item(), [p.detach().clone() for p in parameters]
        return factor * value.detach()

    for done in range(every, steps + 1, every):
        optimizer.step(closure)
        if watch is not None:
            watch(done)
    optimizer.zero_grad()
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
    return best


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
