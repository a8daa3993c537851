"""The folder of a run: its name, its lock and the files that a run writes into it.

weights/<model>-<data>-<n>/   best.pth last.pth class_indices.json args.json split.json
                              metrics.csv data_report.txt curves.png confusion.png report.html
                              results.json; with --folds out_of_fold.csv and a folder each
                              events.out.tfevents.*   (TensorBoard)
"""

import contextlib
import errno
import itertools
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from system.files import WEIGHTS_FOLDER, clear_temporary, read_json, write_csv, write_json
from system.terminal import command, printable
from training import feature_cache

# All that a run writes under names of its own, but for TensorBoard; folds write the same.
WRITTEN = (
    "best.pth last.pth adapter.safetensors answers.pth class_indices.json args.json split.json "
    "metrics.csv data_report.txt samples.jpg curves.png confusion.png mistakes.jpg confused.jpg "
    "report.html results.json features.npz out_of_fold.csv suspects.csv suspects.html"
)
LOCK = ".lock"
EVENTS = "events.out.tfevents"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def new_run_dir(output: str | None, model: str, data_path: str, data_roots: list[str]) -> Path:
    """Returns the folder for a new run, made if absent: `output`, or weights/<model>-<data>-<n>.

    Raises ValueError as `check_output` does.
    """
    check_output(output, data_roots)
    if output is not None:
        path = Path(output)
        path.mkdir(parents=True, exist_ok=True)
        return path
    # A name may have 255 bytes, of which a character takes up to four.
    data = re.sub(r"[^\w.-]+", "_", Path(data_path).resolve().name)[:50] or "data"
    for n in itertools.count(1):
        path = WEIGHTS_FOLDER / f"{model}-{data}-{n}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("itertools.count never ends")


def check_output(
    output: str | None, data_roots: list[str], inputs: Iterable[str | None] = ()
) -> None:
    """Raises ValueError where no run can be written: in the data, over a file or another run.

    inputs: files that the run reads, or folders of them.
    """
    path = WEIGHTS_FOLDER if output is None else Path(output)
    _refuse_inside(path, data_roots)
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"--output {path}: {there} is a file where a folder should be")
    if output is not None:
        _refuse_run(path)
        _refuse_others(path, inputs)


def fold_folders(run_dir: Path) -> list[Path]:
    """Returns the folders of a run's folds."""
    return [path for path in run_dir.glob("fold*") if re.fullmatch(r"fold\d+", path.name)]


def _refuse_run(path: Path) -> None:
    if (path / "last.pth").exists():
        raise ValueError(
            f"{path} already holds a run (last.pth): continue it with "
            f"{command('--resume', path)}, or give another --output"
        )


def _refuse_others(path: Path, inputs: Iterable[str | None]) -> None:
    """Raises ValueError where a run would replace what it has not made itself.

    What a run left that was killed before its first last.pth may be replaced: lock and arguments
    tell such a one, results that it was no such.
    """
    folders = path, *fold_folders(path)
    files = [folder / name for folder in folders for name in WRITTEN.split()]
    found = [file for file in files if file.exists()]
    begun = (path / LOCK).exists() and path / "args.json" in found
    if begun and path / "results.json" not in found:
        read = {Path(name).resolve() for name in inputs if name}
        found = [file for file in found if read & {file.resolve(), file.parent.resolve()}]
    here = Path("class_indices.json").resolve()  # which every run writes
    if found := [file for file in found if file.resolve() != here]:
        raise ValueError(
            f"--output {path}: the run would replace {found[0]}, which is there already: give "
            f"another folder"
        )


def _refuse_inside(path: Path, data_roots: list[str]) -> None:
    for root in data_roots:
        if Path(root).resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(
                f"the output folder {path} would lie inside the data {root}, into which nothing is "
                f"written: give --output elsewhere"
            )


