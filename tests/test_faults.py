"""Bad luck while training: disks, clocks, memory, signals, photos and second runs.

Each kind of fault happens here once, in this process where that can be; benchmarks/soak.py lets
hundreds happen to real processes at random moments. Kills and Ctrl-C: see test_train.py.
"""

import builtins
import contextlib
import errno
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.data import get_worker_info

import my_dataset
import train
from formats.checkpoints import load_checkpoint, save_checkpoint
from imaging.preprocess import Preprocess, eval_transform
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from system import files
from training import feature_cache, loss, resuming, run_folder, trainer
from training.run_folder import RunLog, locked, write_class_indices
from vit_model import create_model

spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks" / "soak.py")
soak = importlib.util.module_from_spec(spec)
sys.modules["soak"] = soak  # dataclasses look themselves up there
spec.loader.exec_module(soak)

FLAGS = "--model vit_micro_patch8_64 --img-size 16 --epochs 2 --batch-size 4 --aug none --amp off"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos):
    return make_photos(tmp_path_factory.mktemp("faults") / "photos", per_class=10, size=24)


@pytest.fixture
def run(tmp_path, monkeypatch, call, photos):
    """Returns run(*flags, data) -> (status, output, errors) of train.py in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, data=photos, full=False):
        with monkeypatch.context() as patch:
            if not full:  # pictures and report are half of a tiny run's time
                patch.setattr(train, "show_start", lambda *_: None)
                patch.setattr(train, "write_results", lambda *_: None)
            if "--resume" not in words:
                words = ("--data-path", data, *FLAGS.split(), "--workers", 0, *words)
            return call(train.main, *words)

    return run


def assert_one_sentence(status, errors, *words):
    assert status == 2
    assert errors.startswith("train.py: error: ")
    assert errors.count("\n") == 1
    assert all(word in errors for word in words), errors


def assert_same_run(one, other):
    """Checkpoints and metrics are the same to the bit, but for times."""
    for a, b in zip(soak.outcome(Path(one)), soak.outcome(Path(other)), strict=True):
        assert soak.difference(a, b) == ""


# --- disks --------------------------------------------------------------------------------------


@contextlib.contextmanager
def broken_disk(monkeypatch, after, number=errno.ENOSPC):
    """The disk below the current folder, which fails after some changes; yields their count."""
    count = soak.Tally()
    with monkeypatch.context() as patch:
        for module, name in [(builtins, "open"), (io, "open"), (os, "fdopen"), (os, "open")]:
            patch.setattr(module, name, getattr(module, name))  # to be put back in the end
        for name in soak.CHANGES:
            patch.setattr(os, name, getattr(os, name))
        soak.break_disk(Path.cwd(), after, number, count, soak.Tally())
        yield count


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_anywhere_is_one_sentence_and_the_run_goes_on(run, monkeypatch, number):
    with broken_disk(monkeypatch, None) as count:
        assert run("--output", "peace")[0] == 0
    for nth, share in enumerate((0.1, 0.4, 0.6, 0.95)):
        folder = f"run{nth}"
        with broken_disk(monkeypatch, int(count.value * share), number):
            status, _, errors = run("--output", folder)
        assert_one_sentence(status, errors, folder, os.strerror(number), "what was saved before")
        assert ("--resume" in errors) == Path(folder, "last.pth").exists()
        for path in Path(folder).glob("*.pth"):
            load_checkpoint(path)
        words = ("--resume", folder) if "--resume" in errors else ("--output", folder)
        assert run(*words)[0] == 0
        assert_same_run("peace", folder)
        assert not list(Path(folder).glob(".*.tmp"))


def test_a_checkpoint_that_finds_no_room_names_its_file_and_leaves_the_old_one(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pth"
    tensors = {str(i): torch.randn(3000) for i in range(5)}
    save_checkpoint(path, {"model": {}, "epoch": 1})
    with broken_disk(monkeypatch, None) as count:
        save_checkpoint(tmp_path / "other.pth", {"model": tensors, "epoch": 2})
    for after in range(count.value):
        with (
            broken_disk(monkeypatch, after),
            pytest.raises(OSError, match="No space left") as failure,
        ):
            save_checkpoint(path, {"model": tensors, "epoch": 2})
        assert failure.value.filename == str(path)
        assert load_checkpoint(path)["epoch"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"last.pth", "other.pth"}


def test_a_full_disk_met_by_tensorboard_is_an_error_without_a_traceback(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threading.excepthook", None)
    log = RunLog(tmp_path, [{"epoch": 1, "val_acc": 0.5}])
    with broken_disk(monkeypatch, 3), pytest.raises(OSError, match="No space left"):  # noqa: PT012
        for _ in range(9):
            log.epoch()
    assert "Traceback" not in capfd.readouterr().err


def test_features_take_their_room_on_the_disk_before_they_are_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_cache, "free_memory", lambda: 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        feature_cache.allocate((1, 8, 4), torch.float32, tmp_path)


def test_a_current_folder_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    real = files.write_json

    def read_only_here(path, value):
        if path.parent == Path():
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, value)

    monkeypatch.setattr(run_folder, "write_json", read_only_here)
    said = write_class_indices(["a", "b"], Path("run"), [])
    assert "run alone" in said
    assert "Read-only file system" in said
    assert json.loads(Path("run/class_indices.json").read_text("utf-8"))["1"] == "b"


# --- ends at bad moments ------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill looks like to a test in the same process: nothing after it runs."""


