"""Figures per class by hand, and a page that is whole, escaped and complete in itself."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from reporting import metrics, page

CLASSES = ["daisy", "<script>alert('roses')</script>", "蒲公英 & 鬱金香"]
#                    predicted: 0  1  2
MATRIX = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])


PLAIN = ["daisy", "roses", "tulips"]


def write(run_dir, **changed):
    """Writes a page with every part and returns its text."""
    parts = {
        "title": "vit_tiny on <flowers>",
        "summary": [("Accuracy", 0.75), ("Time", "3 min")],
        "classes": PLAIN,
        "matrix": MATRIX,
        "rows": [{"epoch": 1, "train_loss": 1.0, "val_loss": 2.0, "learning_rate": 0.1}],
        "settings": [("--lr", 0.001, "head only: <small>")],
        "data_lines": ["12 photos & 3 classes"],
        "commands": [("Predict", "python predict.py 'a photo.jpg' > out")],
    }
    return page.write_report(run_dir, **(parts | changed)).read_text(encoding="utf-8")


def test_confusion_matrix_counts_rows_true_columns_predicted():
    matrix = metrics.confusion_matrix([0, 0, 2, 2, 2], [0, 1, 2, 2, 0], 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_class_table_has_the_values_worked_out_by_hand():
    daisy, roses, dandelion = metrics.class_table(MATRIX, CLASSES)
    assert daisy["class"] == "daisy"
    assert daisy["precision"] == pytest.approx(6 / 7)
    assert daisy["recall"] == pytest.approx(6 / 8)
    assert daisy["f1"] == pytest.approx(2 * (6 / 7) * (6 / 8) / (6 / 7 + 6 / 8))
    assert daisy["support"] == 8
    assert (roses["precision"], roses["recall"], roses["support"]) == (3 / 5, 3 / 4, 4)
    assert dandelion == {
        "class": CLASSES[2],
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }


def test_class_lines_are_the_table_as_text():
    lines = metrics.class_lines(MATRIX, CLASSES)
    assert [line.split()[:4] for line in lines[1:]] == [
        ["85.7", "75.0", "80.0", "8"],
        ["60.0", "75.0", "66.7", "4"],
        ["–", "–", "–", "0"],
    ]
    assert lines[1].endswith("daisy")
    assert len({line.index(name) for line, name in zip(lines[1:], CLASSES, strict=True)}) == 1


def test_class_that_is_never_predicted_has_no_precision_but_f1_zero():
    row = metrics.class_table([[0, 4], [0, 4]], ["a", "b"])[0]
    assert (row["precision"], row["recall"], row["f1"]) == (None, 0.0, 0.0)


def test_most_confused_names_pairs_by_frequency_without_the_right_ones():
    assert metrics.most_confused(MATRIX, CLASSES) == [
        ("daisy", CLASSES[1], 2),
        (CLASSES[1], "daisy", 1),
    ]
    assert metrics.most_confused(np.eye(3, dtype=int), CLASSES) == []
    assert len(metrics.most_confused(1 - np.eye(5, dtype=int), list("abcde"), count=7)) == 7


def test_worst_mistakes_are_the_surest_wrong_ones():
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.95, 0.05]]
    found = metrics.worst_mistakes(list("wxyz"), [0, 0, 0, 1], probabilities, ["a", "b"])
    assert [m["path"] for m in found] == ["z", "x", "y"]
    assert found[0] == {"path": "z", "true": "b", "predicted": "a", "probability": 0.95}
    assert len(metrics.worst_mistakes(list("wxyz"), [1, 0, 0, 1], probabilities, "ab", 2)) == 2


class Reader(HTMLParser):
    """Collects tags, addresses and text, and checks that elements close in order."""

    VOID = frozenset(("meta", "img", "source", "br", "wbr"))

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [v for name, v in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_well_formed_and_refers_to_nothing_outside_itself(tmp_path):
    page = write(tmp_path, classes=CLASSES)
    reader = read(page)
    assert reader.addresses
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", page)
    assert not re.findall(r"url\((?!data:)", page)
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page


def test_page_escapes_every_name(tmp_path):
    page = write(tmp_path, classes=CLASSES)
    reader = read(page)
    assert "script" not in reader.tags
    assert "&lt;script&gt;" in page
    for text in (*CLASSES, "vit_tiny on <flowers>", "head only: <small>", "'a photo.jpg' > out"):
        assert text in reader.text


def test_page_shows_mistakes_as_thumbnails_and_survives_a_photo_that_is_gone(tmp_path, make_photos):
    root = make_photos(tmp_path / "photos", per_class=1)
    odd = root / "daisy" / "a&b's \".jpg"
    (root / "daisy" / "daisy_00.jpg").rename(odd)
    mistakes = [
        {"path": str(odd), "true": "daisy", "predicted": "roses", "probability": 0.875},
        {"path": "gone.jpg", "true": "roses", "predicted": "daisy", "probability": 0.5},
    ]
    page = write(tmp_path, mistakes=mistakes)
    reader = read(page)
    assert sum(a.startswith("data:image/jpeg") for a in reader.addresses) == 1
    assert "87.5\u00a0%" in reader.text
    assert odd.name in reader.text
    assert "cannot be read any more" in reader.text


def test_page_brings_the_letters_of_its_names(tmp_path):
    assert "@font-face" in write(tmp_path, classes=CLASSES)
    assert "@font-face" not in write(tmp_path, classes=PLAIN)


def test_parts_that_are_empty_are_left_out(tmp_path):
    page = write(tmp_path, rows=(), settings=(), data_lines=(), commands=())
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == ["Confusion", "Classes"]


def test_page_without_a_mistake_says_so(tmp_path):
    page = write(tmp_path, matrix=np.diag([3, 2, 1]))
    assert "Not one photo" in page


def test_undecodable_names_do_not_spoil_the_page(tmp_path):
    assert "caf\\udce9" in write(tmp_path, classes=["caf\udce9", "b", "c"])


def test_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    before = write(tmp_path)
    with pytest.raises(IndexError):
        write(tmp_path, classes=["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_page_shows_the_photos_of_confused_classes_with_label_answer_and_probability(tmp_path):
    sure = [[0.2, 0.8, 0], [0.9, 0.1, 0]]
    classes = ["蒲公英", "<roses>", "tulips"]
    pairs = metrics.confused_pairs(["gone_a.jpg", "gone_b.jpg"], [0, 0], sure, classes)
    text = read(write(tmp_path, classes=classes, confused=pairs)).text
    assert "Most confused classes" in text
    told = text[text.index("蒲公英: 1 taken for <roses>") :]
    assert re.search(r"→ <roses>\s+80\.0\s+%", told)
    assert re.search(r"right\s+90\.0\s+%", told)
    assert "<roses>: none taken for 蒲公英" in told
    assert "Most confused classes" not in read(write(tmp_path)).text
