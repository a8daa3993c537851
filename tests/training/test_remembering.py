"""What a run keeps of its training photos: `known` in best.pth, features.npz beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_class_photo  # noqa: F401 (puts the project on the path)

import train
from formats.known import Known
from predicting.classifier import open_classifier
from predicting.nearest import Nearest
from predicting.predictor import Predictor
from pretrained import load_model
from training import known as remembering

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]
FAST += ["--batch-size", "8", "--device", "cpu", "--epochs", "1", "--output", "run"]


@pytest.fixture
def data(tmp_path, make_photos, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    return make_photos(tmp_path / "data", ("cats", "dogs"), per_class=10, size=16)


def run(call, data, *words):
    status, out, err = call(train.main, "--data-path", data, *FAST, *words)
    assert status == 0, err
    return out


def best(path="run/best.pth"):
    return torch.load(path, weights_only=True)


def features_of(paths, weights="run/best.pth"):
    """What the head of a model reads of photos, by the way that photos are predicted."""
    predictor = Predictor(weights, device="cpu")
    photos = [photo for path in paths for photo in predictor._named(path)]
    return torch.stack([answer.features for answer in predictor.answers(photos)])


def cosine(one, other):
    one, other = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (one, other))
    return one @ other.T


@pytest.fixture
def start(data, call):
    """Weights of a model that other photos have trained."""
    run(call, data, "--aug", "none")
    kept = best()
    torch.save({"model": kept["model"], "config": kept["config"]}, "start.pth")
    facts = kept | {"trained_on": "", "known": {}}
    torch.save(facts, "start.pth")
    for path in Path("run").iterdir():
        path.unlink()
    return ["--weights", "start.pth"]


def split(side, folder="run"):
    sides = json.loads(Path(folder, "split.json").read_text("utf-8"))[side]
    return [path for name in ("cats", "dogs") for path in sides[name]]


def test_features_npz_has_what_the_head_reads_of_every_training_photo(data, call):
    run(call, data)
    with np.load("run/" + remembering.FEATURES) as found:
        assert found["features"].dtype == np.float16
        assert sorted(found["paths"]) == sorted(split("train"))
        assert list(found["classes"]) == ["cats", "dogs"]
        names = [found["classes"][label] for label in found["labels"]]
        assert names == [path.split("/")[0] for path in found["paths"]]
        wanted = features_of([str(data / path) for path in found["paths"]])
        assert torch.allclose(torch.tensor(found["features"]).float(), wanted, atol=2e-2)
    notes = {}
    for name in ("best", "last"):
        classifier = open_classifier(f"run/{name}.pth", None, torch.device("cpu"))
        notes[name] = Nearest.beside(f"run/{name}.pth", classifier).note
    assert notes["best"] == ""
    assert "last.pth holds no features of them" in notes["last"]


def test_the_validation_photos_tell_how_far_is_unlike(data, call):
    run(call, data, "--freeze-layers", "false")
    trained, judged = ([str(data / p) for p in split(side)] for side in ("train", "val"))
    likeness = cosine(features_of(judged), features_of(trained))
    wanted = 1 - likeness.sort(dim=1, descending=True).values[:, :3].mean(1)
    known = Known.from_dict(best()["known"])
    assert len(known.features) == 16
    assert known.scores.tolist() == pytest.approx(sorted(wanted.tolist()), abs=2e-3)


def test_where_the_head_alone_is_trained_each_training_photo_is_judged_by_the_others(
    data, call, start
):
    run(call, data, *start)
    trained, judged = ([str(data / p) for p in split(side)] for side in ("train", "val"))
    own = cosine(features_of(trained), features_of(trained)).fill_diagonal_(-1)
    likeness = torch.cat([own, cosine(features_of(judged), features_of(trained))])
    wanted = 1 - likeness.sort(dim=1, descending=True).values[:, :3].mean(1)
    known = Known.from_dict(best()["known"])
    assert known.scores.tolist() == pytest.approx(sorted(wanted.tolist()), abs=2e-3)


def test_near_copies_do_not_judge_each_other(data, call, start, monkeypatch):
    monkeypatch.setattr(
        "imaging.splitting.DataSplit.groups_of", lambda self, paths: [p[-5] for p in paths]
    )
    run(call, data, *start)
    trained = [str(data / p) for p in split("train")]
    apart = torch.tensor([[a[-5] != b[-5] for b in trained] for a in trained])
    own = cosine(features_of(trained), features_of(trained)).masked_fill(~apart, -1)
    judged = cosine(features_of([str(data / p) for p in split("val")]), features_of(trained))
    wanted = 1 - torch.cat([own, judged]).sort(dim=1, descending=True).values[:, :3].mean(1)
    known = Known.from_dict(best()["known"])
    assert known.scores.tolist() == pytest.approx(sorted(wanted.tolist()), abs=2e-3)


@pytest.mark.parametrize("frozen", [True, False])
def test_with_folds_every_photo_is_judged_by_a_model_without_it(data, call, start, frozen):
    run(call, data, *start, "--freeze-layers", str(frozen).lower(), "--folds", "3")
    known = Known.from_dict(best()["known"])
    assert len(known.features) == len(known.scores) == 20
    with np.load("run/" + remembering.FEATURES) as found:
        assert len(found["paths"]) == 20


def test_each_model_of_an_ensemble_has_its_own(data, call):
    run(call, data, "--folds", "3", "--ensemble")
    sizes = [len(Known.from_dict(best(f"run/fold{k}/best.pth")["known"]).features) for k in (1, 2)]
    assert all(12 <= size <= 15 for size in sizes)
    images = torch.rand(2, 3, 16, 16)
    together, *alone = (
        Predictor(path, device="cpu").see(images).strangeness
        for path in ("run", *(f"run/fold{k}/best.pth" for k in (1, 2, 3)))
    )
    assert torch.allclose(together, torch.stack(alone).mean(0))


def test_photos_are_drawn_where_there_are_too_many(data, call, monkeypatch):
    monkeypatch.setattr(remembering, "MOST_PHOTOS", 6)
    run(call, data)
    with np.load("run/" + remembering.FEATURES) as found:
        assert sorted(found["labels"]) == [0, 0, 0, 1, 1, 1]
    assert len(Known.from_dict(best()["known"]).features) == 6


def test_frozen_layers_are_not_run_again_for_it(data, call, start, monkeypatch):
    fill, photos = remembering.feature_cache.fill, []

    def counted(model, skip, loader, *rest, **more):
        photos.append(len(loader.dataset))
        return fill(model, skip, loader, *rest, **more)

    monkeypatch.setattr("training.feature_cache.fill", counted)
    run(call, data, *start)
    assert photos == [16, 4]  # for the training itself


def test_a_run_killed_while_it_looks_goes_on_to_the_same_bits(data, call, monkeypatch):
    run(call, data)
    with np.load("run/" + remembering.FEATURES) as file:
        before = best()["known"], dict(file)
    Path("run", remembering.FEATURES).unlink()
    kept = best()
    torch.save(kept | {"known": {}, "temperature": 1.0}, "run/best.pth")  # as the epoch had left it
    status, _, err = call(train.main, "--resume", "run", "--workers", "0")
    assert status == 0, err
    assert best()["known"] == before[0]
    with np.load("run/" + remembering.FEATURES) as found:
        assert all((found[name] == wanted).all() for name, wanted in before[1].items())


def test_a_run_of_few_photos_says_that_nothing_will_be_called_unknown(data, call, capsys):
    from training.conclusion import unlike

    run(call, data)
    known = Known.from_dict(best()["known"])
    told = unlike(known)
    assert "calls none unknown, for 4 photos to set a limit by are too few: it takes 19" in told
    assert "(--unknown 0.20 works)" in told
    enough = unlike(known.judged_by(torch.rand(19)))
    assert enough.startswith("unlike photos: predict.py calls them unknown")
    assert "falsely 5% of photos like these" in enough
    model = load_model("run/best.pth")
    assert model.facts["known"] == best()["known"]
