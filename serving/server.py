"""The web server: Python's own, with bounds on how many ask at once, how slowly and how much.

    with Server(("127.0.0.1", 8000), Desk(models)) as server:
        server.serve_forever()          # in the calling thread; `shutdown` from another ends it

A thread reads each connection; what it wants is done by a `desk`.
"""

import contextlib
import os
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Collection
from http.server import ThreadingHTTPServer

from serving.desk import Desk, report
from serving.handler import Handler

TRIED = 100  # ports beside one that is taken


class Server(ThreadingHTTPServer):
    """Serves the page and its answers.

    address: host and port, 0 for any that is free. hosts: names that it may be asked by, beside
    localhost and addresses. tls: for https. training_photos: whether
    they are shown to other machines, too. Raises OSError for an address that cannot be had.
    """

    daemon_threads = True
    block_on_close = False  # a client that sends nothing would hold up the end
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # there it would share a port that is taken

    def __init__(
        self,
        address: tuple[str, int],
        desk: Desk,
        hosts: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        training_photos: bool = False,
    ) -> None:
        self.desk, self.limits, self.tls = desk, desk.limits, tls
        self.training_photos = training_photos
        self.hosts = {host.lower() for host in hosts}
        self.threads = threading.BoundedSemaphore(self.limits.connections)
        self.address_family, place = resolved(*address)
        super().__init__(place, Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's question to a name server, which can take minutes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def server_close(self) -> None:
        super().server_close()
        self.desk.close()

    def get_request(self):
        connection, address = super().get_request()
        if self.tls:  # hands are shaken in the connection's own thread
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request, client_address) -> None:
        """Starts a thread for a connection; where too many run, it is closed."""
        if not self.threads.acquire(blocking=False):
            self._turn_away(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system gives no more threads
            self.threads.release()
            self._turn_away(request)

    def _turn_away(self, request) -> None:
        with contextlib.suppress(OSError):
            request.settimeout(0)
            if not self.tls:
                request.send(
                    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\n"
                    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.threads.release()

    def handle_error(self, request, client_address) -> None:
        """A client that left, came too slowly or spoke no TLS is nothing to tell."""
        error = sys.exception()
        if not isinstance(error, OSError):
            report(error)


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Returns how a socket is bound to a host: its family and address."""
    family, *_, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, place[:2]


def free_port(host: str, after: int) -> int | None:
    """Returns the next port above `after` that a server could have; None where none is found."""
    for port in range(after + 1, min(after + 1 + TRIED, 2**16)):
        family, place = resolved(host, port)
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            if Server.allow_reuse_address:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return port
    return None
