"""Hundreds of hostile photos: training, evaluation and prediction finish, name what they skip, stay
within bounds, run nothing and change nothing. What the corpus holds is in hostile_photos.py.
"""

import contextlib
import csv
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hostile_photos
import numpy as np
import pytest
from hostile_photos import WITH_EXIF, encoded, entries, oriented, picture
from PIL import Image

from imaging import decoding
from imaging.decoding import PhotoError, load_image
from imaging.preprocess import Preprocess, eval_transform, train_transform
from imaging.splitting import prepare_data
from my_dataset import MyDataSet
from predicting import inputs, predictor
from system.terminal import printable

pytestmark = pytest.mark.skipif(
    not (hasattr(os, "mkfifo") and os.path.exists("/proc/self/status")), reason="needs Linux"
)

MAX_SECONDS = 60  # for one photo; the slowest takes one on a quiet core
MAX_MEMORY_KIB = 500 << 10  # above what the libraries take; the largest photo there takes 100 MB


@pytest.fixture(scope="module")
def folder():
    """A temporary folder that any user may enter and that `rm` can remove, however deep it is."""
    path = Path(tempfile.mkdtemp(prefix="hostile-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)  # shutil.rmtree recurses too deep


@pytest.fixture(scope="module")
def corpus(folder):
    return hostile_photos.make_corpus(folder / "corpus")


@pytest.fixture(scope="module")
def watched(corpus, folder):
    """What hostile_photos.watch found in a program of its own, with what it printed and wrote."""
    output = folder / "output"
    (output / "bin").mkdir(parents=True)
    trap = output / "bin" / "gs"  # Ghostscript, which Pillow would call
    trap.write_text(f"#!/bin/sh\ntouch {output}/executed\nexit 1\n", "utf-8")
    trap.chmod(0o755)
    before = hostile_photos.snapshot(corpus)
    running = subprocess.run(
        [sys.executable, hostile_photos.__file__, corpus, output],
        cwd=output,
        env=os.environ | {"PATH": f"{output}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=900,
        check=False,
    )
    assert running.returncode == 0, running.stderr.decode(errors="replace")[-3000:]
    found = json.loads((output / "watched.json").read_text("utf-8"))
    found |= {"before": before, "after": hostile_photos.snapshot(corpus), "output": output}
    return found | {"printed": running.stdout.decode(), "errors": running.stderr.decode()}


def usable(watched) -> set[str]:
    """The paths of the photos that the run trained on or validated with."""
    split = json.loads((watched["output"] / "run" / "split.json").read_text("utf-8"))
    return {path for side in ("train", "val") for paths in split[side].values() for path in paths}


def answers(watched, corpus) -> dict[str, dict]:
    """The line of each photo in predict.py's JSON, by its path inside the corpus."""
    lines = (watched["output"] / "answers.jsonl").read_text("utf-8").splitlines()
    records = map(json.loads, lines)
    return {os.path.relpath(record["image"], corpus): record for record in records}


# --- the whole corpus ---


def test_the_corpus_has_what_it_promises(corpus):
    names = [entry.name for entry in entries(corpus)]
    files = [e for e in entries(corpus) if not e.is_dir(follow_symlinks=False)]
    assert len(files) > 400
    for part in ("cut_", "flipped_", "exif_", "icc_", "bomb_", "wrong_", "animated_", "shape_"):
        assert any(name.startswith(part) for name in names), part


def test_training_evaluation_and_prediction_finish(watched):
    assert watched["status"] == {"train": 0, "eval": 0, "predict": 1}  # 1: some photo failed
    assert "Traceback" not in watched["errors"]
    assert "validation photos of" in watched["printed"]


def test_every_file_is_trained_on_or_named(watched, corpus):
    report = (watched["output"] / "run" / "data_report.txt").read_text("utf-8")
    named = {line.strip().split(": ")[0] for line in report.splitlines() if line.startswith("  ")}
    trained = usable(watched)
    for entry in entries(corpus):
        path = os.path.relpath(entry.path, corpus)
        if entry.is_dir(follow_symlinks=False) or "tower" in path:
            continue
        assert path in trained or printable(path).strip() in named, path
    assert "roses/deep" + "/d" * hostile_photos.DEPTH + "/bottom.jpg" in trained


def test_prediction_answers_what_training_used_and_names_the_rest(watched, corpus):
    found = answers(watched, corpus)
    answered = {path for path, record in found.items() if "predictions" in record}
    within = {path for path in usable(watched) if "tower" not in path}
    assert {path for path in answered if "tower" not in path} == within | {"loose.jpg"}
    assert sum("tower" in path for path in answered) == 30  # each floor once
    for name in ("fifo", "self", "gone", "device", "empty", "script_in_IPTC", "bomb_PNG"):
        assert found[f"tulips/{name}{'.png' if name == 'bomb_PNG' else '.jpg'}"]["error"], name


def test_every_writable_mode_of_a_readable_format_is_a_photo(watched, corpus):
    trained, lost, formats = usable(watched), [], set()
    readable = decoding.readable_extensions()  # fills Image.SAVE as well
    for path in (corpus / "roses").iterdir():
        kind = path.name.split("_")[0]
        if kind not in Image.SAVE or path.suffix not in readable:
            continue
        formats.add(kind)
        if f"roses/{path.name}" not in trained and pillow_reads(path):
            lost.append(path.name)
    assert len(formats) > 18
    assert not formats & decoding.SHUT_FORMATS
    assert not lost


def pillow_reads(path):
    """Whether Pillow reads what it wrote: not ICNS of palettes, nor in 12.0 YCbCr in TIFF."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            image.load()
            return image.mode == mode
    except OSError:
        return False


def test_nothing_was_started_and_nothing_opened_for_writing(watched):
    assert watched["forbidden"] == []
    assert not list(watched["output"].rglob("executed"))


def test_the_folder_is_unchanged(watched):
    assert watched["after"] == watched["before"]


def test_memory_and_time_are_bounded(watched):
    assert watched["growth"] < MAX_MEMORY_KIB
    assert watched["peak"] < 2 * MAX_MEMORY_KIB
    seconds, name = watched["slowest"][0]
    assert seconds < MAX_SECONDS, name


def test_bombs_and_giants_are_called_too_large(watched, corpus):
    found = answers(watched, corpus)
    large = {name for name, record in found.items() if "too large" in record.get("error", "")}
    kinds = ("PNG.png", "BMP.bmp", "TGA.tga", "SGI.sgi", "PPM.ppm", "JPEG.jpg", "TIFF.tif")
    assert {f"tulips/bomb_{kind}" for kind in kinds} <= large
    assert {"tulips/sparse.webp", "tulips/shape_one_column.png"} <= large


def test_names_in_what_is_printed_and_written_are_harmless(watched):
    written = [watched["printed"], watched["errors"]]
    for name in ("run/data_report.txt", "run/report.html", "run/split.json", "answers.jsonl"):
        written.append((watched["output"] / name).read_text("utf-8"))  # or it would raise
    assert not any("\x1b[2J" in text for text in written)
    html = written[3]
    assert "<script>.jpg" not in html
    assert "$x^2$ <b>" not in html
    assert "$x^2$ &lt;b&gt;" in html
    with open(watched["output"] / "answers.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@", "-"))]


# --- what a photo may not do ---


def test_a_record_around_postscript_is_never_opened(tmp_path, monkeypatch):
    trap = tmp_path / "gs"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\nexit 1\n", "utf-8")
    trap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.jpg").write_bytes(hostile_photos.iptc(encoded(picture(8, 8), "EPS")))
    with pytest.raises(PhotoError, match="not a picture"):
        load_image(tmp_path / "x.jpg")
    assert not (tmp_path / "executed").exists()


def test_a_giant_file_is_refused_unread(tmp_path):
    path = tmp_path / "giant.webp"
    path.write_bytes(b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(99))
    os.truncate(path, decoding.MAX_FILE_BYTES + 1)
    started = time.perf_counter()
    with pytest.raises(PhotoError, match=r"giant\.webp: too large: a file of 1\.1 GB"):
        load_image(path)
    assert time.perf_counter() - started < 0.5
    os.truncate(path, 120)
    with pytest.raises(PhotoError, match=r"decoder|truncated|not a picture"):
        load_image(path)


@pytest.mark.parametrize("size", [(1, 1_000_001), (1_000_001, 1)])
def test_a_side_of_more_than_a_million_pixels_is_refused(size):
    with pytest.raises(PhotoError, match=r"too large: a side has 1,000,001 pixels"):
        load_image(io.BytesIO(encoded(Image.new("1", size), "PNG")))
    limit = tuple(min(side, decoding.MAX_SIDE) for side in size)
    assert load_image(io.BytesIO(encoded(Image.new("1", limit), "PNG"))).size == limit


# --- folders that never end ---


def test_prediction_enters_each_folder_once_however_many_links_lead_there(tmp_path):
    floors = [tmp_path / "tower" / f"{number:02d}" for number in range(40)]
    for number, floor in enumerate(floors):
        floor.mkdir(parents=True)
        (floor / "x.jpg").touch()
        for name in ("y", "z"):
            if number < 39:
                (floor / name).symlink_to(floors[number + 1])
    found = list(inputs.photos_below(str(floors[0])))
    assert len(found) == 40
    assert [photo.path for photo in found] == sorted(photo.path for photo in found)


def test_prediction_leaves_out_links_to_what_holds_the_folder(tmp_path):
    photo = tmp_path / "up" / "data" / "x.jpg"
    photo.parent.mkdir(parents=True)
    photo.touch()
    (tmp_path / "up" / "beside.jpg").touch()
    (photo.parent / "root").symlink_to("/")
    (photo.parent / "up").symlink_to(tmp_path / "up")
    found = [photo.path for photo in inputs.photos_below(str(photo.parent))]
    assert found == [str(photo)]


def test_a_link_to_itself_does_not_hide_the_photos_beside_it(tmp_path):
    (tmp_path / "x.jpg").touch()
    (tmp_path / "self").symlink_to(tmp_path / "self")
    found = list(inputs.photos_below(str(tmp_path)))
    assert [(Path(photo.path).name, photo.error) for photo in found] == [("x.jpg", None)]


@contextlib.contextmanager
def as_nobody():
    """Root may open everything: for a while, be somebody who may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_named_and_the_rest_is_used(folder, make_photos):
    root = make_photos(folder / "closed", ("daisy", "roses"), per_class=4)
    closed_file, closed_folder = root / "daisy" / "daisy_00.jpg", root / "roses" / "shut"
    transform = eval_transform(Preprocess(img_size=16))

    def look():
        split = prepare_data(root)
        return split, [predictor.decode(p, transform, False) for p in inputs.expand(str(root))]

    look()  # imports what nobody may not read
    closed_folder.mkdir()
    shutil.copy(root / "roses" / "roses_00.jpg", closed_folder / "inner.jpg")
    closed_file.chmod(0)
    closed_folder.chmod(0)
    try:
        with as_nobody():
            split, found = look()
    finally:
        closed_folder.chmod(stat.S_IRWXU)
    problems = {(problem.kind, Path(problem.path).name) for problem in split.report.problems}
    assert {("unreadable", "daisy_00.jpg"), ("closed", "shut")} <= problems
    assert len(split.train.paths + split.val.paths) == 7
    errors = {Path(item.photo.path).name: item.photo.error for item in found if item.photo.error}
    assert set(errors) == {"daisy_00.jpg", "shut"}
    assert all("Permission denied" in error for error in errors.values())


# --- the same meaning in training and in prediction ---


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((10, 6), Image.Resampling.BOX), dtype=float)


@pytest.mark.parametrize("kind", WITH_EXIF)
def test_orientation_means_the_same_in_training_and_in_prediction(kind, tmp_path):
    """Large enough for a JPEG to be decoded at an eighth in one and at a quarter in the other."""
    upright, preprocess = picture(400, 240), Preprocess(img_size=16)
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.bin"
        path.write_bytes(oriented(orientation, kind, upright))
        augmented = MyDataSet([str(path)], [0], train_transform(preprocess)).decode(0)
        evaluated = MyDataSet([str(path)], [0], eval_transform(preprocess))[0][0]
        predicted = predictor.decode(inputs.Photo(str(path)), eval_transform(preprocess), True)
        for image in (augmented, predicted.image):
            assert np.abs(small(image) - small(upright)).max() < 12, orientation
        assert evaluated.equal(predicted.tensor)
