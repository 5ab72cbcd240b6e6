"""Every ZeroMQ socket and every option of both ends; nothing else in the packages touches a socket option.

Why each option has its value: `docs/architecture.md`, "Sockets". Sockets belong to the thread that made them;
`Router.wake` alone may be called from another one.
"""

import contextlib
import os
import random
import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import zmq

from protocol.addresses import Address
from protocol.clock import Clock, SystemClock
from protocol.errors import AddressError
from protocol.keys import LinkKeys
from protocol.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_UPLOADER_FRAME_BYTES
from protocol.monitor import FAILED, monitor_of, next_event

if TYPE_CHECKING:
    # The uploader's alone: a collector does without.
    from protocol.door import Guard, Limits, Watcher

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
_DEALER: dict[zmq.SocketOption, int] = _COMMON | {
    zmq.RCVHWM: 64,
    zmq.CONNECT_TIMEOUT: 10_000,
    zmq.HANDSHAKE_IVL: 10_000,
    # No hidden queue towards a peer that is not there: EAGAIN is the back-pressure signal.
    zmq.IMMEDIATE: 1,
    zmq.MAXMSGSIZE: MAX_UPLOADER_FRAME_BYTES,
    # `Dealer.refusal` tries again: ZeroMQ would do so without growing pauses.
    zmq.RECONNECT_STOP: zmq.RECONNECT_STOP_HANDSHAKE_FAILED,
}
_ROUTER: dict[zmq.SocketOption, int] = _COMMON | {
    # Of messages of the largest size, too; a collector has eight under way.
    zmq.RCVHWM: 32,
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.BACKLOG: 1024,
    # A lost ack is harmless, a silently dropped one to a peer that is gone hides that it is gone.
    zmq.ROUTER_MANDATORY: 1,
}
UNREAD_BYTES = 8 * MAX_COLLECTOR_FRAME_BYTES
"""So much may come over a connection without an end of its message: far more than one message has."""
SURPLUS_FRAMES = 20_000
"""So many frames beyond the first of their messages may come over a connection; a collector sends none."""
_MANY_SENDERS = 10_000
_RECONNECT_MS = (500, 30_000)
# A local uploader is back within a moment, and asking a Unix socket costs nothing.
_RECONNECT_LOCAL_MS = (50, 2_000)
_HANDSHAKE_WAIT_S = (0.5, 30.0)


class Arrival(NamedTuple):
    """A message that has come; `key` is the public key that its sender has proved to hold, empty on a link without."""

    identity: bytes
    frame: bytes
    key: bytes


class _Endpoint:
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


