"""What the server bears: clients that are slow, too many, too large, or pages from elsewhere."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
from tiny_server import form, opened, photo, serving, write_checkpoint

from serving.gate import host_of, is_loopback

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("served") / "run" / "best.pth")


@pytest.fixture(scope="module")
def ask(checkpoint):
    """A Client of a server with the usual limits."""
    with serving(opened(checkpoint)) as client:
        yield client


@pytest.fixture(scope="module")
def models(checkpoint):
    return opened(checkpoint)


@pytest.fixture
def serve(models):
    """Returns serve(hosts=(), **limits), a context with a Client of a server of its own."""
    return lambda hosts=(), **limits: serving(models, hosts, **limits)


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "192.168.1.5", "[::1]:8000", "[fe80::1]"]
)
def test_this_machine_is_asked_by_its_names(ask, host):
    assert ask("GET", "/health", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "localhost.", "",
     "evil.example@localhost", "localhost@evil.example", "[::1", "localhost:x", "lo calhost"],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(ask, host):
    """DNS rebinding: to the browser the page and this server are then of one origin."""
    for place in ("/", "/health", "/models"):
        status, answer, _ = ask("GET", place, headers={"Host": host})
        assert status == 403
    assert ask("POST", "/predict", photo(), {"Host": host})[0] == 403
    assert "daisy" not in json.dumps(answer)


def test_two_hosts_or_none_are_refused(ask):
    last = b"Connection: close\r\n\r\n"
    assert b" 403 " in ask.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: a\r\n" + last)
    assert b" 403 " in ask.raw(b"GET /health HTTP/1.0\r\n\r\n")
    elsewhere = b"GET http://localhost/elsewhere HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 404 " in ask.raw(elsewhere + last)


def test_a_name_is_allowed_by_the_flag(serve):
    with serve(hosts=["Classroom.local"]) as client:
        assert client("GET", "/health", headers={"Host": "classroom.local:8000"})[0] == 200
        assert client("GET", "/health", headers={"Host": "other.local"})[0] == 403


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "https://localhost.evil.example", "http://localhost:1",
     "file://", "http://localhost", "chrome-extension://abc", ""],
)  # fmt: skip
def test_pages_from_elsewhere_are_refused(ask, origin):
    headers = {"Host": "localhost:8000", "Origin": origin}
    assert ask("POST", "/predict", photo(), headers)[0] == 403
    assert ask("GET", "/models", headers=headers)[0] == 403
    status, _, told = ask("OPTIONS", "/predict", headers=headers)
    assert status == 403
    assert not [name for name in told if name.lower().startswith("access-control")]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_own_page_may_ask(ask, scheme):
    headers = {"Host": "localhost:8000", "Origin": f"{scheme}://localhost:8000"}
    assert ask("POST", "/predict", photo(), headers)[0] == 200


def test_hosts_are_read_as_browsers_write_them():
    assert host_of("Localhost:80") == "localhost"
    assert host_of("[2001:db8::1]:80") == "2001:db8::1"
    assert host_of("a/b") is None
    assert is_loopback("127.5.5.5")
    assert is_loopback("::1")
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("192.168.1.5")
    assert not is_loopback("localhost.evil.example")


# --- how much -------------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_refused_and_the_client_told(serve):
    with serve(body_bytes=100_000) as client:
        status, answer = client.predict(bytes(10_000_000))
        assert status == 413
        assert "0.0953674 MB" in answer["error"]
        headers, body = form(photo())
        assert client("POST", "/predict", body, headers)[0] == 200


def test_a_client_that_asks_first_sends_no_large_file(serve):
    with serve(body_bytes=100) as client:
        head = HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
        answer = client.raw(head)
        assert b" 413 " in answer
        assert b"100 Continue" not in answer


def test_a_client_that_asks_first_is_told_to_go_on(ask):
    content = photo()
    length = str(len(content)).encode()
    head = HEAD + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: " + length
    answer = ask.raw(head + b"\r\n\r\n", content)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 411),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 1_0\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"Content-Length: 99999999999999999999999\r\n", 413),
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", 411),
    ],
)
def test_a_request_must_say_how_long_it_is(ask, headers, status):
    with socket.create_connection(("127.0.0.1", ask.port), timeout=30) as connection:
        connection.sendall(HEAD + headers + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


def test_what_follows_a_refused_request_is_no_request(ask):
    """A body that was not read must not be taken for the next request."""
    inner = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    length = str(len(inner)).encode()
    smuggled = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length
    with socket.create_connection(("127.0.0.1", ask.port), timeout=30) as connection:
        connection.sendall(smuggled + b"\r\n\r\n" + inner)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_connection_is_kept_for_the_next_request(ask):
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert ask.raw(two, last).count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n",
     b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
     b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
     b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
     b"BREW /coffee HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"GET /models?" + b"&".join([b"a=1"] * 20) + b" HTTP/1.1\r\nHost: localhost\r\n"
     b"Connection: close\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request_gets_a_status_and_the_server_lives(ask, request_, capfd):
    answer = ask.raw(request_)
    assert b"Traceback" not in answer
    assert any(f" {status} ".encode() in answer for status in (400, 414, 431, 501, 505)), answer
    assert ask("GET", "/health")[0] == 200
    assert capfd.readouterr().err == ""


# --- how slowly -----------------------------------------------------------------------------------


def test_a_client_that_drips_is_told_so_and_dropped(serve):
    with serve(body=0.3) as client:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n")
            answer = b""
            while not answer and time.monotonic() - started < 20:
                connection.sendall(b"x")  # a byte now and then keeps no other server waiting
                connection.settimeout(0.05)
                try:
                    answer = connection.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert client.predict(photo())[0] == 200


def flood(connection) -> None:
    """Asks again and again, and reads nothing."""
    connection.settimeout(20)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        connection.sendall(b"GET /words.js HTTP/1.1\r\nHost: localhost\r\n\r\n")


def test_a_client_that_reads_nothing_is_dropped(serve):
    """The page's files fill what the system holds for it; no thread waits for it for ever."""
    with serve(body=0.3, connections=1) as client:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", client.port))
            with pytest.raises(ConnectionError):  # the server hangs up
                flood(connection)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if client("GET", "/health")[0] == 200:
                    return
        pytest.fail("its thread is not given back")


