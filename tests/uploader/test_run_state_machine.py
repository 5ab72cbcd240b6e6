"""Runs from their first sample to their end, in whatever order things happen, the uploader's death included."""

import itertools
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from fakes.scripted_backend import SteppedClock
from fakes.single_threaded_uploader import TurnedUploader
from fakes.strict_backend import Fate, StrictBackend
from fakes.uploader_harness import T0, hello, row_numbers, samples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sentinel_protocol.wire.messages import Ack, Finish, Finished, Reject, RejectCode, UploaderMessage, Welcome, encode
from sentinel_protocol.wire.sample import csv_rows
from sentinel_uploader.admin.requests import discard_run, retry_run
from sentinel_uploader.delivery.csv_batch import decompress_rows
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.spool import ended_runs as spool_ended_runs
from sentinel_uploader.spool.control_channel import DONE
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.tombstones import Tombstone
from sentinel_uploader.spool.types import decode_frames

NAMES = ("a", "b")
CALLS = ("register", "refresh", "put", "finish")
MOMENTS = (
    "BEGIN", "INSERT INTO frames", "DELETE FROM frames", "INSERT INTO batches", "DELETE FROM batches", "UPDATE runs",
    "COMMIT", "answer", *CALLS,
)  # fmt: skip
STALE_AFTER_S = 900.0
CALM_S = 3_600.0
"""Virtual seconds in which everything must be over once nothing is in the way: a few waits of the longest kind."""
names = st.sampled_from(NAMES)


@dataclass
class Collector:
    """One run as its collector sees it: what it has sampled, and what it was promised."""

    key: str
    incarnation: str
    identity: bytes
    rows: int = 0
    """Sampled so far, numbered from 1."""
    acked: int = 0
    """Rows up to here are durable: an uploader has said so."""
    finish: Finish | None = None
    is_welcome: bool = False
    was_welcome: bool = False
    """An uploader knows this incarnation."""
    is_end_durable: bool = False
    finished: Finished | None = None
    closed_at: int | None = None
    """The last row of the run, which was closed without us."""
    is_given_up: bool = False
    """A person may have discarded the run."""
    superseded: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.finished is not None or self.closed_at is not None


