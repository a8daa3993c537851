"""How a model is trained: values for the case at hand, parameter groups, schedule, loss, average.

After "Bag of Tricks for Image Classification" (arXiv 1812.01187) as far as it applies to a ViT,
with layer-wise rate decay (BEiT, arXiv 2106.08254) and distillation (arXiv 1503.02531; DeiT's,
arXiv 2012.12877).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

# --- values that the user did not set -----------------------------------------------------------


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


# --- optimiser ----------------------------------------------------------------------------------


def freeze(model: nn.Module, pretrained: Iterable[str]) -> list[str]:
    """Freezes the parameters named in `pretrained`, heads excepted; returns what still trains."""
    pretrained = set(pretrained)
    for name, parameter in model.named_parameters():
        head = name.startswith(("head.", "head_dist."))
        parameter.requires_grad_(head or name not in pretrained)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def is_spline(name: str) -> bool:
    """Tells whether a parameter's name is that of a KAN layer's splines."""
    return "spline" in name.rsplit(".", 1)[-1]


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
) -> list[dict]:
    """Returns optimiser groups of the parameters that train, frozen ones left out.

    Biases, norms, scales, tokens and positions do not decay unless `decay_all`; a block's rate is
    `layer_decay` times that of the next one, a spline's `kan_lr_scale` times that of its block.
    """
    depth = len(model.blocks)
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spline = is_spline(name)
        plain = parameter.ndim < 2 or name.endswith(("_token", "pos_embed", "spline_scaler"))
        layer = layer_of(name, depth)
        rate = lr * layer_decay ** (depth + 1 - layer) * (kan_lr_scale if spline else 1.0)
        decay = 0.0 if plain and not decay_all else weight_decay
        group = groups.setdefault(
            (rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("nothing is left to train: give --freeze-layers false")
    # The fastest group first: its rate is the one that is shown and logged.
    return sorted(groups.values(), key=lambda g: ("head.weight" not in g["names"], -g["lr"]))


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


def amp_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """Returns the autocast type for `--amp`, or None for full precision.

    Raises ValueError for float16 on a CPU, where autocast would be slower than float32.
    """
    if choice == "off":
        return None
    if choice == "bf16":
        return torch.bfloat16
    if choice == "fp16":
        if device.type == "cpu":
            raise ValueError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or auto")
        return torch.float16
    if device.type == "cuda":
        # Emulated bfloat16 is slow: ask for the hardware's own.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


# --- loss ---------------------------------------------------------------------------------------


def class_weights(labels: list[int], num_classes: int) -> Tensor:
    """Returns weights inverse to each class's frequency, with mean 1 over the samples."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).clamp(min=1).float()
    return len(labels) / (num_classes * counts)


class Teacher(nn.Module):
    """A trained model that answers for images normalised in the student's way.

    model: in eval mode; its classes must be the student's, in any order.
    """

    def __init__(self, loaded, preprocess, classes: list[str]) -> None:
        super().__init__()
        if sorted(loaded.classes or []) != sorted(classes):
            raise ValueError(
                f"--teacher knows the classes {', '.join(loaded.classes or ['(unnamed)'])}, the "
                f"data has {', '.join(classes)}; they must be the same"
            )
        self.model = loaded.model.requires_grad_(False)
        self.img_size = loaded.preprocess.img_size
        order = [loaded.classes.index(name) for name in classes]
        student, teacher = preprocess, loaded.preprocess

        def column(values) -> Tensor:
            return torch.tensor(values).view(3, 1, 1)

        self.register_buffer("order", torch.tensor(order), persistent=False)
        scale = column(student.std) / column(teacher.std)
        shift = (column(student.mean) - column(teacher.mean)) / column(teacher.std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Student images (B, 3, S, S) -> teacher logits (B, classes) in the student's order."""
        images = images * self.scale + self.shift
        if images.shape[-1] != self.img_size:
            size = (self.img_size, self.img_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        self.model.eval()  # the training loop must not switch its dropout on
        return self.model(images)[:, self.order]


class Criterion:
    """The training loss: cross-entropy on hard or mixed labels, a teacher, the splines' penalty.

    Mixing draws from a generator state set by (seed, epoch, batch), so that it does not depend on
    what was drawn before and a resumed run mixes the same.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
        kan_reg: float = 0.0,
        teacher: nn.Module | None = None,
        teacher_weight: float = 0.5,
    ) -> None:
        mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self.mix: Callable | None = v2.RandomChoice(mixes) if mixes else None
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.seed, self.epoch = seed, 0
        self.kan_reg = kan_reg
        self.teacher, self.teacher_weight = teacher, teacher_weight

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean loss and the logits (B, classes), as `train_one_epoch` wants them."""
        targets = labels
        if self.mix is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(hash((self.seed, self.epoch, step)))
                images, targets = self.mix(images, labels)
        output = model(images)
        # A distilled model in training gives both heads: the second learns from the teacher alone.
        logits, logits_dist = output if isinstance(output, tuple) else (output, output)
        loss = self._cross_entropy(logits, targets)
        if self.teacher is not None:
            distance = self._distance(logits_dist, self.teacher(images))
            loss = (1 - self.teacher_weight) * loss + self.teacher_weight * distance
        if self.kan_reg:
            loss = loss + self.kan_reg * spline_penalty(model)
        return loss, (logits + logits_dist) / 2

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.class_weights
        losses = F.cross_entropy(
            logits.float(),
            targets,
            weight=None if weights is None else weights.to(logits.device),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        # Over the number of samples, not over their weights (which are 1 on average): so the mean
        # of parts is the mean of the whole, whoever holds the parts.
        return losses.mean()

    @staticmethod
    def _distance(logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the student's answer from the teacher's, in nats."""
        return F.kl_div(
            logits.float().log_softmax(1),
            teacher_logits.float().log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )


def spline_penalty(model: nn.Module) -> Tensor:
    """Returns the sum of all KAN layers' L1 and entropy terms (arXiv 2404.19756, eq. 2.20)."""
    layers = [m for m in model.modules() if hasattr(m, "regularization_loss")]
    return torch.stack([layer.regularization_loss() for layer in layers]).sum()
