"""--batch-size auto finds what fits; running out of memory ends in advice."""

import mmap
from pathlib import Path

import pytest
import torch

import train
from system import memory
from system.memory import out_of_memory
from training import batch_size, trainer
from training.advice import on_memory
from training.batch_size import (
    find_batch_size,
    fitting_by_measurement,
    largest_that,
    peak_of,
    trial_step,
)
from training.flags import parse_args
from vit_model import create_model

CPU = torch.device("cpu")
MIB = 1 << 20


def holding(bytes_per_photo):
    """Returns a step that needs that much memory for each photo.

    It maps pages of its own: from torch it might get some that an earlier test left to the heap.
    """

    def step(batch):
        with mmap.mmap(-1, batch * bytes_per_photo) as pages:
            for page in range(0, len(pages), mmap.PAGESIZE):
                pages[page] = 1

    return step


@pytest.mark.parametrize("limit", [1, 7, 64, 512])
@pytest.mark.parametrize("fitting", [0, 1, 2, 3, 37, 100, 511, 512, 1000])
def test_the_largest_that_fits_is_found_to_an_eighth_in_few_trials(limit, fitting):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= fitting

    found = largest_that(fits, limit)
    best = min(fitting, limit)
    assert best - max(1, best // 8) < found <= best or found == best
    assert max(tried) <= limit
    assert len(tried) == len(set(tried)) <= 16


def test_on_a_cpu_two_small_steps_tell_how_many_fit():
    # The system counts pages with an error of some tens for each thread.
    assert 7 * MIB <= peak_of(lambda: holding(8 * MIB)(1)) <= 16 * MIB
    found = fitting_by_measurement(holding(8 * MIB), 1000 * MIB)
    assert 80 <= found <= 101  # 0.8 * 1000 / 8 = 100


def test_the_choice_says_what_limits_it(monkeypatch):
    found, why = find_batch_size(holding(MIB), CPU, 100)
    assert (found, why) == (12, "auto: it fits; 100 photos make too few steps of more")
    assert find_batch_size(holding(MIB), CPU, 1000, processes=2)[0] == 25
    found, why = find_batch_size(holding(MIB), CPU, 10**6)
    assert (found, why) == (64, "auto: it fits; more is not faster")
    monkeypatch.setattr(batch_size, "free_memory", lambda: 400 * MIB)
    found, why = find_batch_size(holding(8 * MIB), CPU, 10**6)
    assert 30 <= found <= 41
    assert "the largest that fits" in why
    assert find_batch_size(holding(8 * MIB), CPU, 10**6, local_size=2)[0] <= found // 2 + 1
    monkeypatch.setattr(batch_size, "free_memory", lambda: 0)
    with pytest.raises(ValueError, match="not even one photo fits into the memory of cpu"):
        find_batch_size(holding(8 * MIB), CPU, 10**6)


def test_on_a_gpu_steps_are_tried_in_nine_tenths_of_its_memory(monkeypatch):
    """With a GPU played by a CPU: nothing of CUDA is called for but what is replaced here."""
    fractions = []
    cuda = torch.cuda
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(cuda, name, lambda *_: None)
    monkeypatch.setattr(
        cuda, "set_per_process_memory_fraction", lambda share, _: fractions.append(share)
    )

    def step(batch):
        assert fractions[-1] == 0.9
        if batch > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found, why = find_batch_size(step, torch.device("cuda"), 10**6)
    assert 88 <= found <= 100
    assert "10% of the device's memory is spared" in why
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_trial_step_changes_nothing(optimizer):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = create_model("custom", num_classes=3, mlp="kan", **sizes)
    torch.nn.init.normal_(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trial_step(model, CPU, torch.bfloat16, optimizer, spare=10)(3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- in a run -----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, make_photos, monkeypatch, call):
    """Returns run(*flags) -> (exit status, standard output, standard error)."""
    photos = make_photos(tmp_path / "photos", size=20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    monkeypatch.setattr(train, "write_results", lambda *_: None)

    def run(*words):
        fast = ["--data-path", photos, "--model", "vit_micro_patch8_64", "--img-size", "16"]
        fast += ["--workers", "0", "--amp", "off", "--output", "out"]
        words = words if "--resume" in words else (*fast, *words)
        return call(train.main, *words)

    return run


def load(path):
    return torch.load(path, weights_only=True)


def test_what_auto_found_is_kept_for_resume(run):
    status, out, _ = run("--epochs", 1, "--batch-size", "auto")
    assert status == 0
    assert "--batch-size 2  (auto: it fits; 18 photos make too few steps of more)" in out
    assert "at batch 16, now 2)" in out
    assert load("out/last.pth")["args"]["batch_size"] == 2
    assert '"batch_size": 2' in Path("out/args.json").read_text("utf-8")
    status, out, _ = run("--resume", "out", "--epochs", 2, "--batch-size", "auto")
    assert status == 0, out
    assert load("out/last.pth")["args"]["batch_size"] == 2


def test_running_out_of_memory_names_the_flags_that_help_and_loses_nothing(run, monkeypatch):
    original = trainer.Trainer.loss

    def loss(self, *arguments):
        if self.epoch == 1:
            torch.empty(1 << 60)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "loss", loss)
        status, _, err = run("--epochs", 2, "--batch-size", 4)
    assert status == 2
    assert err.count("\n") == 1
    assert (
        "train.py: error: out of memory: try --grad-checkpointing, or a smaller --batch-size" in err
    )
    assert "than 4 (auto finds" in err
    assert "--accum-steps" in err
    assert "--fsdp" in err
    assert load("out/last.pth")["epoch"] == 1
    status, out, _ = run("--resume", "out", "--grad-checkpointing")
    assert status == 0
    assert "--grad-checkpointing: True instead of False" in out
    assert load("out/last.pth")["epoch"] == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_every_kind_of_lack_is_known(error):
    assert out_of_memory(error)
    args = parse_args(["--grad-checkpointing", "--batch-size", "2", "--fsdp"])
    with pytest.raises(ValueError, match="try a smaller") as raised, on_memory(args):
        raise error
    assert "--fsdp" not in str(raised.value)
    assert "--grad-checkpointing" not in str(raised.value)


def test_other_errors_stay_themselves():
    args = parse_args(["--batch-size", "1"])
    with pytest.raises(RuntimeError, match="shapes"), on_memory(args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_on_resume_the_total_batch_stays():
    args = parse_args(["--resume", "out"])
    with pytest.raises(ValueError, match="the same total batch"), on_memory(args):
        raise MemoryError


def test_sharded_models_are_not_tried(run):
    status, _, err = run("--batch-size", "auto", "--fsdp")
    assert status == 2
    assert "with --fsdp give N" in err


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n", "utf-8")
    (tmp_path / "memory.current").write_text("400000\n", "utf-8")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory() == 600000
