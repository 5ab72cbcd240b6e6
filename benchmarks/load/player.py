"""A process that plays some of the collectors: one DEALER socket each, with the product's options."""

import contextlib
import heapq
import random
import select
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

import zmq

from benchmarks.load.conversation import Conversation
from benchmarks.load.latency import Latencies
from benchmarks.load.rows import RowMaker
from sentinel_protocol.wire.zmq_options import DEALER

_POLL_S = 1.0
"""Each conversation is looked at so often besides its messages."""
_EVENTS = 1000
_RECONNECT_MS = (500, 30_000)


class Part(NamedTuple):
    """What one process plays: the collectors `first` to `first + collectors - 1`."""

    url: str
    first: int
    collectors: int
    rows_per_s: float
    """Of one collector; 0: as many as are acknowledged."""
    rows_per_message: int
    ends_at: float
    """Monotonic seconds at which the process ends in any case."""
    server_key: bytes
    client_keys: list[tuple[bytes, bytes]]
    """Public and secret keys. The collectors share them in turn; without any there is no encryption."""


class Report(NamedTuple):
    """What has come of the collectors so far. `latencies` are those since the last report."""

    opened: int
    welcome: int
    made: int
    acked: int
    finish_durable: int
    finished: int
    hellos: int
    rejects: int
    refusals: list[str]
    latencies: Latencies


