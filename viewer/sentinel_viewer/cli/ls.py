"""`sentinel-stream ls`: all runs in a table."""

import argparse
import functools
import json
from typing import Any

from sentinel_protocol.common.clock import SystemClock
from sentinel_viewer.analysis.figures import Figures, figures_of_description
from sentinel_viewer.analysis.outcome import FAILED, RUNNING, outcome_of
from sentinel_viewer.cli import options
from sentinel_viewer.output import units
from sentinel_viewer.output.console import columns, is_terminal, note, write
from sentinel_viewer.output.text_table import shortened, table
from sentinel_viewer.runs.places import RunPlace
from sentinel_viewer.runs.run import Run

_HEAD = ("run", "job or command", "host", "start", "duration", "result", "CPU", "memory", "GPU", "delivered")
_RIGHT = (4, 6, 7, 8)
_TITLE_COLUMNS, _MIN_TITLE_COLUMNS = 40, 12
_RESULT_COLUMNS = 44


def run(words: list[str]) -> int:
    """List runs, the newest last."""
    args = _parse(words)
    library = options.library(args)
    chosen = [one for one in library.runs() if _is_wanted(one, args)]
    chosen = chosen[-args.limit :] if args.limit else chosen
    if args.json:
        write(json.dumps([_as_json(library.place, one) for one in chosen], indent=2, ensure_ascii=False) + "\n")
    elif not chosen:
        where = "no such run" if library.runs() else "no runs yet"
        note(f"{where} in {library.place.uri}; `sentinel-collector -- COMMAND` records one")
    else:
        write(_table(chosen))
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = options.parser("ls", "List runs, the newest last.", examples="  sentinel-stream ls --failed --since 7d\n")
    parser.add_argument("--job", metavar="NAME", help="only runs of this job")
    parser.add_argument("--failed", action="store_true", help="only runs that did not end well")
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=functools.partial(options.moment, now=SystemClock().now()),
        help="only runs that began since then: 12h, 7d, 2026-11-30",
    )
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="only the N newest of these")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(words)
    if args.limit < 0:
        parser.error("--limit: must be at least 1")
    return args


def _is_wanted(one: Run, args: argparse.Namespace) -> bool:
    if args.job is not None and one.job != args.job:
        return False
    if args.since is not None and (one.started_at is None or one.started_at < args.since):
        return False
    return not args.failed or outcome_of(one).kind == FAILED


def _table(runs: list[Run]) -> str:
    rows = [_cells(one) for one in runs]
    # A column in which nothing is known takes the place of one in which something is.
    shown = [place for place in range(len(_HEAD)) if place < 2 or any(row[place] != units.NOTHING for row in rows)]
    lines = [_HEAD, *rows]
    titles = [row[1] for row in lines]
    if is_terminal():
        others = sum(max(len(row[place]) for row in lines) + 2 for place in shown if place != 1)
        room = max(_MIN_TITLE_COLUMNS, columns() - others)
    else:
        room = _TITLE_COLUMNS
    cut = [(row[0], shortened(title, room), *row[2:]) for row, title in zip(lines, titles, strict=True)]
    right = [number for number, place in enumerate(shown) if place in _RIGHT]
    return table([[row[place] for place in shown] for row in cut], right=right)


def _cells(one: Run) -> tuple[str, ...]:
    figures = figures_of_description(one)
    return (
        one.run_id,
        one.title if one.is_described else units.NOTHING,
        shortened(one.host_name, 20) or units.NOTHING,
        units.local_time(one.started_at),
        units.duration(figures.duration_s),
        shortened(outcome_of(one).text, _RESULT_COLUMNS),
        _cpu(one, figures),
        units.mebibytes(figures.peak_mib),
        _gpu(one, figures),
        _delivered(one),
    )


def _cpu(one: Run, figures: Figures) -> str:
    if figures.mean_cores is None:
        return units.NOTHING
    text = f"{figures.mean_cores:.2f}"
    return f"{text} of {one.vcpus:g}, {units.share(figures.mean_cores, one.vcpus):>5}" if one.vcpus else text


def _gpu(one: Run, figures: Figures) -> str:
    count = one.host.get("host_gpu_count")
    if figures.mean_gpus is None or not (count or figures.peak_gpus):
        return units.NOTHING
    return f"{figures.mean_gpus:.2f}" + (f" of {count}" if isinstance(count, int) else "")


def _delivered(one: Run) -> str:
    if not one.is_described:
        return units.NOTHING
    if outcome_of(one).kind == RUNNING:
        return "not all"
    return f"{one.missing_rows} rows missing" if one.missing_rows else "yes"


def _as_json(place: RunPlace, one: Run) -> dict[str, Any]:
    """Return what `ls` shows, with plain numbers; `None` is unknown. Times are ISO 8601 in UTC."""
    figures = figures_of_description(one)
    outcome = outcome_of(one)
    return {
        "run_id": one.run_id,
        "location": place.locate(one.name),
        "job": one.job or None,
        "command": one.command or None,
        "host": one.host_name or None,
        "started_at": units.utc_time(one.started_at) or None,
        "finished_at": units.utc_time(one.finished_at) or None,
        "duration_seconds": figures.duration_s,
        "outcome": outcome.kind,
        "result": outcome.text,
        "exit_code": one.exit_code,
        "vcpus": one.vcpus,
        "cpu_cores_mean": figures.mean_cores,
        "cpu_cores_max": figures.peak_cores,
        "cpu_seconds": figures.cpu_s,
        "memory_peak_mib": figures.peak_mib,
        "gpu_mean": figures.mean_gpus,
        "gpu_vram_peak_mib": figures.peak_vram_mib,
        "rows": one.rows,
        "missing_rows": one.missing_rows,
        "delivered": one.is_described and outcome.kind != RUNNING,
        "metadata": one.metadata,
    }
