"""Advice follows from what was measured, and from what the user has not done yet."""

import math
import shlex
from types import SimpleNamespace

import pytest
import torch

import train
from imaging.data_report import DataReport
from training import advice, results, run_folder
from training.flags import parse_args
from training.position import Position
from training.setup import Run

HALVES = [0, 1] * 20
FILE = ["--weights", __file__]


def run_of(*words, labels=HALVES, warmup=0.0, device="cpu"):
    """A run with these flags, as far as advice looks at it."""
    options = parse_args(words).settled(lr=0.01, warmup_epochs=warmup, aug="none", amp="off")
    data = SimpleNamespace(classes=["a", "b"], val=SimpleNamespace(labels=labels))
    return Run(options, {}, None, torch.device(device), data, None, None, [])


def row(epoch=1, **changed):
    chance = {"epoch": epoch, "train_loss": 9.0, "train_acc": 0.5, "val_acc": 0.5}
    return chance | {"val_loss": math.log(2)} | changed


def notes(run, row):
    return "\n".join(advice.notes(run, row, [], 1.0))


@pytest.mark.parametrize(
    ("words", "told", "untold"),
    [
        ([], ["another --lr (it is 0.01)", "--weights"], ["--freeze-layers"]),
        (FILE, ["another --lr", "--freeze-layers false"], ["--weights"]),
        ([*FILE, "--freeze-layers", "false"], ["another --lr"], ["--weights", "--freeze-layers"]),
    ],
)
def test_a_run_at_chance_is_told_what_was_not_tried(words, told, untold):
    said = notes(run_of(*words), row())
    assert "after epoch 1 the answers are still at chance (validation loss 0.69, accuracy" in said
    assert all(word in said for word in told)
    assert not any(word in said for word in untold)


@pytest.mark.parametrize(
    ("labels", "changed"),
    [
        (HALVES, {"val_acc": 0.8}),  # right far more often than by luck, if never sure
        (HALVES, {"val_loss": 0.4}),
        ([0] * 36 + [1] * 4, {"val_loss": 0.2, "val_acc": 0.9}),  # it has learned who is frequent
        ([0] * 40, {"val_loss": 0.7, "val_acc": 1.0}),
    ],
)
def test_no_run_above_chance_is_told_so_whatever_its_training_loss(labels, changed):
    assert "chance" not in notes(run_of(*FILE, labels=labels), row(**changed))


def test_always_answering_the_largest_class_is_chance():
    labels = [0] * 36 + [1] * 4
    said = notes(run_of(labels=labels), row(val_acc=0.9, val_loss=0.33))
    assert "still at chance" in said


def test_chance_is_looked_at_once_the_rate_has_warmed_up():
    run = run_of("--epochs", "9", warmup=1.5)
    assert "the best epoch will be a later one" in notes(run, row(1))
    assert "chance" not in notes(run, row(2))
    assert "after epoch 3 the answers are still at chance" in notes(run, row(3))
    assert "chance" not in notes(run, row(4))


def test_class_weights_are_advised_where_classes_differ_and_they_are_not_given():
    uneven, even = (DataReport("d", {"a": (20, 9), "b": (n, 2)}) for n in (5, 20))
    (line,) = advice.on_data(parse_args([]), uneven)
    assert line.startswith("--class-weights balanced")
    assert not advice.on_data(parse_args([]), even)
    assert not advice.on_data(parse_args(["--class-weights", "balanced"]), uneven)
    assert not advice.on_data(parse_args(["--eval", *FILE]), uneven)


def test_memory_advice_names_what_is_left_to_do():
    def ways(*words):
        return " ".join(advice.less_to_train(parse_args(words)))

    assert "--batch-size than 8" in ways("--batch-size", "8")
    assert "--batch-size" not in ways("--batch-size", "1")
    assert "--fsdp" in ways("--epochs", "1")
    for refused in (["--folds", "3"], ["--mlp", "kan", "--kan-reg", "0.1"]):
        assert "--fsdp" not in ways(*refused)
    assert "auto" not in ways("--fsdp", "--batch-size", "8")
    last = ["--grad-checkpointing", "--batch-size", "1", "--folds", "3"]
    assert ways(*last) == "a smaller model, or a machine with more memory"
    judge = parse_args(["--eval", *FILE, "--batch-size", "1", "--device", "cpu"])
    assert advice.less_to_judge(judge) == ["a smaller model, or a machine with more memory"]
    assert advice.less_to_judge(parse_args(["--eval", *FILE])) == [
        "a smaller --batch-size",
        "--device cpu",
    ]


def test_a_loss_that_is_no_number_is_no_matter_of_amp_where_there_is_none(tmp_path):
    run = run_of()
    run.folder = tmp_path
    assert "--amp" not in advice.on_nan(run, FloatingPointError("nan"))


# --- the best epoch ---


def best_of(rows, epochs=5, warmup=1.0, patience=0):
    """Runs `keep_best` over epochs of (accuracy, loss); returns the run and what was written."""
    from training.trainer import Trainer

    run = run_of("--epochs", str(epochs), "--patience", str(patience), warmup=warmup)
    run.position = Position()
    trainer = Trainer(run, None, None, None, None, None)
    written = []
    trainer.checkpoint = dict
    trainer.write = lambda name, _: written.append(name)
    for number, (accuracy, loss) in enumerate(rows, start=1):
        values = row(number, val_acc=accuracy, val_loss=loss)
        run.position.begin_next(values)
        trainer.keep_best(values)
        if run.over():
            break
    return run, written


