"""Bytes as a play: who says what, when time passes, when the uploader is killed; and what holds whatever comes."""

import struct
from typing import TYPE_CHECKING

from fakes.uploader_harness import T0, row_numbers, samples

from fuzz.site import Site
from sentinel_protocol.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Finish,
    Hello,
    Ping,
    Reject,
    RejectCode,
    Samples,
    Welcome,
    encode,
)
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.runs.lifecycle import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS = {b"k-honest": "honest", b"k-eve": "eve", b"k-mallory": "mallory"}
"""Keys, and whom they belong to."""
_STRANGERS = ((b"eve-1", b"k-eve"), (b"eve-2", b"k-eve"), (b"mallory", b"k-mallory"), (b"revoked", b"k-nobody"))
_RUN_KEYS = ("honest-{}", "eve's {}", "shared {}", "")
_INCARNATIONS = ("first", "second", "third", "")
_STATUSES = ("finished", "failed", "done", "")
_OTHER_VERSION = 7
_OTHER_VERSION_CHOICE = 255
_MOST_STEPS = 256
_HONEST_EVERY = 16
_MOST_FRAME_BYTES = 4096
_MOST_ROWS = 16
_COLUMNS = len(Sample.__struct_fields__)


class Script:
    """The bytes, read from the front; what is not there any more is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, count: int = 1, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(count).ljust(count, b"\0"), "big", signed=signed)

    def real(self) -> float:
        (value,) = struct.unpack(">d", self.take(8).ljust(8, b"\0"))
        return float(value)


class _Honest:
    """The client that does everything right: whatever the others do, each of its rows is acknowledged at once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.key = f"honest-{site.plays}"
        self.rows = 0
        self._greet()

    def _greet(self) -> None:
        self._say(Hello(PROTOCOL_VERSION, self.key, "first", 1.0))
        assert self._heard() == [Welcome(self.rows + 1, self._run_id(), T0 + self.rows if self.rows else 0.0)]

    def go_on(self) -> None:
        """Send a row and hear that it is durable."""
        self.rows += 1
        self._say(samples(self.rows, self.rows))
        assert self._heard() == [Ack(self.rows)], "the honest client is disturbed"

    def come_back(self) -> None:
        """Say hello again, after the uploader was killed."""
        self._greet()

    def finish(self) -> None:
        self._say(Finish(self.rows, 0, "finished", T0 + self.rows))
        assert self._heard() == [Ack(self.rows, finish=True)]

    def _run_id(self) -> str:
        runs = [run for run in self._site.spool._runs.values() if run.record.owner == "honest"]
        return runs[0].record.run_id if runs else ""

    def _say(self, message: object) -> None:
        self._site.wire.lay_down(b"honest", b"k-honest", encode(message))
        self._site.serve()

    def _heard(self) -> list[object]:
        return list(self._site.wire.pick_up(b"honest"))


