"""The loop: one epoch of training, one evaluation, and what they count.

`train_one_epoch` and `evaluate` are the reference's names. Everything here takes what it needs and
returns what it found; options, paths and printing belong to train.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from parallel.sharding import gradient_sync
from parallel.world import ALONE, World
from system.devices import autocast

# --- counting -----------------------------------------------------------------------------------


class Meter:
    """Sums loss, correct answers and samples on the device; means weigh every sample equally."""

    FIELDS = ("loss", "correct", "samples")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # MPS has no float64; its float32 sums are exact enough for a progress line.
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.sums = torch.zeros(len(self.FIELDS), dtype=dtype, device=device)

    def update(self, mean_loss: Tensor, correct: Tensor, samples: int) -> None:
        loss = mean_loss.detach().to(self.sums.dtype) * samples
        self.sums += torch.stack(
            [loss, correct.detach().to(self.sums.dtype), loss.new_tensor(samples)]
        )

    @property
    def samples(self) -> int:
        return int(self.sums[2])

    @property
    def loss(self) -> float:
        return float(self.sums[0]) / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        return float(self.sums[1]) / max(self.samples, 1)


@dataclass
class EpochResult:
    """What one pass over the data found: means over samples, and the photos that failed."""

    loss: float
    accuracy: float
    samples: int
    failed: list = field(default_factory=list)


class TooManyFailed(ValueError):
    """More than a tenth of the photos could not be read."""


def check_failed(failed: list, samples: int) -> None:
    """Raises TooManyFailed when more than a tenth of the photos seen could not be read."""
    if len(failed) > 0.1 * (samples + len(failed)):
        worst = failed[0]
        raise TooManyFailed(
            f"{len(failed)} of {samples + len(failed)} photos could not be read, for instance "
            f"{worst.path}: {worst.reason}; mend or remove them"
        )


def pooled(meter: Meter, failed: list, world: World) -> tuple[Meter, list]:
    """Returns the sums and the failures of all processes together."""
    if world.size == 1:
        return meter, failed
    total = Meter(meter.sums.device)
    total.sums = world.total(meter.sums)
    return total, world.joined(failed)


# --- the loop -----------------------------------------------------------------------------------


@dataclass
class Stepper:
    """How a gradient becomes a step: mixed precision, clipping, schedule and moving average.

    amp_dtype: the autocast type, or None for full precision.
    scaler: a GradScaler, disabled unless the autocast type is float16.
    clip_grad: largest gradient norm, 0 for no limit.
    ema: an AveragedModel that follows the model, or None.
    """

    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    amp_dtype: torch.dtype | None = None
    clip_grad: float = 0.0
    ema: nn.Module | None = None
    lr: float = 0.0  # that of the first parameter group at the last step

    def autocast(self, device: torch.device):
        return autocast(device, self.amp_dtype)

    def step(self, model: nn.Module) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_grad)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(model)


class Window:
    """The batches of one update, whose gradients add up to that of the mean loss of their photos.

    How many photos each has shows as it comes, for some cannot be read: every batch is weighed as
    if all had as many as the first one, and `even_out` corrects the sum. So even batches lose no
    bit. All processes must call the same methods in the same order.
    """

    def __init__(self, batches: int, world: World) -> None:
        self.batches, self.world = batches, world
        self.first = self.photos = 0  # of all processes, in the first batch and so far

    def share_of(self, photos: int) -> float:
        """Returns the weight of a mean loss over `photos` in the mean of the window's batches.

        Gradients are averaged over the processes: theirs together are those of all photos.
        """
        together = sum(self.world.numbers(photos))
        self.first = self.first or together
        self.photos += together
        return photos * self.world.size / max(1, self.first)

    def even_out(self, model: nn.Module) -> None:
        """Turns the sum of weighted gradients into the gradient of the mean over all photos."""
        factor = self.first * self.batches / max(1, self.photos)
        if factor != 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


def train_one_epoch(
    model: nn.Module,
    stepper: Stepper,
    batches: Iterator,
    device: torch.device,
    criterion: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    num_batches: int,
    accum_steps: int = 1,
    meter: Meter | None = None,
    failed: list | None = None,
    first_batch: int = 0,
    after_step: Callable[[int, Meter], bool] = lambda done, meter: False,
    world: World = ALONE,
) -> EpochResult | None:
    """Trains on `batches` and returns the epoch's means over samples, those of all processes.

    batches: yields objects with `images` (B, 3, S, S), `labels` (B,), `failed` and `indices`, which
        are empty where a stand-in keeps several processes in step (distributed.in_step).
    criterion(model, images, labels, step): returns the mean loss and the logits to count hits by.
    num_batches: batches in the whole epoch, of which the first `first_batch` were done before, in
        whole updates.
    meter, failed: the sums and failures of those, in a resumed epoch.
    after_step(done, meter): called after every update with the number of batches done; a true
        answer ends the epoch early, and None is returned.
    Raises FloatingPointError when the loss is not finite, TooManyFailed as `check_failed` does.
    """
    model.train()
    meter = meter or Meter(device)
    failed = [] if failed is None else failed
    for index, batch in enumerate(batches, start=first_batch):
        if index % accum_steps == 0:
            window = Window(min(accum_steps, num_batches - index), world)  # the last may be short
        complete = (index + 1) % accum_steps == 0 or index + 1 == num_batches
        failed += batch.failed
        if len(batch.images):
            photos = len(batch.indices)
            images = batch.images.to(device, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
            with gradient_sync(model, on=complete):
                with stepper.autocast(device):
                    loss, logits = criterion(model, images, labels, index)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss became {loss.item()} at batch {index + 1}")
                part = loss * window.share_of(photos) / window.batches
                stepper.scaler.scale(part).backward()
            meter.update(loss, (logits.argmax(1) == labels)[:photos].sum(), photos)
        if complete:
            window.even_out(model)
            stepper.step(model)
            if after_step(index + 1, meter) and index + 1 < num_batches:
                return None
    meter, failed = pooled(meter, failed, world)
    check_failed(failed, meter.samples)
    return EpochResult(meter.loss, meter.accuracy, meter.samples, failed)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterator,
    device: torch.device,
    after_batch: Callable[[Meter], None] = lambda meter: None,
    world: World = ALONE,
) -> tuple[EpochResult, Tensor, Tensor]:
    """Returns the means over samples, the probabilities (samples, classes) and indices (samples,).

    Of several processes each brings its part of the photos, and all return the whole.
    In full precision, as prediction does it, so that both find the same. The loss is the plain
    cross-entropy, whatever the training loss; photos that cannot be read are named in the result
    and count in no mean.
    """
    model.eval()
    meter, failed, outputs, indices = Meter(device), [], [], []
    for batch in batches:
        failed += batch.failed
        if not len(batch.images):
            continue
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        logits = model(images)
        if not len(batch.indices):  # a stand-in (distributed.in_step)
            continue
        loss = nn.functional.cross_entropy(logits, labels)
        meter.update(loss, (logits.argmax(1) == labels).sum(), len(labels))
        outputs.append(logits.softmax(1).cpu())
        indices.append(torch.as_tensor(batch.indices))
        after_batch(meter)
    meter, failed = pooled(meter, failed, world)
    check_failed(failed, meter.samples)
    result = EpochResult(meter.loss, meter.accuracy, meter.samples, failed)
    outputs, indices = torch.cat(world.joined(outputs)), torch.cat(world.joined(indices))
    if world.size > 1:
        order = indices.argsort()
        return result, outputs[order], indices[order]
    return result, outputs, indices
