"""The optimiser: what trains, at which rate, on which schedule, and the average of the weights.

Layer-wise rate decay is BEiT's (arXiv 2106.08254).
"""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kan import GroupKANLinear
from parallel.sharding import like, local
from vit_model import HEADS, is_spline

# How many deviations a normal feature's range spans, from which 1 % is left out (pretrained.py).
DEVIATIONS = 5.15
# Ends of the names of parameters that do not decay, whatever their shape.
PLACES_AND_TOKENS = (
    "_token", "pos_embed", "latent", "freqs", "relative_position_bias_table", "spline_scaler",
)  # fmt: skip


def freeze(model: nn.Module, pretrained: Iterable[str], biases: bool = False) -> list[str]:
    """Freezes the parameters named in `pretrained`, heads excepted; returns what still trains.

    biases: spare them as well (BitFit, arXiv 2106.10199).
    """
    pretrained = set(pretrained)
    for name, parameter in model.named_parameters():
        spared = name.startswith(HEADS) or (biases and name.endswith(".bias"))
        parameter.requires_grad_(spared or name not in pretrained)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def layer_of(name: str, depth: int) -> int:
    """Returns 0 for the embedding, 1 to depth for the blocks, depth + 1 for norm and heads.

    What all blocks share (rotary frequencies, biases of attention) counts to the embedding.
    """
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    tokens = ("patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token")
    embedding = (*tokens, "norm_pre", "rope", "rel_pos_bias")
    return 0 if name.startswith(embedding) else depth + 1


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    kan_lr_scale: float,
    decay_all: bool = False,
    head_lr_scale: float = 1.0,
) -> list[dict]:
    """Returns optimiser groups of the parameters that train, frozen ones left out.

    Biases, norms, scales, tokens and positions do not decay unless `decay_all`; a block's rate is
    `layer_decay` times that of the next one, a spline's `kan_lr_scale` times that of its block, a
    head's `head_lr_scale` times `lr`.
    """
    depth = len(model.blocks)
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spline = is_spline(name)
        plain = parameter.ndim < 2 or name.endswith(PLACES_AND_TOKENS)
        layer = layer_of(name, depth)
        scale = kan_lr_scale if spline else head_lr_scale if name.startswith(HEADS) else 1.0
        rate = lr * layer_decay ** (depth + 1 - layer) * scale
        decay = 0.0 if plain and not decay_all else weight_decay
        group = groups.setdefault(
            (rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("nothing is left to train: give --freeze-layers false")
    # The first group's rate is shown and logged: --lr itself, where something trains at it.
    return sorted(
        groups.values(), key=lambda g: (g["lr"] != lr, "head.weight" not in g["names"], -g["lr"])
    )


def create_optimizer(kind: str, groups: list[dict]) -> torch.optim.Optimizer:
    groups = [{key: g[key] for key in ("params", "lr", "weight_decay")} for g in groups]
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups)


class CurveRates:
    """Gives each spline of the grouped KAN layers of a model a rate in units of its inputs.

    A spline is added to its inputs, so a step that is small for one feature is huge for another: a
    rate that serves all counts in the inputs' deviation, for which the range of the grid stands.
    The same as training coefficients of that unit: what a step of AdamW moves is multiplied by the
    unit, and of plain gradients by its square. Coefficients, files and states keep their meaning.
    """

    def __init__(self, model: nn.Module, kind: str) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, GroupKANLinear)]
        self.layers = [layer for layer in self.layers if layer.spline_weight.requires_grad]
        self.power = 2 if kind == "sgd" else 1
        self.before: list[Tensor] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes part in every step of `optimizer` from now on."""
        optimizer.register_step_pre_hook(lambda *_: self.keep())
        optimizer.register_step_post_hook(lambda *_: self.rescale())

    @torch.no_grad()
    def keep(self) -> None:
        self.before = [local(layer.spline_weight).clone() for layer in self.layers]

    @functools.cached_property
    def factors(self) -> list[Tensor]:
        """Of each layer's coefficients; made at the first step, when grids are those that stay."""
        return [self._factor(layer) for layer in self.layers]

    def _factor(self, layer: GroupKANLinear) -> Tensor:
        unit = (layer.high - layer.low) / DEVIATIONS  # (curves,)
        factor = like(unit[:, None].expand(layer.spline_weight.shape), layer.spline_weight)
        return local(factor).to(local(layer.spline_weight)) ** self.power

    @torch.no_grad()
    def rescale(self) -> None:
        for layer, old, factor in zip(self.layers, self.before, self.factors, strict=True):
            new = local(layer.spline_weight)
            new.copy_(old.lerp(new, factor))


def create_lr_scheduler(
    optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, lrf: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine from the full rate to `lrf` of it at the last of `steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return lrf + (1 - lrf) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def create_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Returns a moving average whose decay warms up as (1 + n) / (10 + n), so short runs gain."""

    def average(mean: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        n = float(updates)
        return torch.lerp(new, mean, min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, avg_fn=average, use_buffers=False)
