"""Several processes train as one would: same losses, same files, one end."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import train
from my_dataset import Batch, Failed, in_step
from parallel.launch import exit_status, lost_contact
from parallel.sharding import gradient_sync, like, whole
from parallel.world import World
from pretrained import load_model
from system.terminal import run_cli
from training import resuming, trainer
from training.run_folder import locked
from utils import Meter, pooled

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]
FAST += ["--lr", "1e-3"]
WITHIN_FLOAT_ERROR = {"rtol": 1e-4, "atol": 1e-5}
RESULTS = ("train_loss", "train_acc", "val_loss", "val_acc", "learning_rate", "failed_photos")


# --- starting processes -------------------------------------------------------------------------
# They come from a server that has imported everything, for importing torch takes seconds.


@pytest.fixture(scope="session")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "torch.utils.tensorboard", "torch.distributed.fsdp"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the server does not know pytest's sys.path
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def run_as_rank(rank, size, port, folder, words, before):
    """One process: train.py with `words`, its output in files, once `before(rank)` has run."""
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    train.show_start = train.write_results = lambda *_: None  # pictures take half the time
    sys.argv = ["train.py", *words]
    if before is not None:
        before(rank)
    run_cli(train.main)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def photos(tmp_path, make_photos, monkeypatch):
    """Photos in tmp_path/photos (21 to train on, 6 others); the current folder is beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(make_photos(tmp_path / "photos", per_class=9, size=20))


@pytest.fixture
def launch(server, photos):
    """Returns launch(*flags, size=2, before=None) -> statuses, joined output, joined errors."""

    def launch(*words, size=2, before=None, seconds=300):
        if "--resume" not in words and "--data-path" not in words:
            words = ["--data-path", photos, *FAST, *words]
        words, port = list(map(str, words)), free_port()
        processes = [
            server.Process(target=run_as_rank, args=(r, size, port, os.getcwd(), words, before))
            for r in range(size)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + seconds
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
        out, err = (
            "".join(Path(f"{name}{rank}").read_text("utf-8") for rank in range(size))
            for name in ("out", "err")
        )
        assert not late, f"{len(late)} processes hang: {out}{err}"
        return [process.exitcode for process in processes], out, err

    return launch


@pytest.fixture
def alone(photos, monkeypatch, capsys):
    """Returns alone(*flags) -> standard output of a run in one process, which must succeed."""

    def alone(*words):
        monkeypatch.setattr(train, "show_start", lambda *_: None)
        monkeypatch.setattr(train, "write_results", lambda *_: None)
        if "--resume" not in words:
            words = ["--data-path", photos, *FAST, *words]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        assert train.main() == 0
        return capsys.readouterr().out

    return alone


def load(folder):
    return torch.load(f"{folder}/last.pth", weights_only=True)


def assert_same(a, b, **tolerance):
    """Compares two runs' last.pth: the same keys, and the same values within `tolerance`."""
    a, b = load(a), load(b)
    assert list(a) == list(b)
    for row, other in zip(a["history"], b["history"], strict=True):
        for name in RESULTS:
            assert row[name] == pytest.approx(other[name], rel=1e-4), name
    for key in ("model", "optimizer", "ema", "raw_model"):
        assert_values_same(a.get(key), b.get(key), key, tolerance)


def assert_values_same(a, b, name, tolerance):
    if isinstance(a, dict):
        assert list(a) == list(b), name
        for key in a:
            assert_values_same(a[key], b[key], f"{name}.{key}", tolerance)
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, msg=lambda m: f"{name}: {m}", **tolerance)


BITS = {"rtol": 0, "atol": 0}


# --- as one process would -----------------------------------------------------------------------

KAN = ["--mlp", "kan", "--kan-rank", 4, "--epochs", 2, "--ema", 0.9, "--clip-grad", 0.5]


def test_two_processes_copied_or_sharded_train_in_two_parts_as_one_in_one(launch, alone):
    alone(*KAN, "--batch-size", 8, "--output", "one")  # the last one of 5 photos: 4 and 1
    flags = [*KAN, "--accum-steps", 2, "--grad-checkpointing"]  # which changes no value
    statuses, out, err = launch(*flags, "--batch-size", 2, "--output", "two")
    assert (statuses, err) == ([0, 0], ""), out
    assert "2 processes, cpu" in out
    assert "calibrated the grids of 8 KAN layers on 21 photos" in out
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 2
    assert_same("one", "two", **WITHIN_FLOAT_ERROR)
    assert not any(key.startswith(("module.", "_")) for key in load("two")["model"])
    assert load_model("two/best.pth").classes == ["daisy", "roses", "tulips"]
    statuses, out, err = launch(*flags, "--batch-size", 2, "--output", "cut", "--fsdp")
    assert (statuses, err) == ([0, 0], ""), out
    assert_same("two", "cut", **WITHIN_FLOAT_ERROR)


