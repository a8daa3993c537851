"""A photo unlike those of the training set is called unknown: in every output, from every file."""

import csv
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import explain
import export
import predict
import pretrained
from formats.adapter_file import part_of, record_of, save_adapter
from formats.checkpoints import checkpoint_facts
from formats.known import Known
from imaging.digests import digests
from imaging.preprocess import Preprocess, eval_transform
from predicting.classifier import Seen, open_classifier, seen_by_all
from predicting.predictor import Predictor
from vit_model import create_model

CLASSES = ["daisy", "unknown"]  # the second one only has that name
KNOWN, UNLIKE = "in/known.png", "in/unlike.png"
PREPROCESS = Preprocess(img_size=32)


def picture(rng, level=40):
    """Noise about a grey, as the training photos are; at another level it is unlike them."""
    pixels = np.clip(rng.normal(level, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def make_run():
    """A model in best.pth, the one that was in old.pth, and two photos in in/."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = create_model(
        "custom", 2, embed_dim=16, depth=1, num_heads=2, img_size=32, patch_size=8
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    transform = eval_transform(PREPROCESS)
    images = torch.stack([transform(picture(rng)) for _ in range(79)])
    with torch.inference_mode():
        features = model.look(images)[1]
    known = Known.fit(features[:40], torch.arange(40) % 2, features[40:])
    facts = checkpoint_facts(model, CLASSES, PREPROCESS, 1, None, known=known.to_dict())
    torch.save({"model": model.state_dict()} | facts, "best.pth")
    torch.save({"model": model.state_dict()} | facts | {"known": {}}, "empty.pth")
    told = {key: facts[key] for key in ("config", "classes", "preprocess")} | {"version": 1}
    torch.save({"model": model.state_dict()} | told, "old.pth")
    Path("in").mkdir()
    near = known.distances(features).argmin()  # of the training photos, to which it is near
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(79)]
    pictures[int(near)].save(KNOWN)
    picture(rng, level=220).save(UNLIKE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_run()
    return folder


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def answers(run, call):
    """Returns answers(words, weights) -> the JSON of the known photo and of the unlike one."""

    def answers(*words, weights="best.pth"):
        command = KNOWN, UNLIKE, "--weights", weights, "--json", *words
        status, out, err = call(predict.main, *command)
        assert status == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return answers


def called(answers):
    return ["unknown" in answer for answer in answers]


# ------------------------------------------------------------------------------- what is answered


def test_json_says_it_beside_the_predictions_and_the_exit_status_stays(answers):
    known, unlike = answers()
    assert unlike["unknown"] is True
    assert "unknown" not in known
    assert len(unlike["predictions"]) == 2


def test_the_table_has_the_word(run, call):
    _, out, _ = call(predict.main, KNOWN, UNLIKE, "--weights", "best.pth")
    assert f"{UNLIKE}  (unknown)" in out.splitlines()
    assert KNOWN in out.splitlines()
    photos = [UNLIKE] * 9  # of more photos each has a line
    _, out, _ = call(predict.main, *photos, "--weights", "best.pth")
    assert sum(line.startswith(UNLIKE) and line.endswith("  (unknown)")
               for line in out.splitlines()) == 9  # fmt: skip


def test_the_csv_has_it_for_an_answer(answers):
    known, _ = answers("--csv", "out.csv")
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [known["predictions"][0]["class"], "unknown"]
    assert rows[1]["class_1"]


def test_a_saved_picture_has_the_word(answers, monkeypatch):
    written, drawn = [], ImageDraw.ImageDraw.text

    def text(draw, place, words, *rest, **more):
        written.append(words)
        return drawn(draw, place, words, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    state = torch.load("best.pth", weights_only=True) | {"classes": ["daisy", "roses"]}
    torch.save(state, "best.pth")
    answers("--save", "out")
    assert sorted(os.listdir("out")) == ["known.jpg", "unlike.jpg"]
    assert written.count("unknown") == 1
    assert written[-1] == "unknown"  # in the second picture


def test_sorted_photos_have_a_folder_for_it_that_no_class_shares(answers):
    known, _ = answers("--sort", "out")
    label = known["predictions"][0]["class"]
    assert os.listdir(f"out/{label}") == ["known.png"]
    (other,) = set(os.listdir("out")) - {label}
    assert other.startswith("unknown_")  # "unknown" alone is the class of that name
    assert os.listdir(f"out/{other}") == ["unlike.png"]


def test_where_no_class_has_the_name_the_folder_is_called_unknown(answers):
    state = torch.load("best.pth", weights_only=True) | {"classes": ["daisy", "roses"]}
    torch.save(state, "best.pth")
    answers("--sort", "out")
    assert os.listdir("out/unknown") == ["unlike.png"]


def test_unknown_wins_over_unsure(answers):
    words = "--threshold", "1", "--csv", "out.csv", "--sort", "out"
    known, unlike = answers(*words)
    assert (known.get("unsure"), known.get("unknown")) == (True, None)
    assert (unlike.get("unsure"), unlike.get("unknown")) == (True, True)
    with open("out.csv", encoding="utf-8", newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["unsure", "unknown"]
    assert os.listdir("out/unsure") == ["known.png"]


def test_0_turns_it_off_and_1_calls_every_photo_so(answers):
    assert called(answers("--unknown", "0")) == [False, False]
    assert called(answers("--unknown", "1")) == [True, True]
    assert called(answers("--unknown", "0.03")) == [False, True]  # of 39 judged photos
    assert called(answers("--unknown", "0.02")) == [False, False]


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan", "inf", "five", "5%", ""])
def test_a_bad_share_is_refused_in_one_sentence(run, call, value):
    status, _, said = call(predict.main, KNOWN, "--weights", "best.pth", f"--unknown={value}")
    assert (status, said.count("\n")) == (2, 1)
    assert "--unknown" in said


def test_a_photos_mirror_counts_as_much_as_the_photo(run):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, both = (Predictor("best.pth", device="cpu", tta=tta) for tta in (False, True))
    for name in ("strangeness", "features"):
        one, mirrored = (getattr(plain.see(some), name) for some in (images, images.flip(-1)))
        assert torch.allclose(getattr(both.see(images), name), (one + mirrored) / 2, atol=1e-6)


def test_a_pruned_model_calls_no_photo_unknown_and_says_so(run, call):
    """Its features are others than those of the training photos that the file had."""
    state = torch.load("best.pth", weights_only=True)
    told = {"temperature": 0.7, "trained_on": digests([KNOWN])}
    torch.save(state | told, "best.pth")
    status, out, err = call(explain.main, "best.pth", "--data", "in", "--prune", "0.5")
    assert status == 0, err
    assert "until then it calls no photo unknown" in out
    pruned = open_classifier("explain/pruned.pth", None, torch.device("cpu"))
    assert pruned.title.endswith("calls no photo unknown")
    assert {name: pruned.facts[name] for name in told} == told
    assert pruned.see(torch.zeros(1, 3, 32, 32)).strangeness is None


# ----------------------------------------------------------------------------------- from any file


def adapter():
    """The head alone in a file, the rest in backbone.pth."""
    state = torch.load("best.pth", weights_only=True)
    weights = state.pop("model")
    torch.save({"model": weights} | state | {"known": {}}, "backbone.pth")
    frozen = [name for name in weights if not name.startswith("head.")]
    save_adapter(
        Path("adapter.safetensors"), part_of(weights, frozen), state, record_of("backbone.pth")
    )
    return "adapter.safetensors"


def written(call, module, *words):
    status, _, err = call(module.main, "best.pth", *words)
    assert status == 0, err


FILES = {
    "safetensors": (export, ["--output", "out.safetensors"], "out.safetensors"),
    "a copy": (pretrained, ["--save", "out.pth"], "out.pth"),
    "a copy as safetensors": (pretrained, ["--save", "out.safetensors"], "out.safetensors"),
    "ONNX": (export, ["--output", "out.onnx"], "out.onnx"),
    "ONNX of 8 bits": (export, ["--int8", "--output", "out.onnx"], "out.onnx"),
}


@pytest.mark.parametrize("kind", FILES)
def test_it_survives_every_way_to_write_the_model(kind, answers, call):
    program, words, path = FILES[kind]
    if "ONNX" in kind:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    written(call, program, *words)
    known, unlike = called(answers(weights=path))
    assert unlike
    assert not known or "8 bits" in kind  # which move features, of so small a model far
    seen, wanted = (open_classifier(p, None, torch.device("cpu")) for p in (path, "best.pth"))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 2
    with torch.inference_mode():
        found, wanted = seen.see(images), wanted.see(images)
    cosines = torch.cosine_similarity(found.features, wanted.features)
    assert cosines.min() > (0.9 if "8 bits" in kind else 0.99999)
    assert seen.width == 16


def test_a_file_of_the_head_alone_has_it(answers):
    assert called(answers(weights=adapter())) == [False, True]


@pytest.mark.parametrize("kind", [kind for kind in FILES if "ONNX" not in kind])
def test_a_model_can_be_written_without_anything_of_its_photos(kind, answers, call):
    state = torch.load("best.pth", weights_only=True) | {"trained_on": digests([KNOWN])}
    torch.save(state, "best.pth")
    program, words, path = FILES[kind]
    written(call, program, *words)
    facts = open_classifier(path, None, torch.device("cpu")).facts
    assert facts["trained_on"] == state["trained_on"]
    assert facts["known"] == state["known"]
    written(call, program, *words, "--without-photos")
    facts = open_classifier(path, None, torch.device("cpu")).facts
    assert (facts["trained_on"], facts["known"]) == ("", {})
    assert state["known"]["features"][:40].encode() not in Path(path).read_bytes()
    assert state["trained_on"].encode() not in Path(path).read_bytes()
    assert answers(weights=path) == answers("--unknown", "0")


@pytest.mark.parametrize("name", ["old.pth", "empty.pth"])
def test_a_model_without_it_answers_as_before(name, answers, call):
    told = answers(weights=name)
    plain = answers("--unknown", "0")
    assert told == plain
    assert called(told) == [False, False]
    status, out, err = call(predict.main, KNOWN, "--weights", name)
    assert (status, err, "calls no photo unknown (" in out.splitlines()[0]) == (0, "", True)
    status, _, err = call(predict.main, KNOWN, "--weights", name, "--unknown", "0.1")
    assert (status, len(err.splitlines())) == (2, 1)
    assert f"--unknown 0.1: there are no features of training photos in {name}, by" in err
    if name == "old.pth":
        status, _, err = call(pretrained.main, name, "--save", "again.safetensors")
        assert status == 0, err
        assert answers(weights="again.safetensors") == plain


def test_features_of_another_width_are_refused_with_the_files_name(run, call):
    state = torch.load("best.pth", weights_only=True)
    state["known"] = Known.fit(torch.randn(5, 7), torch.zeros(5)).to_dict()
    torch.save(state, "other.pth")
    status, _, said = call(predict.main, KNOWN, "--weights", "other.pth")
    assert (status, said.count("\n")) == (2, 1)
    assert "other.pth has a `known` of 7 numbers a photo for a model of 16 features" in said


@pytest.mark.parametrize("values", [[1], "x", {"features": "AA", "width": 16, "scores": []}])
def test_features_that_are_none_are_refused_with_the_files_name(run, call, values):
    torch.save(torch.load("best.pth", weights_only=True) | {"known": values}, "other.pth")
    status, _, said = call(predict.main, KNOWN, "--weights", "other.pth")
    assert (status, said.count("\n")) == (2, 1)
    assert "other.pth has a `known` that holds no features" in said


def test_of_several_models_the_mean_counts_and_one_without_it_silences_all():
    def member(strangeness, images):
        told = None if strangeness is None else torch.tensor(strangeness)
        return Seen(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.ones(2, 4), told)

    images = torch.zeros(2, 3, 8, 8)
    shares = [[0.01, 0.5], [0.05, 0.9], [0.03, 0.1]]
    together = seen_by_all([partial(member, share) for share in shares], images)
    assert together.strangeness.tolist() == pytest.approx([0.03, 0.5])
    assert together.features is None
    mixed = seen_by_all([partial(member, share) for share in (shares[0], None)], images)
    assert mixed.strangeness is None
