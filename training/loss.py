"""The training loss: cross-entropy on hard or mixed labels, a teacher, the splines' penalty.

Distillation is that of arXiv 1503.02531 and of DeiT (arXiv 2012.12877).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from pretrained import LoadedModel, load_model


def class_weights(labels: list[int], num_classes: int) -> Tensor:
    """Returns weights inverse to each class's frequency, with mean 1 over the samples."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).clamp(min=1).float()
    return len(labels) / (num_classes * counts)


def load_teacher(path: str) -> LoadedModel:
    """Returns the model that --teacher names; raises ValueError where its answers teach nothing."""
    loaded = load_model(path)
    if loaded.model.sizes.answers != "softmax":
        raise ValueError(f"--teacher {path} gives a yes or no for each class, not one class of all")
    return loaded


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
