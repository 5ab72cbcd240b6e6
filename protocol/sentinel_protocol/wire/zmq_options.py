"""Options of the sockets of both ends.

`docs/design/sockets.md` gives the reason for each value. A socket is used only by the thread that made it.
"""

from typing import Self

import zmq

from sentinel_protocol.wire.messages import MAX_UPLOADER_FRAME_BYTES

_COMMON: dict[zmq.SocketOption, int] = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 15,
    zmq.TCP_KEEPALIVE_CNT: 4,
    zmq.TCP_MAXRT: 30_000,
    zmq.IPV6: 1,
    # The send queue and the acks keep track of undelivered messages, not the socket.
    zmq.LINGER: 0,
    zmq.SNDHWM: 64,
}
DEALER: dict[zmq.SocketOption, int] = _COMMON | {
    zmq.RCVHWM: 64,
    zmq.CONNECT_TIMEOUT: 10_000,
    zmq.HANDSHAKE_IVL: 10_000,
    # Do not queue messages without a connection: EAGAIN is the back-pressure signal.
    zmq.IMMEDIATE: 1,
    zmq.MAXMSGSIZE: MAX_UPLOADER_FRAME_BYTES,
    # `ZmqClient` reconnects itself, with growing pauses; ZeroMQ's pauses would not grow here.
    zmq.RECONNECT_STOP: zmq.RECONNECT_STOP_HANDSHAKE_FAILED,
}
ROUTER: dict[zmq.SocketOption, int] = _COMMON | {
    # Counts messages of any size: 1,000 of the largest are 2 GiB for one connection (compared in docs/benchmarks.md).
    # The uploader's `ReceiveQueues` lowers it when there are many connections.
    zmq.RCVHWM: 32,
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.BACKLOG: 1024,
    # Sending to a peer that is gone is an error. Otherwise its messages would be dropped silently.
    zmq.ROUTER_MANDATORY: 1,
}


class ZmqContextOwner:
    """Owns a ZeroMQ context and its sockets; a context manager."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)

    def _make(self, kind: zmq.SocketType, options: dict[zmq.SocketOption, int]) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        for option, value in options.items():
            made.setsockopt(option, value)
        return made

    def close(self) -> None:
        """Close all sockets at once; messages that are not sent yet are discarded."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
