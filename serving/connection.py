"""A connection of which nothing is trusted: not its speed, its size, its Host, its page."""

import contextlib
import io
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, urlsplit

from serving.desk import Limits, report
from serving.gate import host_of, refusal

DRAIN_BYTES, DRAIN_SECONDS = 2**28, 5.0  # of a body that is not wanted
MOST_FIELDS = 10  # of a query
# Nothing is loaded from elsewhere, no other page shows this one, nothing is kept.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request answered by a status and JSON: {"error": sentence}, and what else is told."""

    def __init__(self, status: HTTPStatus, sentence: str, headers=None, **told) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}
        self.told = {**told, "error": sentence}


class Reader(io.RawIOBase):
    """The bytes of a connection until a moment, so that a client that drips is not waited for."""

    def __init__(self, connection) -> None:
        self.connection, self.until = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)

    def allow(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds


class Connection(BaseHTTPRequestHandler):
    """Reads requests within limits and answers them; which there are, its children say.

    The server has `limits`, `tls` and `hosts`, the names that it may be asked by.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and a body in two writes would cost 40 ms
    limits: Limits
    # What is asked for, by method and path.
    routes: dict[str, dict[str, Callable[["Connection"], None]]] = {}  # noqa: RUF012 (never changed)

    # --- from the wire ---

    def setup(self) -> None:
        self.limits = self.server.limits
        if self.server.tls:  # here, in the connection's own thread
            self.request.settimeout(self.limits.head)
            self.request.do_handshake()
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(Reader(self.connection), 2**16)

    def handle_one_request(self) -> None:
        self.rfile.raw.allow(self.limits.idle)
        super().handle_one_request()

    def parse_request(self) -> bool:
        self.rfile.raw.allow(self.limits.head)
        try:
            return super().parse_request()
        except (TypeError, ValueError):  # of Python's parser, for odd parameters (RFC 2231)
            self.send_error(HTTPStatus.BAD_REQUEST, "the headers of the request cannot be read")
            return False

    def handle_expect_100(self) -> bool:
        return True  # only `body` knows whether it is wanted

    def body(self) -> bytes:
        """Returns the request's body; raises Refused for one that is too large or says no size."""
        size = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not size:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request must tell its Content-Length")
        if (
            not (size.isascii() and size.isdigit())
            or len(self.headers.get_all("Content-Length")) > 1
        ):
            raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is no number of bytes")
        if len(size) > 15 or int(size) > self.limits.body_bytes:
            most = f"{self.limits.body_bytes / 2**20:g} MB"
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file is larger than {most}; serve.py --max-mb allows more",
            )
        if not int(size):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request has no body: send a photo")
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        self.rfile.raw.allow(self.limits.body)
        content = self.rfile.read(int(size))
        if len(content) < int(size):
            raise ConnectionAbortedError
        self.unread = False
        return content

    # --- one request ---

    def handle_method(self) -> None:
        """Answers one request; whatever is wrong with it becomes a status and a sentence."""
        self.unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        try:
            self._check()
            self._route()(self)
        except Refused as refused:
            self._refuse(refused)
        except ConnectionError:  # the client stopped in the middle
            self.close_connection, self.unread = True, False
        except TimeoutError:
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, "the request came too slowly"))
        except Exception as error:
            report(error)
            self._refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed"))
        if self.unread:  # what follows on this connection is no request
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = handle_method

    def _check(self) -> None:
        """Raises Refused for a request of a foreign page, or by a name that is not ours."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if why := refusal(hosts, origins, self.server.hosts):
            raise Refused(HTTPStatus.FORBIDDEN, why)
        self.host = host_of(hosts[0])
        try:
            parts = urlsplit(self.path)
            self.place = parts.path
            self.query = dict(parse_qsl(parts.query, max_num_fields=MOST_FIELDS))
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the address is none: {error}") from None

    def _route(self) -> Callable[["Connection"], None]:
        method = "GET" if self.command == "HEAD" else self.command
        if found := self.routes.get(method, {}).get(self.place):
            return found
        allowed = [method for method, known in self.routes.items() if self.place in known]
        if not allowed:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        sentence = f"this address takes {' and '.join(allowed)}"
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, sentence, {"Allow": ", ".join(allowed)})

    # --- answers ---

    def reply(self, kind: str, content: bytes, status=HTTPStatus.OK, headers=None) -> None:
        """Sends an answer, of that Content-Type."""
        told = {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}
        told |= headers or {}
        if self.close_connection or getattr(self, "unread", False):
            told["Connection"] = "close"
        self.connection.settimeout(self.limits.body)
        try:
            self.send_response(status)
            for name, value in told.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:  # nobody listens, or too slowly
            self.close_connection = True

    def reply_json(self, value, status=HTTPStatus.OK, headers=None) -> None:
        content = json.dumps(value, allow_nan=False).encode()
        self.reply("application/json", content, status, headers)

    def _refuse(self, refused: Refused) -> None:
        self.close_connection |= self.unread
        self.reply_json(refused.told, refused.status, refused.headers)
        if self.unread and "Expect" not in self.headers:
            self._drain()

    def _drain(self) -> None:
        """Reads what is still on its way: a client that is cut off may never see the answer."""
        self.rfile.raw.allow(DRAIN_SECONDS)
        left = DRAIN_BYTES
        with contextlib.suppress(OSError):
            while left > 0 and (block := self.rfile.read1(2**16)):
                left -= len(block)

    def send_error(self, code, message=None, explain=None) -> None:
        """What Python's server finds wrong with a request, in our form."""
        self.close_connection, self.request_version = True, self.protocol_version
        self.reply_json({"error": message or HTTPStatus(code).phrase}, HTTPStatus(code))

    def version_string(self) -> str:
        return "serve.py"

    def log_message(self, *words) -> None:
        """Nothing: who sends what photo is nobody's business."""
