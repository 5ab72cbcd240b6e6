"""What the spool says about its runs, for people and programs; read without disturbing the uploader that owns it."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.runs.lifecycle import ENDED_STATES, OPEN_STATES, RunState
from sentinel_uploader.runs.object_names import object_uri
from sentinel_uploader.spool.database import connect, database_path, quarantined_files
from sentinel_uploader.spool.lock import lock_owner_pid
from sentinel_uploader.spool.run_record import RunRecord, decode_record
from sentinel_uploader.spool.schema import SCHEMA_VERSION
from sentinel_uploader.telemetry.counters import UNNAMED
from sentinel_uploader.telemetry.rejections_file import read_turned_away
from sentinel_uploader.util.json_safe import to_json_safe

_COLUMNS = ("run", "client", "state", "rows", "waiting", "objects", "next try", "last error")
_MAX_ERROR_CHARS = 100


class NoSpoolError(UsageError):
    """There is no spool, or one that no uploader has finished making."""


def read_status(spool_dir: str) -> dict[str, Any]:
    """Return `{"spool", "uploader_pid", "set_aside": […], "turned_away", "destinations": […], "runs": […]}`.

    Times are UNIX seconds. `set_aside` are the paths of earlier spools that could not be read; `turned_away` is what
    `read_turned_away` returns.

    Raises `NoSpoolError` when there is no spool, `UsageError` when it cannot be read.
    """
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
            # What is read here is the same in all of them.
            if not 1 <= version <= SCHEMA_VERSION:
                raise UsageError(f"the spool {path} has schema version {version}, this command reads {SCHEMA_VERSION}")
            destinations = _destinations(connection)
            runs = _runs(connection, {entry["name"]: entry for entry in destinations})
    except (sqlite3.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the spool {path}: {error}") from error
    return {
        "spool": spool_dir,
        "uploader_pid": lock_owner_pid(spool_dir),
        "set_aside": quarantined_files(spool_dir),
        "turned_away": read_turned_away(spool_dir),
        "destinations": destinations,
        "runs": runs,
    }


def status_text(statuses: Iterable[dict[str, Any]], *, now: float) -> str:
    """Return a table for people (`now` in UNIX seconds)."""
    lines: list[str] = []
    for status in statuses:
        pid = status["uploader_pid"]
        lines.append(
            f"spool {status['spool']} ({'uploader ' + str(pid) if pid is not None else 'no uploader running'})"
        )
        lines.extend(
            f"  an earlier spool could not be read; nothing of it is deleted: {path}" for path in status["set_aside"]
        )
        lines.extend(
            f"  waiting for {entry['name']}: {_shortened(entry['error'])} "
            f"(failed {entry['attempts']} times, next try {_when(entry['next_try_at'], now)})"
            for entry in status["destinations"]
        )
        lines.extend(_turned_away(status))
        rows = [_COLUMNS, *(_cells(run, now) for run in status["runs"])]
        if not any(run["client"] for run in status["runs"]):
            # Without keys there are no names.
            rows = [(row[0], *row[2:]) for row in rows]
        if len(rows) == 1:
            lines.append("  no runs")
            continue
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines.extend(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
    return "".join(f"{line}\n" for line in lines)


def _turned_away(status: dict[str, Any]) -> Iterator[str]:
    """Yield lines on what the uploader did not take since it was started; see `docs/operation.md` for the reasons."""
    noted = status["turned_away"]
    if noted is None:
        return
    yield f"  turned away since {_utc(noted['since'])}: {_counts(noted['reasons'])}"
    for client, reasons in noted["clients"].items():
        held = sum(run["spool_bytes"] for run in status["runs"] if (run["client"] or UNNAMED) == client)
        yield f"  client {client} has {held} bytes of the spool; turned away: {_counts(reasons)}"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())


def describe_run(run: dict[str, Any]) -> str:
    """Return everything about one run as text, a line a fact."""
    lines = []
    for name, value in run.items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines.extend(f"  {key}: {_words(item)}" for key, item in value.items())
        elif isinstance(value, list):
            lines.append(f"{name}: {len(value)}")
            lines.extend(f"  {_words(item)}" for item in value)
        elif name.endswith("_at"):
            lines.append(f"{name}: {_utc(value)}")
        else:
            lines.append(f"{name}: {_words(value)}")
    return "\n".join(lines) + "\n"


def _words(value: object) -> str:
    """Return a value for people: what is nested in one line, nothing as `-`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def matches(run: dict[str, Any], name: str) -> bool:
    """Whether a person who writes `name` means this run: its id, its key, `CLIENT/KEY`, or the beginning of its id."""
    run_id = run["run_id"]
    return name in {run_id, run["key"], f"{run['client']}/{run['key']}"} or (
        bool(run_id) and len(name) >= 4 and run_id.startswith(name)
    )


