"""What collectors are told of their runs. Pure functions of what is on disk."""

import msgspec

from sentinel_protocol.wire.messages import Ack, Finished, encode
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.object_names import object_uri
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.tombstones import Tombstone
from sentinel_uploader.util.untrusted_text import printable

_MAX_FINISHED_BYTES = 32 << 10
_FINISHED_OBJECTS = 100
_TROUBLE_CHARS = 300
_FORGOTTEN = {"note": "the run was delivered so long ago that its details are not kept any more"}


def acknowledgement(run: OpenRun) -> Ack:
    """Return what of the run is durable, and what keeps it from being delivered."""
    record = run.record
    return Ack(
        run.durable_seq,
        finish=record.has_ended and not record.closed_as_stale,
        trouble=printable(record.last_error or run.blocked_by, _TROUBLE_CHARS),
        parked=record.state is RunState.QUARANTINED,
    )


def finished_message(record: RunRecord) -> Finished:
    """Return how a run that is delivered ended; a long list of objects is cut."""
    uris = [object_uri(record.uri_prefix, number) for number in range(1, min(record.batches, _FINISHED_OBJECTS) + 1)]
    message = Finished(
        run_id=record.run_id,
        response=record.response,
        objects=uris,
        objects_count=record.batches,
        rows=record.rows,
        location=record.uri_prefix,
    )
    if len(encode(message)) > _MAX_FINISHED_BYTES:
        return msgspec.structs.replace(message, response={}, objects=[])
    return message


def end_unheard(ended: RunRecord | Tombstone | None, incarnation: str) -> Finished | None:
    """Return what the collector that ended a run is told, which may not have heard so; `None` for everybody else."""
    if isinstance(ended, Tombstone):
        told = Finished(ended.run_id, response=_FORGOTTEN, rows=ended.rows)
        return told if ended.was_ended_by(incarnation) else None
    if ended is None or ended.incarnation != incarnation or ended.state is not RunState.FINISHED:
        return None
    return finished_message(ended)
