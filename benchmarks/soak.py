"""Trains a tiny model again and again while things go wrong, and counts what was survived and lost.

    python -m benchmarks.soak --faults 200 --seed 0

A story is one run of train.py in a fresh folder, hit by up to six faults drawn by the seed, each
followed by a resume. After each fault no file may be half written or gone, no lock may stop the
resume, and what is said must be a sentence with the right exit status; at the end the weights, the
metrics and TensorBoard's scalars must be, bit for bit, those of the same run left in peace (except
where the fault changed the photos). Exit status 1 when anything was lost.

Every run is a process forked from this one, which has imported torch once: its death, its lock, its
loader's workers and its signals are real. Plots are drawn once and written by all. Disk, clock and
memory are stood in for by shims: a disk that refuses its n-th change and all that follow, whichever
of open, write, fsync and rename it is; a clock that jumps; an allocation that fails. Needs Linux.
"""

import argparse
import atexit
import builtins
import contextlib
import csv
import errno
import gc
import io
import itertools
import json
import logging
import mmap
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

# Processes are forked from this one: no library may start threads when it is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import train
from reporting import confusion, page, plots
from system.terminal import run_cli
from training import loss, results

PATIENCE_S = 300  # a run that takes longer hangs
TIMES = ("images_per_second", "seconds", "data_wait")
RESULTS = {"best.pth", "last.pth", "class_indices.json", "args.json", "split.json", "metrics.csv"}
RESULTS |= {"data_report.txt", "samples.jpg", "curves.png", "confusion.png", "report.html"}
RESULTS |= {"features.npz"}

COMMON = (
    "--data-path ../photos --output run --model vit_micro_patch8_64 --img-size 16 --amp off "
    "--val-split 0.25"
)
SETTINGS = {
    "all layers": "--epochs 2 --batch-size 6 --aug trivial --mixup 0.2 --save-steps 3 --workers 0",
    "KAN": "--epochs 2 --batch-size 9 --mlp kan --kan-rank 2 --kan-blocks last:1 --ema 0.9 "
    "--aug basic --accum-steps 2 --save-steps 1 --cache-images disk --workers 2",
    "frozen": "--weights ../../start/here/run/best.pth --epochs 4 --batch-size 8 --workers 1",
}


class Lost(Exception):
    """What must not happen after a fault; the message says what was found."""


# --- a run in a process of its own --------------------------------------------------------------


class Run:
    """train.py with `words`, forked from this process, in `folder`, its output in run-N.txt.

    arm(): called in the new process before anything else, to put shims in place.
    """

    groups: ClassVar[set[int]] = set()  # of all runs: each has a process group of its own

    def __init__(self, folder: Path, words: str, arm: Callable[[], None] = lambda: None):
        self.output = folder / f"run-{len(self.groups)}.txt"
        self.words = words
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(folder, words, arm)
        self.groups.add(self.pid)

    def _become(self, folder: Path, words: str, arm: Callable[[], None]) -> None:
        status: int | str | None = 1
        try:
            os.setsid()
            output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            # A shell starts what runs in the background with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder / "here")
            sys.argv = ["train.py", *words.split()]
            arm()
            run_cli(train.main)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(Exception):
                atexit._run_exitfuncs()  # as the interpreter does: the loader's workers end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self) -> int:
        """Returns the exit status, negative for a signal's; raises Lost when the run hangs."""
        end = time.monotonic() + PATIENCE_S
        while not self.ended():
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Lost(f"the run hung for {PATIENCE_S} s: {self.said()[-200:]}")
            time.sleep(0.005)
        return self.status

    def sleep(self, seconds: float) -> None:
        """Waits as long as the run lasts, at most `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended():
            time.sleep(0.002)

    def send(self, number: int, group: bool = False) -> bool:
        """Sends a signal, to the loader's workers too with `group`; False when it came too late."""
        if self.ended():
            return False
        (os.killpg if group else os.kill)(self.pid, number)
        return True

    def workers(self) -> list[int]:
        try:
            return [int(pid) for pid in children_of(self.pid)]
        except OSError:
            return []

    def said(self) -> str:
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()


