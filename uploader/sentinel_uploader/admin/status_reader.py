"""Reads the state of a spool and its runs, without disturbing the uploader that owns the spool."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import msgspec

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.runs.lifecycle import ENDED_STATES, OPEN_STATES, RunState
from sentinel_uploader.runs.ports import object_uri
from sentinel_uploader.spool.database import connect, database_path, quarantined_files
from sentinel_uploader.spool.lock import lock_owner_pid
from sentinel_uploader.spool.run_record import RunRecord, decode_record
from sentinel_uploader.spool.schema import SCHEMA_VERSION
from sentinel_uploader.telemetry.heard_file import read_heard
from sentinel_uploader.telemetry.rejections_file import read_rejections
from sentinel_uploader.util.json_safe import to_json_safe

LATE_AFTER_S = 15.0
"""A collector that is silent for so long, and for three intervals, is late."""
_MIN_ID_CHARS = 4


class NoSpoolError(UsageError):
    """There is no spool, or one that no uploader has finished creating."""


def read_status(spool_dir: str, *, now: float | None = None) -> dict[str, Any]:
    """Return `{"spool", "uploader_pid", "set_aside": […], "turned_away", "destinations": […], "runs": […]}`.

    Times are UNIX seconds, `now` as well (default: the current time). `set_aside` are the paths of earlier spools that
    could not be read. `turned_away` is the result of `read_rejections`.

    Raises `NoSpoolError` when there is no spool, `UsageError` when it cannot be read.
    """
    with reading(spool_dir) as connection:
        destinations = _destinations(connection)
        runs = _runs(connection, {entry["name"]: entry for entry in destinations})
    pid = lock_owner_pid(spool_dir)
    heard = read_heard(spool_dir)
    now = SystemClock().now() if now is None else now
    for run in runs:
        run["last_heard_at"] = heard.runs.get(run["number"], run["last_heard_at"])
        silent_s = now - run["last_heard_at"]
        run["late"] = (
            pid is not None and _is_recorded(run) and silent_s > max(3 * run["interval_seconds"], LATE_AFTER_S)
        )
        run["revoked"] = run["client"] in heard.revoked
    return {
        "spool": spool_dir,
        "uploader_pid": pid,
        "set_aside": quarantined_files(spool_dir),
        "turned_away": read_rejections(spool_dir),
        "destinations": destinations,
        "runs": runs,
    }


@contextmanager
def reading(spool_dir: str) -> Iterator[sqlite3.Connection]:
    """Open a spool that another process may own, for queries; raises as `read_status`, also for errors of the block."""
    path = database_path(spool_dir)
    if not os.path.isfile(path):
        raise NoSpoolError(f"there is no spool in {spool_dir}")
    try:
        with closing(connect(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if not version and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise NoSpoolError(
                    f"the spool {path} is empty: its disk was full when it was made, or its uploader has only begun; "
                    "the next one goes on with it"
                )
            # The tables read here are the same in all versions.
            if not 1 <= version <= SCHEMA_VERSION:
                raise UsageError(f"the spool {path} has schema version {version}, this command reads {SCHEMA_VERSION}")
            yield connection
    except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the spool {path}: {error}") from error


def runs_named(runs: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the runs with this id, key or `CLIENT/KEY`; else those with these four or more characters in their ids."""
    runs = list(runs) if name else []
    exact = [run for run in runs if name in {run["run_id"], run["key"], f"{run['client']}/{run['key']}"}]
    return exact or [run for run in runs if len(name) >= _MIN_ID_CHARS and name in run["run_id"]]


def _is_recorded(run: dict[str, Any]) -> bool:
    """Whether the run's end is unknown."""
    return run["status"] is None and run["state"] not in {str(state) for state in ENDED_STATES}


def is_undelivered(run: dict[str, Any]) -> bool:
    """Whether rows of the run, or its end, are still to be delivered. Those of a parked run are."""
    is_over = run["state"] in {str(state) for state in ENDED_STATES}
    return not is_over and bool(run["rows_waiting"] or run["status"] is not None)


def _destinations(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    names = ("name", "attempts", "next_try_at", "error", "since")
    rows = connection.execute("SELECT name, attempts, next_try_at, error, since FROM destinations ORDER BY name")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _runs(connection: sqlite3.Connection, destinations: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    waiting = {run: _Pending(*sums) for run, *sums in connection.execute(_WAITING)}
    return [
        _run(number, decode_record(blob), waiting.get(number, _Pending()), destinations)
        for number, blob in connection.execute("SELECT id, record FROM runs ORDER BY id")
    ]


class _Pending(NamedTuple):
    """Not delivered of one run: rows, objects that contain them, and bytes of the spool."""

    rows: int = 0
    objects: int = 0
    size: int = 0


_WAITING = """
    SELECT run, sum(rows), sum(objects), sum(size) FROM (
        SELECT run, rows, 0 AS objects, length(payload) AS size FROM frames
        UNION ALL SELECT run, rows, 1, bytes FROM batches
    ) GROUP BY run
"""


def _run(number: int, record: RunRecord, waiting: _Pending, destinations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    next_try_at, error = record.next_try_at, record.last_error
    behind = None if error else _blocking_destination(record, waiting.objects, destinations)
    if behind is not None:
        # Another run tries the destination for all that wait.
        next_try_at, error = behind["next_try_at"], f"waiting for {behind['name']}"
    finish = record.finish
    return {
        "number": number,
        "run_id": record.run_id,
        "key": record.key,
        "client": record.owner,
        "state": str(record.state),
        "created_at": record.created_at,
        "interval_seconds": record.interval_s,
        "last_heard_at": max(record.created_at, record.statistics.last_timestamp),
        "late": False,
        "revoked": False,
        "ended_at": record.ended_at,
        "rows_delivered": record.delivered_rows,
        "rows_waiting": waiting.rows,
        "rows_missing": record.missing_rows,
        "objects_delivered": record.delivered_batches,
        "objects_waiting": waiting.objects,
        "spool_bytes": waiting.size,
        "object_bytes": record.object_bytes,
        "exit_code": None if finish is None else finish.exit_code,
        "status": None if finish is None else finish.status,
        "closed_as_stale": record.closed_as_stale,
        "next_try_at": next_try_at,
        "last_error": error,
        "last_error_at": record.last_error_at,
        "location": record.uri_prefix,
        "metadata": record.metadata,
        "host": record.host,
        "cloud": record.cloud,
        "response": record.response,
        "statistics": to_json_safe(record.statistics.summary()),
        "objects": [object_uri(record.uri_prefix, n) for n in range(1, record.delivered_batches + 1)],
    }


def _blocking_destination(
    record: RunRecord, waiting_objects: int, destinations: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """Return the failing destination that blocks the run's next call, `None` when none does."""
    if record.state not in OPEN_STATES:
        return None
    for name, entry in destinations.items():
        is_store = bool(record.uri_prefix) and f"{record.uri_prefix}/".startswith(f"{name}/")
        is_api = name.startswith(("http://", "https://"))
        if is_store and waiting_objects:
            return entry
        if (is_api or name.startswith("file:")) and _next_call_is_api(record, waiting_objects):
            return entry
    return None


def _next_call_is_api(record: RunRecord, waiting_objects: int) -> bool:
    return record.state is RunState.NEW or (record.state is RunState.FINISHING and not waiting_objects)
