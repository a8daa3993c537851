"""inputs.py: a list on standard input means the files that its writer meant, and nothing else."""

import io
import os
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from predicting import inputs

NAMES = ["ab", "cd.jpg", "photos/雏菊 é.jpg", "C:\\x.jpg"]


@pytest.fixture
def listing(monkeypatch, tmp_path):
    """Returns a function from the bytes on standard input to the photos they name."""
    monkeypatch.chdir(tmp_path)

    def found(data, classes=()):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        return list(inputs.find_photos(["-"], classes))

    return found


def photo(path):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"],
)
@pytest.mark.parametrize("names", [NAMES, NAMES[:2], NAMES[2:3]])
def test_a_list_is_read_in_any_unicode_encoding(listing, names, encoding, ends):
    text = "".join(name + ends for name in names)
    assert [p.path for p in listing(text.encode(encoding))] == names
    text = text.removesuffix(ends)
    assert [p.path for p in listing(text.encode(encoding))] == names


def test_a_long_list_is_read_as_it_comes(listing):
    names = [f"photos/{'雏菊' * (n % 9)}{n}.jpg" for n in range(3000)]
    for encoding in ("utf-16-le", "utf-8"):
        assert [p.path for p in listing("\n".join(names).encode(encoding))] == names


def test_a_mark_does_not_change_names_that_are_no_utf_8(listing):
    assert [p.path for p in listing(b"\xef\xbb\xbfcaf\xe9.jpg\n")] == ["caf\udce9.jpg"]


def test_the_first_line_is_answered_before_the_second_comes():
    class Pipe(io.BytesIO):
        def read1(self, size):
            return self.readline()

    stream = Pipe(b"a.jpg\nb.jpg\n")
    assert next(inputs.read_list(stream)) == "a.jpg"
    assert stream.read() == b"b.jpg\n"


def test_a_folder_in_a_list_is_refused_and_never_walked(listing, tmp_path):
    photo("cats/1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "cats")
    for name in ("cats", "cats/", ".", "/", "link", str(tmp_path)):
        (only,) = listing(name.encode())
        assert only.path == name
        assert "a folder, where a list names files only" in only.error
    (only,) = listing(b"cats/1.jpg\n", ["cats"])  # what a folder in a list should have been
    assert only == inputs.Photo("cats/1.jpg", 0)


def test_a_pattern_in_a_list_is_the_name_of_a_file(listing):
    photo("cats/1.jpg")
    photo("[1].jpg")
    assert [p.path for p in listing(b"cats/*.jpg\n[1].jpg\n")] == ["cats/*.jpg", "[1].jpg"]


def test_empty_lines_and_comments_are_passed_over_but_no_file_is(listing):
    photo("# 1.jpg")
    text = "# cats of May\n\n  \n#\na.jpg\r\n#\tmore\n# 1.jpg\n#2.jpg\n"
    assert [p.path for p in listing(text.encode())] == ["a.jpg", "# 1.jpg", "#2.jpg"]


@pytest.mark.parametrize("encoding", ["gb18030", "latin-1", "big5"])
def test_a_name_in_another_encoding_is_refused_unless_a_file_has_these_bytes(listing, encoding):
    name = "é1.jpg" if encoding == "latin-1" else "雏菊.jpg" if encoding != "big5" else "鬱金香.jpg"
    data = name.encode(encoding)
    (only,) = listing(data)
    assert "no file has this name, which is not UTF-8: save the list as UTF-8" in only.error
    photo(os.fsdecode(data))
    (only,) = listing(data)
    assert only == inputs.Photo(os.fsdecode(data))


def test_a_list_cut_in_the_middle_of_a_character_is_refused_in_a_sentence(listing):
    with pytest.raises(ValueError, match="the list is cut short or no text in UTF-16"):
        listing(b"\xff\xfe" + "ab.jpg\ncd.jpg".encode("utf-16-le")[:-1])
