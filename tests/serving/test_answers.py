"""What the server of serve.py answers: as predict.py does, for whatever is sent."""

import io
import json
import os
import random
import threading
import time
import tracemalloc

import pytest
import torch
from conftest import ROOT
from hostile_photos import bombs, metadata, programs, shapes, truncated_and_flipped
from PIL import Image
from tiny_server import CLASSES, form, opened, photo, serving, write_checkpoint

import predict
from explaining import methods
from imaging.preprocess import Preprocess
from predict import Predictor
from serving.models import names_of, open_models
from vit_model import create_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("served") / "run" / "best.pth")


@pytest.fixture(scope="module")
def ask(checkpoint):
    """A Client of a server with the usual limits."""
    with serving(opened(checkpoint)) as client:
        yield client


def test_an_answer_is_that_of_predict_py(call, ask, checkpoint, tmp_path):
    (tmp_path / "a photo.jpg").write_bytes(photo(1))
    _, told, _ = call(predict.main, tmp_path / "a photo.jpg", "--weights", checkpoint, "--json")
    expected = json.loads(told) | {"image": None}
    assert ask.predict(photo(1)) == (200, expected)
    headers, body = form(photo(1), "a photo.jpg")
    status, answer, _ = ask("POST", "/predict", body, headers)
    assert (status, answer) == (200, expected | {"image": "a photo.jpg"})
    assert "label" not in answer


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("C:\\Users\\me\\photo.jpg", "photo.jpg"),
        ("/home/me/photo.jpg", "photo.jpg"),
        ("<script>alert(1)</script>.jpg", "script>.jpg"),
        ("<img src=x onerror=alert(1)>.jpg", "<img src=x onerror=alert(1)>.jpg"),
        ("雏菊 é.jpg", "雏菊 é.jpg"),
        (b"caf\xe9.jpg", "caf\ufffd.jpg"),
        ("..", ".."),
        (None, None),
    ],
)
def test_a_photos_own_name_comes_back_without_its_folders(ask, sent, told):
    headers, body = form(photo(), sent)
    status, answer, _ = ask("POST", "/predict", body, headers)
    assert (status, answer["image"]) == (200, told)


def test_a_name_that_is_a_script_is_told_as_text(ask):
    headers, body = form(b"no photo", "<script>alert(1)<.jpg")
    status, answer, headers = ask("POST", "/predict", body, headers)
    assert (status, answer["image"]) == (422, "<script>alert(1)<.jpg")
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_forms_may_hold_other_fields_and_binary_content(ask):
    content = photo(2, kind="PNG") + b"\r\n--edg\r\n\n\r\0"  # what follows a PNG counts for nothing
    headers, body = form(content)
    other = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    status, answer, _ = ask("POST", "/predict", other + body, headers)
    assert (status, answer["predictions"]) == (200, ask.predict(content)[1]["predictions"])


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        form(photo(), field="photo"),
        ({"Content-Type": "multipart/form-data"}, b"--edge"),
        ({"Content-Type": "multipart/form-data; boundary=edge"}, b"--edge\r\n" * 3000),
        ({"Content-Type": "multipart/form-data; boundary=edge"}, b"\r\n\r\n"),
        (
            {"Content-Type": "multipart/form-data; boundary=edge"},
            b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n' * 2,
        ),
        ({"Content-Type": f"multipart/form-data; boundary*{'1' * 5000}=edge"}, b"--edge"),
        ({"Content-Type": "multipart/form-data; boundary*0=edge; boundary*=edge"}, b"--edge"),
        (
            {"Content-Type": "multipart/form-data; boundary=edge"},
            b"--edge\r\nContent-Disposition: x; name=file; filename*=idna''%ff\r\n\r\na\r\n",
        ),
        ({}, b""),
    ],
)
def test_a_request_without_a_file_is_told_so(ask, headers, body, capfd):
    status, answer, _ = ask("POST", "/predict", body, headers)
    assert status == 400
    assert answer["error"]
    assert capfd.readouterr().err == ""


def hostile():
    kinds = (truncated_and_flipped(random.Random(0)), metadata(), shapes(), bombs(), programs())
    return [item for kind in kinds for item in kind]


def test_hostile_photos_get_an_answer_or_a_sentence_and_nothing_of_this_machine(ask, capfd):
    counts = {200: 0, 422: 0}
    for name, content in hostile():
        headers, body = form(content, name)
        status, answer, _ = ask("POST", "/predict", body, headers)
        told = json.dumps(answer)
        if content:
            counts[status] += 1  # KeyError for any other status
            assert answer["image"] == name
        assert os.sep + "tmp" not in told
        assert str(ROOT) not in told
        assert "Traceback" not in told
    assert min(counts.values()) > 50
    assert capfd.readouterr().err == ""
    assert ask.predict(photo())[0] == 200


