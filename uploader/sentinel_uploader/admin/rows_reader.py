"""Reads the rows of a spool that are not delivered, without disturbing the uploader that owns it."""

import gzip
import zlib
from collections import defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

from sentinel_protocol.common.errors import InvalidMessageError, UsageError
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows
from sentinel_uploader.admin.status_reader import reading
from sentinel_uploader.runs.ports import object_uri
from sentinel_uploader.spool.run_record import decode_record
from sentinel_uploader.spool.types import decode_frames


class UndeliveredRows(NamedTuple):
    """Rows of a run that are in no delivered object, at one moment.

    `csv` has the header. `last_seq` is the number of the newest row that the spool has ever had of the run. `objects`
    are the URIs that hold the rows before these.
    """

    number: int
    run_id: str
    key: str
    last_seq: int
    rows: int
    objects: list[str]
    csv: bytes

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a JSON document."""
        return self._asdict() | {"csv": self.csv.decode("ascii")}


def read_undelivered(
    spool_dir: str, runs: Collection[int], *, after: int = 0, newest: int | None = None
) -> list[UndeliveredRows]:
    """Return the undelivered rows of these runs with higher numbers than `after`, at most the `newest` ones.

    Raises `NoSpoolError` when there is no spool, `UsageError` when it cannot be read.
    """
    with reading(spool_dir) as connection:
        # One transaction: a row that is sealed or delivered meanwhile is neither missing nor there twice.
        connection.execute("BEGIN")
        frames: dict[int, list[tuple[int, int, bytes]]] = defaultdict(list)
        for run, *frame in connection.execute("SELECT run, first_seq, rows, payload FROM frames ORDER BY id"):
            if run in runs:
                frames[run].append((frame[0], frame[1], frame[2]))
        found = []
        for run in runs:
            row = connection.execute("SELECT record FROM runs WHERE id = ?", (run,)).fetchone()
            if row is None:
                continue
            record = decode_record(row[0])
            try:
                lines, last_seq = _frame_lines(frames[run], after, newest)
                wanted = None if newest is None else newest - len(lines)
                lines = _batch_lines(connection, run, after, wanted) + lines
            except (InvalidMessageError, OSError, EOFError, zlib.error) as error:
                raise UsageError(
                    f"cannot read rows of {record.run_id or record.key} in {spool_dir}: {error}"
                ) from error
            objects = [object_uri(record.uri_prefix, n) for n in range(1, record.delivered_batches + 1)]
            last_seq = max(last_seq, record.batched_seq)
            csv = CSV_HEADER + b"".join(lines)
            found.append(UndeliveredRows(run, record.run_id, record.key, last_seq, len(lines), objects, csv))
    return found


def _frame_lines(frames: list[tuple[int, int, bytes]], after: int, newest: int | None) -> tuple[list[bytes], int]:
    """Return the CSV lines of frames, and the number of the last row."""
    lines: list[bytes] = []
    wanted = [frame for frame in frames if frame[0] + frame[1] - 1 > after]
    if newest is not None:
        # A frame has one row or more.
        wanted = wanted[len(wanted) - newest :] if newest < len(wanted) else wanted
    for first_seq, _, payload in wanted:
        samples = decode_frames([payload])
        lines += csv_rows(samples[max(0, after + 1 - first_seq) :]).splitlines(keepends=True)
    last_seq = max((first_seq + rows - 1 for first_seq, rows, _ in frames), default=0)
    return _newest(lines, newest), last_seq


def _batch_lines(connection: Any, run: int, after: int, newest: int | None) -> list[bytes]:
    """Return the CSV lines of sealed batches.

    Where numbers are missing within the batch that holds `after`, some rows before it are there as well.
    """
    lines: list[bytes] = []
    sql = "SELECT last_seq, body FROM batches WHERE run = ? AND last_seq > ? ORDER BY number DESC"
    for last_seq, body in connection.execute(sql, (run, after)):
        if newest is not None and len(lines) >= newest:
            break
        rows = gzip.decompress(body)[len(CSV_HEADER) :].splitlines(keepends=True)
        lines = _newest(rows, last_seq - after) + lines
    return _newest(lines, newest)


def _newest(lines: list[bytes], count: int | None) -> list[bytes]:
    return lines if count is None or count >= len(lines) else lines[len(lines) - max(0, count) :]
