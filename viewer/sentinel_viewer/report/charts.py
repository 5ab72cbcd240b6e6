"""Which charts a report has, and which lines are in them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sentinel_viewer.analysis.view import RunView
from sentinel_viewer.output import units
from sentinel_viewer.output.text_table import printable

_TOO_HIGH = 4.0
"""A machine's line that is so many times higher than the job's starts hidden: it would press the job's to the floor."""


class Series(NamedTuple):
    """A line. `colour` names a variable of the style sheet; `role` is `job`, `host`, or `run` in an overlay."""

    run: int
    column: str
    label: str
    role: str
    colour: str
    rate: bool
    filled: bool = False
    hidden: bool = False


class Mark(NamedTuple):
    """A level across the chart, such as a limit."""

    value: float
    label: str
    colour: str
    dashed: bool


class Chart(NamedTuple):
    """A chart. `unit` is `cores`, `MiB`, `GPUs` or `bytes/s`."""

    id: str
    title: str
    unit: str
    series: list[Series]
    lines: list[Mark]

    def described(self) -> dict[str, Any]:
        """Return it as the page's script reads it."""
        return {
            "id": self.id,
            "unit": self.unit,
            "series": [series._asdict() for series in self.series],
            "lines": [line._asdict() for line in self.lines],
        }


class _Resource(NamedTuple):
    """What a chart is about: (column without its scope, label, colour) of its lines."""

    id: str
    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]
    scopes: tuple[str, ...] = ("process", "system")


_RESOURCES = (
    _Resource("cpu", "CPU", "cores", (("cpu_usage", "", "job"),)),
    _Resource("memory", "Memory", "MiB", (("memory", "", "job"),)),
    _Resource(
        "disk", "Disk", "bytes/s", (("disk_read_bytes", "read", "job"), ("disk_write_bytes", "written", "second"))
    ),
    _Resource(
        "network",
        "Network of the host",
        "bytes/s",
        (("net_recv_bytes", "received", "job"), ("net_sent_bytes", "sent", "second")),
        ("system",),
    ),
    _Resource("gpu", "GPU", "GPUs", (("gpu_usage", "", "job"),)),
    _Resource("vram", "GPU memory", "MiB", (("gpu_vram_mib", "", "job"),)),
)
_MEMORY = {"process": "process_memory_mib", "system": "system_memory_used_mib"}


def charts_of(view: RunView) -> list[Chart]:
    """Return the charts of one run: the job filled, the machine behind it. An unused resource has none."""
    charts = []
    for resource in _RESOURCES:
        series = [one for scope in reversed(resource.scopes) for one in _series(view, resource, scope)]
        if series:
            charts.append(Chart(resource.id, resource.title, resource.unit, series, _marks(view, resource.id)))
    return charts


def overlay_of(views: Sequence[RunView]) -> list[Chart]:
    """Return the charts of several runs: one line a run for each thing that is counted."""
    charts = []
    for resource in _RESOURCES:
        for name, label, _ in resource.lines:
            series = []
            for number, view in enumerate(views):
                scope = view.figures.scope if view.figures.scope in resource.scopes else resource.scopes[0]
                column = _column(name, scope)
                if _is_used(view, column):
                    name_of_run = printable(view.run.run_id)
                    series.append(Series(number, column, name_of_run, "run", "", rate=resource.unit == "bytes/s"))
            if series:
                suffix = f"-{label}" if label else ""
                title = f"{resource.title}, {label}" if label else resource.title
                charts.append(Chart(f"{resource.id}{suffix}", title, resource.unit, series, []))
    return charts


def _series(view: RunView, resource: _Resource, scope: str) -> list[Series]:
    found = []
    is_job = scope == "process" or len(resource.scopes) == 1 or view.figures.scope == "system"
    for name, label, colour in resource.lines:
        column = _column(name, scope)
        if not _is_used(view, column):
            continue
        words = [label] if len(resource.scopes) == 1 else [{"process": "job", "system": "host"}[scope], label]
        found.append(
            Series(
                run=0,
                column=column,
                label=" ".join(filter(None, words)),
                role="job" if is_job else "host",
                colour=colour if is_job or len(resource.lines) > 1 else "host",
                rate=resource.unit == "bytes/s",
                filled=len(resource.lines) == 1,
                hidden=not is_job and _is_too_high(view, column, _column(name, "process")),
            )
        )
    return found


def _column(name: str, scope: str) -> str:
    return _MEMORY[scope] if name == "memory" else f"{scope}_{name}"


def _is_used(view: RunView, column: str) -> bool:
    """Whether a line is worth drawing: CPU and memory always, what was never above zero not."""
    statistics = view.statistics.get(column)
    if statistics is None:
        return False
    return statistics.high > 0 or column in {"process_cpu_usage", "system_cpu_usage", *_MEMORY.values()}


def _is_too_high(view: RunView, host: str, job: str) -> bool:
    high, low = view.statistics.get(host), view.statistics.get(job)
    return high is not None and low is not None and 0 < low.high * _TOO_HIGH < high.high


def _marks(view: RunView, chart: str) -> list[Mark]:
    run, figures = view.run, view.figures
    if chart == "cpu":
        marks = []
        if run.vcpus:
            marks.append(Mark(run.vcpus, f"machine: {run.vcpus:g} CPUs", "machine", dashed=True))
        if run.cpu_limit and run.cpu_limit != run.vcpus:
            marks.append(Mark(run.cpu_limit, f"limit: {run.cpu_limit:g} CPUs", "limit", dashed=True))
        return marks
    if chart == "memory":
        marks = []
        if figures.peak_mib:
            marks.append(Mark(figures.peak_mib, f"peak {units.mebibytes(figures.peak_mib)}", "peak", dashed=False))
        limit = run.memory_limit_mib
        if limit:
            marks.append(Mark(limit, f"limit {units.mebibytes(limit)}", "limit", dashed=True))
        elif run.host_memory_mib:
            text = f"machine: {units.mebibytes(run.host_memory_mib)}"
            marks.append(Mark(run.host_memory_mib, text, "machine", dashed=True))
        return marks
    if chart == "vram" and figures.peak_vram_mib:
        text = f"peak {units.mebibytes(figures.peak_vram_mib)}"
        return [Mark(figures.peak_vram_mib, text, "peak", dashed=False)]
    return []
