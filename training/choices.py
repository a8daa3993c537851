"""The values that a user did not set, chosen for the case at hand, each with its reason.

After "Bag of Tricks for Image Classification" (arXiv 1812.01187) as far as it applies to a ViT.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from system.terminal import counted

Chosen = dict[str, tuple[object, str]]  # value and reason by name


@dataclass(frozen=True)
class Kind:
    """What suits a kind of run, by optimiser where it matters.

    rate: for `batch` photos together; it grows linearly with their number (arXiv 1706.02677), but
        see `head_growth`.
    head_rate: the same for a new head, where that is not the rate of all else.
    """

    words: str
    batch: int
    rate: dict[str, float]
    weight_decay: dict[str, float]
    warmup_epochs: float
    layer_decay: float
    label_smoothing: float
    head_rate: dict[str, float] = field(default_factory=dict)


# benchmarks/recipe.py measures these.
KINDS = {
    "head": Kind(
        "head only", 32, {"adamw": 3e-3, "sgd": 0.03}, {"adamw": 0.0, "sgd": 0.0}, 0.0, 1.0, 0.0,
        {"adamw": 3e-3, "sgd": 0.03},
    ),
    "fine-tune": Kind(
        "all layers from pretrained weights",
        # Half the rate ends 2.9 points lower on folders of 200 photos, twice it is level; with 50
        # and with all, both end lower by no more than chance may bring (benchmarks/defaults.py).
        16, {"adamw": 4e-4, "sgd": 0.003}, {"adamw": 0.05, "sgd": 5e-5}, 1.0, 0.75, 0.1,
        # At the backbone's rate a new head has learned little when a short run ends: worse than
        # alone; a third of this rate costs five points in three epochs (docs/results.md).
        {"adamw": 3e-3, "sgd": 0.03},
    ),
    "scratch": Kind(
        "from random weights",
        16, {"adamw": 5e-4, "sgd": 0.01}, {"adamw": 0.05, "sgd": 5e-5}, 5.0, 1.0, 0.1,
    ),
}  # fmt: skip
# The rate of what adapts frozen layers, for 32 photos together; a new head beside it keeps its own.
# AdamW's from benchmarks/worth.py; LoRA's is higher than the log loss would have it there, for
# accuracy, and judged by benchmarks/defaults.py.
ADAPTER_RATE = {
    "bias": {"adamw": 2e-2, "sgd": 0.2},
    "affine": {"adamw": 2e-2, "sgd": 0.2},
    "lora": {"adamw": 1e-2, "sgd": 0.025},
}
# LoRA's grows no further from here on: in batches of 32, twice the rate cost 3 points in both runs.
LORA_BATCH = 16
ADAPTER_WORDS = {"bias": "biases", "affine": "scales and shifts", "lora": "LoRA"}
# The splines' rate as a multiple of --lr. Ten times the rate at low rank cost three points with all
# layers training (docs/results.md).
SPLINES = {"none": 1.0, "full": 0.1, "low-rank": 1.0}
# Splines of groups, or of single features, have a rate of their own, whatever --lr: for 32 photos
# together, in units of their inputs (`optim.CurveRates`).
GROUP_RATE = {"adamw": 1.6e-2, "sgd": 5.0}

WIDTH = 192  # channels of DeiT-Tiny, by which all rates are measured
MANY = 100  # validation photos, of which the accuracy tells the best epoch


@dataclass(frozen=True)
class Case:
    """What the chosen values depend on.

    kind: "head" (frozen backbone; head, and splines if any, train), "fine-tune" (all layers, from
        pretrained weights) or "scratch".
    spline: "none", "full", "low-rank" or "group".
    one_view: the frozen layers come first and run once, for one view of each photo.
    new_head: the head did not come from the weights file.
    adapt: what trains in frozen layers: "none", "bias", "affine" or "lora".
    val_images: photos by which the best epoch is chosen.
    width: the model's channels.
    """

    kind: str
    train_images: int
    epochs: int
    spline: str = "none"
    one_view: bool = False
    world_size: int = 1
    accum_steps: int = 1
    optimizer: str = "adamw"
    new_head: bool = False
    adapt: str = "none"
    val_images: int = 0
    width: int = WIDTH

    @property
    def factor(self) -> float:
        """The rate of adapters as a multiple of that of its kind."""
        if self.kind != "head" or self.adapt == "none":
            return 1.0
        return ADAPTER_RATE[self.adapt][self.optimizer] / KINDS["head"].rate[self.optimizer]

    @property
    def lora(self) -> bool:
        """Whether LoRA of frozen layers trains."""
        return self.kind == "head" and self.adapt == "lora"

    @property
    def narrowing(self) -> float:
        """What is left of AdamW's rate for the maps of a wide pretrained model, or LoRA of them.

        The best rate falls with the width, at most as its inverse (arXiv 2203.03466). The square
        root is a careful guess, measured for no width but DeiT-Tiny's: half the rate for a ViT-B.
        """
        if not (self.kind == "fine-tune" or self.lora) or self.optimizer != "adamw":
            return 1.0
        return min(1.0, math.sqrt(WIDTH / self.width))

    @property
    def head_leads(self) -> bool:
        """Whether `lr` is the head's, of which splines then have a multiple: without adapters."""
        return self.kind == "head" and self.adapt == "none"

    @property
    def words(self) -> str:
        """What trains."""
        if self.kind != "head":
            return KINDS[self.kind].words
        splines = ["splines"] * (self.spline != "none")
        adapters = [ADAPTER_WORDS[self.adapt]] if self.adapt != "none" else []
        *parts, last = "head", *splines, *adapters
        return f"{', '.join(parts)} and {last}" if parts else KINDS[self.kind].words


