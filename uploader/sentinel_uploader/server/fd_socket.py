"""Looking at a descriptor that is somebody else's, ZeroMQ's above all."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def socket_from_fd(descriptor: int, family: int = -1, kind: int = -1, protocol: int = -1) -> Iterator[socket.socket]:
    """Use a descriptor as a socket and leave it open; raises `OSError` when it is none (any more).

    Not a copy of it: there may be no descriptor left for one, which is when this is needed most. What it is is asked of
    the kernel, unless all three are said.
    """
    connection = socket.socket(family, kind, protocol, fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()
