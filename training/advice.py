"""What a run says of itself, and what it advises its user to do."""

import contextlib
import math
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from imaging.data_report import DataReport
from my_dataset import Failed
from system.flags import flag_of
from system.memory import out_of_memory
from system.terminal import command, counted, printable
from training.flags import Options
from training.needs import contradiction
from training.setup import Run

WITHOUT_DATA = (
    f"{Options.data_path} does not exist: --data-path DIR names a folder that holds a folder for "
    f"each class; to begin without one, --data-path sample draws flowers, and --download fetches "
    f"photos of them (229 MB)"
)
SMALLER = "a smaller model, or a machine with more memory"


class Next(NamedTuple):
    """What to try after the head alone: flags, and the points of accuracy that they add."""

    flags: tuple[str, ...]
    points: int


# What benchmarks/defaults.py found best, or level with that, with so many photos in training, and
# what a step of any of it takes, in passes of the frozen layers forward. Three seeds do not tell
# the 3 points of 40 photos, nor splines' share of the 10, from chance: benchmarks/worth.py does.
NEXT = {
    40: Next(("--mlp", "gkan"), 3),
    160: Next(("--freeze-layers", "false", "--mlp", "gkan"), 10),
    700: Next(("--freeze-layers", "false"), 12),
}
STEP = 3


def on_data(options: Options, report: DataReport) -> list[str]:
    """What to do about what the data report found, where the user has not done it."""
    if report.imbalance() and options.class_weights == "none" and not options.eval:
        return ["--class-weights balanced would let the photos of rare classes weigh more"]
    return []


def standing(run: Run) -> str:
    """Returns the line on where a run that goes on stands."""
    options, epoch = run.options, run.position.epoch
    if options.folds and run.epochs_of_folds is None:
        return f"resuming {run.folder} among its {options.folds} folds"
    if run.over():
        done = f"{options.folds} folds" if options.ensemble else counted(epoch, "epoch")
        patient = f", for --patience {options.patience} (0 goes on)" if epoch < run.epochs else ""
        return f"{run.folder} is finished after {done}{patient}"
    left = counted(run.epochs - epoch, "epoch")
    return f"resuming {run.folder} at epoch {epoch + 1}: {left} to go"


def line(run: Run, row: dict) -> str:
    """Returns the line of an epoch; a star marks the best one."""
    epochs = run.epochs
    best = " *" if run.position.best["epoch"] == row["epoch"] else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {row['train_loss']:.4f} acc {row['train_acc']:.4f}  "
        + (f"val loss {row['val_loss']:.4f} acc {row['val_acc']:.4f}  " if validated(row) else "")
        + f"lr {row['learning_rate']:.2e}  {row['images_per_second']:.0f} img/s  "
        f"{row['seconds']:.0f} s{best}"
    )


def validated(row: dict) -> bool:
    """Whether there were validation photos: not where folds have told the epochs."""
    return "val_acc" in row


def notes(run: Run, row: dict, skipped: list[Failed], gradient_scale: float) -> list[str]:
    """Returns a line for each thing to know after an epoch, each once in a run.

    skipped: photos that could not be read in it.
    """
    lines = []
    if row["epoch"] == 1 and run.warmup and validated(row):
        lines.append("the rate still warms up: the best epoch will be a later one")
    late = row["epoch"] == run.warmup + 1 and validated(row)
    if late and at_chance(row, run.data.val.labels):
        lines.append(
            f"after epoch {row['epoch']} the answers are still at chance (validation loss "
            f"{row['val_loss']:.2f}, accuracy {row['val_acc']:.2f}): try "
            f"{' or '.join(_learning_more(run.options))}"
        )
    if gradient_scale < 1:
        lines.append(
            "gradients are too large for float16, so that steps are left out: try --amp bf16 or "
            "--amp off"
        )
    if run.options.aug != "none" and row.get("val_acc", 0) > row["train_acc"]:
        lines.append(
            "validation is more accurate than training, which is normal here: training photos are "
            "randomly cropped and harder"
        )
    lines += [f"{printable(photo.path)} was skipped: {photo.reason}" for photo in skipped]
    advised = run.position.advised
    new = [line for line in lines if line not in advised]
    advised += new
    return [f"  note: {line}" for line in new]


def at_chance(row: dict, labels: Sequence[int]) -> bool:
    """Whether an epoch's answers on photos of these classes are no better than guessed ones.

    The validation loss is compared: that of training holds smoothing, mixing and a teacher as well.
    """
    shares = [count / len(labels) for count in Counter(labels).values()]
    usual = max(shares)  # right when the largest class is always answered
    luck = 2 * math.sqrt(usual * (1 - usual) / len(labels))
    entropy = -sum(share * math.log(share) for share in shares)
    return len(shares) > 1 and row["val_loss"] > 0.97 * entropy and row["val_acc"] <= usual + luck


def _learning_more(options: Options) -> list[str]:
    """What may help a run that learns nothing, of what its user has not done."""
    ways = [f"another --lr (it is {options.lr:g})"]
    if not options.weights:
        ways.append("pretrained --weights")
    elif options.frozen:
        ways.append("--freeze-layers false")
    return ways


