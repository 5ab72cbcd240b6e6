"""How many messages wait in ZeroMQ's receive queues: the fewer of each connection, the more connections there are."""

from collections.abc import Sequence

import zmq

MAX_WAITING = 32_768
"""Messages of all connections together. Each keeps a receive buffer of libzmq's alive, 8 KiB: 256 MiB."""
MAX_OF_ONE = 32
_MIN_OF_ONE = 2
_NEW_SHARE = 0.03
"""The mark is set again for so many new connections, as a part of all."""


class ReceiveQueues:
    """Lowers the high-water mark of sockets; belongs to the thread that owns them.

    libzmq applies the option to the connections that are there. A new one has the value with which its socket was
    bound, until the option is set again. The mark is never raised: libzmq does not wake a sender that waits at the old
    mark, because the reader reports what it has read at multiples of half the new one.
    """

    def __init__(self, sockets: Sequence["zmq.Socket[bytes]"]) -> None:
        self._sockets = sockets
        self._mark = MAX_OF_ONE
        self._accepted_before = 0

    def adapt(self, connections: int, accepted: int) -> None:
        """Follow the number of connections; `accepted` is how many there were since the start."""
        mark = min(self._mark, messages_of_one(connections))
        if mark == MAX_OF_ONE or accepted - self._accepted_before < _NEW_SHARE * connections:
            return
        self._mark, self._accepted_before = mark, accepted
        for each in self._sockets:
            each.setsockopt(zmq.RCVHWM, mark)


def messages_of_one(connections: int) -> int:
    """Return how many messages of each connection may wait."""
    return max(_MIN_OF_ONE, min(MAX_OF_ONE, MAX_WAITING // max(1, connections)))