@pytest.mark.parametrize(
    ("place", "name", "nth"),
    [
        (RunLog, "epoch", 2),
        (trainer.Trainer, "keep_best", 2),
        (trainer.Trainer, "save", 1),
        (trainer.Trainer, "save", 2),
        (trainer.Trainer, "load_best", 1),
        (train, "write_results", 1),
    ],
)
def test_a_run_killed_between_two_files_is_completed(run, monkeypatch, place, name, nth):
    real, calls = getattr(place, name), []

    def killed(*words):
        calls.append(1)
        if len(calls) == nth:
            raise Killed
        return real(*words)

    assert run("--output", "peace")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed)
        with pytest.raises(Killed):
            run("--output", "run", full=name == "write_results")
    resumed = Path("run/last.pth").exists()
    assert run(*(("--resume", "run") if resumed else ("--output", "run")), full=True)[0] == 0
    assert_same_run("peace", "run")
    assert soak.event_steps(Path("run")) == [1, 2]
    missing = soak.RESULTS - {path.name for path in Path("run").iterdir()}
    assert missing <= {"samples.jpg"}  # left out above


def test_a_finished_run_that_is_given_more_epochs_has_no_report_until_it_is_finished_again(
    run, monkeypatch
):
    assert run("--output", "run", "--epochs", 1, full=True)[0] == 0
    assert Path("run/report.html").exists()
    monkeypatch.setattr(trainer.Trainer, "validate", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--resume", "run", "--epochs", 2)
    assert not Path("run/report.html").exists()


# --- processes ----------------------------------------------------------------------------------


def test_a_loaders_worker_that_is_killed_is_one_sentence_and_the_run_goes_on(run, monkeypatch):
    real = MyDataSet.__getitems__

    def deadly(self, keys):
        if get_worker_info() is not None and Path("run/last.pth").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, keys)

    words = ("--save-steps", 1, "--cache-images", "off")
    assert run("--output", "peace", *words)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(MyDataSet, "__getitems__", deadly)
        status, _, errors = run("--output", "run", "--workers", 1, *words)
    assert_one_sentence(status, errors, "a process that loads photos died", "--workers")
    assert run("--resume", "run")[0] == 0
    assert_same_run("peace", "run")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loaders_worker_outlives_a_signal_that_comes_while_it_starts(photos, monkeypatch, number):
    real = my_dataset.ignore_signals

    def hit(worker):
        os.kill(os.getpid(), number)
        real(worker)

    monkeypatch.setattr(my_dataset, "ignore_signals", hit)
    paths = sorted(map(str, photos.glob("*/*.jpg")))
    dataset = MyDataSet(paths, [0] * len(paths), eval_transform(Preprocess(16)))
    loader = PhotoLoader(dataset, 8, SeededSampler(len(paths), 0), workers=1)
    assert sum(len(batch.labels) for batch in loader) == len(paths)


KEPT = """
import sys
sys.path.insert(0, {root!r})
from imaging.preprocess import Preprocess, eval_transform
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
paths = sys.argv[1:]
dataset = MyDataSet(paths, [0] * len(paths), eval_transform(Preprocess(16)))
batches = iter(PhotoLoader(dataset, 4, SeededSampler(len(paths), 0), workers=1))
print(len(next(batches).labels))
"""


def test_the_program_ends_though_a_loader_is_still_held(photos):
    script = KEPT.format(root=str(ROOT))
    command = [sys.executable, "-c", script, *map(str, photos.glob("*/*.jpg"))]
    ended = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120)
    assert (ended.stdout, ended.stderr) == ("4\n", "")


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in soak.children_of(pid)]


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


