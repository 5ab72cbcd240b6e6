"""The durable truth and its mirror: nothing lost, nothing twice, whatever happens in whatever order."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import ended_record, finish, frame, hello, open_spool_at, row_numbers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from locations import TESTS
from msgspec.structs import replace

from sentinel_protocol.wire.messages import Finish
from sentinel_uploader.delivery.csv_batch import decompress_rows, gzip_csv, to_csv
from sentinel_uploader.runs.lifecycle import Event, RunState, TransitionError
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES
from sentinel_uploader.spool.errors import SpoolFullError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import decode_record
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import Batch, RunClosedError, SupersededError, UnbatchedFrames, decode_frames


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def spool(tmp_path: Path, clock: SteppedClock) -> Iterator[Spool]:
    made = open_spool_at(tmp_path / "spool", clock)
    yield made
    made.close()


def cut(spool: Spool, run: OpenRun, max_rows: int = 3600) -> UnbatchedFrames | None:
    """Freeze the oldest rows, as the step does."""
    frames = spool.read_unbatched(run, max_rows=max_rows)
    if frames is not None:
        rows = decode_frames(frames.payloads)
        body = gzip_csv(to_csv(rows))
        number = run.record.batches + 1
        batch = Batch(number, frames.first_seq, frames.last_seq, len(rows), body, hashlib.sha256(body).digest())
        spool.seal_batch(run, frames, batch, batches=number, rows=run.record.rows + len(rows))
    return frames


def register(spool: Spool, run: OpenRun) -> None:
    events = [Event.REGISTERED, *([Event.ENDED] if run.record.has_ended else [])]
    spool.update(run, *events, run_id="id", uri_prefix="s3://b/id")


def test_time_of_the_newest_row_is_known_after_a_restart(tmp_path: Path, clock: SteppedClock) -> None:
    first = open_spool_at(tmp_path / "spool", clock)
    run = first.open_run(hello(), owner="")
    first.append([frame(run, 1, 3)], [])
    cut(first, run)
    first.append([frame(run, 4, 5)], [])
    newest = run.last_timestamp
    first.close()

    again = open_spool_at(tmp_path / "spool", clock)
    try:
        assert [one.last_timestamp for one in again._runs.values()] == [newest]
    finally:
        again.close()


def test_same_collector_continues_and_a_newer_one_takes_over(spool: Spool) -> None:
    run = spool.open_run(hello(), owner="")
    assert spool.open_run(hello(), owner="") is run
    assert spool.open_run(hello(epoch="second", interval_s=5.0), owner="") is run
    assert (run.record.epoch, run.record.interval_s, run.record.fenced_epochs) == ("second", 5.0, ["first"])
    with pytest.raises(SupersededError):
        spool.open_run(hello(), owner="")
    for number in range(100):
        spool.open_run(hello(epoch=f"later-{number}"), owner="")
    assert len(run.record.fenced_epochs) == len(run.record.fenced_seq) == 32


def test_superseded_collector_is_told_up_to_where_its_rows_were_taken(spool: Spool) -> None:
    run = spool.open_run(hello(), owner="")
    spool.append([frame(run, 1, 5)], [])
    # The newer one says at once that it cannot send 6 to 8, which the older one may still have.
    spool.open_run(hello(epoch="second", first_available_seq=9), owner="")
    spool.append([frame(run, 9, 12)], [])
    spool.open_run(hello(epoch="third"), owner="")
    for incarnation, seq in (("first", 5), ("second", 12)):
        with pytest.raises(SupersededError) as superseded:
            spool.open_run(hello(epoch=incarnation), owner="")
        assert superseded.value.seq == seq


def test_each_client_has_run_keys_of_its_own(spool: Spool) -> None:
    of = {owner: spool.open_run(hello(epoch=f"of {owner}"), owner=owner) for owner in ("alice", "bob", "")}
    assert len({run.id for run in of.values()}) == 3
    spool.append([frame(of["alice"], 1, 3)], [])
    assert [run.durable_seq for run in of.values()] == [3, 0, 0]
    spool.update(of["alice"], Event.PERMANENT_FAILURE)
    spool.close_run(of["alice"], Event.DISCARDED)
    with pytest.raises(RunClosedError):
        spool.open_run(hello(), owner="alice")
    assert spool.open_run(hello(epoch="of bob"), owner="bob") is of["bob"]
    assert ended_record(spool, "run", owner="bob") is None
    assert ended_record(spool, "run", owner="alice") is not None


def test_run_that_has_ended_is_never_continued(spool: Spool) -> None:
    run = spool.open_run(hello(), owner="")
    spool.append([frame(run, 1, 5)], [])
    spool.append([], [(run, finish(5))])
    with pytest.raises(RunClosedError) as closed:
        spool.open_run(hello(epoch="second"), owner="")
    assert closed.value.seq == 5
    assert spool.open_run(hello(), owner="") is run
    register(spool, run)
    spool.close_run(run, Event.ACCEPTED)
    for incarnation in ("first", "second"):
        with pytest.raises(RunClosedError) as closed:
            spool.open_run(hello(epoch=incarnation), owner="")
        assert closed.value.seq == 5


def test_discarded_run_tells_up_to_where_rows_were_taken(spool: Spool) -> None:
    run = spool.open_run(hello(), owner="")
    spool.append([frame(run, 1, 5)], [])
    spool.close_run(run, Event.DISCARDED)
    with pytest.raises(RunClosedError) as closed:
        spool.open_run(hello(), owner="")
    assert closed.value.seq == 5


def test_rows_that_a_collector_no_longer_has_are_counted_as_missing_once(spool: Spool, tmp_path: Path) -> None:
    run = spool.open_run(hello(first_available_seq=11), owner="")
    assert (run.durable_seq, run.record.missing_rows) == (10, 10)
    spool.append([frame(run, 11, 12)], [])
    spool.open_run(hello(first_available_seq=16), owner="")
    spool.open_run(hello(first_available_seq=16), owner="")
    assert (run.durable_seq, run.record.missing_rows) == (15, 13)
    cut(spool, run)
    assert run.record.batched_seq == 15
    spool.close()
    again = open_spool_at(tmp_path / "spool", SteppedClock())
    (loaded,) = again._runs.values()
    assert (loaded.durable_seq, loaded.record.missing_rows) == (15, 13)
    again.close()


def test_what_was_settled_while_rows_were_encoded_is_not_forgotten(spool: Spool) -> None:
    run = spool.open_run(hello(), owner="")
    spool.append([frame(run, 1, 5)], [])
    frames = spool.read_unbatched(run, max_rows=10)
    assert frames is not None
    spool.open_run(hello(epoch="second", first_available_seq=9), owner="")
    spool.seal_batch(run, frames, Batch(1, 1, 5, 5, b"x", b"y"), batches=1)
    assert run.record.batched_seq == 8
    assert run.durable_seq == 8


def test_late_cloud_is_learnt_until_the_run_is_registered(spool: Spool) -> None:
    run = spool.open_run(hello(cloud_pending=True), owner="")
    assert run.cloud_pending
    spool.open_run(hello(cloud={"cloud_vendor_id": "aws"}), owner="")
    assert (run.record.cloud, run.cloud_pending) == ({"cloud_vendor_id": "aws"}, False)
    register(spool, run)
    spool.open_run(hello(cloud={"cloud_vendor_id": "gcp"}), owner="")
    assert run.record.cloud == {"cloud_vendor_id": "aws"}


def test_many_frames_of_many_runs_are_one_transaction(spool: Spool) -> None:
    runs = [spool.open_run(hello(f"run-{number}"), owner="") for number in range(20)]
    statements: list[str] = []
    spool._database.connection.set_trace_callback(statements.append)
    spool.append([frame(run, 1, 5) for run in runs], [(run, finish(5)) for run in runs[:5]])
    assert statements.count("COMMIT") == 1
    assert [run.durable_seq for run in runs] == [5] * 20
    assert sum(run.record.has_ended for run in runs) == 5


def test_rows_and_ends_for_a_run_that_has_ended_meanwhile_are_left_out(spool: Spool, tmp_path: Path) -> None:
    gone = spool.open_run(hello("gone"), owner="")
    closed = spool.open_run(hello("closed"), owner="")
    there = spool.open_run(hello("there"), owner="")
    spool.close_run(gone, Event.DISCARDED)
    spool.update(closed, Event.ENDED, finish=finish(0, None, "failed"), closed_as_stale=True)
    spool.append([frame(run, 1, 5) for run in (gone, closed, there)], [(closed, finish(5)), (gone, finish(5))])
    assert [run.durable_seq for run in (gone, closed, there)] == [0, 0, 5]
    assert closed.record.closed_as_stale
    assert spool._database.query("SELECT DISTINCT run FROM frames") == [(there.id,)]
    spool.close()
    open_spool_at(tmp_path / "spool", SteppedClock()).close()


def test_messages_of_a_run_that_is_unknown_are_kept_and_reported(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with spool._database.transaction() as connection:
        connection.execute("INSERT INTO frames (run, first_seq, rows, payload) VALUES (77, 1, 1, x'00')")
    spool.close()
    again = open_spool_at(tmp_path / "spool", SteppedClock())
    assert "does not know" in caplog.text
    assert again._database.query("SELECT run FROM frames") == [(77,)]
    again.close()


def test_limit_stops_rows_and_new_runs_but_not_changes_of_state_and_goes_on_after_delivery(
    tmp_path: Path, clock: SteppedClock
) -> None:
    spool = open_spool_at(tmp_path / "spool", clock, max_bytes=MIN_SPOOL_BYTES)
    run = spool.open_run(hello(), owner="")
    before = -1
    while run.durable_seq > before:
        before = run.durable_seq
        try:
            spool.append([frame(run, before + 1, before + 20)], [])
        except SpoolFullError:
            break
    else:
        pytest.fail("the limit was not reached")
    with pytest.raises(SpoolFullError):
        spool.open_run(hello("another"), owner="")
    assert before > 20
    spool.append([], [(run, finish(before))])
    register(spool, run)
    delivered: list[int] = []
    while (batch := spool.next_batch(run)) is not None or cut(spool, run, max_rows=40) is not None:
        if batch is not None:
            spool.update(run, put_attempted=True)
            delivered += row_numbers(decompress_rows(batch.body))
            spool.confirm_batch(run, batch)
    spool.close_run(run, Event.ACCEPTED, response={"text": "x" * 2000})
    assert delivered == list(range(1, before + 1))
    other = spool.open_run(hello("another"), owner="")
    spool.append([frame(other, 1, 20)], [])
    while spool._database.compact():
        pass
    assert os.path.getsize(spool._database.path) <= MIN_SPOOL_BYTES
    spool.close()


def test_smallest_spool_does_not_fill_up_with_the_memory_of_ended_runs(tmp_path: Path, clock: SteppedClock) -> None:
    spool = open_spool_at(tmp_path / "spool", clock, max_bytes=MIN_SPOOL_BYTES)
    for number in range(30):
        run = spool.open_run(hello(f"run-{number}", metadata={"job_name": "x" * 3000}), owner="")
        spool.append([frame(run, 1, 10)], [(run, finish(10))])
        register(spool, run)
        spool.close_run(run, Event.ACCEPTED, response={"text": "y" * 2000})
    with pytest.raises(RunClosedError):
        spool.open_run(hello("run-29"), owner="")
    assert 1 <= spool._database.query("SELECT count(*) FROM runs")[0][0] < 10
    spool.close()
    again = open_spool_at(tmp_path / "spool", clock, max_bytes=MIN_SPOOL_BYTES)
    again.open_run(hello("new"), owner="")
    again.close()


def statements_of_a_cycle(spool: Spool, key: str) -> int:
    count = 0

    def note(_: str) -> None:
        nonlocal count
        count += 1

    spool._database.connection.set_trace_callback(note)
    run = spool.open_run(hello(key), owner="")
    spool.append([frame(run, 1, 10)], [(run, finish(10))])
    register(spool, run)
    cut(spool, run)
    batch = spool.next_batch(run)
    assert batch is not None
    spool.confirm_batch(run, batch)
    spool.close_run(run, Event.ACCEPTED)
    spool._database.connection.set_trace_callback(None)
    return count


def test_a_run_costs_the_same_however_many_have_ended(spool: Spool) -> None:
    first = statements_of_a_cycle(spool, "first")
    for number in range(100):
        run = spool.open_run(hello(f"run-{number}"), owner="")
        spool.close_run(run, Event.DISCARDED)
    assert statements_of_a_cycle(spool, "last") == first
    plans = [
        "SELECT record FROM runs WHERE key = ?",
        "SELECT settled_seq, rows, ended_by, run_id FROM tombstones WHERE name = ?",
        "SELECT id, record FROM runs WHERE state NOT IN ('finished', 'failed', 'discarded')",
        (
            "SELECT id, key, record FROM runs WHERE state IN ('finished', 'failed', 'discarded') "
            "ORDER BY ended_at LIMIT 1"
        ),
        "SELECT number, first_seq, last_seq, rows, body, sha256 FROM batches WHERE run = ? ORDER BY number LIMIT ?",
    ]
    for sql in plans:
        parameters = ("x",) * sql.count("?")
        steps = [row[3] for row in spool._database.query(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        assert all("INDEX" in step for step in steps), (sql, steps)
        assert not [step for step in steps if "TEMP B-TREE" in step], (sql, steps)


def test_record_does_not_grow_with_the_length_of_a_run(spool: Spool) -> None:
    run = spool.open_run(hello(), owner="")
    sizes = []
    for _ in range(50):
        spool.append([frame(run, run.durable_seq + 1, run.durable_seq + 10)], [])
        cut(spool, run)
        batch = spool.next_batch(run)
        assert batch is not None
        spool.confirm_batch(run, batch)
        sizes.append(len(msgspec.msgpack.encode(run.record)))
    assert sizes[-1] <= sizes[0] + 20


VICTIM = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_spool as here
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import finish, frame, hello, open_spool_at
point = sys.argv[2]
spool = open_spool_at(Path(sys.argv[1]), SteppedClock())
run = spool.open_run(hello(), owner="")
spool.append([frame(run, 1, 10)], [])
def watch(statement):
    if statement.startswith(point):
        print("at", statement[:40], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
spool._database.connection.set_trace_callback(watch)
spool.append([frame(run, 11, 20)], [])
here.cut(spool, run, max_rows=15)
batch = spool.next_batch(run)
spool.confirm_batch(run, batch)
spool.append([], [(run, finish(20))])
here.register(spool, run)
here.cut(spool, run)
spool.confirm_batch(run, spool.next_batch(run))
spool.close_run(run, here.Event.ACCEPTED)
"""


