"""One bounded HTTP/1.1 exchange with a metadata service, over a non-blocking IPv4 connection (RFC 9112).

No proxy (link-local addresses are never reached through one), no name lookup (it would block), no redirect, no
keep-alive. The caller owns the deadlines: an exchange only moves on when its socket is ready.
"""

import contextlib
import errno
import os
import selectors
import socket
from typing import NamedTuple

from sentinel_protocol.common.errors import SentinelStreamError

MAX_RESPONSE_BYTES = 64 << 10
"""Head and body together; a longer answer is no answer."""
_RECV_BYTES = 16 << 10


class ExchangeError(SentinelStreamError):
    """The other side could not be reached, went away, or did not answer with a plain `200`."""


class Request(NamedTuple):
    """What is asked; `limit_share` is the part of the provider's time that this request may take by itself."""

    path: str
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "GET"
    limit_share: float = 1.0


class HttpResponse(NamedTuple):
    """A complete answer with status 200; header names are in lower case."""

    headers: dict[str, str]
    body: bytes


def parse_base_url(url: str) -> tuple[str, int]:
    """Return (IPv4 address, port) of `http://ADDRESS[:PORT]`; raises `ValueError` for anything else."""
    scheme, _, rest = url.partition("://")
    host, colon, port = rest.rstrip("/").partition(":")
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        scheme = ""
    if scheme != "http" or (colon and not port.isdecimal()):
        raise ValueError(f"metadata service {url!r}: expected http://IPV4-ADDRESS[:PORT]")
    return host, int(port or 80)


class Exchange:
    """A request under way. Register `socket` for `events`, call `advance` when it is ready, `close` at the end."""

    def __init__(self, address: tuple[str, int], request: Request) -> None:
        """Begin to connect; raises `ExchangeError` when there is no route or nobody listens."""
        self._unsent = _encode(address[0], request)
        self._received = bytearray()
        self._head: tuple[dict[str, str], int] | None = None
        self.connected = False
        try:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            raise ExchangeError(f"no socket: {error}") from error
        self.socket.settimeout(0)
        # connect_ex returns most errors but raises some (a forbidding firewall hook, a closed descriptor)
        try:
            code = self.socket.connect_ex(address)
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in {0, errno.EINPROGRESS}:
            self.close()
            raise ExchangeError(f"cannot connect: {os.strerror(code)}")

    @property
    def events(self) -> int:
        """What the selector should wait for."""
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def advance(self) -> HttpResponse | None:
        """Send or receive what is possible now; the answer once it is complete, `None` before.

        Raises `ExchangeError` when there will be no usable answer.
        """
        try:
            if self._unsent:
                self._send()
                return None
            return self._receive()
        except BlockingIOError:
            return None
        except OSError as error:
            raise ExchangeError(f"connection lost: {error}") from error

    def close(self) -> None:
        """Give the connection back, whatever its state; never raises."""
        with contextlib.suppress(OSError):
            self.socket.close()

    def _send(self) -> None:
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise ExchangeError(f"cannot connect: {os.strerror(code)}")
        self.connected = True
        self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def _receive(self) -> HttpResponse | None:
        data = self.socket.recv(_RECV_BYTES)
        self._received += data
        if len(self._received) > MAX_RESPONSE_BYTES:
            raise ExchangeError(f"more than {MAX_RESPONSE_BYTES} bytes")
        if self._head is None:
            self._head = _parse_head(self._received)
        if self._head is not None:
            headers, start = self._head
            body = _complete_body(headers, self._received, start, ended=not data)
            if body is not None:
                return HttpResponse(headers, body)
        if not data:
            raise ExchangeError("the answer ended early")
        return None


def _encode(host: str, request: Request) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {host}", "User-Agent: sentinel-stream"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request.method == "PUT":
        lines.append("Content-Length: 0")
    lines += ["Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii")


def _parse_head(received: bytearray) -> tuple[dict[str, str], int] | None:
    """Return (headers, where the body starts), `None` while the head is incomplete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    status_line, *lines = received[:end].decode("latin-1").split("\r\n")
    version, _, status = status_line.partition(" ")
    if not version.startswith("HTTP/1.") or status[:3] != "200":
        raise ExchangeError(f"answered {status_line[:40]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers, end + 4


def _complete_body(headers: dict[str, str], received: bytearray, start: int, *, ended: bool) -> bytes | None:
    """Return the body once all of it is there: by its length, its last chunk, or the connection's end."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        # the last chunk closes a body without trailers: looking at the end alone keeps a dripping answer cheap
        return _join_chunks(bytes(received[start:])) if ended or received.endswith(b"0\r\n\r\n") else None
    length_text = headers.get("content-length")
    if length_text is None:
        return bytes(received[start:]) if ended else None
    if not (length_text.isascii() and length_text.isdecimal() and len(length_text) < 10):
        raise ExchangeError("unreadable content length")
    length = int(length_text)
    if start + length > MAX_RESPONSE_BYTES:
        raise ExchangeError(f"more than {MAX_RESPONSE_BYTES} bytes")
    return bytes(received[start : start + length]) if len(received) - start >= length else None


def _join_chunks(encoded: bytes) -> bytes | None:
    """Decode a chunked body (RFC 9112, section 7.1); `None` when its last chunk is missing."""
    parts: list[bytes] = []
    position = 0
    while (line_end := encoded.find(b"\r\n", position)) >= 0:
        try:
            size = int(encoded[position:line_end].partition(b";")[0], 16)
        except ValueError as error:
            raise ExchangeError("unreadable chunk size") from error
        if size == 0:
            return b"".join(parts)
        position = line_end + 2 + size + 2
        if size < 0 or position > len(encoded):
            return None
        parts.append(encoded[line_end + 2 : position - 2])
    return None
