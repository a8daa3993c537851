"""Part c: five Gaussian peaks on a line, shown one after another (arXiv 2404.19756, section 3.5).

In each phase a network sees only points around one peak, and is fitted by Adam, begun anew, at a
rate chosen with a seed of its own. What it has learned is judged by the error around earlier peaks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explaining.fitting import parameter_count
from kan import KAN

from .networks import ACTIVATIONS, hidden_sizes, make_kan, make_mlp
from .store import SEEDS, TUNING_SEED, Store, median, spread, table

PEAKS = 5
CENTRES = [-0.8, -0.4, 0.0, 0.4, 0.8]
RATES = (1e-3, 1e-2, 1e-1)
SHAPES = {  # of the MLP: width and depth
    "MLP, 3 layers of 64": (64, 3),
    "MLP, 4 layers of 100": (100, 4),
}
KANS = {  # sizes, grid, whether the base function learns too
    "KAN [1, 1], grid 200, splines alone": ([1, 1], 200, False),
    "KAN [1, 1], grid 200, with SiLU base": ([1, 1], 200, True),
    "KAN [1, 10, 1], grid 20, splines alone": ([1, 10, 1], 20, False),
}
STEPS = {"quick": 300, "full": 5000}  # a phase
POINTS = 100  # a phase
DRAWN = 201
LEARNED = 0.05  # RMSE around a peak right after its phase, where staying at zero gives 0.42


@dataclass(frozen=True)
class Network:
    name: str
    variant: str  # of the MLP: its activation
    rate: float

    def create(self) -> nn.Module:
        if self.name in SHAPES:
            return make_mlp(hidden_sizes(1, *SHAPES[self.name]), self.variant)
        sizes, grid_size, base = KANS[self.name]
        model = make_kan(sizes, "even knots", grid_size)
        if not base:
            for layer in model.layers:
                layer.base_weight.data.zero_()
                layer.base_weight.requires_grad_(False)
        return model


def candidates() -> list[Network]:
    kans = [Network(name, "even knots", rate) for name in KANS for rate in RATES]
    mlps = [Network(n, a, rate) for n in SHAPES for a in ACTIVATIONS for rate in RATES]
    return kans + mlps


def target(x: Tensor) -> Tensor:
    return torch.exp(-300 * (x - torch.tensor(CENTRES, dtype=x.dtype)).square()).sum(1, True)


def area(peak: int, count: int) -> Tensor:
    """Points around one peak, a fifth of the line."""
    reach = 1 / PEAKS
    return torch.linspace(-reach, reach, count, dtype=torch.float64)[:, None] + CENTRES[peak]


def learn(network: Network, seed: int, steps: int) -> dict:
    """Errors (phase, area) after each phase, and the curve of the network along the line."""
    torch.manual_seed(seed)
    model = network.create()
    line = torch.linspace(-1, 1, DRAWN, dtype=torch.float64)[:, None]
    if isinstance(model, KAN):  # it may know where inputs will be, as it must for a grid
        with torch.no_grad():
            model(line, update_grid=True)
    errors, curves = [], []
    for phase in range(PEAKS):
        x = area(phase, POINTS)
        y = target(x)
        optimizer = torch.optim.Adam(
            (p for p in model.parameters() if p.requires_grad), network.rate
        )
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            errors.append([rmse(model, area(p, 2 * POINTS + 1)) for p in range(PEAKS)])
            curves.append([round(v, 4) for v in model(line).flatten().tolist()])
    return {"errors": errors, "curves": curves, "parameters": parameter_count(model)}


def rmse(model: nn.Module, x: Tensor) -> float:
    return (model(x) - target(x)).square().mean().sqrt().item()


def at_end(row: dict) -> float:
    """RMSE over the whole line after the last phase."""
    return (sum(e * e for e in row["errors"][-1]) / PEAKS) ** 0.5


def just_learned(row: dict) -> float:
    """RMSE around each peak right after its own phase, over all peaks."""
    return (sum(row["errors"][p][p] ** 2 for p in range(PEAKS)) / PEAKS) ** 0.5


def run(store: Store, device: torch.device) -> None:
    """On the CPU whatever the device: these networks are too small for another."""
    for network in candidates():
        piece = {"part": "c", "role": "tuning", "name": network.name, "variant": network.variant}
        store.once(
            piece | {"rate": network.rate},
            lambda n=network: learn(n, TUNING_SEED, STEPS[store.scale]),
        )
    for name in (*KANS, *SHAPES):
        network = chosen(store, name)
        for seed in SEEDS:
            piece = {"part": "c", "role": "test", "name": name, "variant": network.variant}
            store.once(
                piece | {"rate": network.rate, "seed": seed},
                lambda n=network, s=seed: learn(n, s, STEPS[store.scale]),
            )


def chosen(store: Store, name: str) -> Network:
    """Activation and rate with the lowest error after all phases, of those that learn at all.

    A network that stays at zero forgets nothing either.
    """
    piece = best_tuning(store, name)["piece"]
    return Network(name, piece["variant"], piece["rate"])


def best_tuning(store: Store, name: str) -> dict:
    rows = store.rows(part="c", role="tuning", name=name)
    learners = [row for row in rows if just_learned(row) < LEARNED] or rows
    return min(learners, key=at_end)


# --- What came of it -----------------------------------------------------------------------------


def measured(store: Store, name: str) -> list[dict]:
    """The rows of a network; those of tuning, one seed, as long as there are no others."""
    if not store.rows(part="c", role="tuning", name=name):
        return []
    return store.rows(part="c", role="test", name=name) or [best_tuning(store, name)]


def tables(store: Store) -> str:
    rows = []
    for name in (*KANS, *SHAPES):
        found = measured(store, name)
        if found:
            piece = found[0]["piece"]
            variant = piece["variant"] if name in SHAPES else "-"
            rows.append([
                name, f"{found[0]['parameters']:,}", variant, f"{piece['rate']:g}",
                f"{median([just_learned(r) for r in found]):.1e}",
                spread([at_end(r) for r in found]), len(found),
            ])  # fmt: skip
    zero = area(0, 2 * POINTS + 1)
    rows.append(
        ["zero everywhere", "0", "-", "-", "-", f"{target(zero).square().mean() ** 0.5:.1e}", "-"]
    )
    header = [
        "network", "parameters", "activation", "rate", "RMSE right after its phase",
        "RMSE after all phases", "seeds",
    ]  # fmt: skip
    return table(header, rows)


def draw(store: Store, plt) -> object:
    """A row per network: its curve after each phase, over the target in grey; one seed."""
    names = [n for n in (*KANS, *SHAPES) if measured(store, n)]
    if not names:
        return None
    figure, axes = plt.subplots(
        len(names), PEAKS, figsize=(11, 1.5 * len(names)), layout="constrained", sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    line = torch.linspace(-1, 1, DRAWN, dtype=torch.float64)[:, None]
    for name, panels in zip(names, axes, strict=True):
        row = measured(store, name)[0]
        for phase, panel in enumerate(panels):
            panel.axvspan(CENTRES[phase] - 0.2, CENTRES[phase] + 0.2, color="#f3e7c9")
            panel.plot(line, target(line), color="#aaaaaa", linewidth=3)
            colour = "#c0392b" if name in KANS else "#2c5f8a"
            panel.plot(line, row["curves"][phase], color=colour, linewidth=1.2)
            panel.set(ylim=(-0.5, 1.4), xticks=[], yticks=[])
        panels[0].set_title(name, fontsize=9, loc="left")
    for phase, panel in enumerate(axes[-1]):
        panel.set_xlabel(f"after phase {phase + 1}")
    return figure