@LINUX
def test_a_second_run_is_refused_and_a_resume_right_after_kill_9_is_not(run, photos):
    words = [*FLAGS.split(), "--epochs", "2000", "--workers", "2", "--save-steps", "1"]
    command = [sys.executable, ROOT / "train.py", "--data-path", photos, *words, "--output", "run"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = []
    try:
        while not Path("run/last.pth").exists():
            assert first.poll() is None
            time.sleep(0.05)
        assert_one_sentence(*run("--resume", "run")[::2], "another process is training into run")
        assert_one_sentence(*run("--output", "run")[::2], "already holds a run")
        workers = workers_of(first.pid)
        for pid in workers:  # left to themselves they see after 5 s that they are orphans, and end
            os.kill(pid, signal.SIGSTOP)
        first.kill()
        first.wait()
        status, out, errors = run("--resume", "run", "--epochs", 1)
        assert (status, errors) == (0, ""), out
        assert len(workers) == 2
        assert all(map(lives, workers)), "the workers were to be there still"
    finally:
        first.kill()
        first.wait()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_run_that_begins_while_another_ends_in_its_folder_overwrites_nothing(run, monkeypatch):
    real = run_folder.new_run_dir

    def then_another_ends(*words):
        folder = real(*words)
        (folder / "last.pth").write_text("of another run", "utf-8")
        return folder

    monkeypatch.setattr(train, "new_run_dir", then_another_ends)
    assert_one_sentence(*run("--output", "run")[::2], "run already holds a run")
    assert Path("run/last.pth").read_text("utf-8") == "of another run"
    assert {path.name for path in Path("run").iterdir()} == {"last.pth", run_folder.LOCK}


def test_a_resumed_state_is_read_under_the_lock(run, monkeypatch):
    assert run("--output", "run", "--epochs", 0)[0] == 0
    order = []

    @contextlib.contextmanager
    def noted(*words):
        with locked(*words):
            order.append("lock")
            yield
            order.append("free")

    real = resuming.load_state
    monkeypatch.setattr(train, "locked", noted)
    monkeypatch.setattr(train, "load_state", lambda f: (order.append("load"), real(f))[1])
    assert run("--resume", "run")[0] == 0
    assert order == ["lock", "load", "free"]


# --- photos, clock, memory ----------------------------------------------------------------------


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (Path.unlink, 1),
        (to_folder, 1),
        (lambda path: path.write_bytes(b""), 1),
        (lambda path: Image.new("L", (57, 31)).save(path), 0),
    ],
)
def test_a_photo_that_changes_after_the_scan_is_counted_if_it_cannot_be_read(
    run, make_photos, tmp_path, monkeypatch, change, failed
):
    real = train.load_data

    def then_change(args):
        data = real(args)
        change(Path(data.train.paths[0]))
        return data

    monkeypatch.setattr(train, "load_data", then_change)
    data = make_photos(tmp_path / "photos", per_class=10, size=24)
    assert run("--output", "run", "--cache-images", "ram", data=data)[0] == 0
    rows = soak.read_csv(Path("run/metrics.csv"))
    assert [row["failed_photos"] for row in rows] == [failed] * 2


def test_a_run_stopped_after_a_photo_failed_goes_on_and_counts_it_once(
    run, make_photos, tmp_path, monkeypatch
):
    data, real = make_photos(tmp_path / "photos", per_class=10, size=24), train.load_data

    def then_break(args):
        found = real(args)
        Path(found.train.paths[0]).write_bytes(b"no photo")
        return found

    def killed(*_words):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "load_data", then_break)
        patch.setattr(trainer.Trainer, "validate", killed)  # all but the last batch are saved
        with pytest.raises(Killed):
            run("--output", "run", "--save-steps", 1, data=data)
    assert len(load_checkpoint("run/last.pth")["loader"]["failed"]) == 1
    status, _, errors = run("--resume", "run")
    assert (status, errors) == (0, "")
    assert soak.read_csv(Path("run/metrics.csv"))[0]["failed_photos"] == 1


@pytest.mark.parametrize("jump", [-1e6, 1e9])
def test_a_clock_that_jumps_changes_nothing(run, monkeypatch, jump):
    assert run("--output", "peace")[0] == 0
    real, calls = time.time, []
    monkeypatch.setattr(time, "time", lambda: calls.append(1) or real() + jump * (len(calls) > 9))
    assert run("--output", "run")[0] == 0
    assert len(calls) > 20
    assert_same_run("peace", "run")
    assert soak.event_steps(Path("run")) == [1, 2]


