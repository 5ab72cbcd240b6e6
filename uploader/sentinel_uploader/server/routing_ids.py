"""Routing ids: no peer can choose that of a connection with keys, or guess the next one of a connection without.

A peer may choose the routing id that a ROUTER knows it by. If it chooses the one that ZeroMQ gives next, ZeroMQ aborts
our process. A seed makes the numbers hard to guess, but a peer that holds many of them and tries again and again
succeeds. So with keys, our ZAP answer sets the routing id, and ZeroMQ uses the one that it reads last.

The order is the problem. ZeroMQ's I/O thread sends the ZAP request, checks once whether the answer is there already,
and only then reads the peer's choice. Our answer must be sent after that, and no event tells us when. But one I/O
thread serves all connections: after the request has arrived, we send a token through a connection of our own. When the
token comes back, the I/O thread has read the peer's choice.
"""

import ctypes
import os
import socket
import struct

import zmq

from sentinel_protocol.common.errors import SentinelStreamError

_TIMEOUT_MS = 5_000
_CREDENTIALS = struct.Struct("=iii")
"""`struct ucred` (linux/socket.h): process, user, group."""
_PROPERTY = b"Identity"
_ID_BYTES = 8
"""ZeroMQ's own ids have five."""


class RoutingIdError(SentinelStreamError):
    """ZeroMQ's I/O thread does not answer."""


class RoutingIdAllocator:
    """Allocates unique ids, for the thread that answers ZAP requests. `context` must have one I/O thread."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._allocated = 0
        self._barrier_in = context.socket(zmq.STREAM)
        self._barrier_in.setsockopt(zmq.LINGER, 0)
        self._barrier_in.setsockopt(zmq.STREAM_NOTIFY, 0)
        with socket.socket(socket.AF_UNIX) as listener:
            # An abstract name that the kernel chooses (unix(7)): no file to create, protect or remove.
            listener.bind("")
            listener.listen()
            listener.settimeout(_TIMEOUT_MS / 1000)
            self._barrier_in.connect(f"ipc://@{listener.getsockname()[1:].decode('ascii')}")
            self._barrier_out = _accept_from_self(listener)

    def allocate(self) -> bytes:
        """Return a new id as the metadata of a ZAP answer (RFC 27), when ZeroMQ has read the peer's choice.

        Call it after the ZAP request has arrived. Raises `RoutingIdError` or `OSError`.
        """
        self._allocated += 1
        routing_id = self._allocated.to_bytes(_ID_BYTES)
        self._barrier_out.sendall(routing_id)
        received = b""
        # Tokens of calls that timed out, because our process was stopped, are skipped.
        while not received.endswith(routing_id):
            if not self._barrier_in.poll(_TIMEOUT_MS):
                raise RoutingIdError("ZeroMQ's thread does not answer")
            _, received = self._barrier_in.recv_multipart()
        return struct.pack(f">B{len(_PROPERTY)}sI", len(_PROPERTY), _PROPERTY, len(routing_id)) + routing_id

    def close(self) -> None:
        """Close both ends."""
        self._barrier_in.close(linger=0)
        self._barrier_out.close()


def _accept_from_self(listener: socket.socket) -> socket.socket:
    """Return the connection that this process has made. Any local process can connect to an abstract name."""
    while True:
        accepted, _ = listener.accept()
        process, _, _ = _CREDENTIALS.unpack(
            accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if process == os.getpid():
            return accepted
        accepted.close()


def seed_routing_ids() -> None:
    """Make the routing ids unpredictable that ZeroMQ gives to connections without keys.

    ZeroMQ numbers them from `rand()` on, which starts with the same value in every process without a seed. A peer may
    choose its own routing id. If it chooses the one that ZeroMQ gives next, ZeroMQ aborts our process.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4)))