class Dealer(_Endpoint):
    """The collector's end: one connection that comes back by itself.

    After a refused handshake it comes back when `refusal` is called, later each time: ZeroMQ itself either never tries
    again or does so without growing pauses.
    """

    def __init__(self, address: Address, *, keys: LinkKeys | None = None) -> None:
        super().__init__()
        self._url = address.url
        self._socket = self._make(zmq.DEALER, _DEALER)
        first, most = _RECONNECT_LOCAL_MS if address.is_local else _RECONNECT_MS
        self._socket.setsockopt(zmq.RECONNECT_IVL, first)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, most)
        # A Unix socket is its owner's alone.
        self._has_keys = keys is not None and address.url.startswith("tcp:")
        if keys is not None and self._has_keys:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
        self._monitor = monitor_of(self._context, self._socket, FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._refusals = 0
        self._reason: str | None = None
        """Why handshakes are refused, as far as the other end has told."""
        self._again_at: float | None = None
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

    def refusal(self, now: float) -> str | None:
        """Return how a handshake was refused since the last call, in words, and try again when it is time.

        `now` is monotonic seconds. Cheap; to be called again and again.
        """
        found = None
        while (event := next_event(self._monitor)) is not None:
            if event.kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._refusals = 0
                self._reason = None
                continue
            if event.kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._reason is None:
                found = self._words(event.kind) or found
            else:
                # The same again, seen from less near.
                found = self._reason
            if event.kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._reason = found
            least_s, most_s = _HANDSHAKE_WAIT_S
            wait_s = min(most_s, least_s * 2.0**self._refusals)
            self._refusals = min(self._refusals + 1, 10)
            # Those that are turned away by one uploader were turned away together.
            self._again_at = now + wait_s * random.uniform(0.5, 1.5)  # noqa: S311 -- spreads load, guards nothing
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(self._url)
            self._socket.connect(self._url)
        return found

    def _words(self, kind: int) -> str | None:
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "does not let this collector in: its key (--key) is not on the allow list, or was revoked"
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if self._has_keys:
                return "has no keys, and this collector insists on them (--server-key, --key)"
            return "wants keys (--server-key, --key)"
        if not self._refusals:
            # Once, that is what an uploader that ends looks like.
            return None
        if self._has_keys:
            return "breaks off the handshake: --server-key is not its key, or it lets nobody in at the moment"
        wants = "wants keys (--server-key, --key), or " if self._url.startswith("tcp:") else ""
        return f"breaks off the handshake: it {wants}lets nobody in at the moment"

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message for at most `timeout_s` seconds; True when one is there."""
        return bool(self._socket.poll(max(0, round(timeout_s * 1000)), zmq.POLLIN))

    def close(self) -> None:
        """Close at once; what the peer has not got is not sent any more."""
        self._socket.disable_monitor()
        super().close()


class Router(_Endpoint):
    """The uploader's end: many peers, told apart by the identity of each connection.

    With a `guard`, TCP addresses have keys and let in only whom it admits; Unix sockets are their owner's alone.
    `watcher` hears who is refused or cut.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        *,
        guard: "Guard | None" = None,
        limits: "Limits | None" = None,
        max_frame_bytes: int = MAX_COLLECTOR_FRAME_BYTES,
        watcher: "Watcher | None" = None,
        clock: Clock | None = None,
    ) -> None:
        from protocol.door import EVENTS, Door, Limits

        super().__init__()
        self.urls: list[str] = []
        self._endpoints: list[tuple[zmq.Socket[bytes], str]] = []
        plain = self._make(zmq.ROUTER, _ROUTER | {zmq.MAXMSGSIZE: max_frame_bytes})
        self._sockets = [plain]
        if guard is not None:
            self._sockets.append(_guarded(self._make(zmq.ROUTER, _ROUTER | {zmq.MAXMSGSIZE: max_frame_bytes}), guard))
        self._poller = zmq.Poller()
        self._wake_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._wake_write_fd, False)
        self._wake_lock = threading.Lock()
        self._closed = False
        self._surplus: Counter[bytes] = Counter()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        for made in self._sockets:
            self._poller.register(made, zmq.POLLIN)
        self._door = Door(
            self._context,
            [monitor_of(self._context, made, EVENTS) for made in self._sockets],
            guard=guard,
            limits=limits or Limits(1 << 20, 1 << 20),
            unread_bytes=UNREAD_BYTES,
            watcher=watcher or _Unwatched(),
            clock=clock or SystemClock(),
        )
        for address in addresses:
            self._bind(address, plain if address.url.startswith("ipc:") else self._sockets[-1])
        self._door.open([endpoint for _, endpoint in self._endpoints])

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._door.connections

    def receive(self, *, most: int, timeout_s: float) -> tuple[list[Arrival], int]:
        """Wait up to `timeout_s`, then return at most `most` messages without waiting further.

        The second value counts messages that were passed over because they had more than one frame.
        """
        received: list[Arrival] = []
        taken = malformed = 0
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)
        waiting = list(enumerate(self._sockets))
        while waiting and taken < most:
            # One of each in turn: whoever floods one socket does not keep the other from being heard.
            for entry in list(waiting):
                try:
                    identity, frame, frames = _whole_message(*entry)
                except zmq.Again:
                    waiting.remove(entry)
                    continue
                # All count against `most`: rubbish must not keep the loop from committing.
                taken += 1
                self._door.took(identity)
                if frames > 1:
                    malformed += 1
                    self._note_surplus(identity, frame, frames - 1)
                elif (key := self._proven_key(identity, frame)) is not None:
                    received.append(Arrival(identity, frame.bytes, key))
        return received, malformed

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send to one peer; False when it is gone or does not read."""
        try:
            self._sockets[identity[0]].send_multipart((identity[1:], frame), zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in {zmq.EAGAIN, zmq.EHOSTUNREACH}:
                return False
            raise
        return True

    def cut(self, identity: bytes) -> None:
        """End a connection; what it has sent already still arrives."""
        self._door.cut(identity)

    def wake(self) -> None:
        """Make a waiting `receive` return; may be called from any thread, also after `close`."""
        with self._wake_lock:
            if not self._closed:
                # A full pipe wakes as well as one more byte in it.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write_fd, b"\0")

    def stop_listening(self) -> None:
        """Take no new connections, end those that are there, and remove Unix sockets."""
        for made, endpoint in self._endpoints:
            # libzmq leaves the file of a Unix socket behind; nobody else has made it anew while we hold the lock.
            if endpoint.startswith("ipc://"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(endpoint.removeprefix("ipc://"))
            made.unbind(endpoint)
        self._endpoints = []

    def close(self) -> None:
        """Close at once and remove Unix sockets; a second call does nothing."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake_fd)
            os.close(self._wake_write_fd)
        self.stop_listening()
        for made in self._sockets:
            made.disable_monitor()
        self._door.close()
        super().close()

    def _note_surplus(self, identity: bytes, frame: zmq.Frame, frames: int) -> None:
        """Cut whoever goes on sending several frames a message: each costs as much as a message."""
        self._surplus[identity] += frames
        if self._surplus[identity] > SURPLUS_FRAMES and self._proven_key(identity, frame) is not None:
            # What it has sent already still comes.
            del self._surplus[identity]
            self._door.cut(identity, "frames")
        if len(self._surplus) > _MANY_SENDERS:
            self._surplus.clear()

    def _proven_key(self, identity: bytes, frame: zmq.Frame) -> bytes | None:
        """Return the key that a message's sender has proved to hold; `None` when the message is not to be taken."""
        key = b""
        if identity[0]:
            try:
                # What the door has answered for this connection.
                key = bytes.fromhex(str(frame.get("User-Id")))
            except (zmq.ZMQError, ValueError):
                return None
        if not self._door.knows(identity):
            is_welcome = self._door.introduce(identity, int(frame.get("__fd")), key)
            return key if is_welcome else None
        return key

    def _bind(self, address: Address, made: "zmq.Socket[bytes]") -> None:
        # A Unix socket gets its mode from the umask at this moment: nobody else may connect, ever.
        mask = os.umask(0o177)
        try:
            made.bind(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"cannot listen at {address.url!r}: {error.strerror}") from error
        finally:
            os.umask(mask)
        endpoint = made.getsockopt_string(zmq.LAST_ENDPOINT)
        self._endpoints.append((made, endpoint))
        # The endpoint names the port that was chosen, the user's address the host as it was written.
        port = endpoint.rpartition(":")[2]
        self.urls.append(f"{address.url.rpartition(':')[0]}:{port}" if endpoint.startswith("tcp:") else address.url)


class _Unwatched:
    def turned_away(self, reason: str) -> None:
        pass

    def is_full(self, connections: int, limit: int) -> None:
        pass

    def failed(self, error: Exception) -> None:
        pass


def _whole_message(index: int, source: "zmq.Socket[bytes]") -> tuple[bytes, zmq.Frame, int]:
    """Return a connection's identity, a message's last frame, and how many frames it had; raises `zmq.Again`."""
    identity = bytes((index,)) + source.recv(zmq.DONTWAIT)
    frame = source.recv(zmq.DONTWAIT, copy=False)
    frames = 1
    while frame.more:
        frame = source.recv(zmq.DONTWAIT, copy=False)
        frames += 1
    return identity, frame, frames


def _guarded(made: "zmq.Socket[bytes]", guard: "Guard") -> "zmq.Socket[bytes]":
    """Give a socket its keys, and let nobody in whom the door has not let in."""
    from protocol.door import ZAP_DOMAIN

    made.setsockopt(zmq.CURVE_SERVER, 1)
    made.setsockopt(zmq.CURVE_SECRETKEY, guard.pair.secret)
    made.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    # Without this a socket whose door does not answer lets everybody in.
    made.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return made
