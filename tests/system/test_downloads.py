"""Downloads survive servers that break off, lie and serve the wrong file."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import vit_model
from pretrained import fetch_weights
from system import downloads
from system.downloads import fetch_file, fetch_flower_photos, unpack

CONTENT = bytes(range(256)) * 20_000  # 5 MB, more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"vit-{SHA256[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves `content` under every path, with the faults that a test asks for.

    break_after: ends each answer after so many bytes. extra_length: is added to Content-Length.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.break_after, self.extra_length = CONTENT, None, 0
        self.ranges, self.status, self.headers, self.requests = True, None, {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/files"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.requests.append(wanted)
        if server.status:
            return self.send_error(server.status)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start and start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            total = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body) + server.extra_length))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: server.break_after])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_S", 0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_arrives_under_its_name(server, tmp_path):
    path = fetch_file(f"{server.address}/{NAME}", tmp_path / "weights")
    assert path == tmp_path / "weights" / NAME
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path / "weights") == [NAME]


def test_file_that_is_there_is_not_asked_for_again(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"mine")
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == b"mine"
    assert server.requests == []


def test_server_that_breaks_off_is_asked_for_the_rest(server, tmp_path):
    server.break_after = 2_000_000
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=2000000-", "bytes=4000000-"]


def test_second_call_goes_on_where_the_first_was_stopped(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:3_000_000])
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=3000000-"]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:3_000_000])
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT


def test_start_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 3_000_000)
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=3000000-", None]


def test_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [False, True])
def test_server_that_promises_more_than_it_sends_is_given_up(server, tmp_path, ranges):
    server.extra_length, server.ranges = 10, ranges
    with pytest.raises(OSError, match=r"cannot download .*5,120,000 of 5,120,010 bytes|status 416"):
        fetch_file(f"{server.address}/plain.npz", tmp_path)
    assert "plain.npz" not in files_in(tmp_path)


def test_right_hash_outweighs_a_wrong_length(server, tmp_path):
    server.extra_length = 10
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT


def test_whole_part_needs_only_its_name(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)  # killed just before the renaming
    assert fetch_file(f"{server.address}/{NAME}", tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=5120000-"]


def test_server_that_promises_less_than_there_is_is_noticed_by_the_hash(server, tmp_path):
    server.extra_length = -10
    with pytest.raises(OSError, match=r"is not the file we know: its hash is \w{8} where"):
        fetch_file(f"{server.address}/{NAME}", tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", [NAME, "plain.pth"])
def test_wrong_file_is_deleted(server, tmp_path, name):
    server.content = b"<html>please log in</html>"
    with pytest.raises(OSError, match="is not the file we know") as caught:
        fetch_file(f"{server.address}/{name}", tmp_path, None if name == NAME else SHA256)
    assert f"{server.address}/{name}" in str(caught.value)
    assert files_in(tmp_path) == []


def test_missing_page_names_the_address_and_the_place_for_the_file(server, tmp_path):
    server.status = 404
    with pytest.raises(OSError, match="HTTP status 404") as caught:
        fetch_file(f"{server.address}/{NAME}", tmp_path)
    assert f"{server.address}/{NAME}" in str(caught.value)
    assert str(tmp_path / NAME) in str(caught.value)
    assert len(server.requests) == 1


def test_busy_server_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(OSError, match="HTTP status 503"):
        fetch_file(f"{server.address}/{NAME}", tmp_path)
    assert len(server.requests) > 2


def test_offline_names_the_address_and_the_place_for_the_file(tmp_path):
    server = Server()
    server.server_close()  # nobody listens at this port any more
    with pytest.raises(OSError, match=r"cannot download .*refused") as caught:
        fetch_file(f"{server.address}/{NAME}", tmp_path)
    assert f"{server.address}/{NAME}" in str(caught.value)
    assert str(tmp_path / NAME) in str(caught.value)


def test_address_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no http or https address"):
        fetch_file("file:///etc/passwd", tmp_path)


def test_weights_are_fetched_by_the_name_of_a_variant(server, tmp_path, monkeypatch):
    variant = vit_model.Variant({}, "half", f"{server.address}/{NAME}")
    monkeypatch.setitem(vit_model.VARIANTS, "vit_test", variant)
    assert fetch_weights("vit_test", tmp_path) == tmp_path / NAME


def test_unknown_names_and_names_without_address_say_so(tmp_path):
    with pytest.raises(ValueError, match="did you mean"):
        fetch_weights("vit_base_patch16_225", tmp_path)
    with pytest.raises(ValueError, match="no address is known for the weights of vit_micro"):
        fetch_weights("vit_micro_patch8_64", tmp_path)


def archive_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_flower_photos_are_fetched_and_unpacked_once(server, tmp_path, monkeypatch):
    server.content = archive_of({"flower_photos/roses/1.jpg": b"a", "flower_photos/LICENSE": b"b"})
    monkeypatch.setattr(downloads, "FLOWERS_URL", f"{server.address}/flower_photos.tgz")
    monkeypatch.setattr(downloads, "FLOWERS_SHA256", hashlib.sha256(server.content).hexdigest())
    for _ in range(2):
        folder = fetch_flower_photos(tmp_path / "flowers")
        assert (folder / "roses" / "1.jpg").read_bytes() == b"a"
    assert len(server.requests) == 1
    assert files_in(tmp_path) == ["flower_photos.tgz", "flowers"]


@pytest.mark.parametrize("members", [{"../outside": b"x"}, {"other/1.jpg": b"x"}])
def test_archive_that_writes_elsewhere_or_holds_something_else_is_refused(tmp_path, members):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tgz").write_bytes(archive_of(members))
    with pytest.raises(OSError, match=r"cannot unpack .*x\.tgz"):
        unpack(tmp_path / "a" / "x.tgz", "flower_photos", tmp_path / "a" / "flower_photos")
    assert files_in(tmp_path) == ["a"]
    assert files_in(tmp_path / "a") == ["x.tgz"]


def test_damaged_archive_is_refused(tmp_path):
    data = archive_of({"flower_photos/1.jpg": bytes(range(256)) * 999})
    (tmp_path / "x.tgz").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="cannot unpack"):
        unpack(tmp_path / "x.tgz", "flower_photos", tmp_path / "flower_photos")
