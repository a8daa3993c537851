"""Numbers at their ends: the outcome is right, or a sentence says what to do."""

import csv
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import predict
import train
from imaging.decoding import load_image
from utils import Stepper, train_one_epoch

FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0", "--amp", "off"]
FAST += ["--epochs", "1", "--output", "run"]


@pytest.fixture
def run(tmp_path, monkeypatch, call):
    """Returns run(data, *flags) -> (status, output, errors) of a training without pictures."""
    monkeypatch.chdir(tmp_path)

    def run(data, *words, pictures=False):
        if not pictures:
            monkeypatch.setattr(train, "show_start", lambda *_: None)
            monkeypatch.setattr(train, "write_results", lambda *_: None)
        return call(train.main, "--data-path", data, *FAST, *words)

    return run


def metrics() -> list[dict[str, float]]:
    with Path("run/metrics.csv").open(encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def assert_sound() -> None:
    """The run has finite figures and a best.pth of finite numbers."""
    assert all(math.isfinite(value) for row in metrics() for value in row.values())
    best = torch.load("run/best.pth", weights_only=True)
    assert all(value.isfinite().all() for value in best["model"].values())


def probabilities(call, photo, weights="run/best.pth") -> list[float]:
    status, out, _ = call(predict.main, photo, "--weights", weights, "--json", "--topk", 2000)
    assert status == 0
    return [entry["probability"] for entry in json.loads(out)["predictions"]]


# --- photos -------------------------------------------------------------------------------------


def uniform_photos(root: Path, value: int = 0) -> Path:
    """Two classes of photos of one colour, no two of the same size, so that none is a copy."""
    for number, name in enumerate(("dark", "darker")):
        (root / name).mkdir(parents=True)
        for n in range(4):
            size = (20 + 10 * number + n, 24)
            Image.new("RGB", size, (value,) * 3).save(root / name / f"{n}.png")
    return root


@pytest.mark.parametrize("kind", [["--mlp", "kan"], ["--mlp", "gkan"]])
def test_photos_of_zeros_train_and_predict(kind, run, tmp_path, call):
    data = uniform_photos(tmp_path / "photos")
    status, _, err = run(data, "--batch-size", 4, "--aug", "none", "--lr", "1e-3", *kind)
    assert (status, err) == (0, "")
    assert_sound()
    assert sum(probabilities(call, data / "dark" / "0.png")) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_pixels_that_are_no_numbers_leave_the_others_as_they_are(bad, tmp_path):
    pixels = np.linspace(0, 1, 24 * 24, dtype=np.float32).reshape(24, 24)
    Image.fromarray(pixels).save(tmp_path / "right.tif")
    spoilt = pixels.copy()
    spoilt[5, 7] = bad
    Image.fromarray(spoilt).save(tmp_path / "spoilt.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right, found = (np.asarray(load_image(str(tmp_path / f"{n}.tif"))).astype(int)
                        for n in ("right", "spoilt"))  # fmt: skip
    others = np.ones(pixels.shape, bool)
    others[5, 7] = False
    assert np.abs(found - right)[others].max() <= 1


def test_an_image_of_no_numbers_alone_is_read_or_refused(tmp_path):
    Image.fromarray(np.full((24, 24), np.nan, np.float32)).save(tmp_path / "none.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(load_image(str(tmp_path / "none.tif"))).std() == 0


def test_one_photo_per_class_and_a_batch_of_one(run, tmp_path, make_photos, call):
    data = make_photos(tmp_path / "photos", per_class=1, size=20)
    val = make_photos(tmp_path / "val", per_class=1, size=20, seed=1)
    words = ["--val-path", val, "--batch-size", 1, "--mixup", "0.5", "--cutmix", "0.5"]
    status, _, err = run(data, *words, "--mlp", "kan", "--class-weights", "balanced")
    assert (status, err) == (0, "")
    assert_sound()
    photo = next(data.glob("*/*.jpg"))
    assert sum(probabilities(call, photo)) == pytest.approx(1, abs=1e-4)


def test_one_photo_per_class_without_validation_photos_is_refused(run, tmp_path, make_photos):
    status, _, err = run(make_photos(tmp_path / "photos", per_class=1))
    assert status == 2
    assert "one to train on and one to validate on are needed" in err
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_thousand_classes_train_report_and_predict(run, tmp_path, call):
    for number in range(1000):
        folder = tmp_path / "photos" / f"class {number:03d}"
        folder.mkdir(parents=True)
        for n in range(2):
            pixels = np.random.default_rng((number, n)).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
    words = ["--batch-size", 100, "--lr", "1e-3", "--mlp", "gkan"]
    status, out, err = run(tmp_path / "photos", *words, pictures=True)
    assert (status, err) == (0, ""), err
    assert_sound()
    assert metrics()[0]["val_loss"] == pytest.approx(math.log(1000), rel=0.05)
    assert "2000 photos in 1000 classes" in out
    page = Path("run/report.html").read_text("utf-8")
    assert all(page.count(f"<bdi>class {number:03d}</bdi></th>") == 1 for number in range(1000))
    found = probabilities(call, tmp_path / "photos" / "class 007" / "0.png")
    assert len(found) == 1000
    assert sum(found) == pytest.approx(1, abs=1e-3)


# --- learning rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("lr", ["0", "1e-30", "1", "1000", "1e6"])
@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_any_learning_rate_gives_numbers_or_advice(lr, opt, run, tmp_path, make_photos):
    data = make_photos(tmp_path / "photos", per_class=3, size=20)
    status, _, err = run(data, "--lr", lr, "--opt", opt, "--batch-size", 2, "--clip-grad", 0)
    if status == 0:
        assert_sound()
    else:
        assert status == 2
        assert "try a smaller --lr" in err
        assert f"it was {float(lr):g}" in err
        assert not Path("run/best.pth").exists()
    if lr == "0":
        assert status == 0
        assert metrics()[0]["val_loss"] == pytest.approx(math.log(3), abs=1e-6)


def test_a_last_step_that_spoils_the_weights_is_noticed(run, tmp_path, make_photos):
    data = make_photos(tmp_path / "photos", per_class=3, size=20)
    words = ["--lr", "1e38", "--opt", "sgd", "--clip-grad", 0, "--warmup-epochs", 0]
    status, _, err = run(data, *words, "--batch-size", 64)  # one step: no training loss sees it
    assert status == 2
    assert "the validation loss became" in err
    assert "try a smaller --lr" in err
    assert not Path("run/best.pth").exists()


@pytest.mark.parametrize("lr", ["nan", "inf", "-inf", "-1e-3", "1e400", "-0.0001"])
def test_rates_that_are_none_are_refused(lr, run, tmp_path):
    status, _, err = run(tmp_path, f"--lr={lr}")
    assert status == 2
    assert "--lr" in err
    assert err.count("\n") == 1


def test_an_image_size_that_the_patches_do_not_divide_is_named(run, tmp_path, make_photos, call):
    data = make_photos(tmp_path / "photos", per_class=2, size=20)
    assert run(data, "--epochs", 0)[0] == 0
    words = ["--data-path", data, "--weights", "run/best.pth", "--output", "other"]
    status, _, err = call(train.main, *words, "--img-size", 22)
    assert status == 2
    assert "img_size 22 is not a multiple of the patch size 8; 24 is the nearest" in err
    assert not Path("other").exists()


# --- float16 ------------------------------------------------------------------------------------


def batches(count: int, scale: float = 1.0) -> list:
    generator = torch.Generator().manual_seed(3)
    return [
        type("Batch", (), {
            "images": scale * torch.randn(4, 5, generator=generator),
            "labels": torch.randint(3, (4,), generator=generator),
            "indices": torch.arange(4),
            "failed": [],
        })
        for _ in range(count)
    ]  # fmt: skip


def train_scaled(model, scaler, data, ema=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    stepper = Stepper(optimizer, scheduler, scaler, clip_grad=1.0, ema=ema)

    def criterion(model, images, labels, step):
        logits = model(images)
        return F.cross_entropy(logits, labels), logits

    device = torch.device("cpu")
    with warnings.catch_warnings():  # of the schedule that steps where the optimiser does not
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        train_one_epoch(model, stepper, data, device, criterion, num_batches=len(data))


def test_gradients_that_overflow_are_left_out_and_the_scale_halves():
    model = nn.Linear(5, 3)
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=10**6)
    train_scaled(model, scaler, batches(1, scale=100.0))
    assert scaler.get_scale() == pytest.approx(1.5e38, rel=1e-6)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    train_scaled(model, scaler, batches(60, scale=100.0))
    assert scaler.get_scale() < 1e38
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.weight, before[0])


def test_scaled_steps_are_those_without_a_scale():
    plain, scaled = nn.Linear(5, 3), nn.Linear(5, 3)
    scaled.load_state_dict(plain.state_dict())
    train_scaled(plain, torch.amp.GradScaler("cpu", enabled=False), batches(5))
    train_scaled(scaled, torch.amp.GradScaler("cpu", init_scale=2.0**16), batches(5))
    torch.testing.assert_close(scaled.weight, plain.weight)


def test_a_run_whose_gradients_never_fit_float16_says_so(run, tmp_path, make_photos, monkeypatch):
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda scaler: 2.0**-10)
    data = make_photos(tmp_path / "photos", per_class=2, size=20)
    status, out, _ = run(data, "--batch-size", 4)
    assert status == 0
    assert "gradients are too large for float16" in out
    assert "--amp bf16" in out
