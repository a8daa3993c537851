"""Text from outside: whatever wrote it, it is read as it was meant or refused by name."""

import csv
import json

import pytest

from system.files import encoding_of, read_csv, read_json, read_text

NAMES = {"0": "Äpfel", "1": "鬱金香", "2": "roses"}
# UTF-16 and UTF-32 of Python's start with a byte order mark, those with -le and -be do not.
ENCODINGS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-le",
    "utf-32-be",
)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_read_in_any_unicode_encoding(tmp_path, encoding):
    text = json.dumps(NAMES, ensure_ascii=False)
    (tmp_path / "names.json").write_bytes(text.encode(encoding))
    assert read_json(tmp_path / "names.json") == NAMES


def test_both_orders_of_utf_16_are_known_by_their_marks(tmp_path):
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        (tmp_path / "x.json").write_bytes(mark + '["鬱金香"]'.encode(encoding))
        assert read_json(tmp_path / "x.json") == ["鬱金香"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_are_read_in_any_unicode_encoding(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes('x,"é\r\né"\r\n\r\n1,2\r\n'.encode(encoding))
    assert list(read_csv(tmp_path / "x.csv")) == [(2, ["x", "é\r\né"]), (4, ["1", "2"])]


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030"])
def test_text_in_another_encoding_is_refused_by_file_and_line(tmp_path, encoding):
    text = {"latin-1": "a\nÄpfel", "gb18030": "a\n鬱金香"}[encoding]
    (tmp_path / "x.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"x\.txt is not text in UTF-8 \(line 2\): save it as"):
        read_text(tmp_path / "x.txt")


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "xyz\0"}')
    with pytest.raises(ValueError, match=r"x\.json holds zero bytes"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.csv").write_text('"' + "x" * csv.field_size_limit() + 'y"\n', "utf-8")
    with pytest.raises(ValueError, match=r"x\.csv, line 1: field larger"):
        list(read_csv(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    "head", [b"", b"a.jpg\n", b"photos/a.jpg\0photos/b.jpg\0", b"ab\0cd\0ef\0", "雏菊.jpg".encode()]
)
def test_lists_of_bytes_are_not_taken_for_utf_16(head):
    assert encoding_of(head) == "utf-8"


@pytest.mark.parametrize("text", ["ab\ncd\n", "a", "照片/一.jpg\r\n", "C:\\x.jpg"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zero_bytes(text, encoding):
    assert encoding_of(text.encode(encoding)) == encoding