@pytest.mark.parametrize(
    ("point", "rows_by_then"),
    [
        ("INSERT INTO frames", 10),
        ("DELETE FROM frames", 20),
        ("INSERT INTO batches", 20),
        ("DELETE FROM batches", 20),
        ("UPDATE runs SET state = 'finished'", 20),
        ("UPDATE runs SET state = 'finishing'", 20),
    ],
)
def test_spool_of_a_killed_process_holds_every_acknowledged_row_once(
    tmp_path: Path, clock: SteppedClock, point: str, rows_by_then: int
) -> None:
    paths = [str(TESTS), str(Path(__file__).parent)]
    directory = tmp_path / "spool"
    victim = subprocess.run(
        [sys.executable, "-c", VICTIM, str(directory), point, *paths], capture_output=True, text=True, timeout=60
    )
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    assert victim.stdout.startswith(f"at {point}"[:20])

    spool = open_spool_at(directory, clock)
    (run,) = spool._runs.values()
    assert run.durable_seq == rows_by_then
    rows: list[int] = list(range(1, run.record.delivered_rows + 1))
    while cut(spool, run) is not None:
        pass
    for batch in spool.pending_batches(run):
        rows += row_numbers(decompress_rows(batch.body))
    assert rows == list(range(1, rows_by_then + 1))
    spool.close()


