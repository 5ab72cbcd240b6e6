"""Who may come in, and how many: answers ZeroMQ's questions about keys, and counts and cuts connections.

A thread of its own, so that neither depends on how long the spool takes. It is the only way in: an address with keys
lets nobody in while this does not answer (`ZAP_ENFORCE_DOMAIN`). A key that is not admitted any more loses its
connections, whatever they are doing.
"""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import zmq

from protocol.clock import Clock
from protocol.keys import KEY_BYTES, KeyPair
from protocol.monitor import SocketEvent, next_event
from protocol.unread import Unread

ZAP_DOMAIN = b"sentinel-stream"
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
SILENT_S = 90.0
"""A connection that has not said a word for so long is cut; a collector greets at once."""
_IMPATIENT_S = 5.0
"""One that has been silent for so long makes room for a newcomer; a handshake may take as long."""
_LOOP_S = 0.25
_ZAP_PARTS = 6
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPT_FAILED


class Guard(Protocol):
    """Whom the server's key pair talks to; asked from several threads."""

    pair: KeyPair

    def admits(self, key: bytes) -> bool:
        """Whether this public key may come in, and stay."""


class Watcher(Protocol):
    """Hears what happens at the door, in the door's thread."""

    def turned_away(self, reason: str) -> None:
        """Somebody was refused or cut."""

    def is_full(self, connections: int, limit: int) -> None:
        """A connection more than there may be has come."""

    def failed(self, error: Exception) -> None:
        """Something that was not foreseen."""


class Limits(NamedTuple):
    """How many connections there may be at a time, and what costs one of them its place."""

    connections: int
    connections_of_key: int
    unread_bytes: int = 8 << 20
    """So much may come over one without an end of its message: far more than one message has."""
    surplus_frames: int = 20_000
    """So many frames beyond the first of their messages may come over one; a collector sends none."""


class _Known(NamedTuple):
    """A connection that has spoken: its socket's descriptor and other end, and whose it is."""

    descriptor: int
    peer: object
    key: bytes