class _Member:
    """One collector: its conversation and its connection."""

    __slots__ = ("conversation", "socket")

    def __init__(self, number: int, part: Part, maker: RowMaker, latencies: Latencies) -> None:
        self.socket: zmq.Socket[bytes] | None = None
        self.conversation = Conversation(
            number,
            maker=maker,
            send=self.send,
            latencies=latencies,
            began_at=time.time(),
            interval_s=1.0 / part.rows_per_s if part.rows_per_s else 1.0,
            rows_per_message=part.rows_per_message,
            is_saturating=not part.rows_per_s,
        )

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False when there is no connection or no room."""
        if self.socket is None:
            return False
        try:
            self.socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True


class Player:
    """Plays a part until it is told to stop. Commands come through `control`, and so do the answers."""

    def __init__(self, part: Part, control: Connection) -> None:
        self._part = part
        self._control = control
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, part.collectors + 64)
        self._epoll = select.epoll()
        self._latencies = Latencies()
        maker = RowMaker(part.first)
        numbers = range(part.first, part.first + part.collectors)
        self._members = [_Member(number, part, maker, self._latencies) for number in numbers]
        self._by_fd: dict[int, _Member] = {}
        self._due: list[tuple[float, int]] = []
        """When a message of a collector is due, and which one's."""
        self._polls: list[tuple[float, int]] = []
        self._opened = 0
        self._open_at: float | None = None
        self._open_interval_s = 0.0
        self._reconnect_interval_s = 0.0
        self._reconnect_at = 0.0
        self._message_interval_s = part.rows_per_message / part.rows_per_s if part.rows_per_s else 0.0

    def run(self) -> None:
        """Play until `stop`, until the other end of `control` is gone, or until the part's time is over."""
        self._epoll.register(self._control.fileno(), select.EPOLLIN)
        try:
            while time.monotonic() < self._part.ends_at:
                ready = self._epoll.poll(self._next_timeout_s(), _EVENTS)
                for descriptor, _ in ready:
                    if descriptor == self._control.fileno():
                        if not self._obey():
                            return
                    elif (member := self._by_fd.get(descriptor)) is not None:
                        self._take_in(member)
                self._do_due()
        finally:
            self._context.destroy(linger=0)

    def _obey(self) -> bool:
        try:
            command, value = self._control.recv()
        except (EOFError, OSError):
            return False
        now = time.monotonic()
        if command == "open":
            self._open_at, self._open_interval_s = now, 1.0 / value if value else 0.0
        elif command == "reconnects":
            self._reconnect_interval_s, self._reconnect_at = (1.0 / value if value else 0.0), now
        elif command == "finish":
            self._due.clear()
            for member in self._members:
                member.conversation.finish(now)
                self._take_in(member)
        elif command == "report":
            self._control.send(self._report())
        elif command == "last-seqs":
            self._control.send({each.conversation.number: each.conversation.last_seq for each in self._members})
        return bool(command != "stop")

    def _report(self) -> Report:
        told = [member.conversation for member in self._members]
        latencies = Latencies(self._latencies.buckets.copy())
        self._latencies.buckets.clear()
        return Report(
            self._opened,
            sum(each.is_welcome or each.is_finish_durable for each in told),
            sum(each.last_seq for each in told),
            sum(each.acked_seq for each in told),
            sum(each.is_finish_durable for each in told),
            sum(each.is_finished for each in told),
            sum(each.hellos for each in told),
            sum(each.rejects for each in told),
            [each.refusal for each in told if each.refusal][:3],
            latencies,
        )

    def _next_timeout_s(self) -> float:
        times = [queue[0][0] for queue in (self._due, self._polls) if queue]
        if self._open_at is not None:
            times.append(self._open_at)
        if self._reconnect_interval_s:
            times.append(self._reconnect_at)
        return min(_POLL_S, max(0.0, min(times, default=_POLL_S + time.monotonic()) - time.monotonic()))

    def _do_due(self) -> None:
        now = time.monotonic()
        while self._open_at is not None and self._open_at <= now:
            self._open_next(now)
        while self._reconnect_interval_s and self._reconnect_at <= now:
            self._reconnect_at += self._reconnect_interval_s
            self._connect(random.choice(self._members[: self._opened]))
        while self._due and self._due[0][0] <= now:
            due_at, index = self._due[0]
            heapq.heapreplace(self._due, (due_at + self._message_interval_s, index))
            member = self._members[index]
            member.conversation.make_rows(now)
            self._take_in(member)
        while self._polls and self._polls[0][0] <= now:
            _, index = self._polls[0]
            heapq.heapreplace(self._polls, (now + _POLL_S, index))
            member = self._members[index]
            member.conversation.poll(now)
            self._take_in(member)

    def _open_next(self, now: float) -> None:
        assert self._open_at is not None
        index = self._opened
        self._connect(self._members[index])
        self._opened += 1
        if self._message_interval_s:
            heapq.heappush(self._due, (now + random.random() * self._message_interval_s, index))
        heapq.heappush(self._polls, (now + random.random() * _POLL_S, index))
        self._open_at = self._open_at + self._open_interval_s if self._opened < len(self._members) else None

    def _connect(self, member: _Member) -> None:
        """Open a connection in place of the one that is there."""
        if member.socket is not None:
            descriptor = int(member.socket.getsockopt(zmq.FD))
            self._epoll.unregister(descriptor)
            del self._by_fd[descriptor]
            member.socket.close(linger=0)
        made = self._context.socket(zmq.DEALER)
        for option, value in DEALER.items():
            made.setsockopt(option, value)
        made.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        made.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        if self._part.client_keys:
            public, secret = self._part.client_keys[member.conversation.number % len(self._part.client_keys)]
            made.setsockopt(zmq.CURVE_SERVERKEY, self._part.server_key)
            made.setsockopt(zmq.CURVE_PUBLICKEY, public)
            made.setsockopt(zmq.CURVE_SECRETKEY, secret)
        made.connect(self._part.url)
        descriptor = int(made.getsockopt(zmq.FD))
        member.socket = made
        member.conversation.reconnected()
        self._by_fd[descriptor] = member
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)

    def _take_in(self, member: _Member) -> None:
        """Take in what has come. The descriptor tells of it once: looked at after each use of the socket, too."""
        if member.socket is None:
            return
        conversation = member.conversation
        while int(member.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            conversation.hear(member.socket.recv(zmq.DONTWAIT), time.monotonic())
        if not conversation.is_welcome:
            # The event may have been that of the connection.
            conversation.poll(time.monotonic())


def play(part: Part, control: Connection) -> None:
    """Entry point of the process."""
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        Player(part, control).run()
