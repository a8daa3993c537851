"""What a run comes to: results.json, temperature, the test set, photos that were trained on."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_class_photo  # noqa: F401 (puts the project on the path)

import export
import predict
import train
from imaging.splitting import Samples
from predicting.predictor import Predictor
from reporting.calibration import at_temperature, fit_temperature
from training import conclusion, folds
from training.run_folder import EVENTS, LOCK, WRITTEN

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]
FAST += ["--batch-size", "8", "--device", "cpu"]


@pytest.fixture
def data(tmp_path, make_photos, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    return make_photos(tmp_path / "data", ("cats", "dogs"), per_class=10, size=16)


@pytest.fixture
def tested(monkeypatch):
    """Lets the next run hold back one photo of each class for testing, as --test-split does."""
    load = train.load_data

    def with_test(options):
        split = load(options)
        split.test = Samples(split.train.paths[::8], split.train.labels[::8])
        kept = [i for i in range(len(split.train.paths)) if i % 8]
        split.train = Samples(*([part[i] for i in kept] for part in split.train))
        return split

    monkeypatch.setattr(train, "load_data", with_test)


def run(call, data, *words):
    status, out, err = call(train.main, "--data-path", data, *FAST, "--output", "run", *words)
    assert status == 0, err
    return out


def results(folder="run"):
    return json.loads(Path(folder, "results.json").read_text("utf-8"))


def best(path="run/best.pth"):
    return torch.load(path, weights_only=True)


def test_a_run_tells_its_accuracy_with_its_interval_and_what_makes_it_too_good(data, call):
    run(call, data, "--epochs", "3", "--warmup-epochs", "0", "--lr", "1e-3")
    found, kept = results(), best()
    assert found["val_acc"] == kept["metrics"]["val_acc"]
    low, high = found["val_interval"]
    assert 0 <= low <= found["val_acc"] <= high <= 1
    assert (found["val_photos"], found["trained_on"], found["chosen_among"]) == (4, 16, 3)
    assert found["test_acc"] is found["test_interval"] is found["folds"] is None
    assert found["val_recall"]["cats"]["photos"] == 2
    assert len(kept["trained_on"]) == 16 * 16
    assert found["temperature"] == kept["temperature"] != 1
    assert kept["version"] == 2
    assert best("run/last.pth")["temperature"] == 1


def test_the_temperature_is_the_likeliest_for_the_validation_answers(data, call):
    run(call, data, "--epochs", "1")
    split = json.loads(Path("run/split.json").read_text("utf-8"))
    paths = [str(data / path) for name in ("cats", "dogs") for path in split["val"][name]]
    kept = best()
    sure = {answer["image"]: answer["predictions"] for answer in Predictor("run/best.pth")(paths)}
    torch.save(kept | {"temperature": 1.0}, "raw.pth")
    raw = [[p["probability"] for p in sorted(a["predictions"], key=lambda p: p["index"])]
           for a in Predictor("raw.pth")(paths)]  # fmt: skip
    assert fit_temperature(raw, [0, 0, 1, 1]) == pytest.approx(kept["temperature"], rel=1e-2)
    told = at_temperature(raw, kept["temperature"]).max(1)
    assert [sure[p][0]["probability"] for p in paths] == pytest.approx(told.tolist(), abs=1e-4)
    own = [p["probability"] for path, label in zip(paths, (0, 0, 1, 1), strict=True)
           for p in sure[path] if p["index"] == label]  # fmt: skip
    assert results()["val_log_loss"] == pytest.approx(-np.log(own).mean(), abs=1e-3)
    assert results()["test_log_loss"] is None


def test_the_test_photos_are_judged_once_and_after_the_last_epoch(data, call, tested, monkeypatch):
    looks, judge = [], conclusion.judge_test
    monkeypatch.setattr(
        conclusion, "judge_test", lambda trainer: looks.append(trainer.epoch) or judge(trainer)
    )
    run(call, data, "--epochs", "2")
    assert looks == [2]
    found = results()
    assert found["test_photos"] == 2
    assert found["ece_on"] == "test"
    assert best()["metrics"]["test_acc"] == found["test_acc"]
    assert set(best()["metrics"]) >= {"test_low", "test_high", "val_low", "val_high"}
    assert best()["metrics"]["val_photos"] > 0
    status, out, _ = call(train.main, "--resume", "run", "--workers", "0")
    assert (status, results()) == (0, found)
    status, out, _ = call(train.main, "--resume", "run", "--epochs", "3", "--workers", "0")
    assert "the test photos were judged before, after 2 epochs" in out


@pytest.mark.parametrize("best_by", ["accuracy", "balanced", "loss", "probability"])
def test_the_best_epoch_is_the_best_by_what_was_asked(data, call, best_by):
    run(call, data, "--epochs", "4", "--best-by", best_by, "--warmup-epochs", "0", "--lr", "3e-3")
    last = best("run/last.pth")
    key = {"accuracy": "val_acc"}.get(best_by, f"val_{best_by}")
    sign = -1 if best_by == "loss" else 1
    top = max(sign * row[key] for row in last["history"])
    assert sign * last["best"][key] == top
    assert best()["epoch"] == last["best"]["epoch"]


def test_of_few_validation_photos_the_probability_of_what_they_are_tells_the_best_epoch(data, call):
    out = run(call, data, "--epochs", "2")
    assert "--best-by probability  (" in out
    rows = best("run/last.pth")["history"]
    assert best()["epoch"] == max(rows, key=lambda row: row["val_probability"])["epoch"]
    torch.save(best() | {"temperature": 1.0}, "raw.pth")
    split = json.loads(Path("run/split.json").read_text("utf-8"))
    given = [
        prediction["probability"]
        for name, paths in split["val"].items()
        for answer in Predictor("raw.pth")([data / path for path in paths])
        for prediction in answer["predictions"]
        if prediction["class"] == name
    ]
    assert len(given) == 4
    mean = best()["metrics"]["val_probability"]
    assert mean == pytest.approx(sum(given) / len(given), abs=1e-5)


def test_photos_that_were_trained_on_are_left_out_and_counted(data, call, make_photos):
    run(call, data, "--epochs", "1")
    status, out, _ = call(predict.main, data, "--weights", "run/best.pth", "--device", "cpu")
    assert status == 0
    assert re.search(r"accuracy [\d.]+ \(\d of 4 photos\), 95 % interval", out)
    assert "not judged: 16 that the model was trained on" in out
    judge = ["--eval", "--weights", "run/best.pth", "--workers", "0", "--device", "cpu"]
    other = make_photos("other", ("cats", "dogs"), per_class=2, size=16, seed=9)
    status, out, err = call(train.main, "--data-path", other, "--val-path", data, *judge)
    assert status == 0, err
    assert "left out, for the model was trained on them: 16 photos" in out
    assert "on 4 validation photos" in out
    shutil.copytree(data, "moved")
    for path in json.loads(Path("run/split.json").read_text("utf-8"))["val"].values():
        for name in path:
            Path("moved", name).unlink()
    status, _, err = call(train.main, "--data-path", other, "--val-path", "moved", *judge)
    assert status == 2
    assert "was trained on all 16 photos that would be judged" in err


def test_a_model_trained_further_on_its_validation_photos_says_so(data, call):
    run(call, data, "--epochs", "1", "--seed", "1")
    shutil.move("run", "first")
    out = run(call, data, "--epochs", "1", "--weights", "first/best.pth", "--seed", "5")
    told = re.search(r"was trained on (\d) of the 4 photos that judge this run", out)
    assert told
    assert len(best()["trained_on"]) == 16 * (16 + int(told[1]))


def test_resumed_folds_do_not_say_that_the_first_weights_knew_their_photos(data, call):
    run(call, data, "--epochs", "1", "--folds", "2")
    status, out, err = call(train.main, "--resume", "run")
    assert status == 0, err
    assert "is finished" in out
    assert "photos that judge this run" not in out


def test_eval_of_a_model_of_folds_judges_other_photos_and_refuses_its_own(data, call):
    run(call, data, "--epochs", "1", "--folds", "2")
    Path("others").mkdir()
    for photo in sorted(Path(data).rglob("*.*")):
        into = Path("others", photo.relative_to(data)).with_stem(f"new_{photo.stem}")
        into.parent.mkdir(parents=True, exist_ok=True)
        into.write_bytes(photo.read_bytes() + b"0")
    judge = "--weights", "run/best.pth", "--eval"
    status, out, err = call(train.main, "--data-path", "others", *judge)
    assert status == 0, err
    assert "validation photos of others" in out
    status, _, err = call(train.main, "--data-path", data, *judge)
    assert status == 2
    assert "judged in folds" in err


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["cool.safetensors", pytest.param("cool.onnx", marks=SLOW)])
def test_export_keeps_the_numbers_and_the_probabilities(data, call, name):
    run(call, data, "--epochs", "1")
    kept = best() | {"temperature": 0.5}
    torch.save(kept, "cool.pth")
    photo = sorted(data.glob("*/*.jpg"))[0]
    wanted = Predictor("cool.pth")(photo)["predictions"]
    raw = Predictor("run/best.pth")(photo)["predictions"]
    assert wanted != raw
    assert call(export.main, "cool.pth", "--output", name)[0] == 0
    predictor = Predictor(name)
    for one, other in zip(predictor(photo)["predictions"], wanted, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
    facts = predictor.classifier.facts
    for key in ("temperature", "trained_on", "metrics", "version"):
        assert facts[key] == kept[key]


def test_wrong_facts_and_older_programs_are_answered_in_a_sentence(data, call, monkeypatch):
    run(call, data, "--epochs", "0")
    assert best()["trained_on"] == ""
    for key, value, words in (
        ("temperature", 0.0, "`temperature` that is no number above 0"),
        ("temperature", "1", "`temperature`"),
        ("trained_on", "xyz", "`trained_on` that holds no digests"),
        ("version", 3, "newer version (3)"),
    ):
        torch.save(best() | {key: value}, "wrong.pth")
        status, _, err = call(predict.main, data, "--weights", "wrong.pth")
        assert (status, words in err) == (2, True), err
    monkeypatch.setattr("formats.checkpoints.CHECKPOINT_VERSION", 1)
    status, _, err = call(predict.main, data, "--weights", "run/best.pth")
    assert (status, "newer version (2)" in err) == (2, True)


# --- folds ----------------------------------------------------------------------------------------


def in_folds(call, data, *words, epochs="2"):
    return run(call, data, "--folds", "3", "--epochs", epochs, *words)


def test_each_photo_is_answered_by_a_model_that_did_not_see_it(data, call):
    out = in_folds(call, data, "--lr", "1e-3")
    lines = Path("run/out_of_fold.csv").read_text("utf-8").splitlines()
    assert lines[0] == "image,label,predicted,cats,dogs"
    rows = [line.split(",") for line in lines[1:]]
    assert sorted(row[0] for row in rows) == sorted(map(str, data.glob("*/*.jpg")))
    right = sum(label == said for _, label, said, *_ in rows)
    found = results()
    assert found["val_acc"] == right / 20 == best()["metrics"]["val_acc"]
    assert (found["trained_on"], found["val_photos"], len(found["folds"])) == (20, 20, 3)
    assert all(float(a) + float(b) == pytest.approx(1, abs=2e-6) for *_, a, b in rows)
    assert best()["metrics"]["folds"] == 3
    assert "resum" not in out
    seen = [json.loads(Path(f"run/fold{k}/split.json").read_text("utf-8")) for k in (1, 2, 3)]
    judged = [path for split in seen for paths in split["val"].values() for path in paths]
    assert len(judged) == len(set(judged)) == 20
    status, told, _ = call(predict.main, data, "--weights", "run/best.pth", "--device", "cpu")
    assert status == 0
    assert "out-of-fold accuracy" in told
    assert "not judged: 20 that the model was trained on" in told
    assert not list(Path("run").glob("fold*/*best.pth"))
    names = {path.name for path in Path("run").rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith(EVENTS)}
    assert names <= {*WRITTEN.split(), LOCK}


def test_groups_stay_whole_in_folds_and_lessen_what_photos_are_worth(data, call, monkeypatch):
    load, groups = folds.pooled, {}

    def grouped(split, *rest):
        split = load(split, *rest)
        groups.update({path: path[:-6] + path[-5] for path in split.train.paths})
        return train.DataSplit(**vars(split) | {"groups": groups}) if groups else split

    for number, path in enumerate(sorted(data.glob("*/*.jpg"))):  # two photos of each last figure
        path.rename(path.with_name(f"photo_{number % 10 // 5}{number % 5}.jpg"))
    monkeypatch.setattr(train, "pooled", grouped)
    in_folds(call, data)
    for k in (1, 2, 3):
        split = json.loads(Path(f"run/fold{k}/split.json").read_text("utf-8"))
        sides = [{groups[str(data / p)] for ps in split[s].values() for p in ps}
                 for s in ("train", "val")]  # fmt: skip
        assert not sides[0] & sides[1]
    assert results()["val_worth"] <= 20


@pytest.mark.parametrize("stops", [(4,), pytest.param((1, 2, 3, 5, 6, 7, 8), marks=SLOW)])
def test_a_run_stopped_anywhere_in_its_folds_ends_in_the_same_bits(data, call, monkeypatch, stops):
    words = ["--lr", "1e-3", "--weights", "start.pth"]
    run(call, data, "--epochs", "0")
    shutil.move("run/best.pth", "start.pth")
    shutil.rmtree("run")
    in_folds(call, data, *words)
    table, whole = Path("run/out_of_fold.csv").read_bytes(), best()
    shutil.move("run", "whole")
    saved = train.Folds._train.__globals__["Trainer"].save
    for stop in stops:
        left = [None] * stop

        def save(trainer, left=left):
            saved(trainer)
            left.pop()
            if not left:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("training.trainer.Trainer.save", save)
            with pytest.raises((KeyboardInterrupt, AssertionError)):
                in_folds(call, data, *words)
        status, _, err = call(train.main, "--resume", "run", "--workers", "0")
        assert status == 0, err
        assert Path("run/out_of_fold.csv").read_bytes() == table
        assert all(map(torch.equal, best()["model"].values(), whole["model"].values()))
        assert best()["temperature"] == whole["temperature"]
        shutil.rmtree("run")


def test_a_signal_in_the_last_epoch_of_a_fold_stops_the_run(data, call, monkeypatch):
    validate, left = train.Folds._train.__globals__["Trainer"].validate, [signal.SIGTERM]

    def signalled(trainer):
        if left:
            signal.raise_signal(left.pop())
        return validate(trainer)

    words = ["--data-path", data, *FAST, "--output", "run", "--folds", "3", "--epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("training.trainer.Trainer.validate", signalled)
        status, out, _ = call(train.main, *words)
    assert status == 128 + signal.SIGTERM
    assert "go on with: python train.py --resume run" in out
    assert [path.parent.name for path in Path("run").glob("fold*/answers.pth")] == ["fold1"]
    assert not Path("run/fold2").exists()
    status, out, _ = call(train.main, "--resume", "run", "--workers", "0")
    assert (status, "fold 2 of 3" in out, "fold 1 of 3" in out) == (0, True, False)


def test_frozen_layers_run_once_for_all_folds(data, call, monkeypatch):
    run(call, data, "--epochs", "0")
    shutil.move("run/best.pth", "start.pth")
    shutil.rmtree("run")
    photos, fill = [], train.assemble.__globals__["feature_cache"].fill

    def counted(model, skip, loader, **rest):
        photos.append(len(loader.dataset))
        return fill(model, skip, loader, **rest)

    monkeypatch.setattr("training.feature_cache.fill", counted)
    in_folds(call, data, "--weights", "start.pth")
    assert photos == [20]


def test_an_ensemble_answers_the_mean_of_its_models_and_others_refuse_it(data, call):
    in_folds(call, data, "--ensemble", epochs="1")
    assert not Path("run/best.pth").exists()
    photo = str(sorted(data.glob("*/*.jpg"))[3])
    alone = [Predictor(f"run/fold{k}/best.pth")(photo)["predictions"] for k in (1, 2, 3)]
    mean = {name: sum(p["probability"] for one in alone for p in one if p["class"] == name) / 3
            for name in ("cats", "dogs")}  # fmt: skip
    together = Predictor("run")(photo)["predictions"]
    assert {p["class"]: p["probability"] for p in together} == pytest.approx(mean, abs=2e-6)
    for main, words in (
        (export.main, ["run"]),
        (train.main, ["--data-path", data, "--weights", "run"]),
        (train.main, ["--data-path", data, "--weights", "run", "--eval"]),
        (predict.main, [data, "--weights", "run", "--explain", "figures"]),
    ):
        status, _, err = call(main, *words)
        assert (status, "ensemble" in err, len(err.splitlines())) == (2, True, 1), err
    Path("run/fold2/best.pth").unlink()
    status, _, err = call(predict.main, data, "--weights", "run")
    assert (status, "fold2/best.pth is gone" in err) == (2, True)
    Path("run/results.json").unlink()  # as in a run that was killed within its folds
    status, _, err = call(predict.main, data, "--weights", "run")
    assert (status, "train.py --resume run" in err, len(err.splitlines())) == (2, True, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--folds", "1"], "--folds"),
        (["--folds", "40"], "40 folds need"),
        (["--folds", "3", "--val-split", "0.3"], "--folds and --val-split exclude"),
        (["--folds", "3", "--epochs", "0"], "--folds needs --epochs"),
        (["--folds", "3", "--val-path", "data"], "--folds"),
        (["--folds", "3", "--fsdp"], "--folds and --fsdp"),
        (["--ensemble"], "--ensemble needs"),
        (["--best-by", "luck"], "--best-by"),
    ],
)
def test_what_folds_cannot_do_is_told_in_a_sentence(data, call, words, told):
    status, _, err = call(train.main, "--data-path", data, *FAST, *words)
    assert status == 2
    assert told in err
    assert not Path("weights").exists()


def test_a_resumed_run_keeps_what_its_folds_were_trained_with(data, call):
    in_folds(call, data, epochs="1")
    before = results()
    status, out, _ = call(train.main, "--resume", "run", "--workers", "0")
    assert (status, "is finished after 1 epoch" in out, results()) == (0, True, before)
    for words in (["--epochs", "2"], ["--patience", "1"], ["--folds", "4"]):
        status, _, err = call(train.main, "--resume", "run", *words)
        assert (status, "would make it another run" in err) == (2, True)


def test_the_newest_model_is_the_ensemble_and_never_a_fold_under_way(data, call):
    from predicting.classifier import newest_checkpoint

    in_folds(call, data, "--ensemble", epochs="1")
    assert newest_checkpoint(".") == "run"
    Path("run/results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no best\.pth"):
        newest_checkpoint(".")
