"""Asks the kernel about ZeroMQ's connections, through ZeroMQ's own descriptors."""

import contextlib
import socket
import struct
from collections.abc import Iterator

_BYTES_RECEIVED = struct.Struct("=128xQ")
"""`tcpi_bytes_received` of `struct tcp_info` (linux/tcp.h), Linux 4.1 and newer."""


@contextlib.contextmanager
def socket_from_fd(descriptor: int, family: int = -1, kind: int = -1, protocol: int = -1) -> Iterator[socket.socket]:
    """Use ZeroMQ's descriptor as a socket without owning it; raises `OSError` when it is not a socket (any more).

    It is not duplicated: when descriptors have run out, connections must still be closed. The kernel is asked for the
    type of the socket unless all three parts are given.
    """
    connection = socket.socket(family, kind, protocol, fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def tcp_bytes_received(descriptor: int) -> int | None:
    """Return the bytes that a TCP connection has received in all; `None` when it is closed or the kernel is too old."""
    try:
        # The socket's type is given, not asked for: one system call for each of thousands of connections.
        with socket_from_fd(descriptor, socket.AF_INET, socket.SOCK_STREAM, 0) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    except OSError:
        return None
    count: int
    (count,) = _BYTES_RECEIVED.unpack(info) if len(info) == _BYTES_RECEIVED.size else (0,)
    return count