def next_after(photos: int) -> tuple[Next, str]:
    """Returns what to try after the head alone on so many photos in training, and its worth.

    Both are those that the benchmark found at the number that is nearest.
    """
    like = min(NEXT, key=lambda measured: abs(math.log(measured / photos)))
    points = f"{NEXT[like].points} points of accuracy more with {like} photos in training"
    return NEXT[like], f"{points}, the mean of other data sets (docs/results.md)"


def next_form(run: Run) -> list[tuple[str, str]]:
    """Returns (what it is worth and takes, command line) of what follows a head trained alone."""
    options = run.options
    if not (options.weights and options.frozen) or run.model.sizes.mlp != "mlp":
        return []
    if run.model.sizes.adapt != "none" or options.adapt != "none":
        return []
    names = {"data_path", "val_path", "test_path", "test_split", "exclude", "weights", "img_size"}
    names |= {"folds", "group_by", "seed", "val_split"}  # the same validation photos
    words = words_of(options, names | {"epochs"})
    best, worth = next_after(len(run.data.train.paths))
    line = command("python", "train.py", *words, *best.flags)
    if run.photo_seconds:
        minutes = run.photo_seconds * options.epochs * len(run.data.train.paths) * STEP / 60
        worth += f", here in about {max(1, round(minutes))} min"
    return [(f"try next, {worth}", line)]


# What a run that does the same again need not say, beside what was chosen for it.
NOT_AGAIN = {"output", "resume", "workers", "save_steps", "cache_images", "download", "exclude"}


def again(run: Run) -> list[str]:
    """Returns the flags of a run with which another one does the same again."""
    names = {named.name for named, _ in Options.rows()}
    return words_of(run.options, names - NOT_AGAIN - run.reasons.keys())


def words_of(options: Options, names: Collection[str]) -> list[str]:
    """Returns the flags among `names`, in the order of the table, whose value is no default."""
    words = []
    for named, row in Options.rows():
        value, flag = getattr(options, named.name), flag_of(named.name)
        if named.name not in names or value == named.default:
            continue
        if row.kind == "switch":
            words.append(flag)
        elif row.kind == "list":
            words += [flag, *value]
        elif row.kind == "pair":
            words.append(flag if value else flag_of(f"no_{named.name}"))
        elif isinstance(value, tuple):
            words.append(f"{flag}={','.join(map(str, value))}")  # may begin with a minus
        else:
            words += [flag, str(value).lower() if isinstance(value, bool) else value]
    return words


def on_nan(run: Run, error: FloatingPointError) -> str:
    """Returns what to do about a loss that is no number."""
    last = run.folder / "last.pth"
    kept = f"; the last good state is {last}" if last.exists() else ""
    amp = " or --amp off" if run.amp_dtype else ""
    return (
        f"{error} of epoch {run.position.epoch + 1}: try a smaller --lr (it was "
        f"{run.options.lr:g}){amp}{kept}"
    )


def less_to_judge(options: Options) -> list[str]:
    """Returns what takes less memory with --eval."""
    smaller = options.batch_size in (None, "auto") or options.batch_size > 1
    ways = ["a smaller --batch-size"] * smaller + ["--device cpu"] * (options.device != "cpu")
    return ways or [SMALLER]


def less_to_train(options: Options) -> list[str]:
    """Returns what takes less memory, for a run with these options."""
    advice = [] if options.grad_checkpointing else ["--grad-checkpointing"]
    shards = not options.fsdp and _may(options, batch_size=1, fsdp=True)
    if options.resume:
        start = f"resume it on more {'with --fsdp' if shards else 'processes'}"
        return [*advice, f"the same total batch on more devices (torchrun, {start})"]
    size = f" than {options.batch_size}" if isinstance(options.batch_size, int) else ""
    if options.batch_size != 1:
        auto = " (auto finds the largest that fits)" * _may(options, batch_size="auto")
        advice += [
            f"a smaller --batch-size{size}{auto}",
            "--accum-steps N for the same total in N parts",
        ]
    advice += ["several devices with torchrun and --fsdp"] * shards
    return advice or [SMALLER]


def _may(options: Options, **values) -> bool:
    """Whether these values would go with the other flags."""
    return contradiction(options.settled(**values)) is None


def _between_processes(error: BaseException) -> bool:
    """Whether it rose where a process hands photos to another, which was killed at that moment."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    is_of_connections = isinstance(error, ConnectionError | EOFError)
    return is_of_connections and Path(last).parent.name == "multiprocessing"


@contextlib.contextmanager
def on_memory(
    options: Options, less: Callable[[Options], list[str]] = less_to_train
) -> Iterator[None]:
    """Turns running out of memory into a ValueError that says which flags of train.py help.

    less: those flags. So does the death of a loader's worker, which the system kills when memory
    ends.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ConnectionError, EOFError) as error:
        if "DataLoader worker" in str(error) or _between_processes(error):
            raise ValueError(
                f"a process that loads photos died ({' '.join(str(error).split())}), as it happens "
                f"when memory runs out: try fewer --workers than {options.workers}; what was saved "
                f"before is whole"
            ) from None
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory: try {', or '.join(less(options))}; what was saved before is whole"
        ) from None
