"""Networks of plain KAN layers: kept in a file, drawn as a graph of curves, pruned.

    model = KAN([2, 5, 1]); ...                               # trained on x (N, 2)
    save_network("kan.pth", model, inputs=["x", "y"])         # explain.py kan.pth reads it
    draw_network(model, x).savefig("kan.png")                 # a curve on every edge
    small = prune_network(model, x)                           # without nodes that do nothing

The file is a dict of tensors and plain Python (`torch.load` with `weights_only=True`): `model`, the
state dict; `config`, what `KAN` is built with; `inputs`, their names. A bare state dict, such as
efficient-kan's, is read as well: its shapes tell all sizes, and SiLU is taken to be the base.

Letters in shape comments: N samples, I inputs and O outputs of a layer.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from formats.checkpoints import CHECKPOINT_VERSION, save_checkpoint
from formats.opening import RawWeights
from kan import KAN, KANLinear
from reporting.palette import LIGHT

# What may be named as the base function of a file's layers.
ACTIVATIONS = {kind.__name__: kind for kind in (
    nn.SiLU, nn.GELU, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU
)}  # fmt: skip
PARTS = "base_weight|spline_weight|spline_scaler|spline_up|spline_down|bias|grid"
LAYER_KEY = re.compile(rf"layers\.\d+\.({PARTS})")
MOST_DRAWN = 120  # edges of a layer


class Network(NamedTuple):
    """A plain KAN and the names of its inputs."""

    model: KAN
    inputs: list[str]


def save_network(path: str | Path, model: KAN, inputs: Sequence[str] | None = None) -> None:
    """Writes a plain KAN so that `read_network` and explain.py can rebuild it.

    inputs: their names, by default x_0, x_1, ... Raises ValueError for a base function that is not
    one of ACTIVATIONS.
    """
    first = model.layers[0]
    base = type(first.base_activation).__name__
    if base not in ACTIVATIONS:
        raise ValueError(f"the base function must be one of {', '.join(ACTIVATIONS)}, not {base}")
    config = {
        "layers_hidden": [first.in_features, *(layer.out_features for layer in model.layers)],
        "base_activation": base,
    }
    options = ("grid_size", "spline_order", "grid_eps", "outside", "spline_rank")
    config |= {name: getattr(first, name) for name in options}
    config |= {
        "bias": first.bias is not None,
        "enable_standalone_scale_spline": first.enable_standalone_scale_spline,
    }
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    facts = {"inputs": list(inputs or default_names(first.in_features))}
    facts["version"] = CHECKPOINT_VERSION
    save_checkpoint(path, {"model": state, "config": config} | facts)


def default_names(count: int) -> list[str]:
    return [f"x_{number}" for number in range(count)]


def read_network(path: str | Path, raw: RawWeights) -> Network | None:
    """The plain KAN in an opened weights file; None if it holds another kind of model.

    Raises ValueError, naming the file, where its parts do not fit together.
    """
    state = raw.tensors
    if not all(LAYER_KEY.fullmatch(name) for name in state):
        return None
    try:
        config = raw.extras.get("config") or config_of(state)
        base = ACTIVATIONS[dict(config).get("base_activation", "SiLU")]
        config = config | {"base_activation": base}
        with torch.device("meta"):  # a config may lie about sizes: nothing is allocated for it
            wanted = KAN(**config).state_dict()
        if {n: v.shape for n, v in wanted.items()} != {n: v.shape for n, v in state.items()}:
            raise ValueError("its config and its tensors differ in size")
        if not all(value.isfinite().all() for value in state.values()):
            raise ValueError("it has values that are NaN or infinite")
        model = KAN(**config)
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
        names = raw.extras.get("inputs") or default_names(model.layers[0].in_features)
        if len(names) != model.layers[0].in_features or not all(isinstance(n, str) for n in names):
            raise ValueError("its inputs are not a name for each")
    except (KeyError, TypeError, IndexError, RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} looks like a plain KAN but cannot be rebuilt ({reason}); write it with "
            "plain_kan.save_network"
        ) from None
    return Network(model.eval(), list(names))


def config_of(state: dict[str, Tensor]) -> dict:
    """What `KAN` must be built with, from the shapes in a state dict."""
    count = 1 + max(int(name.split(".")[1]) for name in state)
    shapes = [state[f"layers.{n}.base_weight"].shape for n in range(count)]  # (O, I) each
    low_rank = "layers.0.spline_down" in state
    bases = state["layers.0.spline_down" if low_rank else "layers.0.spline_weight"].shape[-1]
    order = state["layers.0.grid"].shape[1] - 1 - bases
    return {
        "layers_hidden": [shapes[0][1], *(shape[0] for shape in shapes)],
        "grid_size": bases - order,
        "spline_order": order,
        "bias": "layers.0.bias" in state,
        "spline_rank": state["layers.0.spline_up"].shape[1] if low_rank else None,
        "enable_standalone_scale_spline": "layers.0.spline_scaler" in state,
    }


@torch.no_grad()
def edge_curves(model: KAN, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer its inputs (N, I) and what every edge makes of them (N, O, I)."""
    curves = []
    for layer in model.layers:
        curves.append((x, layer.edge_activations(x)))
        x = layer(x)
    return curves


