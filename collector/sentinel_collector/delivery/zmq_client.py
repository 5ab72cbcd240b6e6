"""The collector's end of the conversation: a DEALER that comes back by itself."""

import contextlib
import random
from typing import TYPE_CHECKING

import zmq

from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import AddressError
from sentinel_protocol.wire.zmq_monitor import FAILED, next_event, open_monitor
from sentinel_protocol.wire.zmq_options import DEALER, ZmqContextOwner

if TYPE_CHECKING:
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_RECONNECT_MS = (500, 30_000)
# A local uploader is back within a moment, and asking a Unix socket costs nothing.
_RECONNECT_LOCAL_MS = (50, 2_000)
_HANDSHAKE_RETRY_S = (0.5, 30.0)
_UNEXPLAINED_LIMIT = 4
"""So many handshakes in a row have to be broken off without a reason before that is worth a line: five seconds.

Fewer is what an uploader that ends looks like, and one with other keys has mostly said so by then.
"""


class ZmqClient(ZmqContextOwner):
    """The collector's end: one connection that comes back by itself.

    After a refused handshake it comes back when `refusal` is called, later each time: ZeroMQ itself either never tries
    again or does so without growing pauses.
    """

    def __init__(self, address: Address, *, keys: "ClientCurveKeys | None" = None) -> None:
        super().__init__()
        self._url = address.url
        self._socket = self._make(zmq.DEALER, DEALER)
        first, most = _RECONNECT_LOCAL_MS if address.is_local else _RECONNECT_MS
        self._socket.setsockopt(zmq.RECONNECT_IVL, first)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, most)
        # A Unix socket is its owner's alone.
        self._has_keys = keys is not None and address.url.startswith("tcp:")
        if keys is not None and self._has_keys:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
        self._monitor = open_monitor(
            self._context,
            self._socket,
            FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_RETRIED,
        )
        self.is_unreachable = False
        """Whether the last try to connect came to nothing (as of the last `refusal`); not while the first is made."""
        self._failed_handshakes = 0
        self._unexplained_failures = 0
        """Handshakes in a row that were broken off without a reason."""
        self._failure_reason: str | None = None
        """Why handshakes are refused, as far as the other end has told."""
        self._reconnect_at: float | None = None
        try:
            self._socket.connect(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"cannot connect to {address.url!r}: {error.strerror}") from error

    def send(self, frame: bytes) -> bool:
        """Hand the frame over; False when there is no connection or no room: try again later."""
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next message that has come, or `None`; what is not one single frame is passed over."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return None
            if len(frames) == 1:
                return frames[0]

    def poll_handshake_error(self, now: float) -> str | None:
        """Return how a handshake was refused since the last call, in words, and try again when it is time.

        `now` is monotonic seconds. Cheap; to be called again and again.
        """
        found = None
        while (event := next_event(self._monitor)) is not None:
            if event.kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._failed_handshakes = self._unexplained_failures = 0
                self._failure_reason = None
                continue
            if event.kind == zmq.EVENT_CONNECTED:
                # That is not an answer yet, but one may come.
                self.is_unreachable = False
                continue
            if event.kind == zmq.EVENT_CONNECT_RETRIED:
                self.is_unreachable = True
                # Nobody listens there now: what was broken off before may have been its end.
                self._unexplained_failures = 0
                continue
            if event.kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._failure_reason is None:
                found = self._describe(event.kind) or found
            else:
                # The same again, seen from less near.
                found = self._failure_reason
            if event.kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._failure_reason = found
            least_s, most_s = _HANDSHAKE_RETRY_S
            wait_s = min(most_s, least_s * 2.0**self._failed_handshakes)
            self._failed_handshakes = min(self._failed_handshakes + 1, 10)
            # Those that are turned away by one uploader were turned away together.
            self._reconnect_at = now + wait_s * random.uniform(0.5, 1.5)  # noqa: S311 -- spreads load, guards nothing
        if self._reconnect_at is not None and now >= self._reconnect_at:
            self._reconnect_at = None
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(self._url)
            self._socket.connect(self._url)
        return found

    def _describe(self, kind: int) -> str | None:
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "does not let this collector in: its key (--key) is not on the allow list, or was revoked"
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if self._has_keys:
                return "has no keys, and this collector insists on them (--server-key, --key)"
            return "wants keys (--server-key, --key)"
        self._unexplained_failures += 1
        if self._unexplained_failures < _UNEXPLAINED_LIMIT:
            return None
        # Also what is left of the reasons above when the other end is gone before we have read its first words.
        guess = "it"
        if self._has_keys:
            guess = "--server-key is not its key, it"
        elif self._url.startswith("tcp:"):
            guess = "it wants keys (--server-key, --key),"
        return f"breaks off each handshake: {guess} lets nobody in at the moment, or does not run there"

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message for at most `timeout_s` seconds; True when one is there."""
        return bool(self._socket.poll(max(0, round(timeout_s * 1000)), zmq.POLLIN))

    def close(self) -> None:
        """Close at once; what the peer has not got is not sent any more."""
        self._socket.disable_monitor()
        super().close()