def test_a_photo_of_too_many_pixels_is_refused_unread(checkpoint):
    with serving(opened(checkpoint), pixels=90 * 70) as client:
        assert client.predict(photo(size=(90, 70)))[0] == 200
        status, answer = client.predict(photo(size=(91, 70)))
    assert status == 422
    assert "91 x 70 pixels" in answer["error"]


def test_the_page_and_its_parts_load_nothing_from_elsewhere(ask):
    status, page, headers = ask("GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in ("page.js", "engine.js", "words.js", "style.css", "colours.css"):
        status, content, _ = ask("GET", f"/{name}")
        assert status == 200
        text = content.decode()
        assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text
    assert b"http" not in page


@pytest.mark.parametrize(
    "place", ["/../serve.py", "/%2e%2e/serve.py", "/page.js/", "/serving/page/page.js", "//", "/x"]
)
def test_other_addresses_hold_nothing(ask, place):
    assert ask("GET", place)[0] in (200, 404) if place == "//" else ask("GET", place)[0] == 404


def test_an_address_says_which_methods_it_takes(ask):
    status, answer, headers = ask("GET", "/predict")
    assert (status, headers["Allow"]) == (405, "POST")
    assert "POST" in answer["error"]
    assert ask("DELETE", "/predict")[0] == 405
    assert ask("HEAD", "/health")[:2] == (200, b"")


def test_health_and_the_models_are_told_without_a_path(ask, checkpoint):
    assert ask("GET", "/health")[1] == {"status": "ok", "models": ["run"]}
    (model,) = ask("GET", "/models")[1]
    assert (model["name"], model["classes"], model["explains"]) == ("run", CLASSES, True)
    accuracy = {"on": "val", "share": 0.8125, "low": 0.75, "high": 0.875, "photos": 128}
    assert model["accuracy"] == accuracy
    assert str(checkpoint.parent) not in json.dumps(model)


def test_an_explanation_says_where_the_model_looked_and_which_splines_acted(ask):
    status, why, _ = ask("POST", "/explain?index=1", photo(3))
    assert (status, why["class"], why["index"]) == (200, "roses", 1)
    assert len(why["heat"]) == len(why["heat"][0]) == 8
    assert max(map(max, why["heat"])) == 1
    left, top, right, bottom = why["box"]
    assert (top, bottom) == pytest.approx((4 / 73, 69 / 73), abs=0.02)
    assert (right - left) * 90 == pytest.approx((bottom - top) * 70, rel=0.05)  # a square
    assert len(why["splines"]) == 6
    spline = why["splines"][0]
    assert len(spline["x"]) == len(spline["y"]) == 60
    assert spline["x"][0] <= spline["here"][0] <= spline["x"][-1]
    best = ask.predict(photo(3))[1]["predictions"][0]["index"]
    assert ask("POST", "/explain", photo(3))[1]["index"] == best


def test_an_explanation_tells_what_covering_the_marked_patches_does(ask, checkpoint):
    why = ask("POST", "/explain?index=1", photo(3))[1]
    covered = why["covered"]
    assert covered["patches"] == 13  # a fifth of 64
    answers = {one["index"]: one for one in ask.predict(photo(3))[1]["predictions"]}
    assert covered["whole"] == pytest.approx(answers[1]["probability"], abs=1e-4)
    assert covered["marked"] < covered["whole"]
    assert 0 <= covered["random"] <= 1
    model = opened(checkpoint)[0].explained
    assert why["method"] == methods.serving(model)
    assert why["unlearned"] is False


def test_splines_as_before_training_are_told_as_such(tmp_path, checkpoint):
    fresh = write_checkpoint(tmp_path / "fresh" / "best.pth", learned=False)
    plain = write_checkpoint(tmp_path / "plain" / "best.pth", mlp="mlp")
    with serving(opened(checkpoint, fresh, plain)) as client:
        told = {
            name: client("POST", f"/explain?model={name}", photo())[1]
            for name in ("run", "fresh", "plain")
        }
    assert {name: one["unlearned"] for name, one in told.items()} == {
        "run": False, "fresh": True, "plain": False,
    }  # fmt: skip
    assert told["fresh"]["splines"] == told["plain"]["splines"] == []


def test_a_measured_fall_is_of_the_answer_that_is_shown(checkpoint):
    """With --tta, too: of the photo and its mirror."""
    with serving(open_models([str(checkpoint)], None, torch.device("cpu"), tta=True)) as client:
        best = client.predict(photo(3))[1]["predictions"][0]
        covered = client("POST", "/explain", photo(3))[1]["covered"]
    assert covered["whole"] == pytest.approx(best["probability"], abs=1e-4)


def test_what_cannot_be_explained_is_said(ask):
    assert ask("POST", "/explain?index=3", photo())[0] == 404
    assert ask("POST", "/explain?index=-1", photo())[0] == 404
    assert ask("POST", f"/explain?index={'1' * 5000}", photo())[0] == 404
    assert ask("POST", "/explain", b"no photo")[0] == 422
    assert ask("POST", "/explain?model=none", photo())[0] == 404


def test_a_photo_that_no_browser_shows_gets_a_preview(ask):
    status, picture, headers = ask("POST", "/preview", photo(size=(3000, 1000), kind="TIFF"))
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(picture)).size == (1280, 427)
    assert ask("POST", "/preview", b"no photo")[0] == 422


