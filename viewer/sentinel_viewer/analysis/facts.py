"""What a run was: the lines that stand above its figures, in the terminal and in a report."""

from typing import Any

from sentinel_viewer.analysis.view import RunView
from sentinel_viewer.output import units
from sentinel_viewer.runs.run import Run, text_of

_KNOWN_METADATA = frozenset({"job_name", "command", "tags"})


def facts_of(view: RunView) -> list[tuple[str, str]]:
    """Return (name, value) pairs; what is unknown is left out."""
    run, rows = view.run, view.rows
    facts = [
        ("result", view.outcome.text),
        ("command", run.command),
        ("start", _time(run.started_at or (rows.start if len(rows) else None))),
        ("duration", units.duration(view.figures.duration_s)),
        ("rows", _rows(view)),
        ("machine", machine_of(run)),
        ("tags", ", ".join(f"{key}={value}" for key, value in tags_of(run))),
        ("run id", run.run_id),
        ("where", view.found.location),
    ]
    return [(name, value) for name, value in facts if value and value != units.NOTHING]


def machine_of(run: Run) -> str:
    """Return the machine in a line, empty when nothing is known of it."""
    parts = [run.host_name]
    if run.vcpus:
        parts.append(f"{run.vcpus:g} CPUs")
    parts.append(text_of(run.host.get("host_cpu_model")))
    if run.host_memory_mib:
        parts.append(f"{units.mebibytes(run.host_memory_mib)} of memory")
    count = text_of(run.host.get("host_gpu_count"))
    if count and count != "0":
        parts.append(f"{count} x {text_of(run.host.get('host_gpu_model')) or 'GPU'}")
    parts += [text_of(run.cloud.get(f"cloud_{name}_id")) for name in ("vendor", "region")]
    if run.scope == "container":
        parts.append("as its container sees it")
    return ", ".join(filter(None, parts))


def tags_of(run: Run) -> list[tuple[str, str]]:
    """Return the tags; they are a map, a list of `key=value`, or a list of `{"key", "value"}`."""
    tags = run.metadata.get("tags")
    if isinstance(tags, dict):
        return [(str(key), text_of(value)) for key, value in tags.items()]
    found = []
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, dict):
            found.append((text_of(tag.get("key")), text_of(tag.get("value"))))
        else:
            key, _, value = text_of(tag).partition("=")
            found.append((key, value))
    return found


def metadata_of(run: Run) -> list[tuple[str, str]]:
    """Return everything that was said about run, host and cloud, as it was said."""
    found: list[tuple[str, Any]] = [item for item in run.metadata.items() if item[0] not in _KNOWN_METADATA]
    found = [("job_name", run.job), ("command", run.command), *found]
    found += [(f"tag {key}", value) for key, value in tags_of(run)]
    found += [*run.host.items(), *run.cloud.items()]
    found += [("interval_seconds", run.interval_s), ("accounting", run.accounting), ("scope", run.scope)]
    return [(str(key), text_of(value) or str(value)) for key, value in found if value]


def _rows(view: RunView) -> str:
    run, rows = view.run, view.rows
    parts = [str(len(rows))]
    if run.interval_s:
        parts[0] += f", one every {run.interval_s:g} s"
    if run.is_running:
        parts.append("more are on their way")
    if rows.gaps:
        missing = units.duration(sum(gap.end - gap.start for gap in rows.gaps))
        parts.append(f"{units.counted(len(rows.gaps), 'gap')} of {missing} in all")
    if run.missing_rows:
        parts.append(f"{run.missing_rows} were lost before they were delivered")
    if run.rows is not None and run.rows != len(rows) and run.objects is not None and not run.is_running:
        parts.append(f"the run had {run.rows}")
    return "; ".join(parts)


def _time(stamp: float | None) -> str:
    return "" if stamp is None else f"{units.local_time(stamp)} ({units.utc_time(stamp)})"