def find_run(where: str) -> Path:
    """Returns the folder of a run to resume: `where`, or the newest under weights/ for "newest".

    Raises FileNotFoundError with a sentence where there is none.
    """
    if where == "newest":
        runs = sorted(WEIGHTS_FOLDER.glob("*/last.pth"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise FileNotFoundError(
                f"there is no run to resume under {WEIGHTS_FOLDER}/: no folder in it holds a "
                f"last.pth"
            )
        return runs[-1].parent
    path = Path(where)
    path = path.parent if path.name == "last.pth" else path
    if not (path / "last.pth").is_file():
        raise FileNotFoundError(
            f"{path} holds no last.pth to resume from: a run writes it after its first epoch, or "
            f"every --save-steps"
        )
    return path


@contextlib.contextmanager
def locked(run_dir: Path, new: bool = False) -> Iterator[None]:
    """Holds the run's lock; raises ValueError when another process trains into the same folder.

    With `new` also when one has done so since the folder was chosen. The lock ends with the process
    however that dies, and its loader's workers do not inherit it.
    """
    with open(run_dir / LOCK, "ab") as file:
        try:
            _lock(file)
        except OSError:
            raise ValueError(
                f"another process is training into {run_dir}: wait for it or give another --output"
            ) from None
        if new:
            _refuse_run(run_dir)
        for folder in (run_dir, *fold_folders(run_dir)):
            clear_temporary(folder, WRITTEN.split())
        feature_cache.remove(run_dir)
        yield


@contextlib.contextmanager
def advice_on_disk(run_dir: Path) -> Iterator[None]:
    """Turns a full, read-only or broken disk into a ValueError that says how the run goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        saved = (run_dir / "last.pth").exists()
        resume = command("python", "train.py", "--resume", run_dir)
        go_on = f"go on with: {resume}" if saved else "start again"
        raise ValueError(
            f"{os.fsdecode(error.filename or run_dir)}: {error.strerror}; what was saved before is "
            f"whole: once the disk can be written again, {go_on}"
        ) from error


def _lock(file: BinaryIO) -> None:
    """Takes the lock of an open file without waiting; OSError where another process has it.

    A POSIX record lock belongs to the process, not to the open file. On Windows the handle has it,
    which only processes started with it share.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_class_indices(classes: list[str], run_dir: Path, data_roots: list[str]) -> str | None:
    """Writes class_indices.json into the run and, as the reference does, into the current folder.

    Returns a line when the file of the current folder changed.
    """
    indices = {str(index): name for index, name in enumerate(classes)}
    write_json(run_dir / "class_indices.json", indices)
    here = Path("class_indices.json")
    try:
        _refuse_inside(here, data_roots)
        old = read_json(here) if here.exists() else None
    except ValueError:  # inside the data, or not JSON: then it is not ours to replace
        return None
    if old == indices:
        return None
    try:
        write_json(here, indices)
    except OSError as error:  # the run's own is what counts
        return (
            f"class_indices.json was written into {run_dir} alone, for {here.absolute()} cannot be "
            f"written: {error.strerror}"
        )
    return f"class_indices.json now lists {len(classes)} classes" + (
        f", {', '.join(map(printable, classes))}" if len(classes) <= 10 else ""
    )


def _hush(failure) -> None:
    """Hook for threads: what the disk refuses to TensorBoard's is raised at its next call, too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _date_back(run_dir: Path) -> None:
    """Gives events from the future, if the clock was set back since, names that come before now.

    TensorBoard reads a run's files in the order of the times in their names.
    """
    now = int(time.time())
    times = {path: path.name.split(".")[3] for path in sorted(run_dir.glob(f"{EVENTS}.*"))}
    later = [path for path, said in times.items() if said.isdecimal() and int(said) >= now]
    for left, path in zip(range(len(later), 0, -1), later, strict=True):
        words = path.name.split(".")
        words[3] = f"{now - left:010d}"
        with contextlib.suppress(OSError):  # only the order of curves depends on it
            path.rename(path.with_name(".".join(words)))


def first_log(run) -> contextlib.AbstractContextManager:
    """Returns the context of the run's log, which is None in all processes but the first."""
    if not run.world.first:
        return contextlib.nullcontext()
    return contextlib.closing(RunLog(run.folder, run.position.history))


class RunLog:
    """Writes metrics.csv and TensorBoard's events, a row and a set of scalars per epoch."""

    def __init__(self, run_dir: Path, history: list[dict]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.run_dir, self.history = run_dir, history
        threading.excepthook = _hush
        if history:
            write_csv(run_dir / "metrics.csv", history)
            _date_back(run_dir)
        # After a kill, events of epochs that will be trained again are struck out.
        self.writer = SummaryWriter(str(run_dir), purge_step=len(history) + 1)

    def epoch(self) -> None:
        """Writes the history, whose last row is new: whole, so that a kill leaves no half row."""
        row = self.history[-1]
        write_csv(self.run_dir / "metrics.csv", self.history)
        for tag, value in row.items():
            if tag != "epoch":
                self.writer.add_scalar(tag, value, row["epoch"])
        self.writer.flush()

    def text(self, tag: str, lines: list[str]) -> None:
        """Adds lines as preformatted text: names from the data must not become markup."""
        import html

        text = "\n".join(lines).encode("utf-8", "backslashreplace")  # names may be any bytes
        body = html.escape(text.decode())
        self.writer.add_text(tag, f"<pre>{body}</pre>")

    def picture(self, tag: str, path: Path, step: int = 0) -> None:
        """Adds a picture as its file holds it: as pixels it would become a large PNG."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            size = {"width": image.width, "height": image.height, "colorspace": 3}
        shown = Summary.Image(encoded_image_string=path.read_bytes(), **size)
        summary = Summary(value=[Summary.Value(tag=tag, image=shown)])
        self.writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        self.writer.close()
