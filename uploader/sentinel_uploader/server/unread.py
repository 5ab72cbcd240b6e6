"""Who sends more than can be taken: ZeroMQ keeps a message of many frames in memory until its last one has come.

No limit of a socket's concerns that, and nobody hears of such a message before its end. The kernel counts what a
connection has sent: when that grows and nothing of it can be taken, it is for memory's sake alone.
"""

import socket
import struct
from typing import TYPE_CHECKING

from sentinel_uploader.server.fd_socket import socket_from_fd

if TYPE_CHECKING:
    from sentinel_uploader.server.connections import ConnectionId

_BYTES_RECEIVED = struct.Struct("=128xQ")
"""`tcpi_bytes_received` of `struct tcp_info` (linux/tcp.h), Linux 4.1 and newer."""


class StalledReadTracker:
    """What each connection has sent since something of it was taken last; a Unix socket's bytes are not counted."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes_at_last_read: dict[ConnectionId, int] = {}
        """Missing where something was taken since the last look."""

    def exceeds_limit(self, connection_id: "ConnectionId", was_read: bool) -> bool:
        """Look at one connection; `was_taken` says whether something of it was taken since the last look."""
        if was_read:
            # Messages end: where the next one begins is seen soon enough.
            self.forget(connection_id)
            return False
        received = _tcp_bytes_received(connection_id.descriptor)
        if received is None:
            return False
        return received - self._bytes_at_last_read.setdefault(connection_id, received) > self._limit_bytes

    def forget(self, connection_id: "ConnectionId") -> None:
        """The connection has ended, or begins anew."""
        self._bytes_at_last_read.pop(connection_id, None)


def _tcp_bytes_received(descriptor: int) -> int | None:
    """Return what a TCP connection has received since its beginning, `None` where the kernel does not tell.

    Nor does it when the connection has been closed, of which we hear only afterwards.
    """
    try:
        # Nothing is asked of the kernel but this: there may be thousands to look at.
        with socket_from_fd(descriptor, socket.AF_INET, socket.SOCK_STREAM, 0) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    except OSError:
        return None
    count: int
    (count,) = _BYTES_RECEIVED.unpack(info) if len(info) == _BYTES_RECEIVED.size else (0,)
    return count
