"""The uploader's end of the conversation: a ROUTER for many peers. A collector does without all of it.

Sockets belong to the thread that made them; `ZmqServer.wake` alone may be called from another one.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import zmq

from sentinel_protocol.common.clock import Clock, SystemClock
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import AddressError
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES
from sentinel_protocol.wire.zmq_monitor import open_monitor
from sentinel_protocol.wire.zmq_options import ROUTER, ZmqContextOwner
from sentinel_uploader.server.connection_guard import (
    MONITOR_EVENTS,
    ZAP_DOMAIN,
    ConnectionEvents,
    ConnectionGuard,
    ConnectionLimits,
    CurveAllowList,
    seed_routing_ids,
)

_MAX_TRACKED_SENDERS = 10_000


class ReceivedMessage(NamedTuple):
    """A message that has come; `key` is the public key that its sender has proved to hold, empty on a link without."""

    identity: bytes
    frame: bytes
    key: bytes


class ZmqServer(ZmqContextOwner):
    """The uploader's end: many peers, told apart by the identity of each connection.

    With a `guard`, TCP addresses have keys and let in only whom it admits; Unix sockets are their owner's alone.
    `watcher` hears who is refused or cut.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        *,
        allow_list: CurveAllowList | None = None,
        limits: ConnectionLimits | None = None,
        max_frame_bytes: int = MAX_COLLECTOR_FRAME_BYTES,
        events: ConnectionEvents | None = None,
        clock: Clock | None = None,
    ) -> None:
        seed_routing_ids()
        super().__init__()
        limits = limits or ConnectionLimits(1 << 20, 1 << 20)
        self._max_extra_frames = limits.max_extra_frames
        self.urls: list[str] = []
        self._endpoints: list[tuple[zmq.Socket[bytes], str]] = []
        plain_socket = self._make(zmq.ROUTER, ROUTER | {zmq.MAXMSGSIZE: max_frame_bytes})
        self._sockets = [plain_socket]
        if allow_list is not None:
            self._sockets.append(
                _enable_curve(self._make(zmq.ROUTER, ROUTER | {zmq.MAXMSGSIZE: max_frame_bytes}), allow_list)
            )
        self._poller = zmq.Poller()
        self._wake_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._wake_write_fd, False)
        self._wake_lock = threading.Lock()
        self._closed = False
        self._extra_frames: Counter[bytes] = Counter()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        for made in self._sockets:
            self._poller.register(made, zmq.POLLIN)
        self._guard = ConnectionGuard(
            self._context,
            [open_monitor(self._context, made, MONITOR_EVENTS) for made in self._sockets],
            allow_list=allow_list,
            limits=limits,
            events=events or _NullEvents(),
            clock=clock or SystemClock(),
        )
        for address in addresses:
            self._bind(address, plain_socket if address.url.startswith("ipc:") else self._sockets[-1])
        self._guard.start([[url for its, url in self._endpoints if its is made] for made in self._sockets])

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._guard.connections

    def receive(self, *, limit: int, timeout_s: float) -> tuple[list[ReceivedMessage], int]:
        """Wait up to `timeout_s`, then return at most `most` messages without waiting further.

        The second value counts messages that were passed over because they had more than one frame.
        """
        received: list[ReceivedMessage] = []
        taken = malformed = 0
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)
        waiting = list(enumerate(self._sockets))
        while waiting and taken < limit:
            # One of each in turn: whoever floods one socket does not keep the other from being heard.
            for entry in list(waiting):
                try:
                    identity, frame, frames = _recv_message(*entry)
                except zmq.Again:
                    waiting.remove(entry)
                    continue
                # All count against `most`: rubbish must not keep the loop from committing.
                taken += 1
                self._guard.note_message(identity)
                if frames > 1:
                    malformed += 1
                    self._count_extra_frames(identity, frame, frames - 1)
                elif (key := self._authenticated_key(identity, frame)) is not None:
                    received.append(ReceivedMessage(identity, frame.bytes, key))
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

    def disconnect(self, identity: bytes) -> None:
        """End a connection; what it has sent already still arrives."""
        self._guard.disconnect(identity)

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
        self._guard.close()
        super().close()

    def _count_extra_frames(self, identity: bytes, frame: zmq.Frame, frames: int) -> None:
        """Cut whoever goes on sending several frames a message: each costs as much as a message."""
        self._extra_frames[identity] += frames
        if (
            self._extra_frames[identity] > self._max_extra_frames
            and self._authenticated_key(identity, frame) is not None
        ):
            # What it has sent already still comes.
            del self._extra_frames[identity]
            self._guard.disconnect(identity, "frames")
        if len(self._extra_frames) > _MAX_TRACKED_SENDERS:
            self._extra_frames.clear()

    def _authenticated_key(self, identity: bytes, frame: zmq.Frame) -> bytes | None:
        """Return the key that a message's sender has proved to hold; `None` when the message is not to be taken."""
        key = b""
        if identity[0]:
            try:
                # What the door has answered for this connection.
                key = bytes.fromhex(str(frame.get("User-Id")))
            except (zmq.ZMQError, ValueError):
                return None
        if not self._guard.is_registered(identity):
            is_welcome = self._guard.register(identity, int(frame.get("__fd")), key)
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


class _NullEvents:
    def on_rejected(self, reason: str) -> None:
        pass

    def on_limit_reached(self, connections: int, limit: int) -> None:
        pass

    def on_error(self, error: Exception) -> None:
        pass


def _recv_message(index: int, source: "zmq.Socket[bytes]") -> tuple[bytes, zmq.Frame, int]:
    """Return a connection's identity, a message's last frame, and how many frames it had; raises `zmq.Again`."""
    identity = bytes((index,)) + source.recv(zmq.DONTWAIT)
    frame = source.recv(zmq.DONTWAIT, copy=False)
    frames = 1
    while frame.more:
        frame = source.recv(zmq.DONTWAIT, copy=False)
        frames += 1
    return identity, frame, frames


def _enable_curve(made: "zmq.Socket[bytes]", allow_list: CurveAllowList) -> "zmq.Socket[bytes]":
    """Give a socket its keys, and let nobody in whom the door has not let in."""
    made.setsockopt(zmq.CURVE_SERVER, 1)
    made.setsockopt(zmq.CURVE_SECRETKEY, allow_list.pair.secret)
    made.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    # Without this a socket whose door does not answer lets everybody in.
    made.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return made
