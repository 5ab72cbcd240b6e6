"""Records the traffic: the rows that an uploader has acknowledged, even when either process dies."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from sentinel_protocol.wire.messages import (
    Ack,
    Finish,
    Hello,
    Ping,
    Reject,
    Samples,
    Welcome,
    decode_from_collector,
    decode_from_uploader,
)
from sentinel_protocol.wire.sample import csv_rows

_GREETING_BYTES = 64
_LONG, _COMMAND = 2, 4


class Frames:
    """Takes one direction of a connection apart into messages (ZMTP 3.1, rfc.zeromq.org/spec/37)."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._greeting_left = _GREETING_BYTES

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the bodies of the messages that are complete with this piece."""
        self._pending += piece
        if self._greeting_left:
            taken = min(self._greeting_left, len(self._pending))
            del self._pending[:taken]
            self._greeting_left -= taken
        while (body := self._next()) is not None:
            flags, content = body
            if not flags & _COMMAND:
                yield content

    def _next(self) -> tuple[int, bytes] | None:
        if len(self._pending) < 2:
            return None
        flags = self._pending[0]
        start = 9 if flags & _LONG else 2
        if len(self._pending) < start:
            return None
        end = start + int.from_bytes(self._pending[1:start], "big")
        if len(self._pending) < end:
            return None
        content = bytes(self._pending[start:end])
        del self._pending[:end]
        return flags, content


class Place(NamedTuple):
    """A run as one uploader knows it."""

    port: int
    run_key: str


class TrafficRecorder:
    """The sum of all conversations.

    `acknowledged` holds CSV lines by run key, `hello_times` the monotonic seconds of each collector's `Hello`, by run
    key and incarnation, `rejects` how often an uploader refused, by code. `promised` holds the highest number that each
    uploader (by its port) has acknowledged, by run key and incarnation: a key may be another run's later. `homes` holds
    by name of the job where its collectors have said `Hello` under which key, and when they did so last.
    """

    def __init__(self) -> None:
        self.hello_times: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.rejects: Counter[str] = Counter()
        self.promised: dict[int, dict[tuple[str, str], int]] = defaultdict(dict)
        self.acknowledged: dict[str, set[str]] = defaultdict(set)
        self.homes: dict[str, dict[Place, float]] = defaultdict(dict)
        self._sent: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)

    def greeted(self, port: int, hello: Hello) -> None:
        """A collector has said `Hello`."""
        now = time.monotonic()
        self.hello_times[hello.run_key, hello.epoch].append(now)
        self.homes[str(hello.metadata.get("job_name"))][Place(port, hello.run_key)] = now

    def sent(self, hello: Hello, samples: Samples) -> None:
        """A collector has sent rows; within one incarnation no number is ever another row's."""
        lines = csv_rows(samples.samples).decode().splitlines()
        self._sent[hello.run_key, hello.epoch].update(enumerate(lines, samples.first_seq))

    def durable(self, port: int, hello: Hello, last_seq: int) -> None:
        """The uploader at a port has said that all rows up to this number are on disk."""
        promised = self.promised[port]
        whose = (hello.run_key, hello.epoch)
        promised[whose] = max(last_seq, promised.get(whose, 0))
        sent = self._sent[hello.run_key, hello.epoch]
        for seq in [seq for seq in sent if seq <= last_seq]:
            self.acknowledged[hello.run_key].add(sent.pop(seq))


class Conversation:
    """One connection as it passes by."""

    def __init__(self, recorder: TrafficRecorder, port: int) -> None:
        self._recorder = recorder
        self._port = port
        self._from_collector = Frames()
        self._from_uploader = Frames()
        self._hello: Hello | None = None
        self._is_new_run = False

    def said(self, piece: bytes) -> None:
        """Take in what the collector sent."""
        for frame in self._from_collector.feed(piece):
            match decode_from_collector(frame):
                case Hello() as hello:
                    # Answers to what was sent for another run may still be under way.
                    self._is_new_run = self._hello is not None and self._hello.run_key != hello.run_key
                    self._hello = hello
                    self._recorder.greeted(self._port, hello)
                case Samples() as samples if self._hello is not None:
                    self._recorder.sent(self._hello, samples)
                case Samples() | Finish() | Ping():
                    pass

    def answered(self, piece: bytes) -> None:
        """Take in what the uploader sent."""
        for frame in self._from_uploader.feed(piece):
            message = decode_from_uploader(frame)
            if isinstance(message, Reject):
                self._recorder.rejects[message.code] += 1
            if self._hello is None:
                continue
            if isinstance(message, Welcome):
                self._is_new_run = False
                self._recorder.durable(self._port, self._hello, message.next_seq - 1)
            elif isinstance(message, Ack | Reject) and not self._is_new_run:
                self._recorder.durable(self._port, self._hello, message.seq)
