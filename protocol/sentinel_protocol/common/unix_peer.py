"""Who is at the other end of a Unix socket (`SO_PEERCRED` of `unix(7)`).

`_socket` is what `socket` is made of. The whole of `socket` would cost each collector a millisecond and half a MiB.
"""

import os
import struct
from _socket import AF_UNIX, SO_PEERCRED, SOL_SOCKET, socket

_CREDENTIALS = struct.Struct("=iII")
ROOT = 0


def peer_uid(connection: socket) -> int | None:
    """Return the user id of a Unix socket's peer, `None` for another kind of socket; raises `OSError`.

    For a client it is the user that listens, since `listen(2)`.
    """
    if connection.family != AF_UNIX:
        return None
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def foreign_peer_uid(descriptor: int) -> int | None:
    """Return the peer's user id when it is neither this user nor root, else `None`; raises `OSError`.

    The descriptor stays open, it belongs to another owner.
    """
    connection = socket(fileno=descriptor)
    try:
        uid = peer_uid(connection)
    finally:
        connection.detach()
    return None if uid is None or uid in (os.getuid(), ROOT) else uid
