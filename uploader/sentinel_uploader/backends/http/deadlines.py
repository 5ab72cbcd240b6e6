"""Connections that know the deadline of the request they carry, and that can be cut off from another thread.

urllib3's read timeout starts anew with every byte that arrives: a server that sends one byte every 29 seconds holds
a thread for ever. Here each read of a request's answer, status line and headers included, is bounded by what is left
of the request's own time.
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
    """One request under way: what its request line says, until when it may take, and its socket."""

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
        """Return how long the next read or send may take; raises `TimeoutError` when the time is over."""
        left_s = self._deadline_s - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError(self.timeout_message(left_s))
        return min(left_s, self._read_timeout_s)

    def timeout_message(self, waited_s: float) -> str:
        """Say which limit was met by a wait of what `remaining_s` allowed."""
        if waited_s < self._read_timeout_s:
            return f"timed out: not complete after {self._total_s:g} s"
        return f"timed out: silent for {self._read_timeout_s:g} s"

    def attach(self, sock: socket.socket) -> None:
        """Say which socket carries the request; raises `ConnectionAbortedError` after `abort`."""
        with self._lock:
            if self._is_aborted:
                raise ConnectionAbortedError("the client was closed")
            self._socket = sock
        sock.settimeout(self.remaining_s())

    def abort(self) -> None:
        """Make the request fail at once, whatever it waits for; may be called from any thread."""
        with self._lock:
            self._is_aborted = True
            if self._socket is not None:
                # The plain socket's method: the TLS one would pull the session from under the reading thread.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def body_chunks(self, body: bytes) -> Iterator[bytes]:
        """Yield the body in pieces, so that a slow uplink is measured by piece and by the total, not as one send."""
        for start in range(0, len(body), _SEND_CHUNK_BYTES):
            self.remaining_s()
            yield body[start : start + _SEND_CHUNK_BYTES]


class _Current(threading.local):
    # urllib3 hands no argument of ours down to a connection; a request begins and ends on one thread.
    call: RequestDeadline | None = None


_current = _Current()


@contextlib.contextmanager
def bound_to(call: RequestDeadline) -> Iterator[None]:
    """Connections used by this thread inside the block work for `call`."""
    _current.call = call
    try:
        yield
    finally:
        _current.call = None


class _DeadlineReader(io.RawIOBase):
    """The bytes of an answer, each read bounded by the call's deadline."""

    def __init__(self, sock: socket.socket, call: RequestDeadline) -> None:
        super().__init__()
        self._socket = sock
        self._call = call
        # The socket's own raw stream: it keeps the socket open until the answer is read.
        self._raw = cast("io.RawIOBase", sock.makefile("rb", buffering=0))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._call.remaining_s()
        self._socket.settimeout(left_s)
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            raise TimeoutError(self._call.timeout_message(left_s)) from None

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _DeadlineFile:
    """What `http.client.HTTPResponse` needs of a socket: `makefile`."""

    def __init__(self, sock: socket.socket, call: RequestDeadline) -> None:
        self._socket = sock
        self._call = call

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_DeadlineReader(self._socket, self._call))


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        call = _current.call
        assert call is not None
        call.attach(sock)
        super().__init__(cast("socket.socket", _DeadlineFile(sock, call)), debuglevel, method)


class _DeadlineConnection(HTTPConnection):
    """Sends exactly the call's target, and works under its deadline."""

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
        call = _current.call
        assert call is not None
        self._attach()
        super().putrequest(method, call.target, skip_host=skip_host, skip_accept_encoding=skip_accept_encoding)

    def _attach(self) -> None:
        call, sock = _current.call, cast("socket.socket | None", self.sock)
        if call is not None and sock is not None:
            call.attach(sock)


class _DeadlineTlsConnection(_DeadlineConnection, HTTPSConnection):
    pass


class HttpPool(HTTPConnectionPool):
    """Plain connections of this module's kind."""

    ConnectionCls = _DeadlineConnection


class HttpsPool(HTTPSConnectionPool):
    """TLS connections of this module's kind."""

    ConnectionCls = _DeadlineTlsConnection
