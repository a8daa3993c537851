"""What a run says of itself, and what it advises its user to do."""

import contextlib
import math
from collections.abc import Iterator

from my_dataset import Failed
from system.memory import out_of_memory
from system.terminal import printable
from training.flags import Options
from training.setup import Run


def line(run: Run, row: dict) -> str:
    """Returns the line of an epoch; a star marks the best one."""
    epochs = run.options.epochs
    best = " *" if run.position.best["epoch"] == row["epoch"] else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {row['train_loss']:.4f} acc {row['train_acc']:.4f}  "
        f"val loss {row['val_loss']:.4f} acc {row['val_acc']:.4f}  "
        f"lr {row['learning_rate']:.2e}  {row['images_per_second']:.0f} img/s  "
        f"{row['seconds']:.0f} s{best}"
    )


def notes(run: Run, row: dict, skipped: list[Failed], gradient_scale: float) -> list[str]:
    """Returns a line for each thing to know after an epoch, each once in a run.

    skipped: photos that could not be read in it.
    """
    chance = math.log(len(run.data.classes))
    lines = []
    if row["epoch"] == 1 and row["train_loss"] > 0.97 * chance:
        lines.append(
            f"the loss is still at chance ({chance:.2f}) after the first epoch: try another --lr, "
            f"pretrained --weights, or --freeze-layers false"
        )
    if gradient_scale < 1:
        lines.append(
            "gradients are too large for float16, so that steps are left out: try --amp bf16 or "
            "--amp off"
        )
    if run.options.aug != "none" and row["val_acc"] > row["train_acc"]:
        lines.append(
            "validation is more accurate than training, which is normal here: training photos are "
            "randomly cropped and harder"
        )
    lines += [f"{printable(photo.path)} was skipped: {photo.reason}" for photo in skipped]
    advised = run.position.advised
    new = [line for line in lines if line not in advised]
    advised += new
    return [f"  note: {line}" for line in new]


def on_nan(run: Run, error: FloatingPointError) -> str:
    """Returns what to do about a loss that is no number."""
    last = run.folder / "last.pth"
    kept = f"; the last good state is {last}" if last.exists() else ""
    return (
        f"{error} of epoch {run.position.epoch + 1}: try a smaller --lr (it was "
        f"{run.options.lr:g}) or --amp off{kept}"
    )


@contextlib.contextmanager
def on_memory(options: Options) -> Iterator[None]:
    """Turns running out of memory into a ValueError that says which flags of train.py help.

    So does the death of a loader's worker, which the system kills when memory ends.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):
            raise ValueError(
                f"a process that loads photos died ({' '.join(str(error).split())}), as it happens "
                f"when memory runs out: try fewer --workers than {options.workers}; what was saved "
                f"before is whole"
            ) from None
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory: try {', or '.join(_less_memory(options))}; what was saved before is "
            f"whole"
        ) from None


def _less_memory(options: Options) -> list[str]:
    """Returns what takes less memory, for a run with these options."""
    advice = [] if options.grad_checkpointing else ["--grad-checkpointing"]
    if options.resume:
        start = "resume it on more processes" if options.fsdp else "resume it on more with --fsdp"
        return [*advice, f"the same total batch on more devices (torchrun, {start})"]
    size = f" than {options.batch_size}" if isinstance(options.batch_size, int) else ""
    advice += [
        f"a smaller --batch-size{size} (auto finds the largest that fits)",
        "--accum-steps N for the same total in N parts",
    ]
    return advice + ([] if options.fsdp else ["several devices with torchrun and --fsdp"])
