"""The connections of some sockets: which of them have spoken, whose they are, and how one of them is ended."""

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sentinel_uploader.server.fd_socket import borrowed
from sentinel_uploader.server.unread import Unread

SILENT_S = 90.0
"""A connection that has not said a word for so long is cut; a collector greets at once."""
_IMPATIENT_S = 5.0
"""One that has been silent for so long makes room for a newcomer; a handshake may take as long."""


class Place(NamedTuple):
    """A connection as ZeroMQ's monitors name it.

    Both parts are needed: each socket's events come in order, but of two sockets that use a descriptor one after the
    other the later may be heard of first.
    """

    socket: int
    """Index of the listening socket."""
    descriptor: int


class _Connection(NamedTuple):
    """Where a connection comes from, and since when (monotonic seconds)."""

    since: float
    inode: int
    """Tells the connection from a later file with the same descriptor; 0 when it was gone before we could look."""
    host: str


class _Known(NamedTuple):
    """One that has spoken."""

    connection: _Connection
    identity: bytes
    key: bytes


class Connections:
    """Safe for several threads."""

    def __init__(self, *, most_of_key: int, unread_bytes: int) -> None:
        self._most_of_key = most_of_key
        self._lock = threading.Lock()
        self._own_names: list[set[object]] = []
        self._silent: dict[Place, _Connection] = {}
        """Those that have not spoken, in the order of their coming."""
        self._leaving: set[Place] = set()
        """Silent ones that are cut and have not gone yet."""
        self._known: dict[Place, _Known] = {}
        self._place_of: dict[bytes, Place] = {}
        self._of_key: Counter[bytes] = Counter()
        self._let_in: dict[tuple[bytes, str], float] = {}
        """Which keys were let in from where, and when last: a connection that is silent may be theirs."""
        self._unread = Unread(unread_bytes)
        self._taken: set[bytes] = set()

    def listen(self, endpoints: Sequence[Sequence[str]]) -> None:
        """Say at which endpoints each socket listens: what has another name is none of their connections."""
        self._own_names = [{_local_name(endpoint) for endpoint in of_socket} for of_socket in endpoints]

    def __len__(self) -> int:
        """How many there are."""
        with self._lock:
            return self._all()

    def knows(self, identity: bytes) -> bool:
        """Whether this one was introduced."""
        return identity in self._place_of

    def took(self, identity: bytes) -> None:
        """A message of this one was taken."""
        self._taken.add(identity)

    def is_at_limit(self, key: bytes) -> bool:
        """Whether this key has as many as it may."""
        return self._of_key[key] >= self._most_of_key

    def came(self, place: Place, now: float, *, limit: int) -> bool:
        """One has been accepted; False when that is more than `limit`: it, or one that is silent, is cut."""
        with self._lock:
            self._forget(place)
            self._silent[place] = _look_at(place.descriptor, now)
            has_room = self._all() <= limit
            if not has_room:
                oldest, connection = next(iter(self._silent.items()))
                # Not sooner: in a crowd the oldest are those whose handshake is nearly done, and nobody would ever
                # get in.
                self._cut_silent(oldest if now - connection.since > _IMPATIENT_S else place)
            return has_room

    def went(self, place: Place) -> bool:
        """One has ended; True when it had never said a word, and not because we had cut it."""
        with self._lock:
            was_silent = place in self._silent
            self._forget(place)
            return was_silent

    def let_in(self, key: bytes, host: str, now: float) -> None:
        """A connection from this host has proved that it holds this key."""
        with self._lock:
            self._let_in[key, host] = now

    def introduce(self, identity: bytes, place: Place, key: bytes) -> bool:
        """One has spoken for the first time; False when its key has too many of them (it is cut)."""
        with self._lock:
            if place not in self._silent:
                # Its beginning has not been told yet, or its end has: both come at some time.
                return True
            if key and self.is_at_limit(key):
                self._cut_silent(place)
                return False
            self._known[place] = _Known(self._silent.pop(place), identity, key)
            self._place_of[identity] = place
            self._of_key[key] += 1
            return True

    def cut(self, identity: bytes) -> bool:
        """End one, whatever it is doing; False when it is not known."""
        with self._lock:
            place = self._place_of.get(identity)
            if place is None:
                return False
            self._cut(place, self._known[place].connection)
            return True

    def cut_newest(self) -> None:
        """Give a descriptor back."""
        with self._lock:
            if self._silent:
                self._cut_silent(next(reversed(self._silent)))

    def cut_unwelcome(self, admits: Callable[[bytes], bool]) -> int:
        """Cut those whose key is not admitted any more, and return how many that are.

        Of a connection that has not spoken nobody can tell which key it has proved: all are cut that come from where
        a key was let in that is not admitted any more. A collector greets at once, and comes back.
        """
        cut = 0
        with self._lock:
            for place, known in self._known.items():
                if known.key and not admits(known.key):
                    self._cut(place, known.connection)
                    cut += 1
            hosts = set()
            for key, host in list(self._let_in):
                if not admits(key):
                    hosts.add(host)
                    del self._let_in[key, host]
            for place, connection in list(self._silent.items()):
                if connection.host in hosts:
                    self._cut_silent(place)
                    cut += 1
        return cut

    def cut_silent(self, now: float) -> None:
        """Cut those that never said a word."""
        with self._lock:
            for place, connection in list(self._silent.items()):
                if now - connection.since < SILENT_S:
                    break
                self._cut_silent(place)
            for entry, at in list(self._let_in.items()):
                # Longer than any silent connection lasts.
                if now - at > 2 * SILENT_S:
                    del self._let_in[entry]

    def cut_endless(self) -> int:
        """Cut those of whose messages no end comes, and return how many that are."""
        cut = 0
        with self._lock:
            taken, self._taken = self._taken, set()
            for place in [*self._silent, *self._known]:
                known = self._known.get(place)
                if not self._unread.is_too_much(place, known is not None and known.identity in taken):
                    continue
                self._unread.forget(place)
                if known is None:
                    self._cut_silent(place)
                else:
                    self._cut(place, known.connection)
                cut += 1
        return cut

    def _all(self) -> int:
        return len(self._silent) + len(self._leaving) + len(self._known)

    def _forget(self, place: Place) -> None:
        self._silent.pop(place, None)
        self._leaving.discard(place)
        self._unread.forget(place)
        known = self._known.pop(place, None)
        if known is not None:
            self._place_of.pop(known.identity, None)
            self._of_key[known.key] -= 1
            if not self._of_key[known.key]:
                del self._of_key[known.key]

    def _cut_silent(self, place: Place) -> None:
        connection = self._silent.pop(place)
        self._leaving.add(place)
        self._cut(place, connection)

    def _cut(self, place: Place, connection: _Connection) -> None:
        """Shut the connection down; its socket notices, closes it, and tells us.

        The descriptor may be another file's by now: we make sure before anything is done.
        """
        with contextlib.suppress(OSError), borrowed(place.descriptor) as open_socket:
            is_same = os.fstat(place.descriptor).st_ino == connection.inode
            if is_same and _name_of(open_socket) in self._own_names[place.socket]:
                open_socket.shutdown(socket.SHUT_RDWR)


def _local_name(endpoint: str) -> object:
    """What tells a listening socket's connections from others: a TCP port, or a path."""
    if endpoint.startswith("ipc://"):
        return endpoint.removeprefix("ipc://")
    return int(endpoint.rpartition(":")[2])


def _name_of(connection: socket.socket) -> object:
    name = connection.getsockname()
    return name[1] if isinstance(name, tuple) else name


def _look_at(descriptor: int, now: float) -> _Connection:
    with contextlib.suppress(OSError), borrowed(descriptor) as connection:
        peer = connection.getpeername()
        host = plain_host(peer[0]) if isinstance(peer, tuple) else ""
        return _Connection(now, os.fstat(descriptor).st_ino, host)
    # It is gone already: its end will be told.
    return _Connection(now, 0, "")


def plain_host(host: str) -> str:
    """Return an address without what only one of those who name it adds: the family of an IPv4 one, an interface."""
    return host.removeprefix("::ffff:").partition("%")[0]
