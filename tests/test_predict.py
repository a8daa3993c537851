"""predict.py and its parts: which photos are meant, what is answered, what is written where."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from imaging.decoding import load_image
from imaging.preprocess import Preprocess
from kan import KAN
from predicting import classifier, inputs, predictor, writers
from predicting.classifier import open_classifier
from predicting.writers import Answer
from system import files, terminal
from vit_model import create_model

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["daisy", "roses", "tulips"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a tiny untrained model whose answers depend on the photo."""
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.pth", CLASSES)


def write_checkpoint(path: Path, classes, seed=0) -> Path:
    torch.manual_seed(seed)
    model = create_model("vit_micro_patch8_64", num_classes=len(classes))
    torch.nn.init.normal_(model.head.weight, std=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "model": model.state_dict(),
            "config": model.config,
            "classes": list(classes),
            "preprocess": Preprocess(img_size=64).to_dict(),
            "epoch": 3,
            "metrics": {"val_acc": 0.8125},
            "version": 1,
        },
        path,
    )
    return path


def photo(path: Path, colour="red", size=(90, 70)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return str(path)


def run(monkeypatch, *argv) -> int:
    """Exit status of predict.py with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        terminal.run_cli(predict.main)
    return exit_.value.code


def run_json(monkeypatch, capsys, *argv) -> list[dict]:
    run(monkeypatch, *argv, "--json")
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------------- which photos are meant


def test_folders_are_searched_recursively_and_in_order(tmp_path):
    for name in ("b/two.PNG", "a/one.jpg", "a/.hidden.jpg", ".cache/x.jpg", "three.jpeg"):
        photo(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no photo", "utf-8")
    found = [os.path.relpath(p.path, tmp_path) for p in inputs.expand(str(tmp_path))]
    assert found == ["a/one.jpg", "b/two.PNG", "three.jpeg"]


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tmp_path):
    photo(tmp_path / "deep" / "one.jpg")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [os.path.relpath(p.path, tmp_path) for p in inputs.expand(str(tmp_path))]
    assert found == ["deep/one.jpg"]


def test_patterns_are_expanded_but_a_file_of_that_very_name_wins(tmp_path):
    for name in ("x1.jpg", "x2.jpg", "[1].jpg"):
        photo(tmp_path / name)
    pattern = [p.path for p in inputs.expand(f"{tmp_path}/x*.jpg")]
    assert pattern == [f"{tmp_path}/x1.jpg", f"{tmp_path}/x2.jpg"]
    assert [p.path for p in inputs.expand(f"{tmp_path}/[1].jpg")] == [f"{tmp_path}/[1].jpg"]


@pytest.mark.parametrize(
    ("text", "wanted"), [("none*.jpg", "no file matches"), ("", "no image in this folder")]
)
def test_inputs_without_a_photo_say_so(tmp_path, text, wanted):
    (only,) = inputs.expand(str(tmp_path / text))
    assert wanted in only.error


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\n\r\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0-c.jpg\0", ["a\nb.jpg", "-c.jpg"]),
        (b"", []),
        (b"\xff.jpg\n", ["\udcff.jpg"]),
        ("雏菊.jpg\n".encode(), ["雏菊.jpg"]),
    ],
)
@pytest.mark.parametrize("block", [8, 1 << 16])
def test_lists_may_be_lines_or_nul_separated(data, wanted, block):
    class Slow(io.BytesIO):
        def read1(self, size):
            return super().read1(min(size, block))

    assert list(inputs.read_list(Slow(data))) == wanted


# ------------------------------------------------------------------------------ what is answered


def test_a_table_shows_model_accuracy_and_aligned_bars(monkeypatch, capsys, checkpoint, tmp_path):
    assert run(monkeypatch, photo(tmp_path / "x.jpg"), "--weights", checkpoint) == 0
    head, _, name, *rows = capsys.readouterr().out.splitlines()
    assert "vit_micro_patch8_64" in head
    assert "validation accuracy 0.8125" in head
    assert name == str(tmp_path / "x.jpg")
    assert sorted(row.split()[0] for row in rows if row) == CLASSES


def test_many_photos_get_a_line_each_and_few_a_table(monkeypatch, capsys, checkpoint, tmp_path):
    for n in range(predict.TABLES + 1):
        photo(tmp_path / "in" / f"{n}.png")
    run(monkeypatch, tmp_path / "in", "--weights", checkpoint)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if ".png" in line]
    assert len(lines) == predict.TABLES + 1 == len(out.splitlines()) - 2
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}/in/0\.png  (daisy|roses|tulips) [01]\.\d{{4}}", lines[0]
    )
    run(monkeypatch, tmp_path / "in", "--weights", checkpoint, "--topk", 2, "--threshold", 1)
    assert re.search(r"0\.png  \w+ [01]\.\d+, \w+ 0\.\d+  \(unsure\)\n", capsys.readouterr().out)
    (tmp_path / "in" / "0.png").unlink()
    run(monkeypatch, tmp_path / "in", "--weights", checkpoint)
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5 * predict.TABLES


def test_wide_class_names_stay_aligned():
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    top = [(0, "daisy", 0.5), (1, "郁金香", 0.3), (2, "é" + "e\u0301", 0.2)]
    writers.Table(out).write(Answer("x.jpg", top))
    rows = out.buffer.getvalue().decode().splitlines()[1:4]
    ends = {terminal.display_width(row[: row.index("0.")]) for row in rows}
    assert len(ends) == 1


def test_bars_are_proportional_and_fall_back_to_ascii():
    assert terminal.bar(1.0) == "█" * terminal.BAR_WIDTH
    assert terminal.bar(0.5) == "█" * (terminal.BAR_WIDTH // 2)
    assert terminal.bar(0.0) == ""
    assert terminal.bar(0.5, "ascii") == "#" * (terminal.BAR_WIDTH // 2)


def test_json_lines_have_the_documented_form(monkeypatch, capsys, checkpoint, tmp_path):
    good, bad = photo(tmp_path / "雏菊 1.jpg"), str(tmp_path / "none.jpg")
    first, second = run_json(monkeypatch, capsys, good, bad, "--weights", checkpoint, "--topk", 2)
    assert set(first) == {"image", "predictions"}
    assert first["image"] == good
    assert len(first["predictions"]) == 2
    for entry in first["predictions"]:
        assert set(entry) == {"class", "index", "probability"}
        assert CLASSES[entry["index"]] == entry["class"]
    assert set(second) == {"image", "error"}
    assert second["image"] == bad


def test_bad_photos_do_not_stop_the_others(monkeypatch, capsys, checkpoint, tmp_path):
    good = [photo(tmp_path / f"{n}.jpg") for n in range(3)]
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no photo at all", "utf-8")
    write_bomb(tmp_path / "bomb.jpg")
    bad = [str(tmp_path / f"{name}.jpg") for name in ("cut", "empty", "text", "bomb")]
    order = [good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2]]
    records = run_json(
        monkeypatch, capsys, *order, "--weights", checkpoint, "--batch-size", 2, "--workers", 3
    )
    assert [record["image"] for record in records] == order
    errors = {record["image"]: record["error"] for record in records if "error" in record}
    assert list(errors) == bad
    assert [errors[path].split(":")[0] for path in bad] == [
        "the file is truncated",
        "the file is empty",
        "not a picture of any format that can be read here",
        "too large",
    ]


def write_bomb(path: Path) -> None:
    """A PNG of a few bytes that claims to hold 20,000 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 200_000, 100_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_failed_photo_gives_exit_status_one(monkeypatch, capsys, checkpoint, tmp_path, extra):
    (tmp_path / "text.jpg").write_text("no photo", "utf-8")
    assert run(monkeypatch, tmp_path / "text.jpg", "--weights", checkpoint, *extra) == 1
    captured = capsys.readouterr()
    assert "text.jpg" in captured.out + captured.err
    assert "Traceback" not in captured.err


def test_answers_do_not_depend_on_batch_size_or_workers(monkeypatch, capsys, checkpoint, tmp_path):
    colours = ["red", "green", "blue", "white", "black"]
    paths = [photo(tmp_path / f"{colour}.png", colour) for colour in colours]
    few = run_json(monkeypatch, capsys, *paths, "--weights", checkpoint, "--batch-size", 2)
    many = run_json(monkeypatch, capsys, *paths, "--weights", checkpoint, "--workers", 4)
    for one, other in zip(few, many, strict=True):
        assert one["image"] == other["image"]
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


def test_below_the_threshold_the_answer_is_unsure(monkeypatch, capsys, checkpoint, tmp_path):
    path = photo(tmp_path / "x.jpg")
    (record,) = run_json(monkeypatch, capsys, path, "--weights", checkpoint, "--threshold", 1)
    assert record["unsure"] is True
    (record,) = run_json(monkeypatch, capsys, path, "--weights", checkpoint)
    assert "unsure" not in record


def seeing(forward):
    """A classifier of two classes whose logits a function gives."""
    see = lambda images: classifier.Seen(forward(images))  # noqa: E731
    return classifier.Classifier(see, ["a", "b"], Preprocess(2), {})


def test_tta_averages_the_photo_and_its_mirror():
    def forward(x):  # the logits are the left and the right half's sums
        return torch.stack([x[..., :2].sum((1, 2, 3)), x[..., 2:].sum((1, 2, 3))], 1)

    images = torch.rand(3, 3, 4, 4)
    plain, both = (
        predictor.Predictor(seeing(forward), device="cpu", tta=tta) for tta in (False, True)
    )
    mirrored = plain.see(images.flip(-1)).logits
    plain, both = (one.see(images).logits for one in (plain, both))
    assert torch.allclose(both, (plain + mirrored) / 2)
    assert torch.allclose(both, torch.full_like(both, 0.5))


def test_an_output_that_is_not_a_number_is_an_error():
    batch = [predictor.Decoded(inputs.Photo("x.jpg"), torch.zeros(3, 2, 2))]
    model = seeing(lambda images: torch.full((1, 2), torch.nan))
    (answer,) = predictor.Predictor(model, device="cpu").answer_batch(batch)
    assert "not a number" in answer.error


def test_only_a_few_photos_are_decoded_ahead():
    from concurrent.futures import ThreadPoolExecutor

    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield asked

    with ThreadPoolExecutor(2) as pool:
        results = predictor.in_order(pool, lambda n: n * n, endless(), ahead=5)
        assert [next(results) for _ in range(100)] == [n * n for n in range(1, 101)]
        assert asked <= 106
        results.close()


# ------------------------------------------------------------------------------ which model


def test_the_newest_checkpoint_is_the_default(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "weights" / "old" / "best.pth", ["old a", "old b"])
    newest = write_checkpoint(tmp_path / "weights" / "new" / "best.pth", ["new a", "new b"])
    os.utime(tmp_path / "weights" / "old" / "best.pth", (1, 1))
    (record,) = run_json(monkeypatch, capsys, photo(tmp_path / "x.jpg"))
    assert record["predictions"][0]["class"].startswith("new")
    assert classifier.newest_checkpoint(str(tmp_path / "weights")) == str(newest)


def test_without_any_checkpoint_train_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, photo(tmp_path / "x.jpg")) == 2
    error = capsys.readouterr().err
    assert "train.py" in error
    assert len(error.splitlines()) == 1