class SpoolMachine(RuleBasedStateMachine):
    """A model beside the spool: what was acknowledged, and what was delivered."""

    KEYS = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.clock = SteppedClock()
        self.spool = open_spool_at(Path(self._directory.name) / "spool", self.clock)
        self.numbers = itertools.count()
        self.key_of: dict[str, str] = {}
        self.acked: dict[str, int] = {}
        self.missing: dict[str, set[int]] = {}
        self.delivered: dict[str, list[int]] = {}

    @initialize()
    def begin(self) -> None:
        for name in self.KEYS:
            self._fresh(name)

    def _fresh(self, name: str) -> None:
        key = f"{name}-{next(self.numbers)}"
        self.key_of[name] = key
        self.spool.open_run(hello(key), owner="")
        self.acked[key], self.missing[key], self.delivered[key] = 0, set(), []

    def _run(self, name: str) -> OpenRun:
        return next(run for run in self.spool._runs.values() if run.record.key == self.key_of[name])

    @rule(name=st.sampled_from(KEYS), rows=st.integers(1, 30))
    def store(self, name: str, rows: int) -> None:
        run, key = self._run(name), self.key_of[name]
        self.spool.append([frame(run, run.durable_seq + 1, run.durable_seq + rows)], [])
        if not run.record.has_ended:
            self.acked[key] += rows

    @rule(name=st.sampled_from(KEYS), gap=st.integers(1, 5))
    def lose_rows_at_the_collector(self, name: str, gap: int) -> None:
        run, key = self._run(name), self.key_of[name]
        if run.record.has_ended:
            return
        first = run.durable_seq + 1
        self.spool.open_run(hello(key, run.record.epoch, first_available_seq=first + gap), owner="")
        self.missing[key] |= set(range(first, first + gap))
        self.acked[key] += gap

    @rule(name=st.sampled_from(KEYS))
    def take_over(self, name: str) -> None:
        run = self._run(name)
        if not run.record.has_ended:
            self.spool.open_run(hello(self.key_of[name], f"i{next(self.numbers)}"), owner="")

    @rule(name=st.sampled_from(KEYS), max_rows=st.integers(1, 40))
    def freeze(self, name: str, max_rows: int) -> None:
        cut(self.spool, self._run(name), max_rows)

    @rule(name=st.sampled_from(KEYS))
    def deliver(self, name: str) -> None:
        run = self._run(name)
        batch = self.spool.next_batch(run)
        if batch is not None:
            self.spool.confirm_batch(run, batch)
            self.delivered[self.key_of[name]] += row_numbers(decompress_rows(batch.body))

    @rule(name=st.sampled_from(KEYS))
    def say_finish(self, name: str) -> None:
        run = self._run(name)
        self.spool.append([], [(run, finish(run.durable_seq))])
        self.spool.append([frame(run, run.durable_seq + 1, run.durable_seq + 3)], [])
        assert run.record.has_ended

    @rule(name=st.sampled_from(KEYS), event=st.sampled_from(Event))
    def anything_else_happens(self, name: str, event: Event) -> None:
        run = self._run(name)
        before = run.record
        if event in {Event.ENDED, Event.ACCEPTED, Event.CLOSED_STALE, Event.DISCARDED}:
            return
        try:
            self.spool.update(run, event)
        except TransitionError:
            assert run.record is before
            return
        if run.record.state is RunState.REGISTERED and run.record.has_ended:
            self.spool.update(run, Event.ENDED)

    @rule(name=st.sampled_from(KEYS))
    def end(self, name: str) -> None:
        run, key = self._run(name), self.key_of[name]
        if run.record.state is not RunState.FINISHING or run.unbatched_rows or run.pending_batches:
            return
        self.spool.close_run(run, Event.ACCEPTED)
        assert self.delivered[key] == [seq for seq in range(1, self.acked[key] + 1) if seq not in self.missing[key]]
        self._fresh(name)

    @rule(seconds=st.floats(-1e6, 1e6))
    def crash(self, seconds: float) -> None:
        self.spool.close()
        self.clock.wall += seconds
        self.spool = open_spool_at(Path(self._directory.name) / "spool", self.clock)

    @precondition(lambda self: self.key_of)
    @invariant()
    def every_row_is_somewhere_once(self) -> None:
        for name in self.KEYS:
            run, key = self._run(name), self.key_of[name]
            assert run.durable_seq == self.acked[key]
            frozen = [row_numbers(decompress_rows(batch.body)) for batch in self.spool.pending_batches(run)]
            frames = self.spool.read_unbatched(run, max_rows=2**62)
            open_rows = [] if frames is None else row_numbers(to_csv(decode_frames(frames.payloads)).split(b"\n", 1)[1])
            rows = [*self.delivered[key], *itertools.chain(*frozen), *open_rows]
            assert rows == [seq for seq in range(1, self.acked[key] + 1) if seq not in self.missing[key]]
            assert (run.unbatched_rows, run.pending_batches) == (len(open_rows), len(frozen))

    @precondition(lambda self: self.key_of)
    @invariant()
    def memory_equals_a_fresh_load(self) -> None:
        loaded = Spool(self.spool._database, clock=self.clock)
        assert loaded._runs.keys() == self.spool._runs.keys()
        for run_id, run in self.spool._runs.items():
            other = loaded._runs[run_id]
            for name in (
                "record",
                "durable_seq",
                "unbatched_rows",
                "unbatched_bytes",
                "pending_batches",
                "batch_bytes",
                "frame_ids",
            ):
                assert getattr(run, name) == getattr(other, name), name

    @precondition(lambda self: self.key_of)
    @invariant()
    def its_client_has_what_is_there(self) -> None:
        assert self.spool.usage.spool_bytes("") == sum(run.spool_bytes for run in self.spool._runs.values())
        assert self.spool.usage.open_runs("") == len(self.spool._runs)

    def teardown(self) -> None:
        self.spool.close()
        self._directory.cleanup()


SpoolMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestSpoolInWhateverOrder = SpoolMachine.TestCase


def test_records_of_this_version_are_read_back_with_defaults_for_what_is_not_there() -> None:
    old = msgspec.msgpack.encode({"uid": "u", "key": "k", "incarnation": "i", "created_at": 1.0, "interval_s": 1.0})
    record = decode_record(old)
    assert (record.state, record.rows, record.finish) == (RunState.NEW, 0, None)
    assert isinstance(replace(record, finish=finish(3)).finish, Finish)
