"""One bounded HTTP/1.1 exchange with a metadata service over a non-blocking IPv4 connection (RFC 9112).

There is no proxy (a link-local address is never reached through one), no name lookup (it would block), no redirect and
no keep-alive. `http.client` is not used: it brings `ssl` and `email`, which cost 17 ms and 5.7 MiB in this process
of 20 MiB.
"""

import contextlib
import os
import select
import socket
from collections.abc import Generator
from typing import NamedTuple

MAX_RESPONSE_BYTES = 64 << 10
"""Head and body together. A longer response is dropped."""
_RECV_BYTES = 16 << 10

Address = tuple[str, int]
"""IPv4 address and port."""


class Request(NamedTuple):
    """`limit_share` is the part of the provider's time that this request may take."""

    path: str
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "GET"
    limit_share: float = 1.0


class MetadataResponse(NamedTuple):
    """A complete response with status 200. Header names are in lower case."""

    headers: dict[str, str]
    body: bytes


class SocketWait(NamedTuple):
    """The poll events that an exchange waits for, and its deadline in monotonic seconds."""

    fd: int
    events: int
    deadline: float


def exchange(
    address: Address, request: Request, deadline: float
) -> Generator[SocketWait, None, MetadataResponse | None]:
    """Send one request and return its response; `None` when no complete response with status 200 came.

    Yields what to wait for. The caller resumes the generator when the socket is ready, and throws `TimeoutError` into
    it at the deadline. Raises `OSError` when no connection is made.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            connection.connect(address)
        yield SocketWait(connection.fileno(), select.POLLOUT, deadline)
        if code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        received = bytearray()
        with contextlib.suppress(OSError, ValueError):
            # The buffer of a new connection takes any request of ours at once.
            connection.sendall(_encode(address[0], request))
            while True:
                yield SocketWait(connection.fileno(), select.POLLIN, deadline)
                data = connection.recv(_RECV_BYTES)
                received += data
                response = _parse(received, is_complete=not data)
                if response is not None or not data:
                    return response
    return None


def _encode(host: str, request: Request) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {host}", "User-Agent: sentinel-stream"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request.method == "PUT":
        lines.append("Content-Length: 0")
    lines += ["Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii")


def _parse(received: bytearray, *, is_complete: bool) -> MetadataResponse | None:
    """Return the response, `None` while a part is missing. Raises `ValueError` for what cannot become one."""
    end = received.find(b"\r\n\r\n")
    if len(received) > MAX_RESPONSE_BYTES:
        raise ValueError(f"more than {MAX_RESPONSE_BYTES} bytes")
    if end < 0:
        return None
    status_line, *lines = received[:end].decode("latin-1").split("\r\n")
    version, _, status = status_line.partition(" ")
    if not version.startswith("HTTP/1.") or status[:3] != "200":
        raise ValueError(f"status line {status_line[:40]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = _complete_body(headers, bytes(received[end + 4 :]), is_complete=is_complete)
    return None if body is None else MetadataResponse(headers, body)


def _complete_body(headers: dict[str, str], body: bytes, *, is_complete: bool) -> bytes | None:
    """Return the body once all of it is there: by its last chunk, its length, or the connection's end."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        # The last chunk ends a body without trailers. Decode only then: a response may arrive byte by byte.
        return _join_chunks(body) if is_complete or body.endswith(b"0\r\n\r\n") else None
    if "content-length" not in headers:
        return body if is_complete else None
    length = int(headers["content-length"])
    if not 0 <= length <= MAX_RESPONSE_BYTES:
        raise ValueError(f"content length {length}")
    return body[:length] if len(body) >= length else None


def _join_chunks(encoded: bytes) -> bytes | None:
    """Decode a chunked body (RFC 9112, section 7.1); `None` when its last chunk is missing."""
    parts: list[bytes] = []
    position = 0
    while (line_end := encoded.find(b"\r\n", position)) >= 0:
        size = int(encoded[position:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        position = line_end + 2 + size + 2
        if size < 0 or position > len(encoded):
            return None
        parts.append(encoded[line_end + 2 : position - 2])
    return None
