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
from sentinel_uploader.runs.lifecycle import Event, RunState, transition
from sentinel_uploader.spool.control_channel import ControlChannel
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.ended_runs import EndedRuns
from sentinel_uploader.spool.errors import SpoolDamagedError, SpoolFullError
from sentinel_uploader.spool.frames import decode_frames
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord, decode_record, new_record
from sentinel_uploader.spool.schema import SCHEMA_VERSION
from sentinel_uploader.spool.types import (
    Batch,
    PendingFrame,
    QuotaExceededError,
    RunClosedError,
    RunLimitError,
    SupersededError,
    UnbatchedFrames,
)
from sentinel_uploader.spool.usage import ClientUsage

log = logging.getLogger(__name__)

_MAX_FENCED_EPOCHS = 32
_UNLIMITED = 1 << 62


class Spool:
    """All runs and rows of one uploader."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.database = database
        self._clock = clock
        self.runs: dict[int, OpenRun] = {}
        self._by_name: dict[str, OpenRun] = {}
        self.usage = ClientUsage()
        self.control = ControlChannel(database, self.lock)
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

    def open_run(
        self,
        hello: Hello,
        *,
        owner: str,
        max_runs: int = _UNLIMITED,
        try_reserve: Callable[[str, int], bool] = lambda _owner, _size: True,
    ) -> OpenRun:
        """Open or continue the run that a collector names.

        Each client (`owner`) has run keys of its own: it neither reaches another's runs nor learns of them, and at most
        `max_runs` open ones. `try_reserve` says whether the client may add so many bytes to the spool.

        Raises `RunClosedError`, `SupersededError`, `RunLimitError`, `QuotaExceededError`, `SpoolFullError`.
        """
        with self.lock:
            run = self._by_name.get(_name(hello.run_key, owner))
            if run is None:
                run = self._create_run(hello, owner, max_runs, try_reserve)
            is_new_epoch = hello.epoch != run.record.incarnation
            if is_new_epoch:
                self._check_epoch(run, hello)
            # Before anything is written: a full disk does not make a collector silent.
            run.last_seen_at = self._clock.monotonic()
            if is_new_epoch:
                self._supersede(run, hello)
            self._skip_missing_rows(run, hello)
            self._update_discovery(run, hello)
            run.cloud_pending = hello.cloud_pending
            return run

    def append(self, frames: Sequence[PendingFrame], finishes: Sequence[tuple[OpenRun, Finish]]) -> int:
        """Make rows and ends durable in one transaction, and return how many rows that were.

        Raises `SpoolError` and has stored nothing then.

        What is for a run that has ended meanwhile (closed as stale, discarded) is left out: its `durable_seq` stays.
        """
        with self.lock:
            frames = [frame for frame in frames if self._accepts_rows(frame.run)]
            finishes = [(run, finish) for run, finish in finishes if self._accepts_rows(run)]
            if frames:
                self._require_room(sum(len(frame.payload) for frame in frames))
            first_id = self._next_frame_id
            ended: list[tuple[OpenRun, RunRecord]] = []
            with self.database.transaction() as connection:
                connection.executemany(
                    "INSERT INTO frames (id, run, first_seq, rows, payload) VALUES (?, ?, ?, ?, ?)",
                    [
                        (first_id + index, frame.run.id, frame.first_seq, frame.rows, frame.payload)
                        for index, frame in enumerate(frames)
                    ],
                )
                for run, finish in finishes:
                    record = self._apply_events(run, Event.ENDED, finish=finish)
                    self._write(connection, run.id, record)
                    ended.append((run, record))
            self._next_frame_id += len(frames)
            now = self._clock.now()
            for index, frame in enumerate(frames):
                size = len(frame.payload)
                frame.run.add_frame(first_id + index, frame.first_seq, frame.rows, size, received_at=now)
                frame.run.last_timestamp = frame.last_timestamp
                self.usage.recompute(frame.run)
            for run, record in ended:
                run.record = record
            return sum(frame.rows for frame in frames)

    def read_unbatched(self, run: OpenRun, *, max_rows: int) -> UnbatchedFrames | None:
        """Read the oldest rows that are in no batch; `None` when there are none.

        Only the run's own step takes frames away, so what is read stays while new frames come in behind.
        """
        with self.lock:
            ids = run.frame_ids[: len(run.frame_ids)]
        return read_frames(self.database, self.lock, ids, max_rows=max_rows)

    def seal_batch(self, run: OpenRun, frames: UnbatchedFrames, batch: Batch, **changes: Any) -> None:
        """Turn rows into a batch, in one transaction: from now on its range and bytes are fixed."""
        with self.lock:
            ids = run.frame_ids[: len(frames.payloads)]
            # Rows that are missing may have been settled beyond these while they were encoded.
            batched_seq = max(run.record.batched_seq, frames.last_seq)
            received_at = run.frame_received_at[0]
            since = run.batch_received_at[0] if run.batch_received_at else received_at
            record = msgspec.structs.replace(run.record, batched_seq=batched_seq, waiting_since=since, **changes)
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
            del run.frame_ids[: len(frames.payloads)]
            del run.frame_received_at[: len(frames.payloads)]
            run.batch_received_at.append(received_at)
            run.unbatched_rows -= batch.rows
            run.unbatched_bytes -= sum(len(payload) for payload in frames.payloads)
            run.pending_batches += 1
            run.batch_bytes += len(batch.body)
            self.usage.recompute(run)
            run.sealed_at = self._clock.monotonic()

    def next_batch(self, run: OpenRun) -> Batch | None:
        """Return the oldest batch that is not confirmed."""
        batches = self._batches(run, limit=1)
        return batches[0] if batches else None

    def pending_batches(self, run: OpenRun) -> list[Batch]:
        """Return all batches that are not confirmed, oldest first."""
        return self._batches(run, limit=-1)

    def confirm_batch(self, run: OpenRun, batch: Batch) -> None:
        """The PUT is confirmed: the batch's rows leave the spool."""
        with self.lock:
            record = msgspec.structs.replace(
                run.record,
                delivered_batches=run.record.delivered_batches + 1,
                delivered_rows=run.record.delivered_rows + batch.rows,
                object_bytes=run.record.object_bytes + len(batch.body),
                waiting_since=run.batch_received_at[1] if len(run.batch_received_at) > 1 else 0.0,
                last_error="",
                next_try_at=0.0,
            )
            with self.database.transaction() as connection:
                connection.execute("DELETE FROM batches WHERE run = ? AND number = ?", (run.id, batch.number))
                self._write(connection, run.id, record)
            run.record = record
            run.pending_batches -= 1
            run.batch_bytes -= len(batch.body)
            self.usage.recompute(run)
            del run.batch_received_at[0]

    def update(self, run: OpenRun, *events: Event, **changes: Any) -> None:
        """Apply events and changes to a run's record, durably; raises `TransitionError` when one is not allowed."""
        with self.lock:
            record = self._apply_events(run, *events, **changes)
            with self.database.transaction() as connection:
                self._write(connection, run.id, record)
            run.record = record

    def close_run(self, run: OpenRun, event: Event, **changes: Any) -> None:
        """Take a run out of the open ones: finished, failed or discarded. Whatever rows it still has are gone."""
        with self.lock:
            changes |= {"batched_seq": run.durable_seq, "ended_at": self._clock.now()}
            record = self._apply_events(run, event, last_error="", next_try_at=0.0, **changes)
            with self.database.transaction() as connection:
                connection.executemany("DELETE FROM frames WHERE id = ?", [(frame_id,) for frame_id in run.frame_ids])
                connection.execute("DELETE FROM batches WHERE run = ?", (run.id,))
                remembered = self._ended.evict_oldest(connection, len(msgspec.msgpack.encode(record)))
                self._write(connection, run.id, record)
            self._ended.apply(remembered)
            run.record = record
            for waiting in (run.frame_ids, run.frame_received_at, run.batch_received_at):
                del waiting[:]
            run.unbatched_rows = run.unbatched_bytes = run.pending_batches = run.batch_bytes = 0
            del self.runs[run.id]
            del self._by_name[_name(record.key, record.owner)]
            self.usage.remove(run)

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

    def _accepts_rows(self, run: OpenRun) -> bool:
        return run.id in self.runs and not run.record.has_ended

    def _require_room(self, size: int) -> None:
        if self.database.used_bytes() + size > self.database.rows_limit_bytes:
            raise SpoolFullError(f"the spool has reached its limit of {self.database.max_bytes} bytes")

    def _create_run(self, hello: Hello, owner: str, max_runs: int, try_reserve: Callable[[str, int], bool]) -> OpenRun:
        name = _name(hello.run_key, owner)
        ended = self._ended.find(name)
        if ended is not None:
            raise RunClosedError(ended.batched_seq, ended)
        if self.usage.open_runs(owner) >= max_runs:
            raise RunLimitError(f"{max_runs} runs of this client are open already")
        record = new_record(hello, uid=uuid.uuid4().hex, owner=owner, now=self._clock.now())
        blob = msgspec.msgpack.encode(record)
        if not try_reserve(owner, len(blob)):
            raise QuotaExceededError
        # The reserve is for changes of the runs that are there.
        self._require_room(len(blob))
        run_id = self._next_run_id
        with self.database.transaction() as connection:
            connection.execute(
                "INSERT INTO runs (id, key, state, record) VALUES (?, ?, ?, ?)",
                (run_id, name, record.state, blob),
            )
        self._next_run_id += 1
        return self._load_run(run_id, record, len(blob))

    def _check_epoch(self, run: OpenRun, hello: Hello) -> None:
        record = run.record
        if hello.epoch in record.fenced_epochs:
            raise SupersededError(record.fenced_seq.get(hello.epoch, 0))
        if record.has_ended:
            raise RunClosedError(run.durable_seq)

    def _supersede(self, run: OpenRun, hello: Hello) -> None:
        record = run.record
        fenced = [*record.fenced_epochs, record.incarnation][-_MAX_FENCED_EPOCHS:]
        seqs = record.fenced_seq | {record.incarnation: run.durable_seq}
        self.update(
            run,
            incarnation=hello.epoch,
            fenced_epochs=fenced,
            fenced_seq={name: seqs.get(name, 0) for name in fenced},
            interval_s=hello.interval_s,
        )

    def _skip_missing_rows(self, run: OpenRun, hello: Hello) -> None:
        """Rows that a collector cannot send again would hold up its run for ever: go on behind them, and count."""
        gap = hello.first_available_seq - run.durable_seq - 1
        if gap <= 0 or run.record.has_ended:
            return
        self.update(run, missing_rows=run.record.missing_rows + gap, batched_seq=hello.first_available_seq - 1)
        run.durable_seq = hello.first_available_seq - 1

    def _update_discovery(self, run: OpenRun, hello: Hello) -> None:
        """What discovery found late still reaches a registration that has not gone out."""
        record = run.record
        if record.state is RunState.NEW and (hello.cloud, hello.host) != (record.cloud, record.host):
            self.update(run, cloud=hello.cloud, host=hello.host)

    def _apply_events(self, run: OpenRun, *events: Event, **changes: Any) -> RunRecord:
        state = run.record.state
        for event in events:
            state = transition(state, event)
        return msgspec.structs.replace(run.record, state=state, **changes)

    def _write(self, connection: sqlite3.Connection, run_id: int, record: RunRecord) -> None:
        connection.execute(
            "UPDATE runs SET state = ?, ended_at = ?, record = ? WHERE id = ?",
            (record.state, record.ended_at, msgspec.msgpack.encode(record), run_id),
        )

    def _batches(self, run: OpenRun, *, limit: int) -> list[Batch]:
        with self.lock:
            rows = self.database.query(
                "SELECT number, first_seq, last_seq, rows, body, sha256 FROM batches WHERE run = ? "
                "ORDER BY number LIMIT ?",
                (run.id, limit),
            )
        return [Batch(*row) for row in rows]

    def _load_run(self, run_id: int, record: RunRecord, record_bytes: int) -> OpenRun:
        run = OpenRun(run_id, record, now=self._clock.monotonic(), record_bytes=record_bytes)
        # The upload interval goes on across a restart, whatever the clock did meanwhile.
        run.sealed_at -= max(0.0, self._clock.now() - record.sealed_at)
        self.runs[run_id] = run
        self._by_name[_name(record.key, record.owner)] = run
        self.usage.add(run)
        return run

    def _load(self) -> None:
        ((self._next_run_id,),) = self.database.query("SELECT coalesce(max(id), 0) + 1 FROM runs")
        for run_id, blob in self.database.query(
            "SELECT id, record FROM runs WHERE state NOT IN ('finished', 'failed', 'discarded')"
        ):
            self._load_run(run_id, decode_record(blob), len(blob))
        orphans = 0
        for frame_id, run_id, first_seq, rows, size in self.database.iterate(
            "SELECT id, run, first_seq, rows, length(payload) FROM frames ORDER BY id"
        ):
            self._next_frame_id = frame_id + 1
            run = self.runs.get(run_id)
            if run is None:
                orphans += 1
            else:
                # Not kept for every frame: none is older than the last batch.
                run.add_frame(frame_id, first_seq, rows, size, received_at=run.record.sealed_at)
        for run_id, size in self.database.iterate("SELECT run, sum(bytes) FROM batches GROUP BY run"):
            if run_id in self.runs:
                self.runs[run_id].batch_bytes = size
        for run in self.runs.values():
            self.usage.recompute(run)
            if run.frame_ids:
                with contextlib.suppress(InvalidMessageError):
                    run.last_timestamp = self._timestamp_of(run.frame_ids[-1])
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


