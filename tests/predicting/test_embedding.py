"""predict.py --embed: a row of features a photo, in a file that appears whole or not at all."""

import csv
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from imaging.decoding import load_image
from imaging.preprocess import Preprocess, eval_transform
from predicting.classifier import Classifier, Seen
from predicting.embedding import FeatureFile
from predicting.writers import Answer
from vit_model import create_model

SIZE = 64


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with best.pth, three photos and one that is none; the current one."""
    monkeypatch.chdir(tmp_path)
    model = create_model("vit_micro_patch8_64", num_classes=2).eval()
    facts = {"classes": ["a", "b"], "preprocess": Preprocess(img_size=SIZE).to_dict(), "version": 1}
    torch.save({"model": model.state_dict(), "config": model.config, **facts}, "best.pth")
    Path("photos").mkdir()
    for name, colour in (("=1.jpg", "red"), ("b,\n2.png", "green"), ("z雛.jpg", "blue")):
        Image.new("RGB", (90, 70), colour).save(Path("photos", name))
    Path("photos", "broken.jpg").write_bytes(b"no photo")
    return model


PHOTOS = ["photos/=1.jpg", "photos/b,\n2.png", "photos/z雛.jpg"]


def wanted(model):
    """What the head reads of the three photos, computed here."""
    images = [eval_transform(Preprocess(img_size=SIZE))(load_image(path)) for path in PHOTOS]
    with torch.inference_mode():
        read = []
        hook = model.head.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        model(torch.stack(images))
        hook.remove()
    return read[0].numpy()


def test_an_npz_has_what_the_head_reads_of_each_photo_that_could_be_read(folder, call):
    status, _, _ = call(predict.main, "photos", "--weights", "best.pth", "--embed", "out/f.npz")
    assert status == 1  # one photo failed, as without the flag
    with np.load("out/f.npz", allow_pickle=False) as file:
        assert sorted(file) == ["features", "paths"]
        assert file["paths"].tolist() == PHOTOS
        assert file["features"].dtype == np.float32
        np.testing.assert_allclose(file["features"], wanted(folder), atol=1e-5)
    assert os.listdir("out") == ["f.npz"]


def test_a_csv_has_a_header_and_the_same_numbers_and_no_formulas(folder, call):
    call(predict.main, *PHOTOS, "--weights", "best.pth", "--embed", "f.csv")
    with open("f.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", *(f"f{n}" for n in range(folder.num_features))]
    assert [row[0] for row in rows] == PHOTOS
    np.testing.assert_allclose(np.array([r[1:] for r in rows], float), wanted(folder), atol=1e-5)
    os.chdir("photos")
    call(predict.main, "=1.jpg", "--weights", "../best.pth", "--embed", "../g.csv")
    assert Path("../g.csv").read_text("utf-8").splitlines()[1].startswith("'=1.jpg,")


@pytest.mark.parametrize("name", ["f.npz", "f.csv"])
def test_a_run_that_is_stopped_leaves_the_file_as_it_was(folder, call, name, monkeypatch):
    Path(name).write_text("mine", "utf-8")
    answered = predict.Predictor.answers

    def stopped(self, photos, keep_image):
        yield next(answered(self, photos, keep_image))
        raise KeyboardInterrupt

    monkeypatch.setattr(predict.Predictor, "answers", stopped)
    before = sorted(os.listdir())
    call(predict.main, "photos", "--weights", "best.pth", "--embed", name)
    assert Path(name).read_text("utf-8") == "mine"
    assert sorted(os.listdir()) == before


def test_a_full_disk_is_said_of_the_file_that_was_to_appear(folder, call):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        status, _, said = call(predict.main, *PHOTOS, "--weights", "best.pth", "--embed", "f.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert said.splitlines()[-1].startswith("predict.py: error: f.npz: ")
    assert not Path("f.npz").exists()


def test_photos_that_all_fail_leave_a_file_without_rows(folder, call):
    words = "photos/broken.jpg", "--weights", "best.pth", "--embed"
    assert [call(predict.main, *words, name)[0] for name in ("f.npz", "f.csv")] == [1, 1]
    with np.load("f.npz") as file:
        assert file["features"].shape == (0, folder.num_features)
        assert file["paths"].tolist() == []
    assert len(Path("f.csv").read_text("utf-8").splitlines()) == 1


def test_a_folder_is_no_file(folder, call):
    Path("f.npz").mkdir()
    status, _, said = call(predict.main, "photos", "--weights", "best.pth", "--embed", "f.npz")
    assert (status, said.count("\n")) == (2, 1)
    assert "--embed f.npz is a folder" in said


def no_features() -> Classifier:
    facts = {"config": {"name": "x"}}
    return Classifier(Seen, ["a"], Preprocess(img_size=SIZE), facts)


def test_a_model_without_features_is_refused_before_a_photo_is_decoded(folder, call, monkeypatch):
    monkeypatch.setattr(predict, "open_classifier", lambda *_: no_features())
    monkeypatch.setattr(predict, "write_all", lambda *_, **__: pytest.fail("a photo was decoded"))
    status, _, said = call(predict.main, "photos", "--weights", "best.pth", "--embed", "f.npz")
    assert (status, said.count("\n")) == (2, 1)
    assert "--embed needs one model that gives features" in said
    assert not Path("f.npz").exists()


def test_many_photos_need_no_more_memory_than_few(tmp_path):
    class Wide:
        width = 256

    def peak(count):
        writer = FeatureFile(str(tmp_path / "f.npz"), Wide)
        row = torch.ones(Wide.width)
        tracemalloc.start()
        for number in range(count):
            writer.write(Answer(f"photo{number}.jpg", features=row))
        writer.finish()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.close()
        return most

    peak(10)  # what is loaded once
    assert peak(4_000) < peak(1_000) + 1_000_000  # of which the rows alone are 4 MB
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (1_000, 256)
        assert file["paths"][-1] == "photo999.jpg"
