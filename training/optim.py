"""The optimiser: what trains, at which rate, on which schedule, and the average of the weights.

Layer-wise rate decay is BEiT's (arXiv 2106.08254).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vit_model import HEADS, is_spline


def freeze(model: nn.Module, pretrained: Iterable[str]) -> list[str]:
    """Freezes the parameters named in `pretrained`, heads excepted; returns what still trains."""
    pretrained = set(pretrained)
    for name, parameter in model.named_parameters():
        head = name.startswith(HEADS)
        parameter.requires_grad_(head or name not in pretrained)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def layer_of(name: str, depth: int) -> int:
    """Returns 0 for the embedding, 1 to depth for the blocks, depth + 1 for norm and heads."""
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    embedding = ("patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token")
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
        plain = parameter.ndim < 2 or name.endswith(("_token", "pos_embed", "spline_scaler"))
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
