"""The values that a user did not set, chosen for the case at hand, each with its reason.

After "Bag of Tricks for Image Classification" (arXiv 1812.01187) as far as it applies to a ViT.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What the chosen values depend on.

    kind: "head" (frozen backbone; head, and splines if any, train), "fine-tune" (all layers, from
        pretrained weights) or "scratch".
    spline: "none", "full", "low-rank" or "group".
    one_view: the frozen layers come first and run once, for one view of each photo.
    """

    kind: str
    train_images: int
    epochs: int
    spline: str = "none"
    one_view: bool = False
    world_size: int = 1
    accum_steps: int = 1
    optimizer: str = "adamw"


def choose(case: Case, given: dict) -> dict[str, tuple]:
    """Returns {name: (value, reason)} for every value in `given` that is None.

    Rates are for AdamW unless the case says SGD, and grow linearly with the total batch size
    (arXiv 1706.02677). benchmarks/recipe.py measures them.
    """
    chosen: dict[str, tuple] = {}

    def value(name: str, default, reason: str):
        if given.get(name) is None:
            chosen[name] = (default, reason)
        return given[name] if given.get(name) is not None else default

    kind, names = (
        case.kind,
        {"head": "head only", "fine-tune": "all layers from pretrained weights"},
    )
    what = names.get(kind, "from random weights")
    if kind == "head" and case.spline != "none":
        what = "head and splines"
    batch = value("batch_size", *_batch_size(case))
    total = batch * case.world_size * case.accum_steps
    base, base_batch = _base_rate(case)
    rate = base * total / base_batch
    value("lr", float(f"{rate:.3g}"), f"{what}: {base:g} at batch {base_batch}, now {total}")
    value(
        "weight_decay",
        0.0 if kind == "head" else 5e-5 if case.optimizer == "sgd" else 0.05,
        what,
    )
    warmup = {"head": 0.0, "fine-tune": 1.0, "scratch": 5.0}[kind]
    value("warmup_epochs", min(warmup, case.epochs / 5), f"{what}, a fifth of the run at most")
    value("layer_decay", 0.75 if kind == "fine-tune" else 1.0, what)
    value("label_smoothing", 0.0 if kind == "head" else 0.1, what)
    if case.one_view:
        value("aug", "none", "the frozen layers run once, on each photo as it is")
    else:
        value("aug", "basic", what)
    # Ten times the rate at low rank cost three points with all layers training (docs/results.md).
    scale = {"none": 1.0, "full": 0.1, "low-rank": 1.0, "group": 1.0}[case.spline]
    value("kan_lr_scale", scale, f"{case.spline} splines")
    return chosen


def _batch_size(case: Case) -> tuple[int, str]:
    """Returns the largest power of two up to 32 that gives an epoch at least eight steps."""
    usual = 32 if case.kind == "head" else 16
    share = max(1, case.train_images // (8 * case.world_size))
    batch = min(usual, 2 ** int(math.log2(share)))
    return batch, "usual" if batch == usual else f"{case.train_images} photos make 8 steps or more"


def _base_rate(case: Case) -> tuple[float, int]:
    """Returns a learning rate and the total batch size it suits."""
    if case.optimizer == "sgd":
        return {"head": (0.03, 32), "fine-tune": (0.003, 16), "scratch": (0.01, 16)}[case.kind]
    return {"head": (3e-3, 32), "fine-tune": (2e-4, 16), "scratch": (5e-4, 16)}[case.kind]
