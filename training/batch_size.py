"""How many photos a step can take: `--batch-size auto` finds out by trying.

On a GPU whole training steps are tried, larger and larger, until one does not fit. On a CPU, where
the system would end a program that takes too much, two small steps are measured instead.
"""

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from system.devices import autocast
from system.memory import free_memory
from training.optim import create_optimizer
from vit_model import VisionTransformer

SPARED = 0.1  # share of a GPU's memory left alone: steps differ, and memory crumbles
STEPS_PER_EPOCH = 20  # a larger batch would leave an epoch fewer; below 16 photos, 8 are enough
LARGEST = {"cuda": 512, "cpu": 64}  # beyond, a step is slower in proportion
Step = Callable[[int], None]


def find_batch_size(
    step: Step, device: torch.device, train_images: int, processes: int = 1, local_size: int = 1
) -> tuple[int, str]:
    """Returns the largest batch whose `step` fits into memory, and why it is not larger.

    step(batch): a whole training step with `batch` photos on `device`.
    processes: how many share the photos; local_size: how many share the machine's memory.
    Raises ValueError when not even one photo fits.
    """
    photos = train_images // processes
    enough = max(1, min(16, photos // 8), photos // STEPS_PER_EPOCH)
    limit = min(enough, LARGEST.get(device.type, LARGEST["cpu"]))
    why = (
        f"{train_images} photos make too few steps of more"
        if limit == enough
        else "more is not faster"
    )
    if device.type == "cuda":
        fitting = largest_that(fits_on_gpu(step, device), limit)
        reason = f"{SPARED:.0%} of the device's memory is spared"
    else:
        fitting = min(limit, fitting_by_measurement(step, free_memory() // local_size))
        reason = "by the memory that two small steps took and that is free"
    if fitting < 1:
        raise ValueError(
            f"not even one photo fits into the memory of {device}: try --grad-checkpointing or a "
            f"smaller --model"
        )
    if fitting < limit:
        return fitting, f"auto: the largest that fits; {reason}"
    return fitting, f"auto: it fits; {why}"


def trial_step(
    model: VisionTransformer,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    optimizer: str,
    spare: int = 0,
) -> Step:
    """Returns a `step` for `find_batch_size` that leaves the parameters of `model` as they are.

    optimizer: "sgd" or "adamw", which keeps more. spare: bytes of what training will hold besides.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    size, channels = model.sizes.img_size, model.sizes.in_chans

    def step(batch: int) -> None:
        # Rates of zero: every number is computed and none is changed.
        updater = create_optimizer(optimizer, [{"params": parameters, "lr": 0, "weight_decay": 0}])
        spared = torch.empty(spare, dtype=torch.uint8, device=device)
        try:
            images = torch.zeros(batch, channels, size, size, device=device)
            labels = torch.zeros(batch, dtype=torch.int64, device=device)
            with autocast(device, amp_dtype):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            updater.step()
        finally:
            del spared
            for parameter in parameters:
                parameter.grad = None

    return step


def weight_of(model: nn.Module) -> int:
    """Returns the bytes of the parameters of `model`."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def largest_that(fits: Callable[[int], bool], limit: int) -> int:
    """Returns the largest number up to `limit` that fits, to an eighth; 0 when none does.

    Doubles until one does not fit, then halves the distance.
    """
    good, bad = 0, limit + 1
    while good < limit and bad > limit:
        size = min(max(1, 2 * good), limit)
        good, bad = (size, bad) if fits(size) else (good, size)
    while bad <= limit and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fits_on_gpu(step: Step, device: torch.device) -> Callable[[int], bool]:
    """Returns a function that tries a step in all of the device's memory but `SPARED`."""

    def fits(batch: int) -> bool:
        torch.cuda.set_per_process_memory_fraction(1 - SPARED, device)
        try:
            step(batch)
            torch.cuda.synchronize(device)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            gc.collect()
            torch.cuda.empty_cache()

    return fits


def fitting_by_measurement(step: Step, free: int) -> int:
    """Returns how many photos four fifths of `free` bytes hold, after steps of one, two and six."""
    step(1)  # what is allocated once and stays
    small, large = peak_of(lambda: step(2)), peak_of(lambda: step(6))
    per_photo = max(1, (large - small) // 4)
    fixed = max(0, small - 2 * per_photo)
    return max(0, int((0.8 * free - fixed) / per_photo))


def peak_of(function: Callable[[], None]) -> int:
    """Returns by how many bytes this process grew while `function` ran; 0 where it is not told."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak starts anew
    before = resident("VmRSS")
    function()
    return max(0, resident("VmHWM") - before)


def resident(field: str) -> int:
    """Returns the bytes of this process now ("VmRSS") or at most ("VmHWM"); 0 where it isn't told.

    Not getrusage, whose peak begins with that of the process that started this one.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(field))) << 10
    return 0