class Defects(logging.Handler):
    """Exceptions that a part of the uploader has survived and logged: what no order of things may bring about."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.lines.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class RunMachine(RuleBasedStateMachine):
    """Collectors, one uploader after the other over the same spool, and a backend that notices whatever is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._numbers = itertools.count(1)
        self._moments_left: int | None = None
        self._deadly = ""
        """How the names of the moments begin that are counted."""
        self._copy: Path | None = None
        self._depth = 0
        self._is_sound = False
        self.deaths = 0
        self._defects = Defects()
        self._ended_runs = spool_ended_runs.MAX_ENDED_RUNS
        logging.getLogger("sentinel_uploader").addHandler(self._defects)
        self.clock = SteppedClock()
        self.collectors: dict[str, Collector] = {}
        self.current: dict[str, Collector] = {}
        self._by_identity: dict[bytes, Collector] = {}

    @initialize(
        inline_limit=st.sampled_from([0, 20_000, 5 << 20]),
        lifetime_s=st.sampled_from([90.0, 3600.0]),
        ended_runs=st.sampled_from([1, spool_ended_runs.MAX_ENDED_RUNS]),
    )
    def begin(self, inline_limit: int, lifetime_s: float, ended_runs: int) -> None:
        """Of all but so many of the runs that have ended the details are forgotten."""
        spool_ended_runs.MAX_ENDED_RUNS = ended_runs
        self.backend = StrictBackend(self.clock, moment=self._moment, lifetime_s=lifetime_s)
        self.policy = Policy(stale_after_s=STALE_AFTER_S, max_batch_rows=20, inline_limit_bytes=inline_limit)
        self.up = self._uploader(Path(self._directory.name) / "spool-0")
        for name in NAMES:
            self._next_run(name)

    @rule(name=names, rows=st.integers(1, 50))
    def sample(self, name: str, rows: int) -> None:
        if self.current[name].is_over:
            self._next_run(name)
        self._sample(self.current[name], rows)

    @rule(
        rows=st.integers(1, 50),
        call=st.sampled_from(["put", *CALLS]),
        fate=st.sampled_from([None, *Fate]),
        exit_code=st.sampled_from([None, None, 0, 3]),
    )
    def minute_passes(self, rows: int, call: str, fate: Fate | None, exit_code: int | None) -> None:
        """What life mostly consists of: rows come, and are uploaded or not."""
        if fate is not None:
            self.backend.fates[call].append(fate)
        for name in NAMES:
            self.sample(name, rows)
        if exit_code is not None:
            self._end(self.current[NAMES[0]], exit_code)
        self.time_passes(61.0)

    @rule(name=names, exit_code=st.sampled_from([0, 3]))
    def job_ends(self, name: str, exit_code: int) -> None:
        self._end(self.current[name], exit_code)

    @rule(name=names)
    def collector_is_started_again(self, name: str) -> None:
        one = self.current[name]
        if one.finish is None and not one.is_over:
            if one.was_welcome:
                one.superseded.append(one.incarnation)
            self._connect(one, f"incarnation-{next(self._numbers)}")
            self._talk(one)

    @rule(which=st.integers(0, 30), is_unknown=st.booleans())
    def stranger_has_rows(self, which: int, is_unknown: bool) -> None:
        """Of an earlier collector of an open run, and of a new one of a run that has ended, nothing is taken."""
        one = list(self.collectors.values())[which % len(self.collectors)]
        is_new = is_unknown and (one.is_over or one.is_end_durable)
        incarnation = f"incarnation-{next(self._numbers)}" if is_new else one.superseded[:1]
        if incarnation:
            greeting = hello(one.key, "".join(incarnation))
            first = one.rows + 1
            rest = Finish(first + 4, 0, "finished", T0)
            self._act(lambda: self.up.say(b"stranger", *map(encode, (greeting, samples(first, first + 4), rest))))

    @rule(call=st.sampled_from(CALLS), fate=st.sampled_from(Fate), times=st.integers(1, 3))
    def call_will_meet(self, call: str, fate: Fate, times: int) -> None:
        self.backend.fates[call].extend([fate] * times)

    @rule(call=st.sampled_from(CALLS), name=names, what=st.sampled_from(["sample", "end", "start"]))
    def happens_during(self, call: str, name: str, what: str) -> None:
        def happen() -> None:
            one = self.current[name]
            if what == "start":
                self.collector_is_started_again(name)
            elif what == "end":
                self._end(one, 0)
            else:
                self._sample(one, 5)

        self.backend.meanwhile[call].append(happen)

    @rule()
    def look(self) -> None:
        self._act(self.up.scheduler.run_due)

    @rule(index=st.integers(0, 5))
    def turn(self, index: int) -> None:
        self._act(lambda: self.up.turn(index))

    @rule()
    def settle(self) -> None:
        self._act(self.up.settle)

    @rule(seconds=st.sampled_from([1.0, 20.0, 61.0, 400.0, STALE_AFTER_S + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self._act(lambda: self.up.advance(seconds))

    @rule(name=names)
    def collector_speaks_when_it_counts_as_silent(self, name: str) -> None:
        """The decision to close its run and its last words cross."""
        self._act(lambda: self.up.wait_without_working(STALE_AFTER_S + 1.0))
        self._act(self.up.scheduler.run_due)
        self._end(self.current[name], 0)
        self._act(self.up.turn)

    @rule()
    def flush(self) -> None:
        self._act(self.up.scheduler.flush)
        self._act(self.up.scheduler.reset_backoff)

    @rule(name=names)
    def person_discards(self, name: str) -> None:
        one = self.current[name]
        run = self._open_run(one)
        if run is not None and not self.up.scheduler.is_in_flight(run):
            one.is_given_up = True
            self._act(lambda: self._discard(run))

    @rule(name=names)
    def person_retries(self, name: str) -> None:
        self._act(lambda: self._retry(self.current[name]))

    @rule(moments=st.integers(1, 80))
    def uploader_will_die(self, moments: int) -> None:
        self._moments_left, self._deadly = moments, ""

    @rule(
        moment=st.sampled_from(MOMENTS), passage=st.integers(1, 3), name=names, doing=st.sampled_from(["rows", "end"])
    )
    def uploader_dies_at(self, moment: str, passage: int, name: str, doing: str) -> None:
        """In this minute, or some time later."""
        self._moments_left, self._deadly = passage, moment
        if doing == "rows":
            self.sample(name, 10)
        else:
            self._end(self.current[name], 0)
        self.time_passes(61.0)

    @rule(seconds=st.sampled_from([0.0, 30.0, STALE_AFTER_S * 2]), step_s=st.sampled_from([0.0, -1e5, 1e5]))
    def uploader_dies(self, seconds: float, step_s: float) -> None:
        self._act(self._die)
        self.clock.advance(seconds)
        self.clock.wall += step_s

    @rule()
    def everything_calms_down(self) -> None:
        """With nothing in the way every run ends, and all of its rows are delivered."""
        for one in self.current.values():
            self._end(one, 0)
        self.time_passes(CALM_S)
        self._moments_left = None
        self.backend.fates.clear()
        self.backend.meanwhile.clear()
        for _ in range(3):
            for one in self.collectors.values():
                self._retry(one)
            self.up.advance(CALM_S)
            for one in self.collectors.values():
                self._talk(one)
        for one in self.collectors.values():
            assert one.is_over, f"{one} has not ended"
            known = self._known_end(one)
            assert known is not None
            if one.finished is not None:
                assert self.backend.runs[known.run_id].rows == list(range(1, one.rows + 1))
        self._is_sound = True

    @precondition(lambda self: self.collectors)
    @invariant()
    def every_promise_is_kept(self) -> None:
        self._is_sound = False
        assert (self.backend.problems, self._defects.lines) == ([], [])
        for one in self.collectors.values():
            run = self._open_run(one)
            known = self._known_end(one)
            if run is not None:
                self._check_open(one, run)
            elif isinstance(known, RunRecord):
                self._check_ended(one, known)
            elif known is not None:
                self._check_forgotten(one, known)
            else:
                assert not one.acked
                assert not one.is_over
            if not one.is_given_up:
                servers = self.backend.of_key(one.key)
                assert sum(server.ending is not None for server in servers) <= 1
                # Only an answer that was not written down leads to another registration.
                assert sum(server.run_id not in self.backend.unheard for server in servers) <= 1 + self.deaths
        self._is_sound = True

    def teardown(self) -> None:
        try:
            if self._is_sound:
                self.everything_calms_down()
                self.every_promise_is_kept()
        finally:
            logging.getLogger("sentinel_uploader").removeHandler(self._defects)
            spool_ended_runs.MAX_ENDED_RUNS = self._ended_runs
            if self.collectors:
                self.up.close()
            self._directory.cleanup()

    def _check_open(self, one: Collector, run: OpenRun) -> None:
        """Each row that was promised is in one confirmed object, in one batch that waits, or in one message."""
        record, spool = run.record, self.up.spool
        objects = self.backend.runs[record.run_id].objects if record.run_id else {}
        numbers = range(1, record.delivered_batches + 1)
        delivered = [row_numbers(decompress_rows(objects[number])) for number in numbers]
        waiting = spool.pending_batches(run)
        assert [batch.number for batch in waiting] == list(range(len(delivered) + 1, record.batches + 1))
        frames = spool.read_unbatched(run, max_rows=1 << 60)
        open_rows = [] if frames is None else row_numbers(csv_rows(decode_frames(frames.payloads)))
        frozen = [row_numbers(decompress_rows(batch.body)) for batch in waiting]
        assert [*itertools.chain(*delivered, *frozen), *open_rows] == list(range(1, run.durable_seq + 1))
        assert one.acked <= run.durable_seq <= one.rows
        assert record.has_ended or not one.is_end_durable
        assert one.finished is None

    def _check_ended(self, one: Collector, record: RunRecord) -> None:
        assert self.up.spool._database.query(
            "SELECT count(*) FROM frames WHERE run = (SELECT id FROM runs WHERE key = ?)", (one.key,)
        ) == [(0,)]
        if record.state is RunState.DISCARDED:
            assert one.is_given_up
            return
        server = self.backend.runs[record.run_id]
        assert server.ending is not None
        assert server.rows == list(range(1, record.batched_seq + 1))
        assert one.acked <= record.batched_seq <= one.rows
        expected = (
            (None, "failed")
            if record.closed_as_stale
            else (one.finish.exit_code, one.finish.status)
            if one.finish
            else None
        )
        assert (server.ending.exit_code, server.ending.status) == expected
        assert (record.state is RunState.STALE_CLOSED) == record.closed_as_stale
        assert not (record.closed_as_stale and one.is_end_durable)

    def _check_forgotten(self, one: Collector, tombstone: Tombstone) -> None:
        assert one.acked <= tombstone.batched_seq <= one.rows
        assert tombstone.ended_by is not None or not one.is_end_durable or one.is_given_up
        if not one.is_given_up:
            assert self.backend.runs[tombstone.run_id].rows == list(range(1, tombstone.batched_seq + 1))
            assert tombstone.rows == tombstone.batched_seq

    def _known_end(self, one: Collector) -> RunRecord | Tombstone | None:
        """What the uploader knows of a run that is over."""
        spool = self.up.spool
        return spool._ended.find(one.key)

    def _uploader(self, directory: Path) -> TurnedUploader:
        return TurnedUploader(directory, backend=self.backend, clock=self.clock, policy=self.policy, heard=self._heard)

    def _next_run(self, name: str) -> None:
        key = f"{name}-{next(self._numbers)}"
        self.collectors[key] = self.current[name] = one = Collector(key, "", b"")
        self._connect(one, f"incarnation-{key}")

    def _connect(self, one: Collector, incarnation: str) -> None:
        # Whatever is said to the connection before this one is said to somebody else.
        self._by_identity.pop(one.identity, None)
        one.incarnation, one.identity = incarnation, b"%d" % next(self._numbers)
        one.is_welcome = one.was_welcome = False
        self._by_identity[one.identity] = one

    def _sample(self, one: Collector, rows: int) -> None:
        if one.finish is None and not one.is_over:
            one.rows += rows
        self._talk(one)

    def _end(self, one: Collector, exit_code: int) -> None:
        if one.finish is None:
            one.finish = Finish(0, exit_code, "failed" if exit_code else "finished", T0)
        self._talk(one)

    def _talk(self, one: Collector) -> None:
        """Say what a collector says that has something to say: greeting, rows without an answer, end."""
        if not one.is_welcome and not one.is_over:
            self._act(lambda: self.up.say(one.identity, encode(hello(one.key, one.incarnation))))
        if one.is_welcome and not one.is_over:
            frames = [encode(samples(one.acked + 1, one.rows))] if one.acked < one.rows else []
            if one.finish is not None:
                frames.append(encode(msgspec.structs.replace(one.finish, last_seq=one.rows)))
            self._act(lambda: self.up.say(one.identity, *frames))

    def _heard(self, identity: bytes, message: UploaderMessage) -> None:
        self._moment("answer")
        if self._copy is not None:
            return
        one = self._by_identity.get(identity)
        if one is None:
            return
        note = self.backend.note
        match message:
            case Welcome(next_seq=next_seq):
                note(not one.acked < next_seq <= one.rows + 1, f"{one} is asked for {next_seq}")
                one.acked = next_seq - 1
                one.is_welcome = one.was_welcome = True
            case Ack(seq=seq, finish=is_end_durable):
                note(seq > one.rows, f"{one} is told that {seq} is durable")
                one.acked = max(one.acked, seq)
                one.is_end_durable = one.is_end_durable or is_end_durable
            case Finished() as finished:
                note(finished.rows != one.rows, f"{one} is told that {finished.rows} rows are delivered")
                one.finished = finished
            case Reject(code=RejectCode.CLOSED, seq=seq):
                note(not one.acked <= seq <= one.rows, f"{one} is told that the run is closed at {seq}")
                one.closed_at = seq
            case Reject(code=RejectCode.HELLO_FIRST):
                one.is_welcome = False
            case Reject():
                note(True, f"{one} is told {message}")  # noqa: FBT003 -- whatever it is

    def _open_run(self, one: Collector) -> OpenRun | None:
        return next((run for run in self.up.spool._runs.values() if run.record.key == one.key), None)

    def _discard(self, run: OpenRun) -> None:
        if discard_run(self.up.spool, run) == DONE:
            self.up.scheduler.on_run_closed(run)

    def _retry(self, one: Collector) -> None:
        run = self._open_run(one)
        if run is not None and run.record.state is RunState.QUARANTINED:
            retry_run(self.up.spool, run)
            self.up.scheduler.requeue(run)

    def _moment(self, name: str) -> None:
        """The uploader may die here, if it is the uploader that works."""
        if self._depth and self._moments_left is not None and name.startswith(self._deadly):
            self._moments_left -= 1
            if not self._moments_left:
                self._die()

    def _die(self) -> None:
        """From here on the uploader has no effect on anybody; what comes after it finds the files as they are now."""
        if self._copy is None:
            self._moments_left = None
            self._copy = Path(self._directory.name) / f"spool-{next(self._numbers)}"
            self.up.copy_to(self._copy)
            self.backend.is_dead = True

    def _act(self, action: Callable[[], object]) -> None:
        """Do something with the uploader; when it has died of it, start the next one."""
        self._depth += 1
        try:
            action()
        finally:
            self._depth -= 1
        if self._copy is None or self._depth:
            return
        self.up.close()
        self.deaths += 1
        copy, self._copy = self._copy, None
        self.backend.is_dead = False
        self.backend.meanwhile.clear()
        for one in self.collectors.values():
            one.is_welcome = False
        self.up = self._uploader(copy)


# More of them: make machine EXAMPLES=4000
EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "20"))
RunMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
TestRunsInWhateverOrder = RunMachine.TestCase