class Tally:
    """A number that a run counts and its parent reads."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 8)

    def add(self, one: int = 1) -> int:
        self.memory[:] = (self.value + one).to_bytes(8, "little")
        return self.value

    @property
    def value(self) -> int:
        return int.from_bytes(self.memory[:], "little")


# --- shims: what a run meets instead of its disk, clock and memory ------------------------------


def break_disk(below: Path, after: int | None, number: int, count: Tally, failed: Tally) -> None:
    """Lets every change below a folder fail with errno `number`, once `after` of them were made."""
    real = {name: getattr(os, name) for name in CHANGES}
    open_file, open_fd, open_low = builtins.open, os.fdopen, os.open

    def change(path=None) -> None:
        if path is not None and not os.path.abspath(os.fsdecode(path)).startswith(f"{below}/"):
            return
        if after is not None and count.value >= after:
            failed.add()
            raise OSError(number, os.strerror(number), *([os.fsdecode(path)] if path else []))
        count.add()

    class Raw(io.FileIO):
        def write(self, data) -> int:
            change()
            return super().write(data)

    def opened(file, mode="r", *words, **options):
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return open_file(file, mode, *words, **options)
        change(file)
        if mode in ("wb", "ab") and os.path.abspath(os.fsdecode(file)).startswith(f"{below}/"):
            return io.BufferedWriter(Raw(file, mode[0]))
        return open_file(file, mode, *words, **options)

    def opened_fd(fd, mode="r", *words, **options):
        if mode == "wb":
            return io.BufferedWriter(Raw(fd, "w"))
        return open_fd(fd, mode, *words, **options)

    def opened_low(path, flags, *words, **options):
        if flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE:
            change(path)
        return open_low(path, flags, *words, **options)

    def changing(name: str):
        def call(first, *words, **options):
            change(None if isinstance(first, int) else first)
            return real[name](first, *words, **options)

        return call

    builtins.open = io.open = opened
    os.fdopen, os.open = opened_fd, opened_low
    for name in CHANGES if number == errno.EROFS else CHANGES[:4]:
        setattr(os, name, changing(name))


CHANGES = (
    "fsync",
    "replace",
    "mkdir",
    "posix_fallocate",
    "unlink",
    "chmod",
)  # from the fifth on: EROFS


def jump_clock(calls: int, seconds: float, jumped: Tally) -> None:
    """Lets the clock of the wall jump at its n-th reading."""
    real, count = time.time, itertools.count()

    def jumping() -> float:
        late = next(count) >= calls
        if late:
            jumped.add()
        return real() + late * seconds

    time.time = jumping


def run_out_of_memory(step: int, error: Callable[[], Exception], failed: Tally) -> None:
    """Lets the n-th training step raise what `error` makes."""
    real, count = loss.Criterion.__call__, itertools.count(1)

    def call(self, *words):
        if next(count) == step:
            failed.add()
            raise error()
        return real(self, *words)

    loss.Criterion.__call__ = call


def after_scan(then: Callable[[], None]) -> None:
    """Calls `then` when the photos have been looked for, and not yet been loaded."""

    def then_call(real: Callable) -> Callable:
        def call(*words):
            found = real(*words)
            then()
            return found

        return call

    for name in ("load_data", "check_still_there"):
        setattr(train, name, then_call(getattr(train, name)))


# --- stories ------------------------------------------------------------------------------------


@dataclass
class Story:
    """A run in `folder` and what has been done to it. peace: the same run without faults."""

    folder: Path
    setting: str
    rng: random.Random
    peace: "Peace | None" = None
    photos_changed: bool = False
    clock_jumped: bool = False
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "here" / "run"
        (self.folder / "here").mkdir(parents=True)
        self.photos = self.folder / "photos"
        shutil.copytree(self.folder.parent / "photos", self.photos)

    @property
    def words(self) -> str:
        if (self.run_dir / "last.pth").exists():
            return "--resume run"
        return f"{COMMON} {SETTINGS[self.setting]}"

    @property
    def finished(self) -> bool:
        return (self.run_dir / "report.html").exists()

    def launch(self, arm: Callable[[], None] = lambda: None) -> Run:
        return Run(self.folder, self.words, arm)

    def moment(self) -> float:
        """A random time at which a run is under way, in seconds from its start."""
        return self.rng.uniform(0, self.peace.seconds)


@dataclass
class Peace:
    """What a setting's run comes to when nothing disturbs it."""

    seconds: float
    disk_changes: int
    clock_readings: int
    steps: int
    last: dict
    best: dict
    rows: list[dict]


