"""`sentinel-stream show`: one run in a terminal."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sentinel_viewer.analysis.advice import NOTE, PROBLEM, Advice
from sentinel_viewer.analysis.facts import facts_of
from sentinel_viewer.analysis.view import RunView, view_of
from sentinel_viewer.cli import options
from sentinel_viewer.errors import ReadError, RunNotFoundError
from sentinel_viewer.live.lookup import found_live, named_live
from sentinel_viewer.live.rows import current_rows
from sentinel_viewer.live.uploaders import LiveRun, live_runs
from sentinel_viewer.output import units
from sentinel_viewer.output.console import columns, write
from sentinel_viewer.output.sparkline import row_sparkline
from sentinel_viewer.output.text_table import printable, table
from sentinel_viewer.runs.naming import FoundRun, Library

_MARKS = {PROBLEM: "!!", NOTE: " ·"}
_CHANGE_MARK = " >"
_MAX_SPARK, _MIN_SPARK = 60, 20
_TEXT_COLUMNS = 62


def run(words: list[str]) -> int:
    """Show figures, a line of bars for each, and advice."""
    parser = options.parser("show", "Show a run: what it was, what it used, and what the next one needs.")
    parser.add_argument("run", metavar="RUN", nargs="?", default="latest", help="default latest")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--spool", metavar="DIR", help="for a live run: the spool of its uploader")
    args = parser.parse_args(words)
    library = options.library(args)
    found, live = _found(library, args.run, args.spool)
    view = view_of(found, library, current_rows(found, args.spool))
    write(_as_json(view) if args.json else shown(view, columns(), live))
    return 0


def _found(library: Library, word: str, spool: str | None) -> tuple[FoundRun, LiveRun | None]:
    """Return a run, and what its uploader has of it if it is live; a run may be known only there."""
    try:
        found = library.find([word])[0]
    except RunNotFoundError:
        live = named_live(_live_runs(spool), word)
        if live is None:
            raise
        return found_live(live, library), live
    if not found.run.is_running:
        return found, None
    return found, named_live(_live_runs(spool), found.run.run_id)


def _live_runs(spool: str | None) -> list[LiveRun]:
    try:
        return live_runs(spool)
    except ReadError:
        # Without an uploader there is what was delivered.
        return []


def shown(view: RunView, width: int, live: LiveRun | None = None) -> str:
    """Return a run as text for a terminal that is so wide."""
    facts = facts_of(view)
    if live is not None:
        trouble = f"; {' '.join(live.trouble.split())}" if live.trouble else ""
        facts.append(("uploader", f"{units.counted(live.rows_waiting, 'row')} waiting{trouble}"))
    parts = [printable(view.run.title) + "\n", table(facts, indent="  ")]
    parts += [f"  {printable(remark)}\n" for remark in view.rows.remarks]
    if len(view.rows) or view.figures.mean_cores is not None:
        spark = max(_MIN_SPARK, min(_MAX_SPARK, width - _TEXT_COLUMNS))
        parts += ["\n", table(list(_usage(view, spark)), indent="  ")]
    elif view.run.is_running:
        parts.append("\n  there are no rows yet\n")
    if view.advice:
        parts.append("\nadvice (!! problem, > change, · good to know)\n")
        parts += [_advice(advice) for advice in view.advice]
    return "".join(parts)


def _advice(advice: Advice) -> str:
    mark = _MARKS.get(advice.urgency, _CHANGE_MARK)
    return f"  {mark} {advice.topic}: {advice.text}\n       {advice.basis}; {advice.certainty}\n"


def _usage(view: RunView, spark: int) -> Iterator[Sequence[str]]:
    """Yield a line for each resource that the run knows: name, bars, figures."""
    rows, figures = view.rows, view.figures
    scope, run = figures.scope, view.run
    available = run.cpu_limit or run.vcpus
    if figures.mean_cores is not None:
        of = f" of {available:g}" if available else ""
        most = f"p95 {units.cores(figures.p95_cores)}, peak {units.cores(figures.peak_cores)}"
        text = f"{units.cores(figures.mean_cores)}{of} cores on average, {most}; {units.number(figures.cpu_s)} s"
        yield "CPU", row_sparkline(rows, rows.values(f"{scope}_cpu_usage"), spark), text
    memory = "process_memory_mib" if scope == "process" else "system_memory_used_mib"
    if figures.peak_mib is not None:
        limit = run.memory_limit_mib
        of = f", limit {units.mebibytes(limit)}" if limit is not None else ""
        peak = f"peak {units.mebibytes(figures.peak_mib)}{_in_rows(view, memory)}"
        text = f"{peak}, {units.mebibytes(figures.mean_mib)} on average{of}"
        yield "memory", row_sparkline(rows, rows.values(memory), spark), text
    for name, column, verb in (
        ("disk read", f"{scope}_disk_read_bytes", "read"),
        ("disk write", f"{scope}_disk_write_bytes", "written"),
        ("net in", "system_net_recv_bytes", "received by the host"),
        ("net out", "system_net_sent_bytes", "sent by the host"),
    ):
        statistics = view.statistics.get(column)
        if statistics is not None and statistics.total:
            text = f"{units.size(statistics.total)} {verb}, {units.size(statistics.high)}/s at most"
            yield name, row_sparkline(rows, rows.rates(column), spark), text
    yield from _gpu(view, spark)


def _gpu(view: RunView, spark: int) -> Iterator[Sequence[str]]:
    rows, scope = view.rows, view.figures.scope
    usage, vram = (view.statistics.get(f"{scope}_gpu_{name}") for name in ("usage", "vram_mib"))
    if usage is not None and usage.high > 0:
        text = f"{units.cores(usage.mean)} GPUs on average, {units.cores(usage.high)} at most"
        yield "GPU", row_sparkline(rows, rows.values(f"{scope}_gpu_usage"), spark), text
    if vram is not None and vram.high > 0:
        text = f"peak {units.mebibytes(vram.high)}, {units.mebibytes(vram.mean)} on average"
        yield "GPU memory", row_sparkline(rows, rows.values(f"{scope}_gpu_vram_mib"), spark), text


def _in_rows(view: RunView, column: str) -> str:
    """Say so when the peak is that of one process between two rows, and lies above all of them."""
    statistics, peak = view.statistics.get(column), view.figures.peak_mib
    if statistics is None or peak is None or statistics.high >= peak * 0.99:
        return ""
    return f" (one process, between two rows; the rows reach {units.mebibytes(statistics.high)})"


def _as_json(view: RunView) -> str:
    """Return the figures with plain numbers; `null` is unknown. Times are UNIX seconds."""
    document: dict[str, Any] = {
        "run_id": view.run.run_id,
        "location": view.found.location,
        "outcome": view.outcome.kind,
        "result": view.outcome.text,
        "started_at": view.run.started_at,
        "finished_at": view.run.finished_at,
        "figures": view.figures._asdict(),
        "statistics": {
            name: {"unit": one.column.unit, "kind": one.column.kind}
            | {key: value for key, value in one._asdict().items() if key != "column"}
            for name, one in view.statistics.items()
        },
        "gaps": [gap._asdict() for gap in view.rows.gaps],
        "advice": [advice._asdict() for advice in view.advice],
        "remarks": view.rows.remarks,
        "metadata": view.run.metadata,
        "host": view.run.host,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