def test_a_bare_state_dict_takes_its_names_from_class_indices(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    full = torch.load(write_checkpoint(tmp_path / "full.pth", CLASSES), weights_only=True)
    torch.save(full["model"], tmp_path / "model-9.pth")
    names = {str(index): name.upper() for index, name in enumerate(CLASSES)}
    (tmp_path / "names.json").write_text(json.dumps(names), "utf-8")
    (record,) = run_json(
        monkeypatch,
        capsys,
        photo(tmp_path / "x.jpg"),
        *("--weights", "model-9.pth", "--class-indices", "names.json"),
    )
    assert {entry["class"] for entry in record["predictions"]} == {"DAISY", "ROSES", "TULIPS"}


@pytest.mark.parametrize(("count", "wanted"), [(3, "DAISY"), (5, "0")])
def test_the_names_in_the_current_folder_are_taken_if_there_are_as_many(
    monkeypatch, tmp_path, count, wanted
):
    monkeypatch.chdir(tmp_path)
    full = torch.load(write_checkpoint(tmp_path / "full.pth", CLASSES), weights_only=True)
    torch.save(full["model"], tmp_path / "model-9.pth")
    names = [*(name.upper() for name in CLASSES), "X", "Y"][:count]
    text = json.dumps(dict(enumerate(names)))
    (tmp_path / "class_indices.json").write_text(text, "utf-8")
    assert open_classifier("model-9.pth", None, torch.device("cpu")).classes[0] == wanted
    assert open_classifier("full.pth", None, torch.device("cpu")).classes == CLASSES


def test_a_list_of_names_that_would_not_be_used_is_refused_unless_it_says_the_same(
    monkeypatch, capsys, checkpoint, tmp_path
):
    path, names = photo(tmp_path / "x.png"), tmp_path / "names.json"
    words = [path, "--weights", checkpoint, "--class-indices", names]
    names.write_text(json.dumps(dict(enumerate(CLASSES))), "utf-8")
    assert run(monkeypatch, *words) == 0
    capsys.readouterr()
    names.write_text(json.dumps(dict(enumerate(reversed(CLASSES)))), "utf-8")
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert "--class-indices" in error
    assert f"needs weights that name no classes: {checkpoint} names its own" in error
    assert error.count("\n") == 1


def test_checkpoints_of_other_models_are_refused_with_a_sentence(monkeypatch, capsys, tmp_path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "linear.pth")
    torch.save(KAN([3, 2]).state_dict(), tmp_path / "kan.pth")
    torch.save({"model": {}, "epoch": 3}, tmp_path / "empty.pth")
    for name in ("linear.pth", "kan.pth", "empty.pth"):
        path = tmp_path / name
        assert run(monkeypatch, photo(tmp_path / "x.jpg"), "--weights", path) == 2
        error = capsys.readouterr().err
        assert name in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["x.jpg", "--weights", "none.pth"],
        ["x.jpg", "--topk", "0"],
        ["x.jpg", "--threshold", "2"],
        ["x.jpg", "--unknown-flag"],
        ["x.jpg", "--device", "toaster"],
        [],
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_status_two(monkeypatch, capsys, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "x.jpg")
    write_checkpoint(tmp_path / "weights" / "run" / "best.pth", CLASSES)
    assert run(monkeypatch, *argv) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


# ------------------------------------------------------------------------------ what is written


def test_csv_cells_never_become_formulas(monkeypatch, capsys, tmp_path):
    weights = write_checkpoint(tmp_path / "best.pth", ["=1+1", "@b", "-c"])
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "+x.jpg")
    run(monkeypatch, "+x.jpg", "none.jpg", "--weights", weights, "--csv", "out/answers.csv")
    with open("out/answers.csv", encoding="utf-8", newline="") as file:
        good, bad = csv.DictReader(file)
    assert good["image"] == "'+x.jpg"
    assert good["answer"] == good["class_1"]
    assert {good[f"class_{rank}"] for rank in (1, 2, 3)} == {"'=1+1", "'@b", "'-c"}
    assert float(good["probability_1"]) >= float(good["probability_2"])
    assert bad["answer"] == ""
    assert bad["error"]


