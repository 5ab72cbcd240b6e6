"""Reading the open runs when a spool is opened."""

import contextlib
import logging
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_uploader.spool import tables
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.frames import decode_frames
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """The open runs, and ids that nothing uses yet."""

    runs: list[OpenRun]
    next_run_id: int
    next_frame_id: int


def mirror_of(run_id: int, record: RunRecord, record_bytes: int, clock: Clock) -> OpenRun:
    """Return the mirror of a run without its frames."""
    run = OpenRun(run_id, record, now=clock.monotonic(), record_bytes=record_bytes)
    # The upload interval continues across a restart, whatever the clock did meanwhile.
    run.sealed_at -= max(0.0, clock.now() - record.sealed_at)
    return run


def load_runs(database: Database, clock: Clock) -> Loaded:
    """Read the open runs; raises `msgspec.DecodeError` for a record that cannot be read."""
    runs = {run_id: mirror_of(run_id, record, size, clock) for run_id, record, size in tables.read_open_runs(database)}
    next_frame_id = 1
    orphans = 0
    for frame_id, run_id, first_seq, rows, size in database.iterate(
        "SELECT id, run, first_seq, rows, length(payload) FROM frames ORDER BY id"
    ):
        next_frame_id = frame_id + 1
        run = runs.get(run_id)
        if run is None:
            orphans += 1
        else:
            # The time is not stored for every frame: none is older than the last batch.
            run.add_frame(frame_id, first_seq, rows, size, received_at=run.record.sealed_at)
    for run_id, size in database.iterate("SELECT run, sum(bytes) FROM batches GROUP BY run"):
        if run_id in runs:
            runs[run_id].batch_bytes = size
    for run in runs.values():
        if run.frame_ids:
            with contextlib.suppress(InvalidMessageError):
                run.last_timestamp = _timestamp_of(database, run.frame_ids[-1])
    if orphans:
        log.error("spool holds messages of runs that it does not know, they stay there messages=%d", orphans)
    return Loaded(list(runs.values()), tables.next_run_id(database), next_frame_id)


def _timestamp_of(database: Database, frame_id: int) -> float:
    """Return the time of a stored frame's last row."""
    ((payload,),) = database.query("SELECT payload FROM frames WHERE id = ?", (frame_id,))
    return decode_frames([payload])[-1].timestamp
