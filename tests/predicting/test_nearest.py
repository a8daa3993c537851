"""The training photos that are most like a photo: which, from which files, and what is shown."""

import io
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from explaining import photo_figure
from formats.known import Known
from imaging.digests import digests
from imaging.preprocess import Preprocess
from predicting.classifier import open_classifier
from predicting.nearest import Nearest, _holds
from predicting.predictor import Predictor
from vit_model import create_model

CLASSES = ["玫瑰", "tulips"]
COUNT = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a run, the photos that it was trained on, one of them again; and features."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, make_run()


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """The same in the current folder; the features of the training photos."""
    folder, features = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return features


def make_run():
    rng = np.random.default_rng(0)
    paths = [f"{CLASSES[i % 2]}/{i}.png" for i in range(COUNT)]
    for path in paths:
        Path("data", path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(Path("data", path))
    shutil.copy(f"data/{paths[3]}", "photo.png")
    Path("run").mkdir()
    model = create_model("vit_micro_patch8_64", num_classes=2).eval()
    facts = {"classes": CLASSES, "preprocess": Preprocess(img_size=64).to_dict(), "version": 2}
    facts["trained_on"] = digests([f"data/{path}" for path in paths])
    state = {"model": model.state_dict(), "config": model.config, **facts}
    torch.save(state, "run/best.pth")
    predictor = Predictor("run/best.pth", device="cpu")
    photos = [photo for path in paths for photo in predictor._named(f"data/{path}")]
    features = torch.stack([answer.features for answer in predictor.answers(photos)])
    known = Known.fit(features, torch.arange(COUNT) % 2, features).to_dict()
    torch.save(state | {"known": known}, "run/best.pth")
    write(
        features=features.half().numpy(),
        paths=np.array(paths),
        labels=np.arange(COUNT) % 2,
        classes=np.array(CLASSES),
    )
    Path("run/args.json").write_text(json.dumps({"data_path": "data"}), "utf-8")
    return features


def write(**arrays):
    np.savez_compressed("run/features.npz", **arrays)


def arrays():
    with np.load("run/features.npz") as file:
        return dict(file)


def classifier():
    return open_classifier("run/best.pth", None, torch.device("cpu"))


def nearest():
    return Nearest.beside("run/best.pth", classifier())


def explain(call, *more):
    """What predict.py said of photo.png, on both streams, while it drew the figure."""
    words = "photo.png", "--weights", "run/best.pth", "--explain", "why", *more
    status, out, err = call(predict.main, *words)
    assert status == 0, err
    assert os.path.exists("why/photo.png")
    return out, err


def texts(monkeypatch):
    """What is written into figures from now on."""
    found = []

    def kept(figure, file, **_):
        found.extend(one.get_title() for one in figure.axes)
        found.extend(text.get_text() for one in figure.axes for text in one.texts)
        found.extend(part.get_suptitle() for part in figure.subfigs)
        file.write(b"a picture")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", kept)
    return found


def test_the_nearest_are_those_of_the_largest_cosine(run):
    found, features = nearest(), run.double().numpy()
    lengths = np.linalg.norm(features, axis=1)
    for row in range(COUNT):
        cosines = features @ features[row] / lengths / lengths[row]
        order = np.argsort(-cosines)[:3]
        near = found.of(run[row])
        assert [one.path for one in near] == [arrays()["paths"][i] for i in order]
        assert [one.label for one in near] == [CLASSES[i % 2] for i in order]
        assert [one.similarity for one in near] == pytest.approx(cosines[order], abs=2e-3)
        assert [one.photo for one in near] == [Path("data", one.path) for one in near]
    assert len(found.of(run[0], count=99)) == COUNT
    assert found.note == ""


def test_the_figure_shows_them_with_their_classes(run, call, monkeypatch):
    shutil.copyfile("data/玫瑰/0.png", "other.png")
    Image.open("other.png").rotate(180).save("other.png")
    found = texts(monkeypatch)
    call(predict.main, "other.png", "--weights", "run/best.pth", "--explain", "why")
    (words,) = [text for text in found if "most like it" in text]
    assert "this photo is one of them" not in words
    assert sum("玫瑰" in text or "tulips" in text for text in found) >= 3
    assert not any("not there" in text for text in found)


def test_a_training_photo_is_told_to_be_one(run, call, monkeypatch):
    found = texts(monkeypatch)
    explain(call)
    assert any("this photo is one of them" in text for text in found)
    assert any(text == "tulips  1.000, the same to the model" for text in found)


def test_the_file_beside_the_figure_names_them(run, call):
    explain(call)
    near = json.loads(Path("why/photo.json").read_text("utf-8"))["near"]
    assert near == [
        {
            "path": one.path,
            "label": one.label,
            "similarity": pytest.approx(one.similarity, abs=1e-3),
        }
        for one in nearest().of(run[3])
    ]


def test_the_json_is_as_without_the_figure(run, call):
    out, err = explain(call, "--json")
    _, plain, _ = call(predict.main, "photo.png", "--weights", "run/best.pth", "--json")
    assert out == plain
    assert "nearest" not in err


def gone():
    Path("run/features.npz").unlink()


def moved():
    shutil.rmtree("data")


def no_args():
    Path("run/args.json").unlink()


def changed(**values):
    def change():
        write(**arrays() | values)

    return change


def spoilt(data):
    return lambda: Path("run/features.npz").write_bytes(data)


def cut():
    Path("run/features.npz").write_bytes(Path("run/features.npz").read_bytes()[:-300])


def pickled():
    np.savez("run/features.npz", **arrays() | {"paths": np.array([{}] * COUNT, object)})


def claimed(shape, kind="<f2", name="features", data=b"\0\0"):
    """A file whose array says that it is of another size than it is."""

    def change():
        keep, head = arrays(), io.BytesIO()
        about = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(head, about)
        keep.pop(name)
        write(**keep)
        with zipfile.ZipFile("run/features.npz", "a") as archive:
            archive.writestr(f"{name}.npy", head.getvalue() + data)

    return change


def packed(kind):
    def change():
        keep = arrays()
        with zipfile.ZipFile("run/features.npz", "w", kind) as archive:
            for name, values in keep.items():
                buffer = io.BytesIO()
                np.save(buffer, values)
                archive.writestr(f"{name}.npy", buffer.getvalue())

    return change


WIDTH = 128
BAD = {
    "other width": (changed(features=np.ones((COUNT, 64), np.float16)), "of another model"),
    "other classes": (changed(classes=np.array(["a", "b"])), "of another model"),
    "one row less": (changed(features=np.ones((COUNT - 1, WIDTH), np.float16)), "together"),
    "no photo": (changed(features=np.ones((0, WIDTH), np.float16), paths=np.array([], "U1"),
                         labels=np.array([], int)), "together"),
    "not finite": (changed(features=np.full((COUNT, WIDTH), np.nan, np.float16)), "numbers"),
    "no such class": (changed(labels=np.full(COUNT, 2)), "numbers"),
    "negative class": (changed(labels=np.full(COUNT, -1)), "numbers"),
    "words for labels": (changed(labels=np.array(["a"] * COUNT)), "labels is not"),
    "a path upwards": (changed(paths=np.array(["../../etc/passwd"] * COUNT)), "outside"),
    "an absolute path": (changed(paths=np.array(["/etc/passwd"] * COUNT)), "outside"),
    "columns first": (changed(features=np.ones((WIDTH, COUNT), np.float16).T), "features is not"),
    "pickles": (pickled, "paths is not"),
    "cut": (cut, "unusable"),
    "empty": (spoilt(b""), "unusable"),
    "no archive": (spoilt(b"x" * 1000), "unusable"),
    "an array missing": (lambda: write(features=np.ones((COUNT, WIDTH), np.float16)), "paths"),
    "a huge claim": (claimed((20_000, WIDTH)), "features is not"),
    "an endless claim": (claimed((10**12, WIDTH)), "features is not"),
    "wide letters": (claimed((COUNT,), "<U900000", "paths"), "paths is not"),
    "no numbers": (claimed((COUNT, WIDTH), "|V2"), "features is not"),
    "other packing": (packed(zipfile.ZIP_LZMA), "packed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_no_run_wrote_is_named_in_one_line_and_nothing_is_near(run, case):
    spoil, reason = BAD[case]
    spoil()
    found = nearest()
    assert f"run{os.sep}features.npz is unusable" in found.note
    assert "\n" not in found.note
    assert reason in found.note
    assert found.of(run[0]) == []


def test_the_answers_go_on_without_such_a_file(run, call):
    cut()
    out, err = explain(call, "--json")
    (note,) = [line for line in err.splitlines() if "nearest" in line]
    assert f"run{os.sep}features.npz" in note
    assert json.loads(out)["predictions"]


def test_ordinary_variants_of_the_file_are_taken(run):
    before = [near[:3] for near in nearest().of(run[2])]
    for form in ("savez", "savez_compressed"):
        getattr(np, form)("run/features.npz", **arrays())
        assert [near[:3] for near in nearest().of(run[2])] == before
    packed(zipfile.ZIP_DEFLATED)()
    write(**arrays() | {"labels": arrays()["labels"].astype(np.int32)})
    assert [near[:3] for near in nearest().of(run[2])] == before


def test_more_than_the_file_says_is_never_unpacked(run):
    """The directory of the archive says a kilobyte, the stream goes on for hundreds of them."""
    data = bytearray(zip_of(b"\0" * 60_000_000))
    size = (60_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    Path("run/features.npz").write_bytes(data.replace(size, (1_000).to_bytes(4, "little")))
    model = classifier()
    tracemalloc.start()
    assert "unusable" in Nearest.beside("run/best.pth", model).note
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3_000_000


def zip_of(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("features.npy", content)
    return file.getvalue()


def test_a_file_larger_than_any_run_writes_is_not_read(run, monkeypatch):
    monkeypatch.setattr("predicting.nearest.HEADER", 0)
    monkeypatch.setattr("predicting.nearest.MOST_PHOTOS", 2)
    assert "features is larger than a run writes it" in nearest().note


def test_without_the_file_one_line_says_so_however_many_photos(run, call):
    gone()
    shutil.copy("photo.png", "second.png")
    words = "photo.png", "second.png", "--weights", "run/best.pth", "--explain", "why"
    _, out, err = call(predict.main, *words)
    assert (out + err).count("nearest training photos are not shown: there is no run") == 1
    assert sorted(os.listdir("why")) == ["photo.json", "photo.png", "second.json", "second.png"]


@pytest.mark.parametrize("lose", [moved, no_args], ids=["the data", "args.json"])
def test_without_the_photos_their_names_and_classes_are_told(run, call, lose, monkeypatch):
    lose()
    found = texts(monkeypatch)
    out, _ = explain(call)
    assert out.count("they are not there now") == 1
    assert any("not there now" in text and "/3.png" in text for text in found)
    assert any(text.startswith("tulips  1.000") for text in found)


def test_one_photo_that_is_gone_is_told_by_name(run, call, monkeypatch):
    Path("data/tulips/3.png").write_bytes(b"no photo any more")
    found = texts(monkeypatch)
    out, _ = explain(call)
    assert "nearest" not in out
    assert sum("not there now" in text for text in found) == 1


def test_other_files_in_the_folder_of_the_run_find_the_same(run):
    for name in ("run", "run/best.onnx", "run/adapter.safetensors"):
        assert [near.path for near in Nearest.beside(name, classifier()).of(run[1])] == [
            near.path for near in nearest().of(run[1])
        ]


def another_epoch(known):
    """The run's last.pth: the same model, but for an update of its weights."""
    state = torch.load("run/best.pth", weights_only=True)
    for name, values in state["model"].items():
        state["model"][name] = values + 0.02 * torch.randn(values.shape)
    torch.save(state | {"known": known}, "run/last.pth")
    return Nearest.beside("run/last.pth", open_classifier("run/last.pth", None, "cpu"))


def test_features_of_another_epoch_are_not_compared_with(run):
    found = another_epoch({})
    assert "run/last.pth holds no features of them" in found.note.replace(os.sep, "/")
    assert found.of(run[0]) == []
    known = Known.fit(run + 0.05 * torch.randn(run.shape), torch.zeros(COUNT), run).to_dict()
    found = another_epoch(known)
    assert "it is of another model" in found.note
    assert found.of(run[0]) == []


@pytest.mark.parametrize("rows", [3, 700])
def test_features_in_half_precision_are_known_again_in_bytes(rows):
    features = torch.randn(rows, 64) * torch.logspace(-2, 2, rows)[:, None]
    known = Known.fit(features, torch.zeros(rows))
    stored = features.half().float()
    assert _holds(stored.flip(0), known)
    assert not _holds(stored[1:], known)


def test_long_paths_end_with_their_file():
    assert photo_figure.shortened("a/b.jpg") == "a/b.jpg"
    told = photo_figure.shortened("x" * 100 + "/photo.jpg")
    assert len(told) == 44
    assert told.endswith("/photo.jpg")