def test_sorted_copies_leave_the_originals_alone(monkeypatch, capsys, checkpoint, tmp_path):
    paths = [photo(tmp_path / "in" / folder / "same.jpg", folder) for folder in ("red", "blue")]
    before = [Path(path).read_bytes() for path in paths]
    options = ("--weights", checkpoint, "--sort", tmp_path / "out", "--save", tmp_path / "drawn")
    assert run(monkeypatch, tmp_path / "in", *options) == 0
    assert [Path(path).read_bytes() for path in paths] == before
    copies = sorted((tmp_path / "out").rglob("*.jpg"))
    assert len(copies) == 2
    assert {copy.parent.name for copy in copies} <= set(CLASSES)
    assert {copy.read_bytes() for copy in copies} == set(before)
    assert len(list((tmp_path / "drawn").iterdir())) == 2


@contextlib.contextmanager
def full_disk(room: int):
    """In here no file may have more bytes than `room`."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("flag", ["--sort", "--save", "--explain", "--embed", "--csv"])
def test_a_full_disk_is_told_of_with_the_file_it_had_no_room_for(
    monkeypatch, capsys, checkpoint, tmp_path, flag
):
    path, out = photo(tmp_path / "noise.png"), tmp_path / "out"
    Image.effect_noise((90, 70), 90).convert("RGB").save(path)
    own = out.with_suffix({"--embed": ".npz", "--csv": ".csv"}.get(flag, ""))
    with full_disk(100):
        assert run(monkeypatch, path, "--weights", checkpoint, flag, own) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(own) in err
    assert os.strerror(errno.EFBIG) in err
    left = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "noise.png"]
    assert not left or flag == "--csv"  # which is written row by row


@pytest.mark.parametrize("flag", ["--sort", "--save", "--explain"])
def test_outputs_named_after_photos_with_the_longest_names(
    monkeypatch, capsys, checkpoint, tmp_path, flag
):
    path = photo(tmp_path / f"{'鬱' * 82}.png")  # 250 bytes
    assert run(monkeypatch, path, "--weights", checkpoint, flag, tmp_path / "out") == 0
    assert [file for file in (tmp_path / "out").rglob("*.*")]


@pytest.fixture
def outputs(monkeypatch, checkpoint, tmp_path):
    """Returns predicted(photo, *words) -> what then lies in the folders of all outputs, by name."""
    monkeypatch.chdir(tmp_path)

    def predicted(path, *words):
        flags = ("--weights", checkpoint, "--sort", "out", "--save", "out", "--explain", "out")
        assert run(monkeypatch, path, *flags, "--threshold", 1, *words) == 0
        found = Path("out").rglob("*.*")
        return {path.relative_to("out").as_posix(): path.read_bytes() for path in found}

    return predicted


OUTPUTS = ("x.jpg", "x.json", "x.png", "unsure/x.jpg")
SECOND = {"x-2.jpg", "x-2.json", "x-2.png", "unsure/x-2.jpg"}


def test_a_repeated_run_replaces_what_it_wrote_of_the_same_photo(outputs, tmp_path):
    path = photo(tmp_path / "in" / "x.jpg")
    first = outputs(path)
    assert set(first) == set(OUTPUTS)
    again = outputs(path, "--topk", 1)
    assert set(again) == set(first)
    assert again["x.jpg"] != first["x.jpg"]  # of fewer classes


def test_another_photo_of_the_name_takes_the_next_one(outputs, tmp_path):
    first = outputs(photo(tmp_path / "in" / "x.jpg"))
    both = outputs(photo(tmp_path / "other" / "x.jpg", size=(95, 70)))
    assert set(both) == {*first, *SECOND}
    assert {name: both[name] for name in first} == first
    assert set(outputs(tmp_path / "other" / "x.jpg")) == set(both)


@pytest.mark.parametrize("linked", [False, True])
def test_what_the_user_had_in_a_folder_of_outputs_stays(outputs, tmp_path, linked):
    path, mine = photo(tmp_path / "in" / "x.jpg"), tmp_path / "mine"
    mine.write_bytes(Path(path).read_bytes() if linked else b"mine")
    (tmp_path / "out" / "unsure").mkdir(parents=True)
    for name in OUTPUTS:
        if linked:
            (tmp_path / "out" / name).symlink_to(mine)
        else:
            (tmp_path / "out" / name).write_bytes(b"mine")
    before = mine.read_bytes()
    found = outputs(path)
    assert set(found) == {*OUTPUTS, *SECOND}
    assert {found[name] for name in OUTPUTS} == {before}


def test_unsure_photos_are_sorted_apart(monkeypatch, capsys, checkpoint, tmp_path):
    path = photo(tmp_path / "in" / "x.jpg")
    run(monkeypatch, path, "--weights", checkpoint, "--sort", tmp_path / "out", "--threshold", 1)
    assert (tmp_path / "out" / "unsure" / "x.jpg").exists()


@pytest.mark.parametrize(
    "name", ["../../etc", "..", ".", "", "a/b", "a\\b", "con", "x" * 400, "a\0b", "tab\t", "/abs"]
)
def test_class_names_become_harmless_folder_names(name):
    folder = files.folder_name(name)
    assert folder
    assert folder not in (".", "..")
    assert not set(folder) & set('/\\\0\t:*?"<>|')
    assert len(folder.encode()) <= 201
    assert folder.lower() != "con"


def test_classes_that_would_share_a_folder_get_their_own(tmp_path):
    copies = writers.SortedCopies(str(tmp_path / "out"), ["a/b", "a:b", "A_B", "unsure", "Unknown"])
    folders = [*copies.of_class, *copies.of_doubt.values()]
    assert len({folder.lower() for folder in folders}) == len(folders) == 7


def test_annotated_pictures_show_the_photo_and_a_row_per_class(tmp_path):
    image = Image.new("RGB", (300, 200), "red")
    top = [(0, "daisy", 0.7), (1, "郁金香", 0.2), (2, "x" * 200, 0.1)]
    picture = writers.annotate(Answer("x.jpg", top, image=image), long_side=600)
    assert picture.width >= 300
    assert picture.height > picture.width * 200 / 300
    assert picture.getpixel((picture.width // 2, 20)) == (255, 0, 0)


@pytest.mark.parametrize("flag", ["--save", "--sort", "--csv", "--explain"])
def test_nothing_is_written_among_the_photos(monkeypatch, capsys, checkpoint, tmp_path, flag):
    path = photo(tmp_path / "in" / "x.jpg")
    for target in (tmp_path / "in" / "out", tmp_path / "in"):
        assert run(monkeypatch, tmp_path / "in", "--weights", checkpoint, flag, target) == 2
    assert run(monkeypatch, path, "--weights", checkpoint, flag, path) == 2
    assert [entry.name for entry in (tmp_path / "in").iterdir()] == ["x.jpg"]


def test_a_listed_photo_in_the_output_folder_stops_the_run(tmp_path):
    names = files.FreshNames(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="output folder"):
        names.path(str(tmp_path / "out" / "x.jpg"), ".jpg")


def test_no_two_photos_share_a_name_also_where_one_is_called_like_anothers_second(tmp_path):
    names = files.FreshNames(str(tmp_path / "out"))
    sources = ["a/x.jpg", "b/x.jpg", "x-2.jpg", "c/X-2.png", "x-2-2.jpg", "é.jpg", "e\u0301.jpg"]
    found = [str(names.path(source, ".png")).lower() for source in sources]
    assert len({unicodedata.normalize("NFC", name) for name in found}) == len(sources)
    suffixes = [names.path("y.jpg", end).name for end in (".jpg", ".JPG")]
    assert suffixes == ["y.jpg", "y-2.JPG"]  # one name on macOS and Windows
    again = files.FreshNames(str(tmp_path / "out"))
    assert found == [str(again.path(source, ".png")).lower() for source in sources]


@pytest.mark.parametrize("flag", ["--save", "--sort", "--csv", "--explain"])
def test_an_output_that_cannot_be_written_is_named_at_once(
    monkeypatch, capsys, checkpoint, tmp_path, flag
):
    (tmp_path / "file").write_text("not a folder", "utf-8")  # root may write into read-only folders
    options = ("--weights", checkpoint, flag, tmp_path / "file" / "out")
    assert run(monkeypatch, photo(tmp_path / "in" / "x.jpg"), *options) == 2
    captured = capsys.readouterr()
    assert str(tmp_path / "file") in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


# ------------------------------------------------------------------------------ class folders


def test_class_folders_are_matched_by_name_and_scored(monkeypatch, capsys, checkpoint, tmp_path):
    # The folders "aaa" and "zzz" are no classes: they must neither count nor shift the others.
    for folder in ("aaa", "tulips", "daisy", "zzz"):
        for n, colour in enumerate(["red", "green", "blue"]):
            photo(tmp_path / "in" / folder / f"{n}.png", colour)
    records = run_json(monkeypatch, capsys, tmp_path / "in", "--weights", checkpoint)
    right = sum(
        record["predictions"][0]["class"] == Path(record["image"]).parent.name for record in records
    )
    assert run(monkeypatch, tmp_path / "in", "--weights", checkpoint) == 0
    out = capsys.readouterr().out
    assert f"accuracy {right / 6:.4f} ({right} of 6 photos)" in out
    assert "true \\ predicted" in out


def test_every_photo_is_judged_or_counted_under_a_reason(monkeypatch, capsys, checkpoint, tmp_path):
    for name in ("daisy/1", "daisy/2", "tulips/3", "birds/4", "birds/5", "fish/deep/6", "7"):
        photo(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "daisy" / "cut.png").write_bytes(b"no photo")
    for extra in ([], ["--json"]):
        assert run(monkeypatch, tmp_path / "in", "--weights", checkpoint, *extra) == 1
        captured = capsys.readouterr()
        said = captured.err if extra else captured.out
        assert " of 3 photos)" in said
        assert (
            "not judged: 3 in folders that are no class of the model (birds and fish); 1 in "
            "no class folder; 1 that cannot be read\n"
        ) in said


def test_where_no_folder_is_a_class_that_is_said_and_without_folders_nothing(
    monkeypatch, capsys, checkpoint, tmp_path
):
    for name in ("plain/1", "plain/2", "below/birds/3"):
        photo(tmp_path / f"{name}.png")
    run(monkeypatch, tmp_path / "plain", "--weights", checkpoint)
    out = capsys.readouterr().out
    assert "judged" not in out
    assert "accuracy 0" not in out.split("\n\n", 1)[1]
    run(monkeypatch, tmp_path / "below", "--weights", checkpoint)
    said = "not judged: 1 in a folder that is no class of the model (birds)"
    assert said in capsys.readouterr().out


def test_json_and_csv_have_the_label_that_the_accuracy_uses(
    monkeypatch, capsys, checkpoint, tmp_path
):
    for name in ("daisy/1", "daisy/deep/2", "birds/3", "4"):
        photo(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "tulips").mkdir()
    (tmp_path / "in" / "tulips" / "cut.png").write_bytes(b"no photo")
    table = tmp_path / "out.csv"
    words = [tmp_path / "in", "--json", "--csv", table, "--weights", checkpoint]
    assert run(monkeypatch, *words) == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = {"1": "daisy", "2": "daisy", "3": None, "4": None, "cut": None}
    assert {Path(r["image"]).stem: r.get("label") for r in records} == wanted
    with open(table, encoding="utf-8", newline="") as file:
        rows = {Path(row["image"]).stem: row["label"] for row in csv.DictReader(file)}
    assert rows == {stem: label or "" for stem, label in wanted.items()} | {"cut": "tulips"}


def test_many_classes_list_the_mistakes_instead_of_a_matrix():
    score = writers.Score([f"class {n}" for n in range(30)], "")
    for truth in range(30):
        guess = 1 if truth == 2 else truth
        score.write(Answer("x", [(guess, "", 1.0)], truth=truth))
    lines = score.lines()
    assert lines[0] == "accuracy 0.9667 (29 of 30 photos), 95 % interval 0.833 to 0.994"
    assert any("class 2 taken for class 1" in line for line in lines)
    assert len(lines) == 4
    assert "does not tell which photos it was trained on" in lines[1]


# ------------------------------------------------------------------------------ as a command


def command(*argv, **options):
    return subprocess.Popen(
        [sys.executable, ROOT / "predict.py", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_odd_names_survive_as_arguments_and_in_lists(checkpoint, tmp_path):
    names = ["-x.jpg", "--my_photo.jpg", "a b.jpg", "line\nbreak.jpg", "雏菊.jpg"]
    for name in names:
        photo(tmp_path / name)
    given = command("--json", "--weights", checkpoint, "--", *names, cwd=tmp_path)
    out, _ = given.communicate()
    assert [json.loads(line)["image"] for line in out.splitlines()] == names
    assert given.returncode == 0
    listed = command("-", "--weights", checkpoint, "--json", cwd=tmp_path, stdin=subprocess.PIPE)
    out, _ = listed.communicate("\0".join(names).encode())
    assert [json.loads(line)["image"] for line in out.splitlines()] == names
    assert listed.returncode == 0


def test_a_broken_pipe_is_quiet(checkpoint, tmp_path):
    for n in range(40):
        photo(tmp_path / f"{n}.png")
    running = command(tmp_path, "--weights", checkpoint, "--batch-size", "1")
    running.stdout.readline()
    running.stdout.close()
    errors = running.stderr.read().decode()
    running.wait(timeout=60)
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_one_photo_needs_no_plotting_library_nor_torchvision(checkpoint, tmp_path):
    weights = ("--weights", str(checkpoint))
    running = subprocess.run(
        [sys.executable, "-X", "importtime", "predict.py", photo(tmp_path / "x.jpg"), *weights],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    imported = {line.split("|")[-1].strip().split(".")[0] for line in running.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"torchvision", "matplotlib", "tensorboard", "scipy", "sympy"}


# --- the same in Python -------------------------------------------------------------------------


def test_a_predictor_gives_the_dicts_that_json_prints(monkeypatch, capsys, checkpoint, tmp_path):
    colours = ("red", "green", "blue")
    paths = [photo(tmp_path / "photos" / f"{n}.jpg", c) for n, c in enumerate(colours)]
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    assert run(monkeypatch, tmp_path / "photos", "--json", "--weights", checkpoint) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    model = predict.Predictor(str(checkpoint), device="cpu")
    assert model(str(tmp_path / "photos")) == told
    of_photos = [record for record in told if "error" not in record]
    assert model(list(map(str, paths))) == of_photos
    assert model(Path(paths[1])) == of_photos[1]


def test_a_predictor_takes_pictures_arrays_and_open_files(checkpoint, tmp_path):
    path = str(photo(tmp_path / "x.png"))
    predictor = predict.Predictor(str(checkpoint), device="cpu", topk=2)
    of_file = predictor(path)
    with Image.open(path) as opened, open(path, "rb") as stream:
        inputs = [opened, np.asarray(opened.convert("RGB")), stream]
        found = predictor(inputs)
    assert [record["predictions"] for record in found] == [of_file["predictions"]] * 3
    assert [record["image"] for record in found] == [path, None, path]
    assert len(of_file["predictions"]) == 2


def test_a_predictor_turns_a_picture_upright_as_its_file_is(tmp_path):
    picture, exif = Image.linear_gradient("L").resize((90, 70)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        found = predictor.open_source(inputs.Photo(None, source=opened), 64)
    assert found.size == (70, 90)
    assert found.tobytes() == load_image(tmp_path / "turned.png").tobytes()