def choose(case: Case, given: Mapping) -> Chosen:
    """Returns {name: (value, reason)} for each value below that `given` lacks or has as None."""
    kind, what = KINDS[case.kind], case.words
    batch, why = _batch_size(case, kind)
    total = (given.get("batch_size") or batch) * case.world_size * case.accum_steps
    share = total / kind.batch
    growth = head_growth(case, share)
    own, where = _own_growth(case, total)
    base = float(f"{kind.rate[case.optimizer] * case.factor * case.narrowing:.3g}")
    rate = float(f"{base * own:.3g}")
    wide = f", {case.width} channels wide" if case.narrowing < 1 else ""
    lr, fallen = rate, share / own
    if given.get("lr") is not None:
        lr, fallen = given["lr"], 1.0
    warmup = min(kind.warmup_epochs, case.epochs / 5) if lr else 0.0
    head = kind.head_rate.get(case.optimizer, 0.0) * growth
    scale = _head_scale(case, head, lr)
    aug = ("none", "the frozen layers run once, on each photo as it is")
    table = {
        "batch_size": (batch, why),
        "lr": (rate, f"{what}{wide}: {base:g} {where}"),
        "weight_decay": (kind.weight_decay[case.optimizer], what),
        "warmup_epochs": (warmup, f"{what}, a fifth of the run at most"),
        "layer_decay": (kind.layer_decay, what),
        "label_smoothing": (kind.label_smoothing, what),
        "aug": aug if case.one_view else ("basic", what),
        "head_lr_scale": (
            scale,
            f"a new head's rate is {head:.3g}" if scale != 1 else "as all else",
        ),
        "kan_lr_scale": _spline_scale(case, total, lr, fallen),
        "best_by": _best_by(case.val_images),
    }
    return {name: chosen for name, chosen in table.items() if given.get(name) is None}


def _own_growth(case: Case, total: int) -> tuple[float, str]:
    """Returns `lr` for `total` photos together, in units of that for the usual batch, and why."""
    batch = KINDS[case.kind].batch
    share = total / batch
    if case.lora and case.optimizer == "adamw" and total > LORA_BATCH:
        return LORA_BATCH / batch, f"at batch {batch}, no higher than at {LORA_BATCH}"
    own = head_growth(case, share) if case.head_leads else share
    return own, f"at batch {batch}, now {total}" if own == share else f"up to batch {batch}"


def head_growth(case: Case, share: float) -> float:
    """Returns a head's rate as a multiple of the usual one; share: of its batch.

    AdamW's steps are as large with few photos as with many: a rate that falls with the batch leaves
    the head of a small folder untrained (at 50 photos it cost 4.5 points: docs/results.md).
    """
    return max(1.0, share) if case.optimizer == "adamw" else share


def _head_scale(case: Case, rate: float, lr: float) -> float:
    """Returns a head's rate as a multiple of `lr`; rate: what suits a new head."""
    if case.head_leads or not (case.new_head and lr and rate):
        return 1.0
    scale = float(f"{rate / lr:.3g}")
    return scale if case.kind == "head" else max(1.0, scale)


def _spline_scale(case: Case, total: int, lr: float, fallen: float) -> tuple[float, str]:
    """Returns the splines' rate as a multiple of `lr` for `total` photos together, and why.

    fallen: what falls with the batch, as a multiple of `lr` where that is the head's, which does
    not.
    """
    if case.spline != "group":
        narrowed = case.narrowing if case.kind == "head" else 1.0  # LoRA's, not theirs
        scale = SPLINES[case.spline] / (case.factor * narrowed) * fallen
        return float(f"{scale:.3g}"), f"{case.spline} splines"
    rate = GROUP_RATE[case.optimizer] * total / 32
    scale = float(f"{rate / lr:.3g}") if lr else 1.0
    return scale, f"their rate is {rate:.3g} in units of their inputs"


def _best_by(photos: int) -> tuple[str, str]:
    """Returns what makes an epoch the best one, and why; photos: that judge it.

    The accuracy of few photos rises and falls by luck, and by it an untrained epoch is often the
    best (docs/results.md); the probability of what they are moves with every step.
    """
    if 0 < photos < MANY:
        return "probability", f"{photos} validation photos are few to tell epochs by accuracy"
    return "accuracy", "usual"


def _batch_size(case: Case, kind: Kind) -> tuple[int, str]:
    """Returns the largest power of two up to the usual one that gives an epoch eight steps."""
    parts = case.world_size * case.accum_steps
    share = max(1, case.train_images // (8 * parts))
    batch = min(kind.batch, 2 ** int(math.log2(share)))
    if batch == kind.batch:
        return batch, "usual"
    steps = math.ceil(case.train_images / (batch * parts))
    return batch, f"{case.train_images} photos make {counted(steps, 'step')} an epoch"
