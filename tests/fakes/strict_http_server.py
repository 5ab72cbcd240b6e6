"""A strict HTTP server on loopback, the common part of the stand-ins: records, injects faults, cleans up."""

import contextlib
import http.server
import random
import socket
import ssl
import struct
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import NamedTuple

from fakes.background_thread import BackgroundThread
from fakes.faults import Fault, Faults, Recorded, Recorder

_FIRST_PORT = 20_000
_FIRST_EPHEMERAL_PORT = 32_768
"""Linux gives away ports from here on: whoever waits to listen at such a one may find it taken."""


class Reply(NamedTuple):
    """An answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class _DroppedError(Exception):
    """The connection is to be reset without an answer."""


class StrictHttpServer(BackgroundThread):
    """A server of its own thread(s); `with` starts and stops it. Subclasses say what requests mean and do.

    `url` is its address; `faults` and `requests` are for tests; `now` gives UNIX seconds for its `Date` header and
    all else, so that a test can set its clock.
    """

    def __init__(
        self, *, port: int = 0, tls: ssl.SSLContext | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self.faults = Faults()
        self.requests = Recorder()
        self.now = now
        self.closing = threading.Event()
        self.connections_accepted = 0
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self._httpd = _Httpd(self, port, tls)
        self.port: int = self._httpd.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def work(self) -> None:
        """Serve."""
        self._httpd.serve_forever(0.01)

    def end(self) -> None:
        """Cut every connection and listen no more."""
        self.closing.set()
        self.faults.clear()
        self._httpd.shutdown()
        with self._connections_lock:
            for connection in self._connections:
                _cut(connection)
        self._httpd.server_close()

    @abstractmethod
    def read(self, request: Recorded) -> None:
        """Fill in `call`, `run_id` and `decoded` where the request is readable."""

    @abstractmethod
    def perform(self, request: Recorded) -> Reply:
        """Check the request, do what it asks for, return the answer."""

    def fault_reply(self, fault: Fault) -> Reply:
        """Return the answer that a fault with a status (or code) gives."""
        assert fault.status is not None
        return Reply(fault.status, fault.body or b"", fault.headers)

    def answer(self, request: Recorded) -> Reply | None:
        """Record the request, let it meet its fault, return the answer; `None` drops the connection."""
        self.read(request)
        fault = request.fault = self.faults.take(request)
        self.requests.add(request)
        try:
            reply = self._perform_with(fault, request)
        except _DroppedError:
            self.requests.answered(request, None)
            return None
        self.requests.answered(request, reply.status)
        return reply

    def _perform_with(self, fault: Fault | None, request: Recorded) -> Reply:
        if fault is None:
            return self.perform(request)
        self.closing.wait(fault.delay_s)
        if fault.hang:
            if fault.after_effect:
                self.perform(request)
            while not self.closing.is_set() and not fault.lifted.wait(0.05):
                pass
            raise _DroppedError
        if fault.drop_before:
            raise _DroppedError
        has_answer = fault.status is not None or fault.code is not None
        if has_answer and not fault.after_effect:
            return self.fault_reply(fault)
        reply = self.perform(request)
        if fault.drop_after_effect:
            raise _DroppedError
        # No answer may claim an effect that a refusal has prevented.
        return self.fault_reply(fault) if has_answer and request.took_effect else reply

    def opened(self, connection: socket.socket) -> None:
        """Keep track of a connection, to cut it at the end."""
        with self._connections_lock:
            self.connections_accepted += 1
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._connections_lock:
            self._connections.discard(connection)


class _Httpd(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, owner: StrictHttpServer, port: int, tls: ssl.SSLContext | None) -> None:
        self.owner = owner
        self._tls = tls
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: "socket.socket | tuple[bytes, socket.socket]", client_address: object) -> None:
        assert isinstance(request, socket.socket)
        request.settimeout(30)
        if self._tls is not None:
            # In the connection's own thread: a client that stalls the handshake must not stall the others.
            try:
                request = self._tls.wrap_socket(request, server_side=True)
            except OSError:
                return
        self.owner.opened(request)
        try:
            # A peer may go away whenever it likes.
            with contextlib.suppress(OSError):
                super().finish_request(request, client_address)
        finally:
            self.owner.closed(request)
            if self._tls is not None:
                request.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Httpd

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        request = Recorded(
            call="unknown",
            method=self.command,
            # Not self.path, in which http.server has merged the slashes at the beginning.
            path=self.requestline.split(" ")[1],
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(length),
        )
        reply = self.server.owner.answer(request)
        self.close_connection = self.close_connection or reply is None or "transfer-encoding" in request.headers
        if reply is None:
            # With a linger time of zero, closing sends RST; the reader shares the socket and would hold it open.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
            return
        self._send(reply, request.fault.huge_body_bytes if request.fault else 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  http.server finds them by these names

    def _send(self, reply: Reply, huge_body_bytes: int) -> None:
        body = b"" if self.command == "HEAD" else reply.body
        head = [f"HTTP/1.1 {reply.status} {self.responses.get(reply.status, ('Unknown', ''))[0]}"]
        head.append(f"Date: {formatdate(self.server.owner.now(), usegmt=True)}")
        head.append(f"Content-Length: {huge_body_bytes or len(body)}")
        if self.close_connection:
            head.append("Connection: close")
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        # One send: head and body apart would meet Nagle's algorithm and the peer's delayed acknowledgement.
        self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1") + (b"" if huge_body_bytes else body))
        for _ in range(0, huge_body_bytes, 1 << 20):
            if self.server.owner.closing.is_set():
                break
            self.wfile.write(b" " * (1 << 20))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        pass


def free_port() -> int:
    """Return a port at which nobody listens now, and which the kernel gives to nobody of its own accord meanwhile."""
    while True:
        port = random.randrange(_FIRST_PORT, _FIRST_EPHEMERAL_PORT)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _cut(connection: socket.socket) -> None:
    # The plain socket's method: no farewell of the TLS layer.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