def test_no_epoch_of_warm_up_is_the_best_once_there_is_another():
    run, written = best_of([(0.9, 0.1), (0.5, 0.9), (0.6, 0.8), (0.55, 0.1)])
    assert run.position.best["epoch"] == 3
    assert len(written) == 3  # of the first, so that a stopped run can be used, and of two more
    run, _ = best_of([(0.9, 0.1), (0.8, 0.1), (0.1, 0.9)], epochs=6, warmup=1.5)
    assert run.position.best["epoch"] == 3  # half an epoch of warm-up is one, too


def test_ties_go_to_the_lower_loss_then_to_the_earlier_epoch():
    assert best_of([(0, 9), (0.5, 0.7), (0.5, 0.6), (0.5, 0.6)])[0].position.best["epoch"] == 3


def test_a_run_of_one_epoch_has_a_best_one():
    assert best_of([(0.5, 0.7)], epochs=1, warmup=0.2)[0].position.best["epoch"] == 1


def test_patience_counts_from_the_end_of_the_warm_up():
    rows = [(0.9, 0.1), (0.8, 0.1), (0.7, 0.1), (0.6, 0.1), (0.5, 0.1), (0.4, 0.1)]
    run, _ = best_of(rows, epochs=9, warmup=3.0, patience=2)
    assert (run.position.epoch, run.position.best["epoch"]) == (6, 4)


def test_a_run_that_patience_ended_says_so_and_how_it_goes_on():
    rows = [(0.5, 0.1), (0.4, 0.1), (0.3, 0.1), (0.2, 0.1)]
    run, _ = best_of(rows, epochs=9, patience=2, warmup=0.0)
    assert "finished after 3 epochs, for --patience 2 (0 goes on)" in advice.standing(run)
    run, _ = best_of(rows[:3], epochs=3, patience=2, warmup=0.0)
    assert advice.standing(run).endswith("finished after 3 epochs")


# --- what to type next ---

FOLDERS = ["run", "my run/it's 1", 'a"b $HOME `x` ; & *', "-x", "雏菊", "a\\b"]


@pytest.mark.parametrize("name", FOLDERS)
def test_what_to_type_next_survives_pasting(name, tmp_path, monkeypatch, make_photos, call):
    monkeypatch.chdir(tmp_path)
    photos = make_photos(tmp_path / "photos", ("a", "b"), per_class=3, size=16)
    words = ["--data-path", photos, "--model", "vit_micro_patch8_64", "--img-size", "16"]
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    for drawing in ("draw_plots", "draw_photos"):
        monkeypatch.setattr(results, drawing, lambda *_: None)
    status, out, _ = call(train.main, *words, "--workers", "0", "--epochs", "0", f"--output={name}")
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("predict: ")]
    pasted = shlex.split(line.removeprefix("predict: "))
    assert pasted[:4] == ["python", "predict.py", "PHOTO", "--weights"]
    assert (tmp_path / pasted[4]).samefile(tmp_path / name / "best.pth")
    assert not pasted[4].startswith("-")
    with pytest.raises(ValueError, match="already holds a run") as end:
        run_folder.check_output(name, [])
    said = str(end.value).split("continue it with ")[1].split(", or give another")[0]
    assert (tmp_path / shlex.split(said)[1]).samefile(tmp_path / name)


def finished(*words, mlp="mlp", adapt="none", photo_seconds=0.03):
    run = run_of(*words)
    run.model = SimpleNamespace(sizes=SimpleNamespace(mlp=mlp, adapt=adapt))
    run.data.train = SimpleNamespace(paths=["photo"] * 200)
    run.photo_seconds = photo_seconds
    return run


@pytest.mark.parametrize(("photos", "nearest"), [(1, 40), (79, 40), (81, 160), (10**6, 700)])
def test_what_to_try_next_is_what_won_at_the_nearest_number_of_photos(photos, nearest):
    best, told = advice.next_after(photos)
    assert best == advice.NEXT[nearest]
    assert told.startswith(f"{best.points} points of accuracy more with {nearest} photos")


def test_what_to_try_next_is_a_command_that_trains_more_than_the_head():
    for best in advice.NEXT.values():
        options = parse_args(["--weights", __file__, *best.flags])
        assert options.mlp == "gkan" or not options.frozen


def test_a_head_alone_is_followed_by_the_form_that_won_and_its_time_here():
    run = finished(*FILE, "--data-path", "my photos", "--img-size", "96", "--epochs", "10")
    [(worth, line)] = advice.next_form(run)
    assert "in about 3 min" in worth  # 200 photos, 10 epochs, three times what looking at one takes
    words = shlex.split(line)
    assert words[:2] == ["python", "train.py"]
    options = parse_args(words[2:])
    assert (options.data_path, options.weights, options.img_size) == ("my photos", __file__, 96)
    assert {*advice.NEXT[160].flags} <= {*words}


def test_the_time_told_is_that_of_the_command():
    [(worth, line)] = advice.next_form(finished(*FILE, "--epochs", "30"))
    assert "in about 9 min" in worth
    assert "--epochs 30" in line


def test_what_to_try_next_is_judged_by_the_same_photos():
    [(_, line)] = advice.next_form(finished(*FILE, "--seed", "3", "--val-split", "0.3"))
    options = parse_args(shlex.split(line)[2:])
    assert (options.seed, options.val_split) == (3, 0.3)


def test_no_time_is_told_where_the_frozen_layers_did_not_run_once():
    [(worth, _)] = advice.next_form(finished(*FILE, photo_seconds=None))
    assert " min" not in worth


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ([], {}),
        ([*FILE, "--freeze-layers", "false"], {}),
        ([*FILE, "--adapt", "bias"], {}),
        ([*FILE, "--adapt", "lora"], {"adapt": "lora"}),
        ([*FILE, "--mlp", "gkan"], {"mlp": "gkan"}),
    ],
)
def test_nothing_follows_what_is_more_than_a_head_alone(words, model):
    assert advice.next_form(finished(*words, **model)) == []
