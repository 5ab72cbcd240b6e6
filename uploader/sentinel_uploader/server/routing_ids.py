"""What ZeroMQ calls the connections of a socket with keys: its keeper says so, not the peer.

A peer may choose the name that a ROUTER knows it by, and one that has a number which ZeroMQ is about to give itself
makes it abort our process: with a seed nobody guesses that number, but whoever holds many of them and comes again and
again gets there. The keeper's answer may name the connection as well, and what is read last counts. ZeroMQ's thread
puts the question, looks once whether the answer is there already, and only then reads the peer's word. So the answer
has to wait until that is done, which ZeroMQ does not tell. But one thread serves all connections: when it brings us
what we have sent over one of our own after the question had come, it is done.
"""

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
"""ZeroMQ's own names have five."""


class RoutingIdError(SentinelStreamError):
    """ZeroMQ's thread does not answer."""


class RoutingIdAllocator:
    """Names that nobody else has; for the one thread that answers ZeroMQ's questions. `context` has one I/O thread."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._allocated = 0
        self._barrier_in = context.socket(zmq.STREAM)
        self._barrier_in.setsockopt(zmq.LINGER, 0)
        self._barrier_in.setsockopt(zmq.STREAM_NOTIFY, 0)
        with socket.socket(socket.AF_UNIX) as listener:
            # An abstract name of the kernel's choice (unix(7)): there is no file to make, to protect or to remove.
            listener.bind("")
            listener.listen()
            listener.settimeout(_TIMEOUT_MS / 1000)
            self._barrier_in.connect(f"ipc://@{listener.getsockname()[1:].decode('ascii')}")
            self._barrier_out = _accept_from_self(listener)

    def allocate(self) -> bytes:
        """Return a new name as metadata of an answer (ZeroMQ RFC 27), once the answer is the last word.

        To be called after the question has come; raises `RoutingIdError` or `OSError`.
        """
        self._allocated += 1
        name = self._allocated.to_bytes(_ID_BYTES)
        self._barrier_out.sendall(name)
        arrived = b""
        while not arrived.endswith(name):
            # One that comes late, because our process was stopped, is not taken for the next one.
            if not self._barrier_in.poll(_TIMEOUT_MS):
                raise RoutingIdError("ZeroMQ's thread does not answer")
            _, arrived = self._barrier_in.recv_multipart()
        return struct.pack(f">B{len(_PROPERTY)}sI", len(_PROPERTY), _PROPERTY, len(name)) + name

    def close(self) -> None:
        """Close both ends."""
        self._barrier_in.close(linger=0)
        self._barrier_out.close()


def _accept_from_self(listener: socket.socket) -> socket.socket:
    """Return the connection that this process has made: an abstract name is everybody's who lives here."""
    while True:
        accepted, _ = listener.accept()
        process, _, _ = _CREDENTIALS.unpack(
            accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if process == os.getpid():
            return accepted
        accepted.close()