def peaceful_run(folder: Path, setting: str) -> Peace:
    story = Story(folder, setting, random.Random(0))
    changes, readings, steps, never = Tally(), Tally(), Tally(), Tally()

    def count() -> None:
        break_disk(folder, None, 0, changes, never)
        jump_clock(0, 0.0, readings)
        real = loss.Criterion.__call__
        loss.Criterion.__call__ = lambda *words: (steps.add(), real(*words))[1]

    start = time.monotonic()
    run = story.launch(count)
    if run.wait():
        raise SystemExit(f"the run of {setting!r} fails without a fault:\n{run.said()}")
    seconds = time.monotonic() - start
    inspect(story)
    return Peace(seconds, changes.value, readings.value, steps.value, *outcome(story.run_dir))


def outcome(run_dir: Path) -> tuple[dict, dict, list[dict]]:
    """Returns last.pth, best.pth and metrics.csv less what is no result: paths and times."""
    last, best = (load(run_dir / name) for name in ("last.pth", "best.pth"))
    last.pop("args")
    for row in (*last["history"], last["best"], last["metrics"], best["metrics"]):
        for name in TIMES:
            row.pop(name, None)
    rows = read_csv(run_dir / "metrics.csv")
    return last, best, [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    return [{name: float(value) for name, value in row.items()} for row in rows]


# --- faults: each returns whether it came in time -----------------------------------------------


def end_by_signal(story: Story, number: int, statuses: set[int], group: bool) -> bool:
    run = story.launch()
    run.sleep(story.moment())
    sent = run.send(number, group)
    status = run.wait()
    if sent and status != 0:  # 0: it came while the run ended
        expect(run, statuses)
    return sent and status != 0


def kill(story: Story) -> bool:
    return end_by_signal(story, signal.SIGKILL, {-signal.SIGKILL}, group=False)


def terminate(story: Story) -> bool:
    statuses = {128 + signal.SIGTERM, -signal.SIGTERM}  # saved, or before there was what to save
    return end_by_signal(story, signal.SIGTERM, statuses, story.rng.random() < 0.5)


def interrupt(story: Story) -> bool:
    return end_by_signal(story, signal.SIGINT, {130}, story.rng.random() < 0.5)


def refuse_changes(story: Story, number: int) -> bool:
    failed = Tally()
    after = story.rng.randrange(story.peace.disk_changes)
    run = story.launch(lambda: break_disk(story.folder, after, number, Tally(), failed))
    run.wait()
    if failed.value:
        expect(run, {2})
    return bool(failed.value)


def fill_disk(story: Story) -> bool:
    return refuse_changes(story, errno.ENOSPC)


def lock_disk(story: Story) -> bool:
    return refuse_changes(story, errno.EROFS)


def change_photos(story: Story, change: Callable[[Path], None]) -> bool:
    """Changes a photo between scan and load; half of the runs are killed later, and resumed."""
    photo = story.rng.choice(sorted(story.photos.glob("*/*.jpg")))
    before, killed = photo.read_bytes(), story.rng.random() < 0.5
    story.photos_changed = True
    run = story.launch(lambda: after_scan(lambda: change(photo)))
    if killed:
        run.sleep(story.moment())
        run.send(signal.SIGKILL)
    status = run.wait()
    if status != -signal.SIGKILL:
        expect(run, {0})
    gone = not photo.exists()
    if gone and story.words.startswith("--resume") and not story.finished:
        refused = story.launch()
        refused.wait()
        expect(refused, {2}, photo.name)
    changed = gone or photo.read_bytes() != before
    if photo.is_dir():
        photo.rmdir()
    photo.write_bytes(before)
    return changed


def remove_photo(story: Story) -> bool:
    return change_photos(story, os.unlink)


def rewrite_photo(story: Story) -> bool:
    def other(photo: Path) -> None:
        choice = story.rng.choice(["size", "truncated", "garbage", "empty"])
        if choice == "size":
            Image.new("RGB", (31, 57), (9, 99, 199)).save(photo)
        else:
            data = {"truncated": photo.read_bytes()[:400], "garbage": b"no photo", "empty": b""}
            photo.write_bytes(data[choice])

    return change_photos(story, other)


def kill_worker(story: Story) -> bool:
    run = story.launch()
    run.sleep(story.moment())
    while not (workers := run.workers()) and not run.ended():
        time.sleep(0.001)
    for pid in workers[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if run.wait() != 0:
        expect(run, {2})
        return True
    return False


def set_clock(story: Story) -> bool:
    jumped = Tally()
    calls = story.rng.randrange(story.peace.clock_readings)
    seconds = story.rng.choice([-1, 1]) * 10 ** story.rng.uniform(0, 8.5)  # a second to ten years
    story.clock_jumped = True
    run = story.launch(lambda: jump_clock(calls, seconds, jumped))
    run.wait()
    expect(run, {0})
    return bool(jumped.value)


def start_second(story: Story) -> bool:
    """Starts the same command twice: one of the two must say why it does not train."""
    first = story.launch()
    first.sleep(story.moment())
    late = first.ended()
    second = story.launch()
    refused = [run for run in (first, second) if run.wait() == 2]
    for run in (first, second):
        expect(run, {0, 2})
    if len(refused) == 2:
        raise Lost(f"each of two runs gave way to the other: {first.said()} {second.said()}")
    if not refused and not second.words.startswith("--resume"):
        raise Lost("two runs were trained into one folder")
    reasons = ("another process is training", "already holds a run")
    if refused and not any(reason in refused[0].said() for reason in reasons):
        raise Lost(f"refused for another reason: {refused[0].said()[-300:]}")
    return not late


def exhaust_memory(story: Story) -> bool:
    failed = Tally()
    text = (
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
    )
    error = story.rng.choice([MemoryError, lambda: RuntimeError(text)])
    step = story.rng.randint(1, story.peace.steps)
    run = story.launch(lambda: run_out_of_memory(step, error, failed))
    run.wait()
    if failed.value:
        expect(run, {2}, "out of memory")
    return bool(failed.value)


FAULTS = {
    "kill -9": kill,
    "SIGTERM": terminate,
    "SIGINT (Ctrl-C)": interrupt,
    "disk full": fill_disk,
    "disk read-only": lock_disk,
    "photo gone after the scan": remove_photo,
    "photo changed after the scan": rewrite_photo,
    "loader's worker killed": kill_worker,
    "clock jumps": set_clock,
    "second run started": start_second,
    "out of memory": exhaust_memory,
}


# --- what must hold -----------------------------------------------------------------------------


def expect(run: Run, statuses: set[int], words: str = "") -> None:
    said = run.said()
    if run.status not in statuses or "Traceback" in said or words not in said:
        raise Lost(f"exit status {run.status}, said: {said[-2000:]}")
    if run.status == 2 and "train.py: error: " not in said:
        raise Lost(f"exit status 2 without a word: {said[-300:]}")


def inspect(story: Story) -> None:
    """Raises Lost when a file under a final name is not whole."""
    for path in [*story.run_dir.glob("*"), *story.folder.glob("work/*.json")]:
        try:
            CHECKS.get(path.suffix, Path.stat)(path)
        except Exception as error:
            raise Lost(f"{path.name} is not whole: {type(error).__name__}: {error}") from None


def check_page(path: Path) -> None:
    if not path.read_text("utf-8").rstrip().endswith("</html>"):
        raise ValueError("no end")


CHECKS = {
    ".pth": load,
    ".json": lambda path: json.loads(path.read_text("utf-8")),
    ".csv": read_csv,
    ".png": lambda path: Image.open(path).load(),
    ".html": check_page,
}


def finish(story: Story) -> None:
    """Resumes in peace, and raises Lost where the end is not that of the peaceful run."""
    run = story.launch()
    run.wait()
    expect(run, {0})
    inspect(story)
    names = {path.name for path in story.run_dir.iterdir()}
    if missing := RESULTS - names:
        raise Lost(f"missing in the end: {', '.join(sorted(missing))}")
    if left := [name for name in names if name.endswith(".tmp")]:
        raise Lost(f"left in the end: {', '.join(left)}")
    ours = outcome(story.run_dir)
    theirs = story.peace.last, story.peace.best, story.peace.rows
    if story.photos_changed:
        ours, theirs = ([epochs(*result)] for result in (ours, theirs))
    for name, a, b in zip(("last.pth", "best.pth", "metrics.csv"), ours, theirs, strict=False):
        if where := difference(a, b):
            raise Lost(f"{name} is another than in peace: {where}")
    steps = sorted(event_steps(story.run_dir))
    wanted = [row["epoch"] for row in story.peace.rows]
    if (sorted(set(steps)) if story.clock_jumped else steps) != wanted:
        raise Lost(f"TensorBoard has the epochs {steps}")


def epochs(last: dict, _best: dict, rows: list[dict]) -> tuple:
    return last["epoch"], [row["epoch"] for row in rows]


def event_steps(run_dir: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of what a resume purges
    return [scalar.step for scalar in EventAccumulator(str(run_dir)).Reload().Scalars("val_loss")]


def difference(a, b, where: str = "") -> str:
    """Returns where two values differ in a bit, or nothing."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__}, {type(b).__name__}"
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(a.keys() ^ b.keys(), key=str)}"
        return next(filter(None, (difference(a[k], b[k], f"{where}/{k}") for k in a)), "")
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} values"
        pairs = enumerate(zip(a, b, strict=True))
        return next(filter(None, (difference(x, y, f"{where}/{i}") for i, (x, y) in pairs)), "")
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or (a != a and b != b)
    return "" if same else f"{where or 'value'}: {a}, {b}"


# --- the table ----------------------------------------------------------------------------------


def soak(work: Path, faults: int, seed: int, jobs: int) -> tuple[Counter, Counter]:
    """Returns by kind how many faults were injected and how many lost something."""
    draw_photos(work / "photos", seed)
    warm_up(work / "start")
    peace = {name: peaceful_run(work / f"peace {i}", name) for i, name in enumerate(SETTINGS)}
    queue = list(itertools.islice(itertools.cycle(FAULTS), faults))
    random.Random(seed).shuffle(queue)
    tellers = []
    for job in range(jobs):
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            with ending():
                rng = random.Random(f"{seed}/{job}")
                result = tell_all(work, f"story {job}", queue[job::jobs], peace, rng)
                (work / f"result {job}").write_text(json.dumps(result), "utf-8")
        tellers.append(pid)
    told = []
    for job, pid in enumerate(tellers):
        os.waitpid(pid, 0)
        told.append(json.loads((work / f"result {job}").read_text("utf-8")))
    injected, lost = zip(*told, strict=True)
    return sum(map(Counter, injected), Counter()), sum(map(Counter, lost), Counter())


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Ends this process with the block, whatever happens in it."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def tell_all(
    work: Path, title: str, queue: list[str], peace: dict, rng: random.Random
) -> tuple[Counter, Counter]:
    """Tells stories until all faults of the queue have happened; returns what `soak` does."""
    injected, lost = Counter(), Counter()
    Run.groups.clear()
    for number in itertools.count(1):
        if not queue:
            break
        setting = rng.choice(list(SETTINGS))
        story = Story(work / f"{title}-{number}", setting, random.Random(rng.random()))
        story.peace = peace[setting]
        came, loss = tell(story, queue)
        injected.update(came)
        if loss is None:
            shutil.rmtree(story.folder)
        else:
            lost[story.faults[-1]] += 1
            print(f"LOST, see {story.folder}: {loss}")
        print(f"{len(queue):4} to go; {title}: {setting}: {', '.join(story.faults)}", flush=True)
    if left := orphans():
        lost["kill -9"] += 1
        print(f"LOST: processes {left} live on though their runs ended")
    return injected, lost


def warm_up(folder: Path) -> None:
    """Runs train.py once in this process, without a step: what it imports, the others find here."""
    (folder / "here").mkdir(parents=True)
    tqdm.monitor_interval, interval = 0, tqdm.monitor_interval  # else it leaves a thread
    words = COMMON.replace("../photos", "../../photos") + " --epochs 0 --workers 0"
    with (
        contextlib.chdir(folder / "here"),
        (folder / "output.txt").open("w", encoding="utf-8") as output,
    ):
        sys.argv = ["train.py", *words.split()]
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            run_cli(train.main)
    if not (folder / "here" / "run" / "report.html").exists():
        raise SystemExit(f"a run of --epochs 0 fails without a fault: see {folder}")
    png = (folder / "here" / "run" / "confusion.png").read_bytes()
    plots.png_bytes = page.png_bytes = lambda figure: png
    for module, name in ((plots, "curve_figure"), (confusion, "confusion_figure")):
        setattr(module, name, lambda *_: Plot)
        setattr(page, name, lambda *_: Plot)
    plots.plot_curves = results.plot_curves = lambda rows, path, **_: plots.save(Plot, path)
    tqdm.monitor_interval = interval
    gc.collect()
    gc.freeze()  # or each process would copy what it only looks at
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise SystemExit(f"this process has {threads} threads and cannot be forked safely")


class Plot:
    """Stands for a figure that is not drawn again."""

    @staticmethod
    def get_figwidth() -> float:
        return 1.0


def tell(story: Story, queue: list[str]) -> tuple[list[str], Lost | None]:
    """Lets faults of the queue, from which they are taken, happen to a run that is then finished.

    Returns those that came in time, and what was lost if anything was.
    """
    came = []
    try:
        for _ in range(story.rng.randint(2, 6)):
            kind = next((kind for kind in queue if possible(kind, story.setting)), None)
            if kind is None or story.finished:
                break
            story.faults.append(kind)
            queue.remove(kind)
            came.append(kind)
            if not FAULTS[kind](story):
                queue.append(came.pop())
            inspect(story)
        finish(story)
    except Lost as loss:
        return came, loss
    return came, None


def possible(kind: str, setting: str) -> bool:
    return kind != "loader's worker killed" or "--workers 0" not in SETTINGS[setting]


def orphans() -> list[int]:
    """Returns the processes of the runs' groups that do not end within 20 seconds."""
    end = time.monotonic() + 20  # a worker looks every 5 seconds whether its run lives
    while True:
        left = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = path.read_text("utf-8").rpartition(")")[2].split()[:3]
                if int(group) in Run.groups and state != "Z":
                    left.append(int(path.parent.name))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


def draw_photos(root: Path, seed: int, per_class: int = 16, size: int = 24) -> None:
    """Draws noisy photos of three classes: red, green, blue."""
    rng = np.random.default_rng(seed)
    for colour, name in enumerate(("roses", "leaves", "violets")):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.normal(60, 40, (size, size, 3))
            pixels[..., colour] += 100
            photo = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            photo.save(root / name / f"{number:02}.jpg", quality=90)


def show(injected: Counter, lost: Counter) -> None:
    print("\n| fault | injected | survived | lost |\n|---|---|---|---|")
    for kind in FAULTS:
        print(f"| {kind} | {injected[kind]} | {injected[kind] - lost[kind]} | {lost[kind]} |")
    total, all_lost = injected.total(), lost.total()
    print(f"| all | {total} | {total - all_lost} | {all_lost} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="stories at a time (default: 1)")
    parser.add_argument("--work", type=Path, help="where to keep what was lost (default: new)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked from this one: it must have no other threads
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    work = args.work or Path(tempfile.mkdtemp(prefix="soak-"))
    start = time.monotonic()
    injected, lost = soak(work.resolve(), args.faults, args.seed, args.jobs)
    show(injected, lost)
    print(
        f"\n{time.strftime('%Y-%m-%d')}, seed {args.seed}, {time.monotonic() - start:.0f} s, "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    if lost:
        print(f"what was lost is in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