class Door:
    """Watches over the connections of sockets of one context.

    `monitors` are the sockets' own, made with `EVENTS`.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        monitors: Sequence["zmq.Socket[bytes]"],
        *,
        guard: Guard | None,
        limits: Limits,
        watcher: Watcher,
        clock: Clock,
    ) -> None:
        self._monitors = monitors
        self._guard = guard
        self._limits = limits
        self._watcher = watcher
        self._clock = clock
        self._lock = threading.Lock()
        self._silent: dict[int, float] = {}
        """Descriptors of connections that have not spoken, in the order of their coming, and when that was."""
        self._leaving: set[int] = set()
        """Silent ones that are cut and have not gone yet."""
        self._known: dict[bytes, _Known] = {}
        self._identity_of: dict[int, bytes] = {}
        self._of_key: Counter[bytes] = Counter()
        self._own_names: set[object] = set()
        self._unread = Unread(limits.unread_bytes)
        self._taken: set[bytes] = set()
        self._zap: zmq.Socket[bytes] | None = None
        if guard is not None:
            self._zap = context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(ZAP_ENDPOINT)
        self._wake_fd, self._wake_write_fd = os.pipe()
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)

    def open(self, endpoints: Sequence[str]) -> None:
        """Begin, once the sockets listen at these endpoints."""
        self._own_names = {_local_name(endpoint) for endpoint in endpoints}
        self._thread.start()

    def stop(self) -> None:
        """End: from now on nobody is let in where keys are asked for."""
        if self._thread.is_alive():
            os.write(self._wake_write_fd, b"\0")
            self._thread.join()

    def close(self) -> None:
        """End, and close the monitors; their sockets must not be monitored any more."""
        self.stop()
        os.close(self._wake_write_fd)
        os.close(self._wake_fd)
        for monitor in self._monitors:
            monitor.close(linger=0)
        if self._zap is not None:
            self._zap.close(linger=0)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        with self._lock:
            return self._all()

    def knows(self, identity: bytes) -> bool:
        """Whether this connection was introduced."""
        return identity in self._known

    def took(self, identity: bytes) -> None:
        """A message of this connection was taken."""
        self._taken.add(identity)

    def introduce(self, identity: bytes, descriptor: int, key: bytes) -> bool:
        """A connection has spoken for the first time; False when its key has too many of them (it is cut)."""
        with self._lock:
            if descriptor not in self._silent:
                # Its beginning has not been told yet, or its end has: both come at some time.
                return True
            if key and self._of_key[key] >= self._limits.connections_of_key:
                self._cut_silent(descriptor)
                is_welcome = False
            else:
                del self._silent[descriptor]
                self._known[identity] = _Known(descriptor, _peer(descriptor), key)
                self._identity_of[descriptor] = identity
                self._of_key[key] += 1
                is_welcome = True
        if not is_welcome:
            self._watcher.turned_away("connections-of-client")
        return is_welcome

    def cut(self, identity: bytes, reason: str = "") -> None:
        """Shut a connection down, whatever it is doing; counted where a reason is given."""
        with self._lock:
            known = self._known.get(identity)
            if known is not None:
                self._cut(known.descriptor, known.peer)
        if known is not None and reason:
            self._watcher.turned_away(reason)

    def _run(self) -> None:
        # Signals are for whoever waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poller = zmq.Poller()
        for source in (self._wake_fd, *self._monitors, *filter(None, [self._zap])):
            poller.register(source, zmq.POLLIN)
        swept_at = self._clock.monotonic()
        while self._wake_fd not in dict(poller.poll(round(_LOOP_S * 1000))):
            try:
                for monitor in self._monitors:
                    while (event := next_event(monitor)) is not None:
                        self._take(event)
                self._answer()
                now = self._clock.monotonic()
                if now - swept_at >= _LOOP_S:
                    swept_at = now
                    self._sweep(now)
                    self._cut_endless()
            except Exception as error:  # noqa: BLE001 -- whoever was to be let in by what failed stays outside
                self._watcher.failed(error)

    def _take(self, event: SocketEvent) -> None:
        now = self._clock.monotonic()
        if event.kind == zmq.EVENT_ACCEPT_FAILED:
            if event.value in {errno.EMFILE, errno.ENFILE}:
                self._watcher.turned_away("descriptors")
                self._watcher.is_full(self.connections, self._limits.connections)
                with self._lock:
                    # ZeroMQ tries again without a pause for as long as there is no descriptor.
                    if self._silent:
                        self._cut_silent(next(reversed(self._silent)))
            return
        with self._lock:
            was_silent = event.value in self._silent
            self._forget(event.value)
            is_full = False
            if event.kind == zmq.EVENT_ACCEPTED:
                self._silent[event.value] = now
                is_full = self._all() > self._limits.connections
                if is_full:
                    self._make_room(event.value, now)
        if was_silent and event.kind == zmq.EVENT_DISCONNECTED:
            self._watcher.turned_away("silent")
        if is_full:
            self._watcher.turned_away("connections")
            self._watcher.is_full(self.connections, self._limits.connections)

    def _make_room(self, newest: int, now: float) -> None:
        oldest, since = next(iter(self._silent.items()))
        # Not sooner: in a crowd the oldest are those whose handshake is nearly done, and nobody would ever get in.
        self._cut_silent(oldest if now - since > _IMPATIENT_S else newest)

    def _answer(self) -> None:
        """Answer all questions about keys that wait (ZeroMQ RFC 27)."""
        while self._zap is not None:
            try:
                request = self._zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            status, text, user, reason = b"500", b"cannot tell", b"", "key"
            try:
                if not self._is_admitted(request):
                    status, text = b"400", b"not on the list"
                elif self._of_key[request[_ZAP_PARTS]] >= self._limits.connections_of_key:
                    # Its connection ends without a word, as all do that find no room, and it comes back later.
                    status, text, reason = b"300", b"too many connections", "connections-of-client"
                else:
                    status, text, user = b"200", b"OK", request[_ZAP_PARTS].hex().encode()
            finally:
                # Whatever fails: no answer, or this one, lets nobody in.
                request_id = request[1] if len(request) > 1 else b""
                self._zap.send_multipart((b"1.0", request_id, status, text, user, b""))
            if status != b"200":
                self._watcher.turned_away(reason)

    def _is_admitted(self, request: Sequence[bytes]) -> bool:
        if self._guard is None or len(request) != _ZAP_PARTS + 1:
            return False
        is_ours = (request[0], request[2], request[5]) == (b"1.0", ZAP_DOMAIN, b"CURVE")
        return is_ours and len(request[_ZAP_PARTS]) == KEY_BYTES and self._guard.admits(request[_ZAP_PARTS])

    def _sweep(self, now: float) -> None:
        """Cut those whose key is not admitted any more, and those that never said a word."""
        cut = 0
        with self._lock:
            for known in list(self._known.values()):
                if known.key and (self._guard is None or not self._guard.admits(known.key)):
                    self._cut(known.descriptor, known.peer)
                    cut += 1
            for descriptor, since in list(self._silent.items()):
                if now - since < SILENT_S:
                    break
                self._cut_silent(descriptor)
        for _ in range(cut):
            self._watcher.turned_away("revoked")

    def _cut_endless(self) -> None:
        """Cut those of whose messages no end comes."""
        cut = 0
        with self._lock:
            taken, self._taken = self._taken, set()
            for descriptor in [*self._silent, *self._identity_of]:
                identity = self._identity_of.get(descriptor, b"")
                if self._unread.is_too_much(descriptor, identity, taken):
                    self._unread.forget(descriptor)
                    known = self._known.get(identity)
                    if known is None:
                        self._cut_silent(descriptor)
                    else:
                        self._cut(descriptor, known.peer)
                    cut += 1
        for _ in range(cut):
            self._watcher.turned_away("unread")

    def _all(self) -> int:
        return len(self._silent) + len(self._leaving) + len(self._known)

    def _forget(self, descriptor: int) -> None:
        self._silent.pop(descriptor, None)
        self._leaving.discard(descriptor)
        self._unread.forget(descriptor)
        identity = self._identity_of.pop(descriptor, None)
        if identity is not None:
            known = self._known.pop(identity)
            self._of_key[known.key] -= 1
            if not self._of_key[known.key]:
                del self._of_key[known.key]

    def _cut_silent(self, descriptor: int) -> None:
        del self._silent[descriptor]
        self._leaving.add(descriptor)
        self._cut(descriptor, None)

    def _cut(self, descriptor: int, peer: object) -> None:
        """Shut the connection down; its socket notices, closes it, and tells us.

        The descriptor may be another file's by now: we look at its two ends before anything is done.
        """
        with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
            name = connection.getsockname()
            is_ours = (name[1] if isinstance(name, tuple) else name) in self._own_names
            if is_ours and (peer is None or connection.getpeername() == peer):
                connection.shutdown(socket.SHUT_RDWR)


def _local_name(endpoint: str) -> object:
    """What tells our listening sockets' connections from others: a TCP port, or a path."""
    if endpoint.startswith("ipc://"):
        return endpoint.removeprefix("ipc://")
    return int(endpoint.rpartition(":")[2])


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Look at ZeroMQ's descriptor as a socket; raises `OSError` when it is none (any more).

    Not a copy of it: there may be no descriptor left for one, which is when this is needed most.
    """
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _peer(descriptor: int) -> object:
    with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
        return connection.getpeername()
    # It is gone already: equal to nobody.
    return object()
