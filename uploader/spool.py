"""The durable truth about runs and rows, and its mirror in memory.

Each change is one transaction; memory follows after the commit, never before. The lock guards both; it is held for
the length of a transaction and never during encoding or a call to the outside.
"""

import sqlite3
import threading
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from protocol.clock import Clock
from protocol.errors import SentinelStreamError
from protocol.messages import Finish, Hello
from uploader.database import Database, SpoolFullError
from uploader.records import Run, RunRecord, new_record
from uploader.run import OPEN_STATES, Event, RunState, transition

MAX_ENDED_RUNS = 10_000
_ENDED_RUN_BYTES = 16 << 10
_MAX_SUPERSEDED = 32
_READ_SLICE = 256


class RunClosedError(SentinelStreamError):
    """The run has ended; `seq` is its last row here."""

    def __init__(self, seq: int) -> None:
        super().__init__("this run has ended")
        self.seq = seq


class SupersededError(SentinelStreamError):
    """A newer collector has taken the run over."""


class NotOwnerError(SentinelStreamError):
    """The run belongs to another client."""


class StoredFrame(NamedTuple):
    """A validated frame as it goes to disk."""

    run: Run
    first_seq: int
    rows: int
    payload: bytes
    last_timestamp: float


class OpenFrames(NamedTuple):
    """Rows that are not in a batch yet: the range they cover and their frames' payloads."""

    first_seq: int
    last_seq: int
    payloads: list[bytes]


class Batch(NamedTuple):
    """A frozen batch: its range and its bytes will never change."""

    number: int
    first_seq: int
    last_seq: int
    rows: int
    body: bytes
    sha256: bytes


class Request(NamedTuple):
    """What a person asked for through another process."""

    id: int
    kind: str
    run: int | None


