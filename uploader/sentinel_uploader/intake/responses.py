"""Builds messages to collectors from the durable state, and sends them."""

from collections.abc import Callable

import msgspec

from sentinel_protocol.wire.messages import Ack, Finished, Reject, RejectCode, UploaderMessage, encode
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.ports import object_uri
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.tombstones import Tombstone
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.untrusted_text import printable

_MAX_FINISHED_BYTES = 32 << 10
_MAX_FINISHED_OBJECTS = 100
_MAX_ERROR_CHARS = 300
_FORGOTTEN = {"note": "the run was delivered so long ago that its details are not kept any more"}


class ResponseSender:
    """Sends to collectors without blocking; belongs to the thread that owns the socket.

    `blocked_by` returns the failing destination that a run waits for, or an empty string.
    """

    def __init__(self, server: ZmqServer, counters: Counters, blocked_by: Callable[[OpenRun], str]) -> None:
        self._server = server
        self._counters = counters
        self._blocked_by = blocked_by

    def send(self, identity: bytes, message: UploaderMessage) -> None:
        """Send to one connection. A message to a peer that is gone or does not read is counted and dropped."""
        if isinstance(message, Reject):
            self._counters.rejected.add(1, message.code)
        if not self._server.send(identity, encode(message)):
            # The collector says `Hello` again after a silence, which repeats what it missed.
            self._counters.answers_lost.add()

    def reject(self, identity: bytes, code: RejectCode, text: str, *, retry: bool = False, seq: int = 0) -> None:
        """Send a `Reject`."""
        self.send(identity, Reject(code, text, retry, seq))

    def acknowledge(self, identity: bytes, run: OpenRun) -> None:
        """Send the number of durable rows of the run, and why its delivery is delayed."""
        record = run.record
        ack = Ack(
            run.durable_seq,
            finish=record.has_ended and not record.closed_as_stale,
            delivery_error=printable(record.last_error or self._blocked_by(run), _MAX_ERROR_CHARS),
            quarantined=record.state is RunState.QUARANTINED,
        )
        self.send(identity, ack)


def build_finished(record: RunRecord) -> Finished:
    """Return how a delivered run ended. Names the first objects only, or none if that makes the message too long."""
    count = min(record.batches, _MAX_FINISHED_OBJECTS)
    message = Finished(
        run_id=record.run_id,
        response=record.response,
        objects=[object_uri(record.uri_prefix, number) for number in range(1, count + 1)],
        objects_count=record.batches,
        rows=record.rows,
        object_prefix=record.uri_prefix,
    )
    if len(encode(message)) > _MAX_FINISHED_BYTES:
        return msgspec.structs.replace(message, response={}, objects=[])
    return message


def build_late_finished(ended: RunRecord | Tombstone | None, epoch: str) -> Finished | None:
    """Return the end of a run for the collector that ended it, and may not know; `None` for any other collector."""
    if isinstance(ended, Tombstone):
        told = Finished(ended.run_id, response=_FORGOTTEN, rows=ended.rows)
        return told if ended.was_ended_by(epoch) else None
    if ended is None or ended.epoch != epoch or ended.state is not RunState.FINISHED:
        return None
    return build_finished(ended)