class _Play:
    """One play on a site that has seen others."""

    def __init__(self, site: Site, script: Script) -> None:
        self._site = site
        self._script = script
        self._last_frame = b""
        self._wanted: dict[bytes, int] = {}
        self._acked: dict[str, int] = {}
        self._killed = False
        self.frames = 0
        self.outcomes: set[str] = set()
        self._honest = _Honest(site)

    def run(self) -> None:
        acts: tuple[Callable[[], None], ...] = (
            self._anything,
            self._hello,
            self._hello,
            self._samples,
            self._samples,
            self._samples,
            self._finish,
            self._ping,
            self._damaged,
            self._time,
            self._kill,
            self._work,
            self._discard,
        )
        for step in range(_MOST_STEPS):
            if not self._script:
                break
            acts[self._script.number() % len(acts)]()
            if step % _HONEST_EVERY == _HONEST_EVERY - 1:
                self._honest.go_on()
                self._listen()
        self._honest.go_on()
        self._listen()
        self._honest.finish()
        self._check_ends()

    def _say(self, frame: bytes) -> None:
        identity, key = _STRANGERS[self._script.number() % len(_STRANGERS)]
        self._site.wire.lay_down(identity, key, frame)
        self._last_frame = frame
        self.frames += 1

    def _anything(self) -> None:
        self._say(self._script.take(self._script.number(2) % _MOST_FRAME_BYTES))

    def _hello(self) -> None:
        choice = self._script.number()
        key, incarnation = _RUN_KEYS[choice % 4].format(self._site.plays), _INCARNATIONS[choice // 4 % 4]
        oldest = self._script.number(8) if choice & 16 else self._script.number()
        interval_s = self._script.real() if choice & 32 else 1.0
        text = self._script.take(8).decode("utf-8", "replace") if choice & 64 else "x"
        metadata: dict[str, str | int | float | bool | list[str] | dict[str, str] | None] = {
            "job_name": text,
            "tags": {text: text},
            "command": [text, ""],
            "number": self._script.real() if choice & 128 else 1,
        }
        version = _OTHER_VERSION if choice == _OTHER_VERSION_CHOICE else PROTOCOL_VERSION
        host: dict[str, str | int | float] = {"host_memory_mib": self._script.real() if choice & 128 else 1.5}
        self._say(
            encode(
                Hello(
                    version,
                    key,
                    incarnation,
                    interval_s,
                    metadata,
                    host,
                    {"cloud_vendor_id": text},
                    first_available_seq=oldest,
                )
            )
        )

    def _samples(self) -> None:
        choice, count = self._script.number(), 1 + self._script.number() % _MOST_ROWS
        identity = _STRANGERS[choice % len(_STRANGERS)][0]
        first = self._wanted.get(identity, 1) + (self._script.number(signed=True) if choice & 16 else 0)
        if choice & 32:
            first = self._script.number(8)
        rows = [Sample(timestamp=T0 + max(-1e6, min(first + n, 1e6))) for n in range(count)]
        if choice & 64:
            rows[0] = _odd_row(self._script)
        if identity in self._wanted and first == self._wanted[identity]:
            self._wanted[identity] += count
        frame = encode(Samples(first, rows))
        self._site.wire.lay_down(*_STRANGERS[choice % len(_STRANGERS)], frame)
        self._last_frame = frame
        self.frames += 1

    def _finish(self) -> None:
        choice = self._script.number()
        identity = _STRANGERS[choice % len(_STRANGERS)][0]
        last = self._wanted.get(identity, 1) - 1 + (self._script.number(signed=True) if choice & 16 else 0)
        code = self._script.number(2, signed=True) if choice & 32 else choice >> 7
        time = self._script.real() if choice & 64 else T0
        status = _STATUSES[self._script.number() % len(_STATUSES)]
        frame = encode(Finish(last, code or None, status, time, self._script.real()))
        self._site.wire.lay_down(*_STRANGERS[choice % len(_STRANGERS)], frame)
        self.frames += 1

    def _ping(self) -> None:
        self._say(encode(Ping()))

    def _damaged(self) -> None:
        """What somebody said last, with bytes overwritten or cut off."""
        frame = bytearray(self._last_frame)
        at = self._script.number(2) % (len(frame) + 1)
        some = self._script.take(self._script.number() % 8)
        frame[at : at + len(some)] = some
        self._say(bytes(frame[: len(frame) - self._script.number() % 4]))

    def _time(self) -> None:
        self._listen()
        self._site.clock.advance(self._script.number() / 8)

    def _kill(self) -> None:
        """Kill the uploader with messages under way, once; everybody has to say hello again."""
        if self._killed:
            return
        self._killed = True
        self._site.restart()
        self._wanted.clear()
        self._honest.come_back()

    def _work(self) -> None:
        self._listen()
        for run in list(self._site.spool._runs.values()):
            self._site.work(run)
        self._listen()

    def _discard(self) -> None:
        self._listen()
        strangers = [run for run in self._site.spool._runs.values() if run.record.owner != "honest"]
        if strangers:
            run = strangers[self._script.number() % len(strangers)]
            self._site.discard(run)
            self.outcomes.add(str(run.record.state))
        self._listen()

    def _listen(self) -> None:
        """Serve, and look at what the strangers are told."""
        self._site.serve()
        for identity, key in _STRANGERS:
            for message in self._site.wire.pick_up(identity):
                assert key in CLIENTS, "somebody without a key is answered"
                self.outcomes.add(str(message.code) if isinstance(message, Reject) else type(message).__name__)
                if isinstance(message, Welcome):
                    self._wanted[identity] = message.next_seq
                elif isinstance(message, Ack):
                    self._wanted[identity] = message.seq + 1
                elif isinstance(message, Reject) and message.code is RejectCode.HELLO_FIRST:
                    self._wanted.pop(identity, None)
        for run in self._site.spool._runs.values():
            assert run.durable_seq >= self._acked.get(run.record.uid, 0), "what was acknowledged is gone"
            self._acked[run.record.uid] = run.durable_seq

    def _check_ends(self) -> None:
        runs = self._site.end_all()
        (honest,) = [run for run in runs if run.record.owner == "honest"]
        assert row_numbers(self._site.delivered(honest)) == list(range(1, self._honest.rows + 1))
        assert (honest.record.state, honest.record.missing_rows) == (RunState.FINISHED, 0)
        for run in runs:
            record = run.record
            assert record.owner in CLIENTS.values()
            self.outcomes.add(str(record.state))
            rows = self._site.delivered(run)
            assert rows.count(b"\n") == record.rows == run.durable_seq - record.missing_rows


def _odd_row(script: Script) -> Sample:
    """A row with any numbers in it."""
    columns: dict[str, float] = {"timestamp": script.real()}
    for _ in range(script.number() % 4):
        name = Sample.__struct_fields__[script.number() % _COLUMNS]
        columns[name] = script.number(8, signed=True) if script.number() & 1 else script.real()
    return Sample(**columns)  # type: ignore[arg-type] # that is the point


def play(site: Site, data: bytes) -> tuple[int, set[str]]:
    """Play the bytes; return how many frames of strangers came, and what became of them. Raises what was found."""
    site.plays += 1
    try:
        made = _Play(site, Script(data))
        made.run()
    except BaseException:
        # The next play, perhaps a shorter one of the same kind, must not suffer from this one.
        site.begin_anew()
        raise
    site.far_end.forget()
    site.wire.lose_everything()
    return made.frames, made.outcomes
