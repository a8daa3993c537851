"""The training photos most like a photo: shown at this machine, to others on request alone."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_server import CLASSES, opened, photo, serving, write_checkpoint

from formats.known import Known
from predict import Predictor
from predicting.inputs import Photo

PHOTOS = ["daisy/a.jpg", "roses/b.jpg", "tulips/c.jpg"]


@pytest.fixture
def run(tmp_path):
    """A run with its photos at hand: the second is the photo that is asked about."""
    checkpoint = write_checkpoint(tmp_path / "weights" / "best.pth")
    for number, name in enumerate(PHOTOS):
        (tmp_path / "flowers" / name).parent.mkdir(parents=True)
        (tmp_path / "flowers" / name).write_bytes(photo(number))
    paths = [str(tmp_path / "flowers" / name) for name in PHOTOS]
    predictor = Predictor(str(checkpoint))
    features = [answer.features for answer in predictor.answers(map(Photo, paths))]
    known = Known.fit(torch.stack(features), torch.arange(3)).to_dict()
    torch.save(torch.load(checkpoint, weights_only=True) | {"known": known}, checkpoint)
    arrays = {"paths": np.array(PHOTOS), "labels": np.arange(3), "classes": np.array(CLASSES)}
    file = checkpoint.with_name("features.npz")
    np.savez(file, features=np.stack(features).astype(np.float16), **arrays)
    args = json.dumps({"data_path": str(tmp_path / "flowers")})
    checkpoint.with_name("args.json").write_text(args, "utf-8")
    return checkpoint


def test_they_are_shown_at_this_machine_without_their_paths(run):
    with serving(opened(run)) as client:
        why = client("POST", "/explain", photo(1))[1]
    first, *others = why["near"]
    assert (first["label"], first["similarity"]) == ("roses", pytest.approx(1, abs=1e-3))
    assert len(others) == 2
    head, picture = first["photo"].split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (90, 70)
    assert "b.jpg" not in json.dumps(why)


def test_others_see_them_on_request_alone(run):
    headers = {"Host": "192.168.1.5"}
    with serving(opened(run)) as client:
        assert "near" not in client("POST", "/explain", photo(1), headers)[1]
        client.server.training_photos = True
        assert len(client("POST", "/explain", photo(1), headers)[1]["near"]) == 3


def test_a_photo_that_is_gone_is_told_by_its_class_alone(run):
    with serving(opened(run)) as client:
        (run.parent.parent / "flowers" / "roses" / "b.jpg").unlink()
        (run.parent.parent / "flowers" / "daisy" / "a.jpg").write_bytes(b"no photo any more")
        near = client("POST", "/explain", photo(1))[1]["near"]
    pictures = {one["label"]: one["photo"] for one in near}
    assert pictures["roses"] is pictures["daisy"] is None
    assert pictures["tulips"]


def test_without_features_the_rest_is_told(run):
    run.with_name("features.npz").write_bytes(b"damaged")
    with serving(opened(run)) as client:
        assert client("POST", "/explain", photo(1))[1]["near"] == []