def has_something_left(run: dict[str, Any]) -> bool:
    """Whether rows of the run, or its end, are still to be delivered; a parked run's are, some day."""
    is_over = run["state"] in {str(state) for state in ENDED_STATES}
    return not is_over and bool(run["rows_waiting"] or run["status"] is not None)


def _destinations(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    names = ("name", "attempts", "next_try_at", "error", "since")
    rows = connection.execute("SELECT name, attempts, next_try_at, error, since FROM destinations ORDER BY name")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _runs(connection: sqlite3.Connection, destinations: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    waiting = {run: _Waiting(rows, 0, size) for run, rows, size in connection.execute(_WAITING_FRAMES)}
    for run, rows, count, size in connection.execute(_WAITING_BATCHES):
        frames = waiting.get(run, _Waiting())
        waiting[run] = _Waiting(frames.rows + rows, count, frames.size + size)
    runs = []
    for number, blob in connection.execute("SELECT id, record FROM runs ORDER BY id"):
        record = decode_record(blob)
        runs.append(_run(number, record, waiting.get(number, _Waiting()), destinations))
    return runs


class _Waiting(NamedTuple):
    """What of a run is not delivered: rows, objects that are made of them, and bytes of the spool."""

    rows: int = 0
    objects: int = 0
    size: int = 0


_WAITING_FRAMES = "SELECT run, sum(rows), sum(length(payload)) FROM frames GROUP BY run"
_WAITING_BATCHES = "SELECT run, sum(rows), count(*), sum(bytes) FROM batches GROUP BY run"


def _run(number: int, record: RunRecord, waiting: _Waiting, destinations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    next_try_at, error = record.next_try_at, record.last_error
    behind = None if error else _destination_waited_for(record, waiting.objects, destinations)
    if behind is not None:
        # It waits behind another run that tries for all.
        next_try_at, error = behind["next_try_at"], f"waiting for {behind['name']}"
    finish = record.finish
    return {
        "number": number,
        "run_id": record.run_id,
        "key": record.key,
        "client": record.owner,
        "state": str(record.state),
        "created_at": record.created_at,
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


def _destination_waited_for(
    record: RunRecord, waiting_objects: int, destinations: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """Return the failing destination that the run's next call goes to, `None` when that one is not failing."""
    if record.state not in OPEN_STATES:
        return None
    for name, entry in destinations.items():
        is_store = bool(record.uri_prefix) and f"{record.uri_prefix}/".startswith(f"{name}/")
        is_api = name.startswith(("http://", "https://"))
        if is_store and waiting_objects:
            return entry
        if (is_api or name.startswith("file:")) and _asks_api(record, waiting_objects):
            return entry
    return None


def _asks_api(record: RunRecord, waiting_objects: int) -> bool:
    return record.state is RunState.NEW or (record.state is RunState.FINISHING and not waiting_objects)


def _cells(run: dict[str, Any], now: float) -> tuple[str, ...]:
    rows = str(run["rows_delivered"])
    if run["rows_missing"]:
        rows += f" ({run['rows_missing']} missing)"
    return (
        run["run_id"] or run["key"],
        run["client"] or "-",
        run["state"],
        rows,
        str(run["rows_waiting"]),
        str(run["objects_delivered"]),
        _when(run["next_try_at"], now) if run["next_try_at"] else "-",
        _shortened(run["last_error"]) or "-",
    )


def _when(at: float, now: float) -> str:
    return "now" if at <= now else f"in {at - now:.0f} s"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else "-"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 1] + "…"
