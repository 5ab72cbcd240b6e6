"""The collector's ZeroMQ socket: a DEALER that reconnects by itself."""

import contextlib
import random
from typing import TYPE_CHECKING

import zmq

from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import AddressError
from sentinel_protocol.common.unix_peer import foreign_peer_uid
from sentinel_protocol.wire.zmq_monitor import FAILED, SocketEvent, next_event, open_monitor
from sentinel_protocol.wire.zmq_options import DEALER, ZmqContextOwner

if TYPE_CHECKING:
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_RECONNECT_MS = (500, 30_000)
# A local uploader restarts quickly, and a Unix socket is cheap to try.
_RECONNECT_LOCAL_MS = (50, 2_000)
_HANDSHAKE_RETRY_S = (0.5, 30.0)
_UNEXPLAINED_LIMIT = 4
"""After so many failed handshakes in a row without a reason, about five seconds, the failure is reported.

An uploader that is ending causes fewer, and one with other keys has usually given the reason by then.
"""


class ZmqClient(ZmqContextOwner):
    """One connection to an uploader. It reconnects by itself.

    After a failed handshake, `poll_handshake_error` reconnects, with growing pauses: ZeroMQ itself would either never
    try again or never lengthen the pause.
    """

    def __init__(self, address: Address, *, keys: "ClientCurveKeys | None" = None) -> None:
        super().__init__()
        self._url = address.url
        self._socket = self._make(zmq.DEALER, DEALER)
        first, most = _RECONNECT_LOCAL_MS if address.is_local else _RECONNECT_MS
        self._socket.setsockopt(zmq.RECONNECT_IVL, first)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, most)
        # A Unix socket is protected by its directory.
        self._has_keys = keys is not None and address.url.startswith("tcp:")
        if keys is not None and self._has_keys:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
        self._monitor = open_monitor(
            self._context,
            self._socket,
            FAILED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_CONNECTED
            | zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_DISCONNECTED,
        )
        self._events: list[SocketEvent] = []
        self._checks_peer = address.url.startswith("ipc:")
        self._is_peer_trusted = not self._checks_peer
        """At a Unix socket: whether the process that listens belongs to this user or to root."""
        self._foreign_uid: int | None = None
        self.is_unreachable = False
        """Whether the last connection attempt failed, as of the last `poll_handshake_error`; False during the first."""
        self._failed_handshakes = 0
        self._unexplained_failures = 0
        """Failed handshakes in a row without a known reason."""
        self._failure_reason: str | None = None
        """The last reason that the other end has given."""
        self._reconnect_at: float | None = None
        try:
            self._socket.connect(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"cannot connect to {address.url!r}: {error.strerror}") from error

    def send(self, frame: bytes) -> bool:
        """Queue the frame in ZeroMQ; False when there is no connection or no room: try again later."""
        if self._checks_peer:
            self._take_events()
            if not self._is_peer_trusted:
                return False
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next message, or `None` when there is none; messages of several frames are skipped."""
        while self._is_peer_trusted:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return None
            if len(frames) == 1:
                return frames[0]
        return None

    def poll_handshake_error(self, now: float) -> str | None:
        """Return why a handshake has failed since the last call, and connect again once the pause after it is over.

        The reason is text that follows the uploader's name. `now` is monotonic seconds. Cheap: call it often.
        """
        found = None
        self._take_events()
        events, self._events = self._events, []
        if self._foreign_uid is not None:
            found = f"runs as another user (uid {self._foreign_uid}), who gets none of this run"
            self._foreign_uid = None
            self._reconnect_later(now)
        for event in events:
            if event.kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._failed_handshakes = self._unexplained_failures = 0
                self._failure_reason = None
            elif event.kind == zmq.EVENT_CONNECTED:
                # Not an answer yet, but one may come.
                self.is_unreachable = False
            elif event.kind == zmq.EVENT_CONNECT_RETRIED:
                self.is_unreachable = True
                # Nothing listens there now: earlier handshakes may have failed because the uploader was ending.
                self._unexplained_failures = 0
            elif event.kind != zmq.EVENT_DISCONNECTED:
                found = self._on_handshake_failed(event.kind, now) or found
        if self._reconnect_at is not None and now >= self._reconnect_at:
            self._reconnect_at = None
            self.reconnect()
        return found

    def reconnect(self) -> None:
        """Replace the connection, or the attempt to make one, by a new attempt now."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disconnect(self._url)
        self._socket.connect(self._url)

    def _on_handshake_failed(self, kind: int, now: float) -> str | None:
        """Schedule the next connection attempt and return the reason, `None` while it is unknown."""
        if kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            reason = self._failure_reason = self._describe(kind)
        else:
            # A known reason still holds for later failures without detail.
            reason = self._failure_reason or self._describe(kind)
        self._reconnect_later(now)
        return reason

    def _take_events(self) -> None:
        """Queue the monitor's events, and check the peer of a new connection before anything is sent to it."""
        while (event := next_event(self._monitor)) is not None:
            self._events.append(event)
            if not self._checks_peer:
                continue
            if event.kind == zmq.EVENT_DISCONNECTED:
                self._is_peer_trusted = False
            elif event.kind == zmq.EVENT_CONNECTED:
                # Closed already where that fails: its end is reported next.
                with contextlib.suppress(OSError):
                    self._foreign_uid = foreign_peer_uid(event.value)
                    self._is_peer_trusted = self._foreign_uid is None
                if self._foreign_uid is not None:
                    with contextlib.suppress(zmq.ZMQError):
                        self._socket.disconnect(self._url)

    def _reconnect_later(self, now: float) -> None:
        least_s, most_s = _HANDSHAKE_RETRY_S
        wait_s = min(most_s, least_s * 2.0**self._failed_handshakes)
        self._failed_handshakes = min(self._failed_handshakes + 1, 10)
        # An uploader rejects many collectors at the same moment: spread their next attempts.
        self._reconnect_at = now + wait_s * random.uniform(0.5, 1.5)  # noqa: S311 -- spreads load, guards nothing

    def _describe(self, kind: int) -> str | None:
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "rejects this collector: its key (--key) is not on the allow list, or was revoked"
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if self._has_keys:
                return "does not use keys, but this collector requires them (--server-key, --key)"
            return "requires keys (--server-key, --key)"
        self._unexplained_failures += 1
        if self._unexplained_failures < _UNEXPLAINED_LIMIT:
            return None
        # This also happens for the reasons above, when the other end closes before its reason is read.
        guess = "it"
        if self._has_keys:
            guess = "--server-key is not its key, it"
        elif self._url.startswith("tcp:"):
            guess = "it requires keys (--server-key, --key),"
        return (
            f"closes the connection during the handshake: {guess} "
            "accepts no connections at the moment, or is not running there"
        )

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message for at most `timeout_s` seconds; True when one is there."""
        return bool(self._socket.poll(max(0, round(timeout_s * 1000)), zmq.POLLIN))

    def close(self) -> None:
        """Close at once; queued messages are dropped."""
        self._socket.disable_monitor()
        super().close()
