"""serve.py itself: where it listens, what it says, what it refuses before it starts."""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import closing

import pytest
import torch
from tiny_server import photo, write_checkpoint

import serve
from formats.known import Known
from serving.server import Server
from vit_model import create_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("served") / "run" / "best.pth")


@pytest.fixture
def begin(call, monkeypatch):
    """Returns begin(*words) -> status, output and errors of a server that Ctrl-C ends at once."""

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    return lambda *words: call(serve.main, *words)


def test_the_newest_model_is_served_and_ctrl_c_ends_it(begin, checkpoint, monkeypatch, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "weights" / "mine")
    monkeypatch.chdir(tmp_path)
    status, said, _ = begin("--port", 0)
    assert status == 0
    assert "mine: vit_micro_patch8_64, KAN, 3 classes" in said
    assert "the page: http://localhost:" in said
    assert said.endswith("ended\n")


def test_without_a_model_it_is_said_how_to_get_one(begin, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, said = begin()
    assert status == 2
    assert "train a model with train.py first" in said


def test_a_port_in_use_names_a_free_one(begin, checkpoint):
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        taken = other.getsockname()[1]
        status, _, said = begin("--weights", checkpoint, "--port", taken)
        assert status == 2
        assert said.startswith(f"serve.py: error: port {taken} is taken; --port ")
        free = int(said.split("--port ")[1].split()[0])
        assert free > taken
        assert begin("--weights", checkpoint, "--port", free)[0] == 0


def test_what_cannot_be_served_is_refused(begin, tmp_path):
    (tmp_path / "notes.pth").write_text("no weights", "utf-8")
    backbone = create_model("vit_micro_patch8_64", num_classes=0).state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    for name in ("notes.pth", "backbone.pth"):
        status, _, said = begin("--weights", tmp_path / name, "--port", 0)
        assert (status, said.count("\n")) == (2, 1)
        assert name in said


def test_unlike_photos_are_asked_for_only_where_a_model_tells_them(begin, checkpoint, tmp_path):
    plain = "--weights", checkpoint, checkpoint, "--port", 0
    status, _, said = begin(*plain, "--unknown", 0.2)
    assert (status, said.count("\n")) == (2, 1)
    assert f"--unknown 0.2: there are no features of training photos in {checkpoint}, by" in said
    assert begin(*plain, "--unknown", 0)[0] == 0
    known = Known.fit(torch.randn(5, 128), torch.zeros(5), torch.randn(40, 128)).to_dict()
    torch.save(torch.load(checkpoint, weights_only=True) | {"known": known}, tmp_path / "best.pth")
    status, _, said = begin(*plain[:2], tmp_path / "best.pth", *plain[3:], "--unknown", 0.2)
    assert (status, said) == (0, "")


def test_beyond_this_machine_it_warns(begin, checkpoint):
    words = ("--weights", checkpoint, "--port", 0)
    assert begin(*words)[2] == ""
    said, warned = begin(*words, "--host", "0.0.0.0", "--allow-host", "room5.local")[1:]
    assert "warning: --host 0.0.0.0 lets everyone on this network use this page" in warned
    assert "warning: without --cert, photos travel unencrypted" in warned
    assert "http://localhost:" in said
    assert "http://room5.local:" in said


def test_no_browser_is_opened_where_nobody_looks(begin, checkpoint, monkeypatch):
    opened = []
    monkeypatch.setattr(serve.webbrowser, "open", opened.append)
    begin("--weights", checkpoint, "--port", 0)
    assert opened == []
    monkeypatch.setattr(serve, "has_desktop", lambda: True)
    begin("--weights", checkpoint, "--port", 0, "--no-open")
    assert opened == []
    begin("--weights", checkpoint, "--port", 0)
    assert opened[0].startswith("http://localhost:")


def test_a_certificate_that_is_none_is_refused(begin, checkpoint, tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate", "utf-8")
    words = ("--weights", checkpoint, "--port", 0, "--cert", tmp_path / "cert.pem")
    status, _, said = begin(*words)
    assert (status, said.count("\n")) == (2, 1)
    assert "cert.pem: not a certificate" in said


@pytest.fixture
def certificate(tmp_path):
    """A certificate of this machine and its key, in PEM."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate: apt install openssl")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    name = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run([*words.split(), name, *files], check=True, capture_output=True)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_https_answers_and_who_speaks_plainly_holds_up_nobody(call, checkpoint, certificate):
    cert, key = certificate
    started, servers = threading.Event(), []
    serve_forever = Server.serve_forever

    def serve_once(self):
        servers.append(self)
        started.set()
        serve_forever(self, 0.01)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "serve_forever", serve_once)
        words = ["--weights", checkpoint, "--port", 0, "--cert", cert, "--key", key]
        status = []
        thread = threading.Thread(target=lambda: status.append(call(serve.main, *words)))
        thread.start()
        assert started.wait(60)
        port = servers[0].server_address[1]
        silent = socket.create_connection(("127.0.0.1", port))
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        plain.request("GET", "/health")
        with pytest.raises((OSError, http.client.HTTPException)):
            plain.getresponse()
        trusted = ssl.create_default_context(cafile=str(cert))
        secure = http.client.HTTPSConnection("localhost", port, context=trusted, timeout=30)
        origin = {"Origin": f"https://localhost:{port}"}
        for _ in range(2):
            secure.request("POST", "/predict", photo(), origin)
            answer = secure.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["predictions"]
        secure.close()
        silent.close()
        servers[0].shutdown()
        thread.join()
    code, said, errors = status[0]
    assert (code, errors) == (0, "")
    assert f"the page: https://localhost:{port}/" in said