def prune_network(model: KAN, x: Tensor, threshold: float = 0.03) -> KAN:
    """A copy without the hidden nodes that matter to nothing (section 2.5.1 of the KAN paper).

    A node stays if its largest incoming and its largest outgoing edge both vary (standard deviation
    over x) by more than `threshold` of the largest edge of their layer. At least one node stays.
    What the others give on average over x is kept in biases, which every layer of the copy has.
    """
    curves = [edges for _, edges in edge_curves(model, x)]  # (N, O, I) per layer
    spreads = [edges.std(0) for edges in curves]
    relative = [spread / spread.max().clamp_min(1e-12) for spread in spreads]
    kept = [torch.arange(x.shape[-1], device=x.device)]
    for before, after in itertools.pairwise(relative):
        score = torch.minimum(before.max(1).values, after.max(0).values)
        alive = (score > threshold).nonzero().flatten()
        kept.append(alive if len(alive) else score.argmax()[None])
    kept.append(torch.arange(model.layers[-1].out_features, device=x.device))
    small = KAN([len(nodes) for nodes in kept])
    small.layers = torch.nn.ModuleList(
        cut_layer(layer, rows, columns, edges.mean(0))
        for layer, columns, rows, edges in zip(
            model.layers, kept[:-1], kept[1:], curves, strict=True
        )
    )
    return small


@torch.no_grad()
def cut_layer(layer: KANLinear, rows: Tensor, columns: Tensor, means: Tensor) -> KANLinear:
    """The layer between the outputs `rows` and the inputs `columns` alone.

    means: (O, I), what each edge gives on average; that of the other inputs goes into the bias.
    """
    small = layer.like(len(columns), len(rows), bias=True)
    by_edge = {"base_weight", "spline_weight", "spline_scaler"}
    constant = means.index_fill(1, columns, 0.0).sum(1)[rows]
    state = {"bias": constant if layer.bias is None else constant + layer.bias[rows]}
    for name, value in layer.state_dict().items():
        if name in by_edge:
            state[name] = value[rows][:, columns]
        elif name == "spline_up":
            state[name] = value[rows]
        elif name == "spline_down":
            state[name] = value[:, columns]
        elif name == "grid":
            state[name] = value[columns]
    small.load_state_dict(state)
    return small


def draw_network(model: KAN, x: Tensor, names: Sequence[str] | None = None):
    """A matplotlib figure of the network: nodes in rows, each edge with its curve in the middle.

    Strong lines mark edges that vary much, as in the KAN paper. Raises ValueError for a layer with
    more edges than a picture can show.
    """
    from matplotlib.figure import Figure

    widths = [x.shape[-1], *(layer.out_features for layer in model.layers)]
    most = max(o * i for o, i in zip(widths[1:], widths[:-1], strict=True))
    if most > MOST_DRAWN:
        raise ValueError(
            f"a layer of {most} edges is too large to draw (at most {MOST_DRAWN}): prune it first"
        )
    curves = edge_curves(model, x)
    figure = Figure(figsize=(max(4.0, 1.1 * most), 2.6 * len(curves) + 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(-0.15, len(curves) + 0.15))
    axes.axis("off")
    places = [[(n + 0.5) / width for n in range(width)] for width in widths]
    for level, (inputs, edges) in enumerate(curves):
        draw_layer(axes, level, inputs, edges, places[level], places[level + 1])
    for level, row in enumerate(places):
        axes.plot(row, [level] * len(row), "o", color="black", markersize=6)
    for place, name in zip(places[0], names or default_names(widths[0]), strict=True):
        axes.text(place, -0.12, name, ha="center", va="center", parse_math=False)
    return figure


def draw_layer(axes, level: int, inputs: Tensor, edges: Tensor, below: list, above: list) -> None:
    """Draws the edges (N, O, I) of a layer between the nodes at `below` and at `above`."""
    spread = edges.std(0)
    strength = (spread / spread.max().clamp_min(1e-12)).tolist()
    outputs, slots = edges.shape[1], edges[0].numel()
    for target, source in itertools.product(range(outputs), range(edges.shape[2])):
        # Curves stand in the order of their sources, so that lines cross little.
        slot = (source * outputs + target + 0.5) / slots
        alpha = max(0.08, strength[target][source])
        line = {"color": "black", "alpha": alpha, "linewidth": 1.2}
        axes.plot([below[source], slot], [level, level + 0.36], **line)
        axes.plot([slot, above[target]], [level + 0.64, level + 1], **line)
        curve = inputs[:, source], edges[:, target, source]
        draw_small_curve(axes, slot, level + 0.5, 0.8 / slots, *curve, alpha)


def draw_small_curve(axes, x: float, y: float, width: float, inputs, values, alpha: float) -> None:
    order = inputs.argsort()
    box = axes.inset_axes(
        (x - width / 2, y - 0.14, width, 0.28), transform=axes.transData, alpha=alpha
    )
    box.plot(inputs[order], values[order], color=LIGHT.for_, alpha=alpha, linewidth=1.5)
    box.set(xticks=[], yticks=[])
    for spine in box.spines.values():
        spine.set_alpha(alpha)