def test_one_of_several_models_is_chosen_by_name(tmp_path, checkpoint):
    other = write_checkpoint(tmp_path / "other" / "best.pth", 1, ["a", "b"], mlp="mlp")
    models = opened(checkpoint, other)
    with serving(models) as client:
        names = [one["name"] for one in client("GET", "/models")[1]]
        first, second = (client("POST", f"/predict?model={name}", photo())[1] for name in names)
        status, answer, _ = client("POST", "/predict?model=none", photo())
        assert client("POST", "/explain?model=other", photo())[1]["splines"] == []
    assert names == ["run", "other"]
    assert len(first["predictions"]) == 3
    assert {one["class"] for one in second["predictions"]} == {"a", "b"}
    assert (status, answer["error"]) == (404, "there is no such model; there is run and other")


def test_models_are_called_by_their_runs_or_files():
    paths = ["weights/a/best.pth", "weights/b/last.pth", "x/flowers.onnx", "y/a/best.pth"]
    assert names_of(paths) == ["a", "b", "flowers", "a (2)"]


def test_what_models_have_in_common_lies_in_memory_once(tmp_path):
    """As with adapters, or heads trained on one backbone."""
    torch.manual_seed(0)
    backbone = create_model("vit_micro_patch8_64", num_classes=3).state_dict()
    paths = []
    for seed in (1, 2):
        paths.append(write_checkpoint(tmp_path / str(seed) / "best.pth", seed, mlp="mlp"))
        held = torch.load(paths[-1], weights_only=True)
        held["model"] = backbone | {k: v for k, v in held["model"].items() if "head" in k}
        torch.save(held, paths[-1])
    models = opened(*paths)
    first, second = (one.predictor.classifier.model for one in models)
    weights = [model.blocks[1].mlp.fc1.weight for model in (first, second)]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert not torch.equal(first.head.weight, second.head.weight)
    for path, served in zip(paths, models, strict=True):
        with serving([served]) as client:
            alone = Predictor(str(path))(Image.open(io.BytesIO(photo())))
            assert client.predict(photo())[1]["predictions"] == alone["predictions"]


def test_a_checkpoint_of_an_older_version_is_served(tmp_path):
    """It has no temperature and knows nothing of the unknown."""
    model = create_model("vit_micro_patch8_64", num_classes=2)
    facts = {"config": model.config, "classes": ["a", "b"], "epoch": 1, "metrics": {}}
    facts |= {"preprocess": Preprocess(img_size=64).to_dict(), "version": 1}
    torch.save({"model": model.state_dict()} | facts, tmp_path / "old.pth")
    with serving(opened(tmp_path / "old.pth")) as client:
        status, answer = client.predict(photo())
        assert client("POST", "/explain", photo())[0] == 200
        assert "accuracy" not in client("GET", "/models")[1][0]
    assert status == 200
    assert len(answer["predictions"]) == 2


def ask_many(client, clients: int, each: int) -> list[tuple[int, int]]:
    """Status of every request, and whether its answer is that photo's (batches round otherwise)."""
    results, lock = [], threading.Lock()
    expected = [client.predict(photo(seed))[1] for seed in range(5)]

    def work(number):
        for turn in range(each):
            seed = (number + turn) % 5
            status, answer = client.predict(photo(seed))
            same = status == 200 and all(
                abs(a["probability"] - b["probability"]) < 1e-4
                for a, b in zip(answer["predictions"], expected[seed]["predictions"], strict=True)
            )
            with lock:
                results.append((status, same))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_the_requests_of_twenty_clients_none_is_lost_or_mixed_up(ask):
    assert ask_many(ask, 20, 10) == [(200, True)] * 200


@pytest.mark.slow
def test_a_thousand_requests_leave_the_memory_as_it_was(ask):
    ask_many(ask, 20, 10)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert ask_many(ask, 20, 50) == [(200, True)] * 1000
    time.sleep(0.5)  # threads end
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2**20