def break_a_photo(rank):
    """Breaks a photo between the check of the data and the training."""
    original = train.load_data

    def then_break(args):
        data = original(args)
        Path(data.train.paths[2]).write_bytes(b"no longer a photo")
        return data

    train.load_data = then_break


def test_a_batch_of_which_one_process_can_read_nothing_counts_what_the_other_has(launch, photos):
    """Batches of one photo each, one of which is broken, equal those of one process."""
    statuses, out, err = launch(
        "--epochs", 1, "--batch-size", 1, "--output", "two", before=break_a_photo
    )
    assert (statuses, err) == ([0, 0], ""), out
    assert load("two")["metrics"]["failed_photos"] == 1
    assert "was skipped" in out


def test_frozen_layers_run_once_each_process_its_part(launch, alone):
    alone("--epochs", 1, "--batch-size", 4, "--output", "start")
    flags = ["--weights", "start/best.pth", "--epochs", 2, "--lr", 1e-2]
    alone(*flags, "--batch-size", 4, "--output", "one")
    statuses, out, err = launch(*flags, "--batch-size", 2, "--output", "two")
    assert (statuses, err) == ([0, 0], ""), out
    assert_same("one", "two", **WITHIN_FLOAT_ERROR)


@pytest.mark.slow
def test_evaluation_alone_counts_each_photo_once(launch, alone, photos):
    alone("--epochs", 1, "--batch-size", 4, "--output", "one")
    accuracy = load("one")["metrics"]["val_acc"]
    statuses, out, _ = launch("--eval", "--weights", "one/best.pth", "--data-path", photos)
    assert statuses == [0, 0]
    assert f"on 6 validation photos of {Path.cwd().parent / 'photos'}: " in out
    assert f"accuracy {accuracy:.4f}" in out


# --- resume -------------------------------------------------------------------------------------


def die_at_step_8(rank):
    """All processes die in the second epoch, as when a machine loses power."""
    original = trainer.Trainer.loss

    def loss(self, *arguments):
        if self.epoch == 1 and arguments[-1] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    trainer.Trainer.loss = loss


def test_a_killed_run_resumes_to_the_same_bits_and_on_another_number_of_processes(launch, alone):
    flags = [*KAN, "--batch-size", 2, "--save-steps", 1]
    assert launch(*flags, "--output", "whole")[0] == [0, 0]
    for folder in ("again", "single"):
        statuses, _, _ = launch(*flags, "--output", folder, before=die_at_step_8)
        assert statuses == [-signal.SIGKILL] * 2
        assert load(folder)["loader"]["batches_done"] == 3
    statuses, out, err = launch("--resume", "again")
    assert (statuses, err) == ([0, 0], ""), out
    assert_same("whole", "again", **BITS)
    out = alone("--resume", "single")
    assert "begun on 2 processes, resumed on 1: 4 photos per process keep the total" in out
    assert_same("whole", "single", **WITHIN_FLOAT_ERROR)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_sharded_over_two(launch, alone):
    flags = [*KAN, "--batch-size", 4]
    alone(*flags, "--output", "whole")
    alone(*flags, "--output", "half", "--epochs", 1)
    statuses, out, err = launch("--resume", "half", "--epochs", 2, "--fsdp")
    assert (statuses, err) == ([0, 0], ""), out
    assert "begun on 1 process, resumed on 2: 2 photos per process" in out
    assert load("half")["args"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("before", "now", "batch", "becomes"), [(2, 1, 4, 8), (1, 2, 8, 4), (4, 6, 3, 2), (3, 3, 5, 5)]
)
def test_the_total_batch_stays_on_any_number_of_processes(before, now, batch, becomes, capsys):
    assert resuming.shared_batch(batch, before, now) == becomes
    assert ("keep the total batch" in capsys.readouterr().out) == (before != now)


def test_a_total_batch_that_cannot_be_shared_is_said():
    with pytest.raises(ValueError, match="took 5 photos together at each step, which 2 processes"):
        resuming.shared_batch(5, 1, 2)


# --- one end ------------------------------------------------------------------------------------


def fail_on_the_second(rank):
    """The second process alone fails in a step, while the first waits for its gradients."""
    original = trainer.Trainer.loss

    def loss(self, *arguments):
        if rank == 1 and arguments[-1] == 2:
            raise ValueError("the second has had enough")
        return original(self, *arguments)

    trainer.Trainer.loss = loss


def run_out_of_disk(rank):
    def save_checkpoint(path, checkpoint):
        raise OSError(28, "No space left on device", str(path))

    sys.modules["training.trainer"].save_checkpoint = save_checkpoint


OF_TORCH = re.compile(
    r"(\[rank\d\]:)?\[W\d+ .*\[c10d\]|frame #\d|Exception raised from|<unknown function>|<omitting"
)


