"""The durable truth about runs and rows, and its mirror in memory.

Each change is one transaction. Memory changes after the commit, never before.
"""

import contextlib
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import Finish, Hello
from sentinel_uploader.runs.lifecycle import Event, transition
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.spool import batch_changes, tables
from sentinel_uploader.spool.control_channel import ControlChannel
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.ended_runs import EndedRuns, RetentionState
from sentinel_uploader.spool.epochs import check_epoch, continuation
from sentinel_uploader.spool.errors import SpoolDamagedError, SpoolFullError
from sentinel_uploader.spool.group_commit import Apply, GroupCommit
from sentinel_uploader.spool.open_run import ClientUsage, OpenRun
from sentinel_uploader.spool.run_record import RunRecord, new_record
from sentinel_uploader.spool.schema import SCHEMA_VERSION
from sentinel_uploader.spool.types import (
    Batch,
    PendingFrame,
    QuotaExceededError,
    RunClosedError,
    RunLimitError,
    UnbatchedFrames,
)

log = logging.getLogger(__name__)

_UNLIMITED = 1 << 62
_READ_FRAMES = 256
"""Frames that are read while the lock is held once."""
_T = TypeVar("_T")


class Spool:
    """All runs and rows of one uploader; may be used from several threads.

    `_lock` guards everything declared below it, and the open runs. It is held for the length of a transaction, and
    never during encoding or a call to the outside.
    """

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._database = database
        self._runs: dict[int, OpenRun] = {}
        self._by_name: dict[str, OpenRun] = {}
        self.usage = ClientUsage()
        """Its numbers are read without the lock: the intake asks for every message."""
        self._next_frame_id = 1
        self._next_run_id = 1
        """No id is used twice while this process lives: a notification about a closed run may still be on its way."""
        self._commits = GroupCommit(database, self._lock)
        self.control = ControlChannel(database, self._lock)
        try:
            self._ended = EndedRuns(database)
            self._load()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SpoolDamagedError(f"the spool {database.path} holds what cannot be read: {error}") from error

    @classmethod
    def open(cls, directory: str, *, max_bytes: int, clock: Clock) -> "Spool":
        """Open the spool in a directory that is locked already. A damaged spool is set aside and reported.

        Raises `SpoolError` when it cannot be opened at all, `UsageError` for a limit that is too small.
        """
        database = Database(directory, max_bytes=max_bytes)
        try:
            try:
                spool = cls(database, clock=clock)
            except SpoolDamagedError as error:
                log.error("spool cannot be read error=%s", error)  # noqa: TRY400 -- no defect, no trace
                database.recreate()
                spool = cls(database, clock=clock)
        except BaseException:
            database.close()
            raise
        if database.migrated_from is not None:
            log.info("spool of an older version migrated from=%d to=%d", database.migrated_from, SCHEMA_VERSION)
        if database.quarantined_path is not None:
            log.error("spool is damaged and set aside, nothing in it is deleted file=%s", database.quarantined_path)
        return spool

    def run(self, run_id: int) -> OpenRun | None:
        """Return an open run; `None` when there is none of that id."""
        with self._lock:
            return self._runs.get(run_id)

    def view(self, read: Callable[[OpenRun], _T], run_ids: Iterable[int] | None = None) -> list[_T]:
        """Apply `read` to these open runs (all without ids) under the lock, and return the results.

        Ids of closed runs are skipped. `read` must not block.
        """
        with self._lock:
            if run_ids is None:
                return [read(run) for run in self._runs.values()]
            return [read(run) for run_id in run_ids if (run := self._runs.get(run_id)) is not None]

    def read_unbatched(self, run: OpenRun, *, max_rows: int) -> UnbatchedFrames | None:
        """Read the oldest frames that are in no batch: at most `max_rows` rows, but at least one frame.

        `None` when there are none. Only the run's own step removes frames, so they stay while new ones are appended.
        """
        with self._lock:
            ids = run.frame_ids[:]
        payloads: list[bytes] = []
        first_seq = last_seq = total = 0
        # In slices: the lock is free in between.
        for start in range(0, len(ids), _READ_FRAMES):
            with self._lock:
                for frame_id in ids[start : start + _READ_FRAMES]:
                    ((seq, rows, payload),) = self._database.query(
                        "SELECT first_seq, rows, payload FROM frames WHERE id = ?", (frame_id,)
                    )
                    if payloads and total + rows > max_rows:
                        return UnbatchedFrames(first_seq, last_seq, payloads)
                    first_seq = first_seq or seq
                    last_seq = seq + rows - 1
                    total += rows
                    payloads.append(payload)
        return UnbatchedFrames(first_seq, last_seq, payloads) if payloads else None

    def next_batch(self, run: OpenRun) -> Batch | None:
        """Return the oldest batch that is not confirmed."""
        with self._lock:
            batches = tables.read_batches(self._database, run.id, limit=1)
        return batches[0] if batches else None

    def pending_batches(self, run: OpenRun) -> list[Batch]:
        """Return all batches that are not confirmed, oldest first."""
        with self._lock:
            return tables.read_batches(self._database, run.id, limit=-1)

    @property
    def next_frame_id(self) -> int:
        """Every stored frame has a lower id."""
        with self._lock:
            return self._next_frame_id

    def size(self) -> tuple[int, int, int]:
        """Return the bytes in use, those above which no rows are accepted, and the limit; raises `SpoolError`."""
        with self._lock:
            database = self._database
            return database.used_bytes(), database.rows_limit_bytes, database.max_bytes

    def data_version(self) -> int:
        """Return a number that changes when another process has written; raises `SpoolError`."""
        with self._lock:
            return self._database.data_version()

    def require_room(self, size: int = 0) -> None:
        """Raise `SpoolFullError` when the limit leaves no room for rows of `size` bytes, or `SpoolError`."""
        with self._lock:
            if self._database.used_bytes() + size > self._database.rows_limit_bytes:
                raise SpoolFullError(f"the spool has reached its limit of {self._database.max_bytes} bytes")

    def open_run(
        self,
        hello: Hello,
        *,
        owner: str,
        max_runs: int = _UNLIMITED,
        try_reserve: Callable[[str, int], bool] = lambda _owner, _size: True,
    ) -> OpenRun:
        """Open or continue the run that a collector names.

        Each client (`owner`) has run keys of its own: it neither reaches another's runs nor learns of them, and has at
        most `max_runs` open ones. `try_reserve` says whether the client may add so many bytes to the spool.

        Raises `RunClosedError`, `SupersededError`, `RunLimitError`, `QuotaExceededError`, `SpoolFullError`.
        """
        with self._lock:
            run = self._by_name.get(_name(hello.run_key, owner))
            if run is None:
                run = self._create_run(hello, owner, max_runs, try_reserve)
            check_epoch(run.record, run.durable_seq, hello)
            # Before anything is written: a full disk does not make a collector silent.
            self.mark_seen(run)
            changes = continuation(run.record, run.durable_seq, hello)
            if changes:
                self.update(run, **changes)
                run.durable_seq = max(run.durable_seq, run.record.batched_seq)
            run.cloud_pending = hello.cloud_pending
            return run

    def mark_seen(self, run: OpenRun) -> None:
        """A message of the run's collector has arrived. Takes no lock: it is called for every message."""
        run.last_seen_at = self._clock.monotonic()

    def append(self, frames: Sequence[PendingFrame], finishes: Sequence[tuple[OpenRun, Finish]]) -> int:
        """Make rows and ends durable in one transaction, and return the number of rows.

        Raises `SpoolError` and has stored nothing then. Frames of a run that has ended meanwhile (closed as stale,
        discarded) are left out: its `durable_seq` does not change.
        """
        stored: list[int] = []

        def write(connection: sqlite3.Connection) -> Apply:
            accepted = [frame for frame in frames if self._accepts_rows(frame.run)]
            if accepted:
                self.require_room(sum(len(frame.payload) for frame in accepted))
            first_id = self._next_frame_id
            ended = [
                (run, self._apply_events(run, Event.ENDED, finish=finish))
                for run, finish in finishes
                if self._accepts_rows(run)
            ]
            tables.insert_frames(connection, first_id, accepted)
            for run, record in ended:
                tables.update_run(connection, run.id, record)
            return lambda: stored.append(self._add_frames(first_id, accepted, ended))

        self._commits.commit({frame.run.id for frame in frames} | {run.id for run, _ in finishes}, write)
        return sum(stored)

    def _add_frames(
        self, first_id: int, frames: Sequence[PendingFrame], ended: Sequence[tuple[OpenRun, RunRecord]]
    ) -> int:
        self._next_frame_id += len(frames)
        now = self._clock.now()
        for frame_id, frame in enumerate(frames, first_id):
            frame.run.add_frame(frame_id, frame.first_seq, frame.rows, len(frame.payload), received_at=now)
            frame.run.last_timestamp = frame.last_timestamp
            self.usage.recompute(frame.run)
        for run, record in ended:
            run.record = record
        return sum(frame.rows for frame in frames)

    def seal_batch(self, run: OpenRun, frames: UnbatchedFrames, batch: Batch, **changes: Any) -> None:
        """Turn the oldest frames into a batch: from now on its range and its bytes are fixed."""
        write = batch_changes.seal(run, frames, batch, changes, usage=self.usage, clock=self._clock)
        self._commits.commit({run.id}, write)

    def confirm_batch(self, run: OpenRun, batch: Batch) -> None:
        """Remove a batch whose upload is confirmed."""
        self._commits.commit({run.id}, batch_changes.confirm(run, batch, usage=self.usage))

    def update(self, run: OpenRun, *events: Event, **changes: Any) -> None:
        """Apply events and changes to a run's record, durably; raises `TransitionError` for an event not allowed."""
        self._update(run, lambda: self._apply_events(run, *events, **changes))

    def register_run(self, run: OpenRun, **changes: str) -> None:
        """Record the registration. The run's end may have come while the API was asked."""

        def registered() -> RunRecord:
            events = [Event.REGISTERED, *([Event.ENDED] if run.record.has_ended else [])]
            return self._apply_events(run, *events, last_error="", next_try_at=0.0, **changes)

        self._update(run, registered)

    def _update(self, run: OpenRun, change: Callable[[], RunRecord]) -> None:
        def write(connection: sqlite3.Connection) -> Apply:
            record = change()
            tables.update_run(connection, run.id, record)
            return lambda: setattr(run, "record", record)

        self._commits.commit({run.id}, write)

    def end_if_stale(self, run: OpenRun, policy: Policy) -> bool:
        """End a run whose collector is silent; False when a message or the end of the run has come meanwhile."""
        with self._lock:
            gone_at = policy.stale_deadline(silent_since=run.last_seen_at, interval_s=run.record.interval_s)
            if run.record.has_ended or self._clock.monotonic() < gone_at:
                return False
            finish = Finish(last_seq=run.durable_seq, exit_code=None, status="failed", time=self._clock.now())
            self.update(run, Event.ENDED, finish=finish, closed_as_stale=True)
            return True

    def close_run(self, run: OpenRun, event: Event, **changes: Any) -> None:
        """Finish, fail or discard a run. Its remaining rows are deleted."""

        def write(connection: sqlite3.Connection) -> Apply:
            changed = changes | {"batched_seq": run.durable_seq, "ended_at": self._clock.now()}
            record = self._apply_events(run, event, last_error="", next_try_at=0.0, **changed)
            tables.delete_frames(connection, run.frame_ids)
            tables.delete_batches(connection, run.id)
            retention = self._ended.evict_oldest(connection, len(msgspec.msgpack.encode(record)))
            tables.update_run(connection, run.id, record)
            return lambda: apply(record, retention)

        def apply(record: RunRecord, retention: RetentionState) -> None:
            self._ended.apply(retention)
            run.record = record
            run.drop_rows()
            del self._runs[run.id]
            del self._by_name[_name(record.key, record.owner)]
            self.usage.remove(run)

        # One at a time: each decides which ended runs are kept.
        self._commits.commit({run.id, self._ended}, write)

    def require_writable(self) -> None:
        """Raise `SpoolError` when rows cannot be made durable now; nothing changes, but it is a commit."""
        with self._lock:
            self.require_room()
            with self._database.transaction() as connection:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def compact(self) -> bool:
        """Give free pages back to the file system; True when there are more. Raises `SpoolError`."""
        with self._lock:
            return self._database.compact()

    def close(self) -> None:
        """Close the database; every later call raises `SpoolError`."""
        with self._lock:
            self._database.close()

    def _accepts_rows(self, run: OpenRun) -> bool:
        return run.id in self._runs and not run.record.has_ended

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
        self.require_room(len(blob))
        run_id = self._next_run_id
        with self._database.transaction() as connection:
            tables.insert_run(connection, run_id, name, record.state, blob)
        self._next_run_id += 1
        run = tables.mirror_of(run_id, record, len(blob), self._clock)
        self._add(run)
        return run

    def _apply_events(self, run: OpenRun, *events: Event, **changes: Any) -> RunRecord:
        state = run.record.state
        for event in events:
            state = transition(state, event)
        return msgspec.structs.replace(run.record, state=state, **changes)

    def _load(self) -> None:
        runs, self._next_run_id, self._next_frame_id = tables.load_runs(self._database, self._clock)
        for run in runs:
            self._add(run)
        # These requests were answered by the previous uploader, or given up. A full disk is no hindrance.
        with contextlib.suppress(SpoolFullError), self._database.transaction() as connection:
            connection.execute("DELETE FROM requests")

    def _add(self, run: OpenRun) -> None:
        self._runs[run.id] = run
        self._by_name[_name(run.record.key, run.record.owner)] = run
        self.usage.add(run)


def _name(key: str, owner: str) -> str:
    """Return the run's name in this spool. Neither a run key nor a client's name contains a line break."""
    return f"{owner}\n{key}" if owner else key
