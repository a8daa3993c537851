"""The parts of the training loop: one epoch, an evaluation, checkpoints and random states.

`train_one_epoch` and `evaluate` are the reference's names. Everything here takes what it needs and
returns what it found; options, paths and printing belong to train.py.
"""

import contextlib
import csv
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distributed import World
from sharding import gradient_sync
from weight_files import open_pickle, parse_json

CHECKPOINT_VERSION = 1
REPLACE_TRIES = 20  # of 0.1 s each
ALONE = World()


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


def autocast(device: torch.device, dtype: torch.dtype | None):
    """Returns the mixed-precision context, or one that does nothing when `dtype` is None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


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
    num_batches: batches in the whole epoch, of which the first `first_batch` were done before.
    meter, failed: the sums and failures of those, in a resumed epoch.
    after_step(done, meter): called after every update with the number of batches done; a true
        answer ends the epoch early, and None is returned.
    Raises FloatingPointError when the loss is not finite, TooManyFailed as `check_failed` does.
    """
    model.train()
    meter = meter or Meter(device)
    failed = [] if failed is None else failed
    for index, batch in enumerate(batches, start=first_batch):
        window_start = index - index % accum_steps
        window = min(accum_steps, num_batches - window_start)  # the last one may be short
        complete = index + 1 == window_start + window
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
                stepper.scaler.scale(loss * world.share_of(photos) / window).backward()
            meter.update(loss, (logits.argmax(1) == labels)[:photos].sum(), photos)
        if complete:
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


# --- files that appear whole or not at all ------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[io.BufferedWriter]:
    """Opens a file that appears whole or not at all: temporary name, flush, rename.

    A program killed while writing leaves a hidden `.NAME.*.tmp`, which `clear_temporary` removes.
    What the disk refuses is an OSError with the name of the file that was to appear.
    """
    path, temporary = Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private, a result is not
        _replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError) and str(error.filename or ".tmp").endswith(".tmp"):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def _replace(temporary: str, path: Path) -> None:
    """os.replace, which Windows refuses while another program reads `path`: some are soon done."""
    for _ in range(REPLACE_TRIES):
        try:
            os.replace(temporary, path)
            return
        except PermissionError as error:
            refusal = error
            time.sleep(0.1)
    reason = f"{refusal.strerror} (is it open in another program?)"
    raise PermissionError(refusal.errno, reason, str(path))


def clear_temporary(folder: str | os.PathLike) -> None:
    """Removes what writers that were killed left in `folder`."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8; bytes of a file's name that are none become \\udcNN, as JSON escapes them."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, value) -> None:
    write_text(path, json.dumps(value, indent=4, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike):
    """Returns what a JSON file holds; raises ValueError, naming it, where it is none."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not JSON: it was damaged or edited; restore it") from None


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes `rows` (dicts with the same keys) as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def save_checkpoint(path: str | os.PathLike, checkpoint: dict) -> None:
    """Writes a checkpoint, a dict of tensors and plain Python, whole or not at all."""
    with atomic_file(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # After a failed write torch closes its archive and fails again: the first one counts.
            raise (error.__context__ or error) from None


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Returns what `save_checkpoint` wrote, on the CPU.

    Raises ValueError, naming the file, for anything that is not such a checkpoint; nothing in the
    file is executed.
    """
    checkpoint = open_pickle(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(f"{path} is no checkpoint of this program: it holds no 'model'")
    try:
        check_version(checkpoint.get("version", 0))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return checkpoint


def check_version(version: object) -> None:
    """Raises ValueError, worded to follow a file's name, where a later program wrote the file."""
    if not isinstance(version, int):
        raise ValueError(f"has a version that is no number: {version!r:.80}")
    if version > CHECKPOINT_VERSION:
        raise ValueError(f"was written by a newer version ({version}); update the program")


# --- random states ------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch, all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """Returns the state of every generator as tensors and plain Python, fit for a checkpoint."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict) -> None:
    """Puts every generator back into the state that `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
