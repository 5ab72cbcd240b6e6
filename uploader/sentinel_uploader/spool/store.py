"""The durable truth about runs and rows, and its mirror in memory.

Each change is one transaction; memory follows after the commit, never before. The lock guards both; it is held for
the length of a transaction and never during encoding or a call to the outside.
"""

import contextlib
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.messages import Finish, Hello
from sentinel_uploader.delivery.csv_batch import decode_frames
from sentinel_uploader.runs.lifecycle import Event, RunState, transition
from sentinel_uploader.spool.control_channel import Noticeboard
from sentinel_uploader.spool.database import SCHEMA_VERSION, Database, SpoolDamagedError, SpoolFullError
from sentinel_uploader.spool.ended_runs import EndedRuns
from sentinel_uploader.spool.reading import read_frames
from sentinel_uploader.spool.run_record import Run, RunRecord, decode_record, new_record
from sentinel_uploader.spool.types import (
    Batch,
    OpenFrames,
    RunClosedError,
    ShareUsedUpError,
    StoredFrame,
    SupersededError,
    TooManyRunsError,
)
from sentinel_uploader.spool.usage import Holdings

log = logging.getLogger(__name__)

_MAX_SUPERSEDED = 32
_UNLIMITED = 1 << 62


class Spool:
    """All runs and rows of one uploader."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.database = database
        self._clock = clock
        self.runs: dict[int, Run] = {}
        self._by_name: dict[str, Run] = {}
        self.holdings = Holdings()
        self.board = Noticeboard(database, self.lock)
        self._next_frame_id = 1
        self._next_run_id = 1
        """No number twice while this process lives: there may be news on its way about a run that is forgotten."""
        try:
            self._ended = EndedRuns(database)
            self._load()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SpoolDamagedError(f"the spool {database.path} holds what cannot be read: {error}") from error

    @property
    def next_frame_id(self) -> int:
        """Every frame that is here has a lower number."""
        with self.lock:
            return self._next_frame_id

    def greet(
        self,
        hello: Hello,
        *,
        owner: str,
        max_runs: int = _UNLIMITED,
        admits: Callable[[str, int], bool] = lambda _owner, _size: True,
    ) -> Run:
        """Open or continue the run that a collector names.

        Each client (`owner`) has run keys of its own: it neither reaches another's runs nor learns of them, and at most
        `max_runs` open ones. `admits` says whether the client may add so many bytes to the spool.

        Raises `RunClosedError`, `SupersededError`, `TooManyRunsError`, `ShareUsedUpError`, `SpoolFullError`.
        """
        with self.lock:
            run = self._by_name.get(_name(hello.run_key, owner))
            if run is None:
                run = self._greet_unknown(hello, owner, max_runs, admits)
            is_heir = hello.epoch != run.record.incarnation
            if is_heir:
                self._require_heir(run, hello)
            # Before anything is written: a full disk does not make a collector silent.
            run.heard_at = self._clock.monotonic()
            if is_heir:
                self._take_over(run, hello)
            self._settle_missing(run, hello)
            self._learn(run, hello)
            run.cloud_pending = hello.cloud_pending
            return run

    def store(self, frames: Sequence[StoredFrame], finishes: Sequence[tuple[Run, Finish]]) -> int:
        """Make rows and ends durable in one transaction, and return how many rows that were.

        Raises `SpoolError` and has stored nothing then.

        What is for a run that has ended meanwhile (closed as stale, discarded) is left out: its `acked_seq` stays.
        """
        with self.lock:
            frames = [frame for frame in frames if self._takes_rows(frame.run)]
            finishes = [(run, finish) for run, finish in finishes if self._takes_rows(run)]
            if frames:
                self._require_room(sum(len(frame.payload) for frame in frames))
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
            now = self._clock.now()
            for index, frame in enumerate(frames):
                size = len(frame.payload)
                frame.run.note_frame(first_id + index, frame.first_seq, frame.rows, size, received_at=now)
                frame.run.last_timestamp = frame.last_timestamp
                self.holdings.count(frame.run)
            for run, record in ended:
                run.record = record
            return sum(frame.rows for frame in frames)

    def read_open(self, run: Run, *, max_rows: int) -> OpenFrames | None:
        """Read the oldest rows that are in no batch; `None` when there are none.

        Only the run's own step takes frames away, so what is read stays while new frames come in behind.
        """
        with self.lock:
            ids = run.frames[: len(run.frames)]
        return read_frames(self.database, self.lock, ids, max_rows=max_rows)

    def freeze(self, run: Run, frames: OpenFrames, batch: Batch, **changes: Any) -> None:
        """Turn rows into a batch, in one transaction: from now on its range and bytes are fixed."""
        with self.lock:
            ids = run.frames[: len(frames.payloads)]
            # Rows that are missing may have been settled beyond these while they were encoded.
            settled_seq = max(run.record.settled_seq, frames.last_seq)
            received_at = run.frames_at[0]
            since = run.batches_at[0] if run.batches_at else received_at
            record = msgspec.structs.replace(run.record, settled_seq=settled_seq, waiting_since=since, **changes)
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
            del run.frames_at[: len(frames.payloads)]
            run.batches_at.append(received_at)
            run.open_rows -= batch.rows
            run.open_bytes -= sum(len(payload) for payload in frames.payloads)
            run.waiting_batches += 1
            run.batch_bytes += len(batch.body)
            self.holdings.count(run)
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
                waiting_since=run.batches_at[1] if len(run.batches_at) > 1 else 0.0,
                last_error="",
                next_try_at=0.0,
            )
            with self.database.transaction() as connection:
                connection.execute("DELETE FROM batches WHERE run = ? AND number = ?", (run.id, batch.number))
                self._write(connection, run.id, record)
            run.record = record
            run.waiting_batches -= 1
            run.batch_bytes -= len(batch.body)
            self.holdings.count(run)
            del run.batches_at[0]

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
            changes |= {"settled_seq": run.acked_seq, "ended_at": self._clock.now()}
            record = self._after(run, event, last_error="", next_try_at=0.0, **changes)
            with self.database.transaction() as connection:
                connection.executemany("DELETE FROM frames WHERE id = ?", [(frame_id,) for frame_id in run.frames])
                connection.execute("DELETE FROM batches WHERE run = ?", (run.id,))
                remembered = self._ended.room_for(connection, len(msgspec.msgpack.encode(record)))
                self._write(connection, run.id, record)
            self._ended.committed(remembered)
            run.record = record
            for waiting in (run.frames, run.frames_at, run.batches_at):
                del waiting[:]
            run.open_rows = run.open_bytes = run.waiting_batches = run.batch_bytes = 0
            del self.runs[run.id]
            del self._by_name[_name(record.key, record.owner)]
            self.holdings.remove(run)

    def ended_record(self, key: str, *, owner: str) -> RunRecord | None:
        """Return all about a run that has ended, as long as that is kept."""
        with self.lock:
            ended = self._ended.find(_name(key, owner))
        return ended if isinstance(ended, RunRecord) else None

    def require_room(self) -> None:
        """Raise `SpoolError` when the limit leaves no room for rows."""
        with self.lock:
            self._require_room(0)

    def require_writable(self) -> None:
        """Raise `SpoolError` when rows cannot be made durable now; nothing changes, but it is a commit."""
        with self.lock:
            self._require_room(0)
            with self.database.transaction() as connection:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the database; whoever comes later gets a `SpoolError`."""
        with self.lock:
            self.database.close()

    def _takes_rows(self, run: Run) -> bool:
        return run.id in self.runs and not run.record.has_ended

    def _require_room(self, size: int) -> None:
        if self.database.used_bytes() + size > self.database.rows_limit_bytes:
            raise SpoolFullError(f"the spool has reached its limit of {self.database.max_bytes} bytes")

    def _greet_unknown(self, hello: Hello, owner: str, max_runs: int, admits: Callable[[str, int], bool]) -> Run:
        name = _name(hello.run_key, owner)
        ended = self._ended.find(name)
        if ended is not None:
            raise RunClosedError(ended.settled_seq, ended)
        if self.holdings.runs_of(owner) >= max_runs:
            raise TooManyRunsError(f"{max_runs} runs of this client are open already")
        record = new_record(hello, uid=uuid.uuid4().hex, owner=owner, now=self._clock.now())
        blob = msgspec.msgpack.encode(record)
        if not admits(owner, len(blob)):
            raise ShareUsedUpError
        # The reserve is for changes of the runs that are there.
        self._require_room(len(blob))
        run_id = self._next_run_id
        with self.database.transaction() as connection:
            connection.execute(
                "INSERT INTO runs (id, key, state, record) VALUES (?, ?, ?, ?)",
                (run_id, name, record.state, blob),
            )
        self._next_run_id += 1
        return self._mirror(run_id, record, len(blob))

    def _require_heir(self, run: Run, hello: Hello) -> None:
        record = run.record
        if hello.epoch in record.superseded:
            raise SupersededError(record.superseded_seq.get(hello.epoch, 0))
        if record.has_ended:
            raise RunClosedError(run.acked_seq)

    def _take_over(self, run: Run, hello: Hello) -> None:
        record = run.record
        superseded = [*record.superseded, record.incarnation][-_MAX_SUPERSEDED:]
        seqs = record.superseded_seq | {record.incarnation: run.acked_seq}
        self.update(
            run,
            incarnation=hello.epoch,
            superseded=superseded,
            superseded_seq={name: seqs.get(name, 0) for name in superseded},
            interval_s=hello.interval_s,
        )

    def _settle_missing(self, run: Run, hello: Hello) -> None:
        """Rows that a collector cannot send again would hold up its run for ever: go on behind them, and count."""
        gap = hello.first_available_seq - run.acked_seq - 1
        if gap <= 0 or run.record.has_ended:
            return
        self.update(run, missing_rows=run.record.missing_rows + gap, settled_seq=hello.first_available_seq - 1)
        run.acked_seq = hello.first_available_seq - 1

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
            rows = self.database.query(
                "SELECT number, first_seq, last_seq, rows, body, sha256 FROM batches WHERE run = ? "
                "ORDER BY number LIMIT ?",
                (run.id, limit),
            )
        return [Batch(*row) for row in rows]

    def _mirror(self, run_id: int, record: RunRecord, record_bytes: int) -> Run:
        run = Run(run_id, record, now=self._clock.monotonic(), record_bytes=record_bytes)
        # The upload interval goes on across a restart, whatever the clock did meanwhile.
        run.cut_at -= max(0.0, self._clock.now() - record.cut_at)
        self.runs[run_id] = run
        self._by_name[_name(record.key, record.owner)] = run
        self.holdings.add(run)
        return run

    def _load(self) -> None:
        ((self._next_run_id,),) = self.database.query("SELECT coalesce(max(id), 0) + 1 FROM runs")
        for run_id, blob in self.database.query(
            "SELECT id, record FROM runs WHERE state NOT IN ('finished', 'failed', 'discarded')"
        ):
            self._mirror(run_id, decode_record(blob), len(blob))
        orphans = 0
        for frame_id, run_id, first_seq, rows, size in self.database.each(
            "SELECT id, run, first_seq, rows, length(payload) FROM frames ORDER BY id"
        ):
            self._next_frame_id = frame_id + 1
            run = self.runs.get(run_id)
            if run is None:
                orphans += 1
            else:
                # Not kept for every frame: none is older than the last batch.
                run.note_frame(frame_id, first_seq, rows, size, received_at=run.record.cut_at)
        for run_id, size in self.database.each("SELECT run, sum(bytes) FROM batches GROUP BY run"):
            if run_id in self.runs:
                self.runs[run_id].batch_bytes = size
        for run in self.runs.values():
            self.holdings.count(run)
            if run.frames:
                with contextlib.suppress(InvalidMessageError):
                    run.last_timestamp = self._timestamp_of(run.frames[-1])
        if orphans:
            log.error("spool holds messages of runs that it does not know, they stay there messages=%d", orphans)
        # Whoever asked the uploader before this one has had its answer, or has given up. A full disk is no hindrance.
        with contextlib.suppress(SpoolFullError), self.database.transaction() as connection:
            connection.execute("DELETE FROM requests")

    def _timestamp_of(self, frame_id: int) -> float:
        """Return the time of a stored frame's last row."""
        ((payload,),) = self.database.query("SELECT payload FROM frames WHERE id = ?", (frame_id,))
        return decode_frames([payload])[-1].timestamp


def _name(key: str, owner: str) -> str:
    """What tells a run from all others here. Neither a run key nor a client's name holds what is put in between."""
    return f"{owner}\n{key}" if owner else key
