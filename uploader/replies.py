"""What collectors are told of their runs. Pure functions of what is on disk."""

import msgspec

from protocol.messages import Ack, Finished, encode
from uploader.batch import object_uri
from uploader.foreign_text import printable
from uploader.records import Run, RunRecord
from uploader.run import RunState

_MAX_FINISHED_BYTES = 32 << 10
_FINISHED_OBJECTS = 100
_TROUBLE_CHARS = 300


def acknowledgement(run: Run) -> Ack:
    """Return what of the run is durable, and what keeps it from being delivered."""
    record = run.record
    return Ack(
        run.acked_seq,
        finish=record.has_ended and not record.closed_as_stale,
        trouble=printable(record.last_error or run.trouble, _TROUBLE_CHARS),
        parked=record.state is RunState.PARKED,
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