@pytest.mark.parametrize(
    ("words", "before", "sentence"),
    [
        (["--data-path", "nowhere"], None, "nowhere"),  # the first alone looks
        (["--device", "abacus"], None, "--device 'abacus'"),  # all find it
        (["--epoks", "3"], None, "did you mean --epochs?"),
        pytest.param(
            ["--lr", "1e30", "--clip-grad", "0", "--opt", "sgd"],
            None,
            "smaller --lr",
            marks=pytest.mark.slow,
        ),
        ([], fail_on_the_second, "the second has had enough"),
        ([], run_out_of_disk, "No space left on device"),
    ],
)
def test_an_error_in_any_process_ends_all_with_one_sentence(launch, words, before, sentence):
    statuses, _, err = launch("--batch-size", 2, "--epochs", 2, *words, before=before)
    assert statuses == [2, 2]
    # Without torchrun the first process holds the store: where it ends first, torch warns.
    lines = [line for line in err.splitlines() if line and not OF_TORCH.match(line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("train.py: error: ")
    assert sentence in lines[0]


def signal_the_second(rank):
    """SIGTERM reaches one process alone, in its second step."""
    original = trainer.Trainer.loss

    def loss(self, *arguments):
        if rank == 1 and arguments[-1] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    trainer.Trainer.loss = loss


def test_a_signal_to_one_process_stops_all_at_the_same_step(launch):
    statuses, out, err = launch("--batch-size", 2, "--output", "out", before=signal_the_second)
    assert statuses == [128 + signal.SIGTERM] * 2
    assert "go on with: python train.py --resume out" in out
    assert "Traceback" not in err
    assert load("out")["loader"]["batches_done"] == 2


def vanish(rank):
    original = trainer.Trainer.loss

    def loss(self, *arguments):
        if rank == 1 and arguments[-1] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    trainer.Trainer.loss = loss


def test_a_process_that_is_killed_takes_the_others_with_it(launch):
    statuses, _, err = launch("--batch-size", 2, "--output", "out", before=vanish)
    assert statuses == [2, -signal.SIGKILL]
    assert "another process of this training has ended without a word" in err
    assert "go on with torchrun ... train.py --resume RUN" in err
    assert "Traceback" not in err


def test_a_folder_in_use_is_refused_by_all(launch):
    Path("out").mkdir()
    with locked(Path("out")):
        statuses, _, err = launch("--batch-size", 2, "--output", "out")
    assert statuses == [2, 2]
    assert err.count("another process is training into out") == 1


def test_torchrun_trains_and_passes_on_a_signal(photos):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(ROOT / "train.py"), "--data-path", photos, *FAST]
    command += ["--batch-size", "2", "--epochs", "500", "--save-steps", "1", "--output", "out"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 300
    while not Path("out/last.pth").exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert re.search(r"go on with: .*train.py --resume out", out), err
    assert out.count("photos in 3 classes") == 1
    assert load("out")["loader"]["processes"] == 2


# --- the parts ----------------------------------------------------------------------------------


def test_alone_nothing_is_exchanged():
    world = World()
    assert world.first
    assert world.first_does(max, 3, 4) == 4
    assert (world.joined([1]), world.numbers(5), world.highest(5)) == ([1], [5], 5)
    meter = Meter()
    assert pooled(meter, [1], world) == (meter, [1])


def test_the_launchers_variables_say_who_is_who(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() == World()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert World.from_environment() == World()
    for name, value in zip(
        ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "6524", strict=True
    ):
        monkeypatch.setenv(name, value)
    assert World.from_environment() == World(rank=5, size=6, local_rank=2, local_size=4)


def test_a_stand_in_takes_the_place_of_batches_that_lack():
    def batch(count, failed=()):
        images = torch.ones(count, 3, 2, 2) if count else torch.empty(0)
        return Batch(images, torch.arange(count), list(failed), torch.arange(count))

    failed = Failed("a.jpg", "is broken")
    batches = [batch(2), batch(0, [failed])]
    assert list(in_step(batches, 5, (3, 2, 2), World())) == batches
    found = list(in_step(batches, 3, (3, 2, 2), World(size=2)))
    assert [len(b.images) for b in found] == [2, 1, 1]
    assert [len(b.indices) for b in found] == [2, 0, 0]
    assert found[1].images.shape == (1, 3, 2, 2)
    assert (found[1].failed, found[2].failed) == ([failed], [])


def test_what_is_not_sharded_stays_as_it_is():
    state = {"a": torch.ones(2), "b": [1, (None, "x")]}
    assert whole(state)["b"] == [1, (None, "x")]
    assert whole(state)["a"] is state["a"]
    assert like(state["a"], torch.zeros(2)) is state["a"]
    model = torch.nn.Linear(2, 2)
    with gradient_sync(model, on=False):
        model(state["a"]).sum().backward()
    assert model.weight.grad is not None


def test_only_a_broken_connection_is_taken_for_a_lost_process():
    assert lost_contact(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert [exit_status(e) for e in (ValueError(), OSError(), KeyError())] == [2, 2, 1]
    assert [exit_status(SystemExit(code)) for code in (None, 0, 3, "no")] == [
        0,
        0,
        3,
        1,
    ]
