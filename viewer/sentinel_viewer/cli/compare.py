"""`sentinel-stream compare`: runs side by side."""

import json
from collections.abc import Sequence
from typing import Any

from sentinel_viewer.analysis.comparison import DIFFERENT, EQUAL, NOISE, UNSURE, Difference, Measure, differences
from sentinel_viewer.analysis.figures import figures_of_rows
from sentinel_viewer.analysis.outcome import outcome_of
from sentinel_viewer.analysis.spread import spread_of
from sentinel_viewer.cli import options
from sentinel_viewer.output import units
from sentinel_viewer.output.console import write
from sentinel_viewer.output.text_table import shortened, table
from sentinel_viewer.rows.reader import read_rows
from sentinel_viewer.runs.naming import FoundRun

_TITLE_COLUMNS = 24
_MARKS = {DIFFERENT: "different", UNSURE: "?", NOISE: "noise", EQUAL: ""}


def run(words: list[str]) -> int:
    """Compare runs with the first one."""
    parser = options.parser(
        "compare",
        "Put runs side by side and mark each difference from the first one: noise, different, or ? where nothing\n"
        "tells. What varies between runs of one job is noise: three runs of the first one's job are needed for that.",
        examples="  sentinel-stream compare train~1 train\n",
    )
    parser.add_argument("run", metavar="RUN", nargs="+", help="two or more; see `sentinel-stream --help`")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(words)
    if len(args.run) < 2:
        parser.error("name two runs or more")
    library = options.library(args)
    found = library.find(args.run)
    figures = [figures_of_rows(one.run, read_rows(one)) for one in found]
    compared = differences(figures, spread_of(library, found))
    write(_as_json(found, compared) if args.json else _as_text(found, compared))
    return 0


def _as_text(found: Sequence[FoundRun], compared: list[tuple[Measure, list[Difference]]]) -> str:
    head = [["", *(one.run.run_id for one in found)]]
    head.append(["job or command", *(shortened(one.run.title, _TITLE_COLUMNS) for one in found)])
    head.append(["start", *(units.local_time(one.run.started_at) for one in found)])
    head.append(["result", *(outcome_of(one.run).text for one in found)])
    for measure, values in compared:
        cells = [units.quantity(values[0].value, measure.unit)]
        for value in values[1:]:
            text = units.quantity(value.value, measure.unit)
            percent = "" if value.percent is None or not value.verdict else f"  {units.change(value.percent)}"
            cells.append(f"{text}{percent}  {_MARKS[value.verdict]}".rstrip())
        head.append([measure.label, *cells])
    return table(head)


def _as_json(found: Sequence[FoundRun], compared: list[tuple[Measure, list[Difference]]]) -> str:
    document: dict[str, Any] = {
        "runs": [{"run_id": one.run.run_id, "location": one.location} for one in found],
        "measures": {
            measure.key: {"unit": measure.unit, "values": [value._asdict() for value in values]}
            for measure, values in compared
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
