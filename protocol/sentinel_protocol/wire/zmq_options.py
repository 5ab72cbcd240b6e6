"""What the sockets of both ends have in common, and their options.

Why each option has its value: `docs/design/sockets.md`. Sockets belong to the thread that made them.
"""

from types import TracebackType
from typing import Self

import zmq

from sentinel_protocol.wire.messages import MAX_UPLOADER_FRAME_BYTES

_COMMON: dict[zmq.SocketOption, int] = {
    zmq.HEARTBEAT_IVL: 10_000,
    zmq.HEARTBEAT_TIMEOUT: 30_000,
    zmq.HEARTBEAT_TTL: 60_000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 15,
    zmq.TCP_KEEPALIVE_CNT: 4,
    zmq.TCP_MAXRT: 30_000,
    zmq.IPV6: 1,
    # Undelivered messages are not the socket's business: the backlog and the acks are.
    zmq.LINGER: 0,
    zmq.SNDHWM: 64,
}
DEALER: dict[zmq.SocketOption, int] = _COMMON | {
    zmq.RCVHWM: 64,
    zmq.CONNECT_TIMEOUT: 10_000,
    zmq.HANDSHAKE_IVL: 10_000,
    # No hidden queue towards a peer that is not there: EAGAIN is the back-pressure signal.
    zmq.IMMEDIATE: 1,
    zmq.MAXMSGSIZE: MAX_UPLOADER_FRAME_BYTES,
    # `ZmqClient.poll_handshake_error` tries again: ZeroMQ would do so without growing pauses.
    zmq.RECONNECT_STOP: zmq.RECONNECT_STOP_HANDSHAKE_FAILED,
}
ROUTER: dict[zmq.SocketOption, int] = _COMMON | {
    # Of messages of the largest size, too: 1,000 are 2 GiB for one connection. docs/benchmarks.md has what more gains.
    zmq.RCVHWM: 32,
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.BACKLOG: 1024,
    # A lost ack is harmless, a silently dropped one to a peer that is gone hides that it is gone.
    zmq.ROUTER_MANDATORY: 1,
}


class ZmqContextOwner:
    """A context with its sockets."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)

    def _make(self, kind: zmq.SocketType, options: dict[zmq.SocketOption, int]) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        for option, value in options.items():
            made.setsockopt(option, value)
        return made

    def close(self) -> None:
        """Close at once; what the peer has not got is not sent any more."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