def test_a_connection_without_a_request_is_closed(serve):
    with serve(idle=0.2, head=0.2) as client:
        assert client.raw() == b""
        assert client.raw(b"GET / HTTP/1.1\r\nHost: loc") == b""


def test_a_client_that_stops_in_the_middle_costs_nothing(serve, capfd):
    with serve(requests=2) as client:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", client.port)) as connection:
                connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\nhalf")
        for _ in range(10):  # gone before its answer
            with socket.create_connection(("127.0.0.1", client.port)) as connection:
                length = str(len(photo())).encode()
                connection.sendall(HEAD + b"Content-Length: " + length + b"\r\n\r\n" + photo())
        until = time.monotonic() + 20
        while client.predict(photo())[0] == 503 and time.monotonic() < until:
            time.sleep(0.05)
        assert client.predict(photo())[0] == 200
        assert client.server.desk.room._value == 2
    assert capfd.readouterr().err == ""


# --- how many -------------------------------------------------------------------------------------


def test_too_many_photos_at_once_are_told_to_try_again(serve, monkeypatch):
    with serve(requests=2) as client:
        go, begun = threading.Event(), threading.Semaphore(0)
        original = client.server.desk._decode

        def wait(*args):
            begun.release()
            assert go.wait(30)
            return original(*args)

        monkeypatch.setattr(client.server.desk, "_decode", wait)
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(client.predict(photo())[0]))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=30)
        status, answer, headers = client("POST", "/predict", photo())
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "try again" in answer["error"]
        assert client("GET", "/health")[0] == 200
        go.set()
        for thread in threads:
            thread.join()
        assert results == [200, 200]
        assert client.predict(photo())[0] == 200


def test_an_answer_that_takes_too_long_is_given_up(serve, monkeypatch):
    with serve(answer=0.2) as client:
        go = threading.Event()
        client.server.desk.worker.submit(lambda items: [go.wait(30)], None)
        assert client.predict(photo())[0] == 503
        go.set()
        until = time.monotonic() + 20
        while (status := client.predict(photo())[0]) == 503 and time.monotonic() < until:
            pass
        assert status == 200


def test_too_many_connections_are_turned_away(serve):
    with serve(connections=3, idle=20.0) as client:
        held = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET /hea")  # a thread each
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 503 ")
        for connection in held:
            connection.close()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                if client("GET", "/health")[0] == 200:
                    return
            except OSError:
                continue
        pytest.fail("the room of connections that have gone is not given back")


def test_a_fault_of_ours_is_a_sentence_and_costs_no_other_photo(serve, monkeypatch, capfd):
    """One of a batch makes the model fail: the others are answered."""
    with serve() as client:
        (served,) = client.server.desk.models

        def fails(batch, original=served.predictor.answer_batch):
            if any(one.photo.path == "bad" for one in batch):
                raise RuntimeError(f"out of memory at {__file__}")
            return original(batch)

        monkeypatch.setattr(served.predictor, "answer_batch", fails)
        results = {}

        def send(name):
            headers, body = form(photo(), name)
            results[name] = client("POST", "/predict", body, headers)

        threads = [threading.Thread(target=send, args=(name,)) for name in ("a", "bad", "c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [results[name][0] for name in ("a", "bad", "c")] == [200, 500, 200]
    assert results["bad"][1] == {"error": "the server failed"}
    assert capfd.readouterr().err.startswith("error: RuntimeError: out of memory")
