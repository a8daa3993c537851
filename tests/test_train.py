"""train.py as its users run it: a folder of photos in, checkpoints and metrics out."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import train
from training import loss
from training.run_folder import LOCK, WRITTEN
from vit_model import create_model

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "32", "--batch-size", "4"]
FAST += ["--workers", "0", "--amp", "off", "--drop-path", "0.1"]
CONTRACT = {"model", "config", "classes", "preprocess", "epoch", "metrics", "version"}
CONTRACT |= {"temperature", "trained_on", "group_by", "known"}


@pytest.fixture
def photos(tmp_path, make_photos, monkeypatch):
    """Photos in tmp_path/photos; the current folder is an empty one beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(make_photos(tmp_path / "photos"))


@pytest.fixture
def run(photos, monkeypatch, call):
    """Returns run(*flags) -> (exit status, standard output, standard error).

    Pictures and report, half of a tiny run's time, are made only with full=True.
    """

    def run(*words, data=photos, fast=FAST, full=False):
        if not full:
            monkeypatch.setattr(train, "show_start", lambda *_: None)
            monkeypatch.setattr(train, "write_results", lambda *_: None)
        data_flags = ["--data-path", data] if data else []
        return call(train.main, *data_flags, *fast, *words)

    return run


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Tells whether two checkpoints' values are bit for bit the same."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


TIMES = ("images_per_second", "seconds", "data_wait")


def without_times(checkpoint):
    """The checkpoint less what is no result: times, paths, and the state of TensorBoard's names."""
    kept = {key: value for key, value in checkpoint.items() if key not in ("args", "numpy")}
    for row in [*kept.get("history", []), kept.get("best", {}), kept["metrics"]]:
        for name in TIMES:
            row.pop(name, None)
    return kept


