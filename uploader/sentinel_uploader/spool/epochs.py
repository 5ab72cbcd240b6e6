"""How a run continues when its collector says `Hello` again: the same collector, or a newer one (an epoch)."""

from typing import Any

from sentinel_protocol.wire.messages import Hello
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.types import RunClosedError, SupersededError

_MAX_FENCED_EPOCHS = 32


def check_epoch(record: RunRecord, durable_seq: int, hello: Hello) -> None:
    """Raise `SupersededError` for a collector that was replaced, `RunClosedError` for a new one of an ended run."""
    if hello.epoch == record.epoch:
        return
    if hello.epoch in record.fenced_epochs:
        raise SupersededError(record.fenced_seq.get(hello.epoch, 0))
    if record.has_ended:
        raise RunClosedError(durable_seq)


def continuation(record: RunRecord, durable_seq: int, hello: Hello) -> dict[str, Any]:
    """Return what changes in the record; nothing in most cases."""
    changes: dict[str, Any] = {}
    if hello.epoch != record.epoch:
        fenced = [*record.fenced_epochs, record.epoch][-_MAX_FENCED_EPOCHS:]
        seqs = record.fenced_seq | {record.epoch: durable_seq}
        changes |= {
            "epoch": hello.epoch,
            "fenced_epochs": fenced,
            "fenced_seq": {name: seqs.get(name, 0) for name in fenced},
            "interval_s": hello.interval_s,
        }
    missing = hello.first_available_seq - durable_seq - 1
    if missing > 0 and not record.has_ended:
        # Rows that the collector cannot send again would block the run: continue behind them, and count them.
        changes |= {"missing_rows": record.missing_rows + missing, "batched_seq": hello.first_available_seq - 1}
    if record.state is RunState.NEW and (hello.cloud, hello.host) != (record.cloud, record.host):
        # Late results of the discovery still become part of a registration that has not been sent.
        changes |= {"cloud": hello.cloud, "host": hello.host}
    return changes
