"""Shows what `read_status` returns to people: a table of runs, or everything about one run."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sentinel_protocol.common.time_text import utc_text
from sentinel_uploader.telemetry.counters import UNNAMED

_COLUMNS = ("run", "client", "job", "state", "rows", "waiting", "objects", "next try", "last error")
_MAX_ERROR_CHARS = 100
_MAX_JOB_CHARS = 32


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
            f"(failed {entry['attempts']} times{_next_try(entry, now) if pid is not None else ''})"
            for entry in status["destinations"]
        )
        lines.extend(_rejection_lines(status))
        rows = [_COLUMNS, *(_cells(run, now, has_uploader=pid is not None) for run in status["runs"])]
        # Clients have names only where there are keys, and runs have jobs only where somebody named them.
        shown = [n for n, name in enumerate(_COLUMNS) if n not in (1, 2) or any(row[n] != "-" for row in rows[1:])]
        rows = [tuple(row[n] for n in shown) for row in rows]
        if len(rows) == 1:
            lines.append("  no runs")
            continue
        lines.extend(f"  {line}" for line in align(rows))
    return "".join(f"{line}\n" for line in lines)


def align(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the rows as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rejection_lines(status: dict[str, Any]) -> Iterator[str]:
    """Yield lines about what the uploader has rejected since its start; `docs/operation.md` explains the reasons."""
    noted = status["turned_away"]
    if noted is None:
        return
    yield f"  rejected since {_utc_text(noted['since'])}: {_counts(noted['reasons'])}"
    for client, reasons in noted["clients"].items():
        held = sum(run["spool_bytes"] for run in status["runs"] if (run["client"] or UNNAMED) == client)
        yield f"  client {client} has {held} bytes of the spool; rejected: {_counts(reasons)}"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())


def describe_run(run: dict[str, Any]) -> str:
    """Return everything about one run, one line for each fact."""
    lines = []
    for name, value in run.items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines.extend(f"  {key}: {_format(item)}" for key, item in value.items())
        elif isinstance(value, list):
            lines.append(f"{name}: {len(value)}")
            lines.extend(f"  {_format(item)}" for item in value)
        elif name.endswith("_at"):
            lines.append(f"{name}: {_utc_text(value)}")
        else:
            lines.append(f"{name}: {_format(value)}")
    return "\n".join(lines) + "\n"


def _format(value: object) -> str:
    """Return a value as one line; `-` for nothing."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_format, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _next_try(entry: dict[str, Any], now: float) -> str:
    return f", next try {_relative_time(entry['next_try_at'], now)}"


def _state(run: dict[str, Any], now: float) -> str:
    state = str(run["state"])
    if run["exit_code"]:
        state += f", exit code {run['exit_code']}"
    if run["late"]:
        state += f", late: silent for {now - run['last_heard_at']:.0f} s"
    return state + (", client revoked" if run["revoked"] else "")


def _job(run: dict[str, Any]) -> str:
    name = str(run["metadata"].get("job_name") or "")
    return (name if len(name) <= _MAX_JOB_CHARS else name[: _MAX_JOB_CHARS - 1] + "…") or "-"


def _cells(run: dict[str, Any], now: float, *, has_uploader: bool) -> tuple[str, ...]:
    rows = str(run["rows_delivered"])
    if run["rows_missing"]:
        rows += f" ({run['rows_missing']} missing)"
    return (
        run["run_id"] or run["key"],
        run["client"] or "-",
        _job(run),
        _state(run, now),
        rows,
        str(run["rows_waiting"]),
        str(run["objects_delivered"]),
        _relative_time(run["next_try_at"], now) if run["next_try_at"] and has_uploader else "-",
        _shortened(run["last_error"]) or "-",
    )


def _relative_time(at: float, now: float) -> str:
    return "now" if at <= now else f"in {at - now:.0f} s"


def _utc_text(at: float) -> str:
    return utc_text(at, "seconds") if at else "-"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 1] + "…"