_SLICE = 256
"""So many frames are read at a time."""


def read_frames(
    database: Database, lock: threading.RLock, ids: Sequence[int], *, max_rows: int
) -> UnbatchedFrames | None:
    """Return the first of these frames, those with at most `max_rows` rows together but one at least."""
    payloads: list[bytes] = []
    first_seq = last_seq = rows = 0
    for start in range(0, len(ids), _SLICE):
        with lock:
            for frame_id in ids[start : start + _SLICE]:
                ((seq, count, payload),) = database.query(
                    "SELECT first_seq, rows, payload FROM frames WHERE id = ?", (frame_id,)
                )
                if payloads and rows + count > max_rows:
                    return UnbatchedFrames(first_seq, last_seq, payloads)
                first_seq = first_seq or seq
                last_seq = seq + count - 1
                rows += count
                payloads.append(payload)
    return UnbatchedFrames(first_seq, last_seq, payloads) if payloads else None


def open_spool(directory: str, *, max_bytes: int, clock: Clock) -> Spool:
    """Open the spool in a directory that is locked already; one that cannot be read is set aside and reported.

    Raises `SpoolError` for what cannot be opened at all, `UsageError` for a limit that is too small.
    """
    database = Database(directory, max_bytes=max_bytes)
    try:
        try:
            spool = Spool(database, clock=clock)
        except SpoolDamagedError as error:
            log.error("spool cannot be read error=%s", error)  # noqa: TRY400 -- no defect, no trace
            database.recreate()
            spool = Spool(database, clock=clock)
    except BaseException:
        database.close()
        raise
    if database.migrated_from is not None:
        log.info("spool of an older version migrated from=%d to=%d", database.migrated_from, SCHEMA_VERSION)
    if database.quarantined_path is not None:
        log.error("spool is damaged and set aside, nothing in it is deleted file=%s", database.quarantined_path)
    return spool