class Spool:
    """All runs and rows of one uploader."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.database = database
        self._clock = clock
        self.runs: dict[int, Run] = {}
        self._by_key: dict[str, Run] = {}
        self._next_frame_id = 1
        self._ended_runs = 0
        self._max_ended_runs = min(MAX_ENDED_RUNS, database.max_bytes // _ENDED_RUN_BYTES)
        self._load()

    # -- intake ------------------------------------------------------------------------------------------------

    def greet(self, hello: Hello, *, owner: str) -> Run:
        """Open or continue the run that a collector names.

        Raises `RunClosedError`, `SupersededError`, `NotOwnerError`, `SpoolFullError`.
        """
        with self.lock:
            run = self._by_key.get(hello.run_key)
            if run is None:
                run = self._greet_unknown(hello, owner)
            elif run.record.owner != owner:
                raise NotOwnerError("this run belongs to another client")
            elif hello.incarnation != run.record.incarnation:
                self._take_over(run, hello)
            self._settle_missing(run, hello)
            self._learn(run, hello)
            run.heard_at = self._clock.monotonic()
            run.cloud_pending = hello.cloud_pending
            return run

    def store(self, frames: Sequence[StoredFrame], finishes: Sequence[tuple[Run, Finish]]) -> None:
        """Make rows and ends durable in one transaction; raises `SpoolFullError` and has stored nothing then."""
        with self.lock:
            size = sum(len(frame.payload) for frame in frames)
            if frames and self.database.used_bytes() + size > self.database.rows_limit_bytes:
                raise SpoolFullError(f"the spool has reached its limit of {self.database.max_bytes} bytes")
            first_id = self._next_frame_id
            ended: list[tuple[Run, RunRecord]] = []
            with self.database.transaction() as connection:
                connection.executemany(
                    "INSERT INTO frames (id, run, first_seq, rows, payload) VALUES (?, ?, ?, ?, ?)",
                    [
                        (first_id + index, frame.run.id, frame.first_seq, frame.rows, frame.payload)
                        for index, frame in enumerate(frames)
                    ],
                )
                for run, finish in finishes:
                    record = self._after(run, Event.ENDED, finish=finish)
                    self._write(connection, run.id, record)
                    ended.append((run, record))
            self._next_frame_id += len(frames)
            for index, frame in enumerate(frames):
                _note_frame(frame.run, first_id + index, frame.first_seq, frame.rows, len(frame.payload))
                frame.run.last_timestamp = frame.last_timestamp
            for run, record in ended:
                run.record = record

    # -- batches -----------------------------------------------------------------------------------------------

    def read_open(self, run: Run, *, max_rows: int) -> OpenFrames | None:
        """Read the oldest rows that are in no batch; `None` when there are none.

        Only the run's own step takes frames away, so what is read stays while new frames come in behind.
        """
        with self.lock:
            ids = run.frames[: len(run.frames)]
        payloads: list[bytes] = []
        first_seq = last_seq = rows = 0
        for start in range(0, len(ids), _READ_SLICE):
            with self.lock:
                for frame_id in ids[start : start + _READ_SLICE]:
                    seq, count, payload = self.database.connection.execute(
                        "SELECT first_seq, rows, payload FROM frames WHERE id = ?", (frame_id,)
                    ).fetchone()
                    if payloads and rows + count > max_rows:
                        return OpenFrames(first_seq, last_seq, payloads)
                    first_seq = first_seq or seq
                    last_seq = seq + count - 1
                    rows += count
                    payloads.append(payload)
        return OpenFrames(first_seq, last_seq, payloads) if payloads else None

    def freeze(self, run: Run, frames: OpenFrames, batch: Batch, **changes: Any) -> None:
        """Turn rows into a batch, in one transaction: from now on its range and bytes are fixed."""
        with self.lock:
            ids = run.frames[: len(frames.payloads)]
            record = msgspec.structs.replace(run.record, **changes)
            with self.database.transaction() as connection:
                connection.executemany("DELETE FROM frames WHERE id = ?", [(frame_id,) for frame_id in ids])
                connection.execute(
                    "INSERT INTO batches (run, number, first_seq, last_seq, rows, bytes, sha256, body) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        run.id,
                        batch.number,
                        batch.first_seq,
                        batch.last_seq,
                        batch.rows,
                        len(batch.body),
                        batch.sha256,
                        batch.body,
                    ),
                )
                self._write(connection, run.id, record)
            run.record = record
            del run.frames[: len(frames.payloads)]
            run.open_rows -= batch.rows
            run.open_bytes -= sum(len(payload) for payload in frames.payloads)
            run.waiting_batches += 1
            run.cut_at = self._clock.monotonic()

    def oldest_batch(self, run: Run) -> Batch | None:
        """Return the oldest batch that is not confirmed."""
        batches = self._batches(run, limit=1)
        return batches[0] if batches else None

    def waiting_bodies(self, run: Run) -> list[Batch]:
        """Return all batches that are not confirmed, oldest first."""
        return self._batches(run, limit=-1)

    def delivered(self, run: Run, batch: Batch) -> None:
        """The PUT is confirmed: the batch's rows leave the spool."""
        with self.lock:
            record = msgspec.structs.replace(
                run.record,
                delivered_batches=run.record.delivered_batches + 1,
                delivered_rows=run.record.delivered_rows + batch.rows,
                object_bytes=run.record.object_bytes + len(batch.body),
                last_error="",
                next_try_at=0.0,
            )
            with self.database.transaction() as connection:
                connection.execute("DELETE FROM batches WHERE run = ? AND number = ?", (run.id, batch.number))
                self._write(connection, run.id, record)
            run.record = record
            run.waiting_batches -= 1

    # -- a run's life ------------------------------------------------------------------------------------------

    def update(self, run: Run, *events: Event, **changes: Any) -> None:
        """Apply events and changes to a run's record, durably; raises `TransitionError` when one is not allowed."""
        with self.lock:
            record = self._after(run, *events, **changes)
            with self.database.transaction() as connection:
                self._write(connection, run.id, record)
            run.record = record

    def end(self, run: Run, event: Event, **changes: Any) -> None:
        """Take a run out of the open ones: finished, failed or discarded. Whatever rows it still has are gone."""
        with self.lock:
            record = self._after(run, event, ended_at=self._clock.now(), last_error="", next_try_at=0.0, **changes)
            with self.database.transaction() as connection:
                connection.executemany("DELETE FROM frames WHERE id = ?", [(frame_id,) for frame_id in run.frames])
                connection.execute("DELETE FROM batches WHERE run = ?", (run.id,))
                self._write(connection, run.id, record)
                self._forget_oldest_ended(connection)
            run.record = record
            del run.frames[:]
            run.open_rows = run.open_bytes = run.waiting_batches = 0
            del self.runs[run.id]
            del self._by_key[record.key]
            self._ended_runs = min(self._ended_runs + 1, self._max_ended_runs)

    def ended_record(self, key: str) -> RunRecord | None:
        """Return the record of a run that has ended, as long as it is remembered."""
        with self.lock:
            found = self._find(key)
        return found[1] if found is not None and found[1].is_over else None

    # -- other processes ---------------------------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """Return what other processes ask for and nobody has answered."""
        with self.lock:
            found = self.database.connection.execute("SELECT id, kind, run FROM requests WHERE answer IS NULL")
            return [Request(*row) for row in found.fetchall()]

    def answer(self, request: Request, text: str) -> None:
        """Answer a request; whoever asked removes it."""
        with self.lock, self.database.transaction() as connection:
            connection.execute("UPDATE requests SET answer = ? WHERE id = ?", (text, request.id))

    def note_destination(self, name: str, *, attempts: int, next_try_at: float, error: str, since: float) -> None:
        """Show to other processes that a destination is being waited for (`attempts` 0: not any more)."""
        with self.lock, self.database.transaction() as connection:
            if not attempts:
                connection.execute("DELETE FROM destinations WHERE name = ?", (name,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO destinations (name, attempts, next_try_at, error, since) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (name, attempts, next_try_at, error, since),
                )

    def close(self) -> None:
        """Close the database; whoever comes later gets a `SpoolError`."""
        with self.lock:
            self.database.close()

    # -- inside ------------------------------------------------------------------------------------------------

    def _greet_unknown(self, hello: Hello, owner: str) -> Run:
        found = self._find(hello.run_key)
        if found is not None:
            _, record = found
            if record.owner != owner:
                raise NotOwnerError("this run belongs to another client")
            raise RunClosedError(record.finish.last_seq if record.finish else record.settled_seq)
        record = new_record(hello, uid=uuid.uuid4().hex, owner=owner, now=self._clock.now())
        with self.database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO runs (key, state, record) VALUES (?, ?, ?)",
                (record.key, record.state, msgspec.msgpack.encode(record)),
            )
        assert cursor.lastrowid is not None
        return self._mirror(cursor.lastrowid, record)

    def _take_over(self, run: Run, hello: Hello) -> None:
        record = run.record
        if hello.incarnation in record.superseded:
            raise SupersededError("a newer collector has taken this run over")
        if record.has_ended:
            raise RunClosedError(run.acked_seq)
        superseded = [*record.superseded, record.incarnation][-_MAX_SUPERSEDED:]
        self.update(run, incarnation=hello.incarnation, superseded=superseded, interval_s=hello.interval_s)

    def _settle_missing(self, run: Run, hello: Hello) -> None:
        """Rows that a collector cannot send again would hold up its run for ever: go on behind them, and count."""
        gap = hello.oldest_seq - run.acked_seq - 1
        if gap <= 0 or run.record.has_ended:
            return
        self.update(run, missing_rows=run.record.missing_rows + gap, settled_seq=hello.oldest_seq - 1)
        run.acked_seq = hello.oldest_seq - 1

    def _learn(self, run: Run, hello: Hello) -> None:
        """What discovery found late still reaches a registration that has not gone out."""
        record = run.record
        if record.state is RunState.NEW and (hello.cloud, hello.host) != (record.cloud, record.host):
            self.update(run, cloud=hello.cloud, host=hello.host)

    def _after(self, run: Run, *events: Event, **changes: Any) -> RunRecord:
        state = run.record.state
        for event in events:
            state = transition(state, event)
        return msgspec.structs.replace(run.record, state=state, **changes)

    def _write(self, connection: sqlite3.Connection, run_id: int, record: RunRecord) -> None:
        connection.execute(
            "UPDATE runs SET state = ?, ended_at = ?, record = ? WHERE id = ?",
            (record.state, record.ended_at, msgspec.msgpack.encode(record), run_id),
        )

    def _batches(self, run: Run, *, limit: int) -> list[Batch]:
        with self.lock:
            rows = self.database.connection.execute(
                "SELECT number, first_seq, last_seq, rows, body, sha256 FROM batches WHERE run = ? "
                "ORDER BY number LIMIT ?",
                (run.id, limit),
            ).fetchall()
        return [Batch(*row) for row in rows]

    def _forget_oldest_ended(self, connection: sqlite3.Connection) -> None:
        if self._ended_runs >= self._max_ended_runs:
            connection.execute(
                "DELETE FROM runs WHERE id = (SELECT id FROM runs WHERE state IN ('finished', 'failed', 'discarded') "
                "ORDER BY ended_at LIMIT 1)"
            )

    def _find(self, key: str) -> tuple[int, RunRecord] | None:
        row = self.database.connection.execute("SELECT id, record FROM runs WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], decode_record(row[1]))

    def _mirror(self, run_id: int, record: RunRecord) -> Run:
        run = Run(run_id, record, now=self._clock.monotonic())
        # The upload interval goes on across a restart, whatever the clock did meanwhile.
        run.cut_at -= max(0.0, self._clock.now() - record.cut_at)
        self.runs[run_id] = run
        self._by_key[record.key] = run
        return run

    def _load(self) -> None:
        connection = self.database.connection
        for run_id, blob in connection.execute(
            "SELECT id, record FROM runs WHERE state NOT IN ('finished', 'failed', 'discarded')"
        ).fetchall():
            self._mirror(run_id, decode_record(blob))
        (self._ended_runs,) = connection.execute(
            "SELECT count(*) FROM runs WHERE state IN ('finished', 'failed', 'discarded')"
        ).fetchone()
        for frame_id, run_id, first_seq, rows, size in connection.execute(
            "SELECT id, run, first_seq, rows, length(payload) FROM frames ORDER BY id"
        ):
            _note_frame(self.runs[run_id], frame_id, first_seq, rows, size)
            self._next_frame_id = frame_id + 1


def decode_record(blob: bytes) -> RunRecord:
    """Decode a run's record as the spool holds it."""
    return msgspec.msgpack.decode(blob, type=RunRecord)


def open_runs(runs: Iterable[Run]) -> list[Run]:
    """Those of the runs for which something is still to be done (a parked one waits for a person)."""
    return [run for run in runs if run.record.state in OPEN_STATES]


def _note_frame(run: Run, frame_id: int, first_seq: int, rows: int, size: int) -> None:
    run.frames.append(frame_id)
    run.open_rows += rows
    run.open_bytes += size
    # Rows may be missing in between: then what is settled lies above the oldest frames.
    run.acked_seq = max(run.acked_seq, first_seq + rows - 1)