@pytest.mark.parametrize("jump", [-1e6, 1e9])
def test_a_clock_that_jumps_before_a_resume_leaves_each_epoch_once(tmp_path, monkeypatch, jump):
    history, real = [], time.time
    for epochs in ((1, 2, 3), (3, 4)):  # killed before the third was saved
        log = RunLog(tmp_path, history)
        for epoch in epochs:
            history.append({"epoch": epoch, "val_loss": 1 / epoch})
            log.epoch()
        log.close()
        history = history[:2]
        monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert soak.event_steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 7 bytes")])
def test_memory_that_ends_is_one_sentence_and_the_run_goes_on(run, monkeypatch, error):
    real, calls = loss.Criterion.__call__, []

    def failing(*words):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return real(*words)

    assert run("--output", "peace", "--save-steps", 2)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(loss.Criterion, "__call__", failing)
        status, _, errors = run("--output", "run", "--save-steps", 2)
    assert_one_sentence(status, errors, "out of memory", "--batch-size")
    assert run("--resume", "run")[0] == 0
    assert_same_run("peace", "run")


# --- long ---------------------------------------------------------------------------------------


@LINUX
@pytest.mark.slow
def test_a_short_soak_loses_nothing():
    command = [sys.executable, "-m", "benchmarks.soak", "--faults", "22", "--seed", "1"]
    soaked = subprocess.run(command, check=False, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert soaked.returncode == 0, soaked.stdout + soaked.stderr
    assert "| all | 22 | 22 | 0 |" in soaked.stdout


WATCHED = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import train
from system.terminal import run_cli
from training.run_folder import RunLog

real = RunLog.epoch

def epoch(log):
    real(log)
    children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
    all = [Path("/proc", pid) for pid in ("self", *children)]
    pages = [int((pid / "statm").read_text().split()[1]) for pid in all]
    files = [len(os.listdir(pid / "fd")) for pid in all]
    with open("watched.jsonl", "a") as file:
        print(json.dumps([pages, files]), file=file)

RunLog.epoch = epoch
run_cli(train.main)
"""


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--ema", "0.9", "--cache-images", "disk", "--aug", "trivial", "--workers", "2"],
        ["--weights", "start/best.pth", "--lr", "0.01"],  # features of the frozen layers are kept
    ],
)
def test_50_epochs_take_no_more_memory_or_files_than_3(run, photos, words):
    run("--output", "start", "--epochs", 0)
    script = WATCHED.format(root=str(ROOT))
    command = [sys.executable, "-c", script, "--data-path", photos, *FLAGS.split()]
    command += ["--epochs", "50", "--output", "run", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    epochs = [json.loads(line) for line in Path("watched.jsonl").read_text("utf-8").splitlines()]
    assert len(epochs) == 50
    pages, files = zip(*epochs, strict=True)
    for process in zip(*pages[2:], strict=True):
        assert max(process) <= 1.05 * process[0]
    assert set(map(tuple, files[2:])) == {tuple(files[2])}
    assert len(soak.event_steps(Path("run"))) == 50


def test_the_soak_would_notice_a_difference_and_a_half_written_file(tmp_path):
    a = {"model": {"w": torch.zeros(3)}, "rows": [1, 2.0, float("nan")]}
    assert (
        soak.difference(a, {"model": {"w": torch.zeros(3)}, "rows": [1, 2.0, float("nan")]}) == ""
    )
    b = {"model": {"w": torch.tensor([0, 0, 1e-30])}, "rows": a["rows"]}
    assert soak.difference(a, b).startswith("/model/w")
    assert soak.difference(a, {"model": {}, "rows": a["rows"]}) == "/model: ['w']"
    (tmp_path / "photos").mkdir()
    story = soak.Story(tmp_path / "story", "KAN", None)
    story.run_dir.mkdir()
    for name in ("best.pth", "args.json", "curves.png", "report.html"):
        path = story.run_dir / name
        path.write_text("{", "utf-8")
        with pytest.raises(soak.Lost, match=name):
            soak.inspect(story)
        path.unlink()
    model = create_model("vit_micro_patch8_64", num_classes=2, img_size=16)
    save_checkpoint(story.run_dir / "best.pth", {"model": model.state_dict()})
    soak.inspect(story)
