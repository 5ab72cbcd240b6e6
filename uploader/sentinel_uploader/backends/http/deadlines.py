"""Connections with a deadline for a whole request, which another thread can abort.

urllib3's `Timeout(total=…)` limits each read, not their sum: a server that sends one byte every 29 seconds would hold a
thread for ever. Here every read of a response, status line and headers included, is limited by the time that is left.
"""

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from sentinel_protocol.common.clock import Clock

_SEND_CHUNK_BYTES = 64 << 10


class RequestDeadline:
    """One request in flight: the target of its request line, its deadline, and its socket."""

    def __init__(self, clock: Clock, *, target: str, total_s: float, read_timeout_s: float) -> None:
        self.target = target
        self._clock = clock
        self._deadline_s = clock.monotonic() + total_s
        self._total_s = total_s
        self._read_timeout_s = read_timeout_s
        self._socket: socket.socket | None = None
        self._is_aborted = False
        self._lock = threading.Lock()

    def remaining_s(self) -> float:
        """Return how long the next read or send may take; raises `TimeoutError` after the deadline."""
        left_s = self._deadline_s - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError(self.timeout_message(left_s))
        return min(left_s, self._read_timeout_s)

    def timeout_message(self, waited_s: float) -> str:
        """Say which limit ended a wait of `waited_s`, which `remaining_s` returned."""
        if waited_s < self._read_timeout_s:
            return f"timed out: not complete after {self._total_s:g} s"
        return f"timed out: silent for {self._read_timeout_s:g} s"

    def attach(self, sock: socket.socket) -> None:
        """Set the socket that carries the request; raises `ConnectionAbortedError` after `abort`."""
        with self._lock:
            if self._is_aborted:
                raise ConnectionAbortedError("the client was closed")
            self._socket = sock
        sock.settimeout(self.remaining_s())

    def abort(self) -> None:
        """Make the request fail at once; may be called from any thread."""
        with self._lock:
            self._is_aborted = True
            if self._socket is not None:
                # The plain socket's method: the TLS one would pull the session from under the reading thread.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def body_chunks(self, body: bytes) -> Iterator[bytes]:
        """Yield the body in pieces: each has a timeout of its own, as a slow uplink needs."""
        for start in range(0, len(body), _SEND_CHUNK_BYTES):
            self.remaining_s()
            yield body[start : start + _SEND_CHUNK_BYTES]


class _Current(threading.local):
    # urllib3 passes no argument of ours to a connection. A request begins and ends on one thread.
    deadline: RequestDeadline | None = None


_current = _Current()


@contextlib.contextmanager
def bound_to(deadline: RequestDeadline) -> Iterator[None]:
    """Connections used by this thread inside the block work under `deadline`."""
    _current.deadline = deadline
    try:
        yield
    finally:
        _current.deadline = None


class _DeadlineReader(io.RawIOBase):
    """The bytes of a response, each read limited by the request's deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: RequestDeadline) -> None:
        super().__init__()
        self._raw = raw
        self._socket = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining_s = self._deadline.remaining_s()
        self._socket.settimeout(remaining_s)
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            raise TimeoutError(self._deadline.timeout_message(remaining_s)) from None

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        assert _current.deadline is not None
        _current.deadline.attach(sock)
        super().__init__(sock, debuglevel, method)
        self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock, _current.deadline))


class _DeadlineConnection(HTTPConnection):
    """Sends exactly the request's target, under its deadline."""

    response_class = _DeadlineResponse

    def connect(self) -> None:
        super().connect()
        self._attach()

    def putrequest(
        self,
        method: str,
        url: str,  # noqa: ARG002  urllib3 may have normalised it, and a signature holds for the bytes that were signed
        skip_host: bool = False,
        skip_accept_encoding: bool = False,
    ) -> None:
        deadline = _current.deadline
        assert deadline is not None
        self._attach()
        super().putrequest(method, deadline.target, skip_host=skip_host, skip_accept_encoding=skip_accept_encoding)

    def _attach(self) -> None:
        deadline, sock = _current.deadline, cast("socket.socket | None", self.sock)
        if deadline is not None and sock is not None:
            deadline.attach(sock)


class _DeadlineTlsConnection(_DeadlineConnection, HTTPSConnection):
    pass


class HttpPool(HTTPConnectionPool):
    """Plain connections of this module's kind."""

    ConnectionCls = _DeadlineConnection


class HttpsPool(HTTPSConnectionPool):
    """TLS connections of this module's kind."""

    ConnectionCls = _DeadlineTlsConnection