# --- a run and what it leaves -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [[], ["--mlp", "kan", "--kan-rank", "4"], ["--mlp", "gkan"]])
def test_a_run_learns_and_leaves_what_the_contract_says(run, kind):
    status, out, _ = run("--epochs", 4, "--lr", "2e-3", *kind, full=True)
    assert status == 0
    assert "no pretrained weights" in out
    folder = Path("weights/vit_micro_patch8_64-photos-1")
    names = {path.name for path in folder.iterdir()}
    expected = {"best.pth", "last.pth", "class_indices.json", "args.json", "split.json"}
    expected |= {"metrics.csv", "data_report.txt", "curves.png", "confusion.png", "report.html"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    unnamed = names - {*WRITTEN.split(), LOCK}  # a run would replace those unasked
    assert all(name.startswith("events.out.tfevents") for name in unnamed)
    best, last = load(folder / "best.pth"), load(folder / "last.pth")
    assert set(best) == CONTRACT
    extras = {"optimizer", "scheduler", "scaler", "ema", "rng", "loader", "args"}
    assert CONTRACT | extras <= set(last)
    assert best["classes"] == ["daisy", "roses", "tulips"]
    assert best["metrics"]["val_acc"] >= 0.6
    model = create_model(**best["config"])
    model.load_state_dict(best["model"])
    rows = (folder / "metrics.csv").read_text("utf-8").splitlines()
    assert len(rows) == 5
    columns = "epoch,train_loss,train_acc,val_loss,val_acc,learning_rate,images_per_second,seconds"
    assert rows[0].startswith(columns)
    assert json.loads(Path("class_indices.json").read_text("utf-8"))["2"] == "tulips"


def test_tensorboard_has_every_scalar_picture_and_table(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("--epochs", 1, "--lr", 0, "--output", "run", full=True)  # mistakes are certain
    events = EventAccumulator("run").Reload()
    tags = {tag for tags in events.Tags().values() if isinstance(tags, list) for tag in tags}
    reference = {"train_loss", "train_acc", "val_loss", "val_acc", "learning_rate"}
    assert reference | {"data_wait", "images_per_second"} <= tags
    pictures = {"samples.jpg", "curves.png", "confusion.png", "mistakes.jpg", "confused.jpg"}
    for name in pictures:  # as small as their files
        image = events.Images(name.split(".")[0])[0]
        assert image.encoded_image_string == Path("run", name).read_bytes()
    table = events.Tensors("classes/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(word in table for word in ("precision", "recall", "F1", "tulips"))


def test_one_line_an_epoch_and_the_way_on_are_printed(run):
    _, out, _ = run("--epochs", 2, full=True)
    lines = out.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 2
    assert "python predict.py PHOTO" in out
    assert "24 photos in 3 classes" in out


def test_nothing_is_written_into_the_data(run, photos):
    def everything():
        return [(p, p.stat().st_mtime_ns) for p in sorted(Path(photos).rglob("*"))]

    before = everything()
    assert run("--epochs", 1)[0] == 0
    assert everything() == before


def test_dry_run_tells_all_and_writes_nothing(run):
    status, out, _ = run("--dry-run")
    assert status == 0
    assert "24 photos" in out
    assert "--lr" in out
    assert "parameters" in out
    assert os.listdir(".") == []


def test_epochs_0_writes_the_start_as_a_checkpoint(run):
    status, _, _ = run("--epochs", 0, "--output", "out")
    assert status == 0
    assert load("out/best.pth")["epoch"] == 0
    assert (Path("out") / "last.pth").exists()


def test_eval_repeats_the_accuracy_of_the_log(run):
    run("--epochs", 2, "--output", "out", "--mlp", "kan")
    accuracy = load("out/best.pth")["metrics"]["val_acc"]
    _, out, _ = run("--eval", "--weights", "out/best.pth", fast=[])
    assert f"accuracy {accuracy:.4f}" in out


def test_the_average_is_what_is_evaluated_and_saved(run):
    run("--epochs", 2, "--ema", "0.9", "--output", "out")
    last = load("out/last.pth")
    assert not same(last["model"], last["raw_model"])
    averaged = {key.removeprefix("module."): value for key, value in last["ema"].items()}
    assert all(same(averaged[key], value) for key, value in last["model"].items())
    _, out, _ = run("--eval", "--weights", "out/last.pth", fast=[])
    assert f"accuracy {last['metrics']['val_acc']:.4f}" in out


def test_frozen_means_that_what_came_from_the_file_stays(run):
    run("--epochs", 1, "--output", "first")
    status, out, _ = run(
        "--weights", "first/best.pth", "--mlp", "kan", "--epochs", 2, "--output", "second", fast=[
            *FAST[2:], "--lr", "1e-2"],
    )  # fmt: skip
    assert status == 0, out
    before, after = load("first/best.pth")["model"], load("second/last.pth")["model"]
    for name, value in before.items():
        renamed = name.replace(".weight", ".base_weight") if ".mlp.fc" in name else name
        changed = not torch.equal(value, after[renamed])
        assert changed == name.startswith("head."), name
    splines = [value for name, value in after.items() if "spline_weight" in name]
    assert all(value.any() for value in splines)
    assert load("second/last.pth")["config"]["mlp"] == "kan"


@pytest.mark.parametrize(
    "words", ["", "--reprob 0.2", "--mixup 0.2", "--cutmix 0.2", "--teacher start/best.pth"]
)
def test_photos_stay_as_they_are_only_where_the_frozen_layers_run_once(run, words):
    run("--epochs", 0, "--output", "start")
    flags = ["--weights", "start/best.pth", "--dry-run", "--workers", 0, *words.split()]
    status, out, err = run(*flags, fast=[])
    assert (status, err) == (0, "")
    assert ("the frozen layers run once, on each photo as it is" in out) == (not words)
    assert ("--aug basic  (head only)" in out) == bool(words)


EVERY_FLAG = """
    --epochs 2 --opt sgd --weight-decay 0.01 --warmup-epochs 0.5 --label-smoothing 0.1
    --mixup 0.2 --cutmix 1.0 --aug trivial --reprob 0.2 --ema 0.9 --layer-decay 0.8
    --clip-grad 0.5 --accum-steps 2 --class-weights balanced --kan-reg 0.001
    --teacher teacher/best.pth --teacher-weight 0.3 --grad-checkpointing --patience 5
    --mlp kan --kan-blocks last:2 --kan-hidden match --kan-range -2,2 --kan-lr-scale 0.5
    --resize-mode pad --save-steps 1 --seed 3 --output out
"""


def test_every_training_flag_works_together(run):
    run("--epochs", 1, "--output", "teacher")
    status, out, err = run(*EVERY_FLAG.split())
    assert (status, err) == (0, ""), out
    assert load("out/best.pth")["preprocess"]["resize_mode"] == "pad"


def test_resuming_names_a_teacher_that_is_gone(run):
    run("--epochs", 1, "--output", "teacher")
    run("--epochs", 1, "--teacher", "teacher/best.pth", "--output", "pupil")
    Path("teacher/best.pth").unlink()
    status, _, err = run("--resume", "pupil", "--epochs", 2, data=None)
    assert status == 2
    assert "there is no file teacher/best.pth" in err


def test_early_stopping_ends_after_epochs_without_a_better_one(run):
    _, out, _ = run("--epochs", 30, "--patience", 2, "--lr", "0")
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 3


# --- the same every time ------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_with_or_without_workers(run):
    flags = ["--epochs", 2, "--aug", "rand", "--mixup", "0.2", "--mlp", "kan"]
    run(*flags, "--output", "a")
    run(*flags, "--output", "b")
    run(*flags, "--output", "c", "--workers", 2)
    run(*flags, "--output", "d", "--seed", 1)
    a, b, c, d = (load(f"{name}/last.pth") for name in "abcd")
    assert same(a["model"], b["model"])
    assert same(a["model"], c["model"])
    assert not same(a["model"], d["model"])


RESUMED = ["--epochs", "3", "--aug", "rand", "--mixup", "0.2", "--ema", "0.9", "--mlp", "kan"]
RESUMED += ["--kan-rank", "4", "--save-steps", "2"]


class Killed(BaseException):
    """What a kill looks like to a test in the same process: nothing after it runs."""


def test_a_run_stopped_anywhere_resumes_to_the_same_bits(run, monkeypatch):
    run(*RESUMED, "--output", "whole")
    batches = []
    original = loss.Criterion.__call__

    def counted(self, *arguments):
        batches.append(1)
        if len(batches) == kill_at:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(loss.Criterion, "__call__", counted)
    for kill_at in (3, 8):  # in the first epoch after a save, in the second
        folder = f"killed{kill_at}"
        batches.clear()
        with pytest.raises(Killed):
            run(*RESUMED, "--output", folder)
        kill_at = 0
        status, out, _ = run("--resume", folder, data=None, fast=[])
        assert status == 0
        assert "resuming" in out
        row = load(f"{folder}/last.pth")["history"][0 if folder == "killed3" else 1]
        assert row["images_per_second"] * row["seconds"] == pytest.approx(18 - 2 * 4)
        whole, resumed = (without_times(load(f"{n}/last.pth")) for n in ("whole", folder))
        assert {key for key in whole if not same(whole[key], resumed[key])} <= {"args"}
        whole, resumed = (
            [line.split(",")[:6] for line in Path(n, "metrics.csv").read_text("utf-8").splitlines()]
            for n in ("whole", folder)
        )
        assert whole == resumed


def test_kept_photos_change_no_bit_and_leave_no_file(run):
    recipe = ["--epochs", "2", "--aug", "trivial", "--reprob", "0.5"]
    kept = {}
    for choice in ("off", "ram", "disk"):
        _, out, _ = run(*recipe, "--cache-images", choice, "--output", choice)
        assert ("not kept" in out) == (choice == "off")
        kept[choice] = without_times(load(f"{choice}/last.pth"))
    assert same(kept["off"], kept["ram"])
    assert same(kept["off"], kept["disk"])
    assert not list(Path("disk").glob(".*.tmp"))


def start_process(photos, *words, workers=0):
    command = [sys.executable, str(ROOT / "train.py")]
    if photos:
        command += ["--data-path", photos, *FAST, "--workers", str(workers)]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )


def kill_at_random_moments(photos, run, times, seed):
    run(*RESUMED, "--output", "whole")
    generator = random.Random(seed)
    words = [*RESUMED, "--output", "killed"]
    for _ in range(times):
        resumed = Path("killed/last.pth").exists()
        process = start_process(None if resumed else photos, *(
            ["--resume", "killed"] if resumed else words))  # fmt: skip
        wait_for_first_save()
        time.sleep(generator.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run("--resume", "killed", data=None, fast=[])
    whole, killed = (without_times(load(f"{n}/last.pth")) for n in ("whole", "killed"))
    assert {key for key in whole if not same(whole[key], killed[key])} <= {"args"}
    assert not list(Path("killed").glob(".*.tmp"))


def wait_for_first_save():
    for _ in range(600):
        if Path("killed/last.pth").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the run saved nothing within a minute")


def test_kill_9_at_random_moments_changes_nothing(photos, run):
    kill_at_random_moments(photos, run, times=3, seed=0)


@pytest.mark.slow
def test_kill_9_at_many_random_moments_changes_nothing(photos, run):
    kill_at_random_moments(photos, run, times=10, seed=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_say_how_to_resume(photos, number):
    words = ["--epochs", "200", "--output", "killed", "--save-steps", "1"]
    process = start_process(photos, *words, workers=2)
    wait_for_first_save()
    os.killpg(process.pid, number)  # as a terminal does: the loader's workers get it, too
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "go on with: python train.py --resume killed" in out
    assert "Traceback" not in out


def test_a_finished_run_says_so_when_resumed(run):
    run("--epochs", 1, "--output", "out")
    status, out, _ = run("--resume", "out", data=None, fast=[])
    assert status == 0
    assert "finished" in out


def test_a_run_can_be_given_more_epochs_but_no_other_model(run):
    run("--epochs", 1, "--output", "out")
    status, _, err = run("--resume", "out", "--mlp", "kan", data=None, fast=[])
    assert status == 2
    assert "--mlp kan differs from the run in out (mlp)" in err
    status, out, _ = run("--resume", "out", "--epochs", "2", data=None, fast=[])
    assert status == 0
    assert "--epochs: 2 instead of 1" in out
    assert load("out/last.pth")["epoch"] == 2


def test_vanished_photos_are_named_on_resume(run, photos):
    run("--epochs", 1, "--output", "out")
    gone = next(Path(photos, "roses").iterdir())
    gone.unlink()
    status, _, err = run("--resume", "out", "--epochs", "2", data=None, fast=[])
    assert status == 2
    assert str(gone) in err


# --- what users get wrong -----------------------------------------------------------------------


def test_a_photo_that_breaks_during_the_run_is_named_and_counted(run, photos, monkeypatch):
    original = train.load_data

    def then_break(args):
        data = original(args)
        Path(data.train.paths[0]).write_bytes(b"no longer a photo")
        return data

    monkeypatch.setattr(train, "load_data", then_break)
    status, out, _ = run("--epochs", 1, "--output", "out")
    assert status == 0
    assert load("out/last.pth")["metrics"]["failed_photos"] == 1
    assert Path(load_paths("out")[0]).name in out


def load_paths(folder):
    split = json.loads(Path(folder, "split.json").read_text("utf-8"))
    return [path for paths in split["train"].values() for path in paths]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-path", "nowhere"], "nowhere"),
        (["--num-classes", "7"], "--num-classes 7 contradicts the 3 class folders"),
        (["--model", "vit_tiny_patch16_244"], "vit_tiny_patch16_224"),
        (["--weights", "missing.pth"], "missing.pth"),
        (["--img-size", "30"], "img_size 30 is not a multiple of the patch size 8"),
        (["--device", "abacus"], "--device 'abacus'"),
        (["--resume", "nowhere"], "nowhere holds no last.pth"),
        (["--kan-blocks", "7", "--mlp", "kan"], "kan_blocks '7'"),
        (["--teacher", "missing.pth"], "missing.pth"),
        (["--amp", "fp16"], "--amp fp16 needs a GPU"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(run, words, message):
    status, _, err = run("--epochs", "1", *words)
    assert status == 2
    assert message in err
    assert err.startswith("train.py: error: ")
    assert err.count("\n") == 1


def test_a_folder_with_a_run_is_not_overwritten(run):
    run("--epochs", 0, "--output", "out")
    status, _, err = run("--epochs", 1, "--output", "out")
    assert status == 2
    assert "--resume out" in err


def test_a_run_that_is_given_no_more_epochs_ends_with_its_best_one(run):
    run("--epochs", 2, "--output", "out")
    last, best = Path("out/last.pth").read_bytes(), load("out/best.pth")
    status, out, _ = run("--resume", "out", "--epochs", 0, data=None, fast=[])
    assert (status, "--epochs: 0 instead of 2" in out) == (0, True)
    assert Path("out/last.pth").read_bytes() == last
    assert all(same(load("out/best.pth")[part], best[part]) for part in ("model", "epoch"))


def test_a_loss_that_explodes_ends_in_advice(run):
    status, _, err = run("--epochs", "5", "--lr", "1e30", "--clip-grad", "0", "--opt", "sgd")
    assert status == 2
    assert "smaller --lr" in err


def test_the_models_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--list-models"])
    assert train.main() == 0
    assert "deit_tiny_patch16_224" in capsys.readouterr().out


def test_train_and_predict_from_the_command_line(photos):
    def command(*words):
        words = [sys.executable, *map(str, words)]
        return subprocess.run(
            words, check=False, capture_output=True, encoding="utf-8", timeout=120
        )

    trained = command(ROOT / "train.py", "--data-path", photos, *FAST, "--epochs", 3)
    assert trained.returncode == 0, trained.stderr
    photo = next(Path(photos, "tulips").iterdir())
    predicted = command(ROOT / "predict.py", photo)
    assert predicted.returncode == 0, predicted.stderr
    assert "tulips" in predicted.stdout
    refused = command(ROOT / "train.py", "--data-path", "nowhere")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
