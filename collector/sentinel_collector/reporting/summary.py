"""The summary of a run: two lines on stderr, or a JSON file."""

import json
from typing import Any

from sentinel_collector.console import pluralize
from sentinel_protocol.wire.messages import Finished
from sentinel_protocol.wire.run_statistics import RunStatistics

SUMMARY_START = b'{\n  "run_id": '
"""Every `summary_json` begins like this."""
_UNITS = ("B", "kB", "MB", "GB", "TB")


def summary_lines(figures: dict[str, Any], *, is_remote: bool = False) -> list[str]:
    """Return the figures of `summary_figures` as text. With `is_remote` the uploader may be on another machine."""
    lines = [f"run {figures['run_id'] or figures['run_key']}: {_outcome(figures)}; {_usage(figures)}"]
    if figures["location"]:
        lines.append(f"{pluralize(figures['rows'], 'sample')} delivered to {figures['location']}")
    elif figures["durable"] and not figures["delivered"] and not figures["parked"]:
        if figures["delivery_error"]:
            lines.append(f"not delivered yet: {figures['delivery_error']}")
        lines.append(
            f"the uploader has all samples and delivers them; {_show_command(figures, is_remote)} shows the progress"
        )
    return lines


def parked_line(figures: dict[str, Any], *, is_remote: bool = False) -> str | None:
    """Return the line for a run that the uploader has set aside, `None` for another run."""
    if not figures["parked"]:
        return None
    show = _show_command(figures, is_remote)
    return f"the uploader has set the run aside until an operator checks it ({show}): {figures['delivery_error']}"


def _show_command(figures: dict[str, Any], is_remote: bool) -> str:
    name = figures["run_id"] or figures["run_key"]
    if not name.replace("-", "").isalnum() or not name.isascii():
        import shlex

        name = shlex.quote(name)
    return f"`sentinel-uploader show {name}`" + (" on the uploader's machine" if is_remote else "")


def summary_figures(
    *,
    run_key: str,
    run_id: str,
    status: str,
    exit_code: int | None,
    statistics: RunStatistics,
    peak_memory_mib: float | None,
    accounting: str,
    is_acknowledged: bool,
    undelivered_rows: int,
    finished: Finished | None,
    delivery_error: str,
    is_parked: bool,
) -> dict[str, Any]:
    """Return the run's figures; `statistics` are the same as in `run.json` (`RunStatistics.summary`)."""
    error = "" if finished is not None else delivery_error
    return {
        "run_id": run_id,
        "run_key": run_key,
        "status": status,
        "exit_code": exit_code,
        "rows": statistics.rows,
        "statistics": statistics.summary(),
        "peak_memory_mib": peak_memory_mib,
        "accounting": accounting,
        "durable": is_acknowledged,
        "delivered": finished is not None,
        "parked": is_parked and finished is None,
        "delivery_error": error,
        # The former name, for programs that read it.
        "trouble": error,
        "undelivered_rows": undelivered_rows,
        "location": "" if finished is None else _readable(finished.object_prefix),
        "objects": [] if finished is None else [_readable(uri) for uri in finished.objects],
        "response": {} if finished is None else finished.response,
    }


def summary_json(figures: dict[str, Any]) -> bytes:
    """Return the figures as JSON text."""
    return (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _outcome(figures: dict[str, Any]) -> str:
    code = figures["exit_code"]
    return str(figures["status"]) if code is None else f"{figures['status']} with exit code {code}"


def _usage(figures: dict[str, Any]) -> str:
    statistics = figures["statistics"]
    scope = "process" if "process_cpu_usage" in statistics else "system"
    memory = statistics.get("process_memory_mib" if scope == "process" else "system_memory_used_mib", {"max": 0.0})
    peak = max(memory["max"], figures["peak_memory_mib"] or 0.0)
    # Unknown in all rows (hidden processes), or a run without rows, which has used nothing.
    cpu = statistics.get(f"{scope}_cpu_usage", None if statistics["rows"] else {"mean": 0.0, "max": 0.0})
    seconds = sum(statistics.get(f"{scope}_{kind}", {"total": 0.0})["total"] for kind in ("utime", "stime"))
    parts = [f"{statistics['duration_seconds']:.1f} s"]
    if cpu is not None:
        parts.append(f"CPU {seconds:.2f} s ({cpu['mean']:.2f} cores on average, {cpu['max']:.2f} at most)")
    if peak:
        # Unknown for a job that ended before the first sample.
        parts.append(f"memory {peak:.0f} MiB at most")
    disk = [statistics.get(f"{scope}_disk_{kind}_bytes", {"total": 0})["total"] for kind in ("read", "write")]
    if any(disk):
        parts.append(f"disk {_size(disk[0])} read, {_size(disk[1])} written")
    gpu = statistics.get(f"{scope}_gpu_usage")
    if gpu is not None and gpu["max"] > 0:
        parts.append(f"GPU {gpu['mean']:.2f} on average, {gpu['max']:.2f} at most")
    return ", ".join(parts)


def _size(size: float) -> str:
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _readable(uri: str) -> str:
    """Return a `file://` URI as a path, others unchanged."""
    if not uri.startswith("file://"):
        return uri
    path = uri.removeprefix("file://")
    if "%" not in path:
        return path
    from urllib.parse import unquote

    return unquote(path)
