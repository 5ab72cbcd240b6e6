"""A collector's end of the conversation without a collector: says exactly what a test says, also rubbish."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import zmq
from zmq.utils.monitor import recv_monitor_message

from sentinel_protocol.wire.curve_keys import ClientCurveKeys
from sentinel_protocol.wire.messages import UploaderMessage, decode_from_uploader, encode

PATIENCE_S = 20.0
_M = TypeVar("_M", bound=UploaderMessage)


class RawCollector:
    """A DEALER of its own; nothing is repeated, nothing is checked."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        url: str,
        *,
        receives: int = 1000,
        keys: ClientCurveKeys | None = None,
        name: bytes = b"",
    ) -> None:
        """Connect; `name` is what a ROUTER should call it."""
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if name:
            self._socket.setsockopt(zmq.ROUTING_ID, name)
        self._socket.setsockopt(zmq.RCVHWM, receives)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._socket.connect(url)

    def wait_until_it_is_in(self) -> None:
        """The handshake is done."""
        assert self._monitor.poll(round(PATIENCE_S * 1000)), "was not let in"
        assert recv_monitor_message(self._monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def wait_until_it_is_out(self) -> float:
        """The connection has ended; return when we heard of it, in monotonic seconds."""
        while True:
            assert self._monitor.poll(round(PATIENCE_S * 1000)), "is still in"
            if recv_monitor_message(self._monitor)["event"] == zmq.EVENT_DISCONNECTED:
                return time.monotonic()

    def say(self, *messages: object) -> None:
        """Send messages of the conversation, one frame each."""
        for message in messages:
            self._socket.send(encode(message))

    def send_frames(self, *frames: bytes) -> None:
        """Send one message of these frames."""
        self._socket.send_multipart(frames)

    def hear(self, kind: type[_M]) -> _M:
        """Return the next message, which has to be of this kind."""
        assert self._socket.poll(round(PATIENCE_S * 1000)), f"no {kind.__name__} came"
        message = decode_from_uploader(self._socket.recv())
        assert isinstance(message, kind), message
        return message

    def next(self, wait_s: float) -> UploaderMessage | None:
        """Return the next message of whatever kind, `None` when none comes in time."""
        return decode_from_uploader(self._socket.recv()) if self._socket.poll(round(wait_s * 1000)) else None

    def hear_nothing_more(self, wait_s: float = 0.0) -> None:
        """Nothing else has come."""
        assert not self._socket.poll(round(wait_s * 1000)), decode_from_uploader(self._socket.recv())

    def hear_until(self, kind: type[_M], *, seconds: float = PATIENCE_S) -> _M:
        """Return the next message of this kind, whatever comes before."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind.__name__} came"
            if self._socket.poll(round(left * 1000)):
                message = decode_from_uploader(self._socket.recv())
                if isinstance(message, kind):
                    return message

    def close(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)


class Collectors:
    """Makes raw collectors and closes them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[RawCollector] = []

    def connect(self, *, receives: int = 1000, keys: ClientCurveKeys | None = None, name: bytes = b"") -> RawCollector:
        self._made.append(RawCollector(self._context, self._url, receives=receives, keys=keys, name=name))
        return self._made[-1]

    def close(self) -> None:
        for collector in self._made:
            collector.close()
        self._context.term()


@contextmanager
def collectors_of(url: str) -> Iterator[Collectors]:
    made = Collectors(url)
    try:
        yield made
    finally:
        made.close()
