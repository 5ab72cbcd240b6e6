"""The list of all runs as a page: what is live first, then what is delivered, the newest first."""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

from sentinel_viewer.analysis.figures import figures_of_description
from sentinel_viewer.analysis.outcome import FAILED, outcome_of
from sentinel_viewer.live.watch import LiveEntry
from sentinel_viewer.output import units
from sentinel_viewer.report.html import Markup, asset, element, joined, json_block, moment, page, table
from sentinel_viewer.runs.run import Run
from sentinel_viewer.top.lines import COLUMNS

LIMIT = 200
_MORE = 5
_LIVE_COLUMNS = ("job", "host", "state", "age", "cpu", "history", "memory", "gpu", "waiting", "row", "heard", "trouble")
_TITLE_CHARS = 80
_NUMBERS = frozenset({2, 4, 5})


class Query(NamedTuple):
    """What a reader wants to see: words that job, command, host or id hold; failed runs only; at most so many."""

    words: str = ""
    failed: bool = False
    limit: int = LIMIT

    def matches(self, run: Run) -> bool:
        """Whether a run is wanted."""
        if self.failed and outcome_of(run).kind != FAILED:
            return False
        text = "\n".join((run.run_id, run.job, run.command, run.host_name)).lower()
        return all(word in text for word in self.words.lower().split())


def list_page(where: str, runs: Sequence[Run], live: Sequence[LiveEntry], query: Query) -> str:
    """Return the document. `runs` are all there are, the newest last."""
    found = [run for run in reversed(runs) if query.matches(run)]
    shown = found[: query.limit]
    heading = element("div", element("h1", "Runs"), element("div", element("code", where), class_="soft"))
    button = Markup('<button type="button" id="theme" hidden>light / dark</button>')
    body = [element("header", heading, button)]
    if live:
        body += [element("h2", f"Live ({len(live)})"), _live_table(live, {run.run_id: run.name for run in runs})]
    counted = units.counted(len(found), "run") + (f" of {len(runs)}" if len(found) < len(runs) else "")
    body += [element("h2", f"Recorded ({counted})"), _filter(query)]
    body.append(_table(shown) if shown else element("p", "There is no such run.", class_="soft"))
    if len(found) > len(shown):
        more = urlencode({"q": query.words, "failed": "1" if query.failed else "", "limit": query.limit * _MORE})
        body.append(element("p", element("a", "show more", href=f"/?{more}")))
    content = joined(
        [element("main", *body, data_events="/events"), json_block("settings", {"runs": [], "charts": []})]
    )
    # `charts.js` has the page's times; without uPlot it draws nothing.
    scripts = [asset(f"assets/{name}.js") for name in ("charts", "page", "live")]
    styles = [asset("assets/report.css")]
    return page("Runs - sentinel-stream", content, scripts=scripts, styles=styles, is_served=True)


def run_path(name: str) -> str:
    """Return the path of a run's page."""
    return f"/run/{quote(name)}"


def _live_table(live: Sequence[LiveEntry], names: dict[str, str]) -> Markup:
    columns = [column for column in COLUMNS if column.key in _LIVE_COLUMNS]
    columns = [column for column in columns if any(column.text(one) not in ("", units.NOTHING) for one in live)]
    rows = []
    for one in live:
        cells: list[str] = [column.text(one) for column in columns]
        if one.run_id in names:
            cells[0] = element("a", cells[0], href=run_path(names[one.run_id]))
        rows.append(cells)
    numbers = [place for place, column in enumerate(columns) if column.right]
    return table([column.head for column in columns], rows, caption="Live runs", numbers=numbers)


def _filter(query: Query) -> Markup:
    checked = " checked" if query.failed else ""
    words = element("label", "Filter ", Markup(f'<input type="search" name="q" value="{_attribute(query.words)}">'))
    failed = element("label", Markup(f'<input type="checkbox" name="failed" value="1"{checked}> failed only'))
    button = element("button", "apply", type="submit")
    return element("form", words, failed, button, class_="toolbar", action="/", method="get")


def _attribute(value: str) -> Markup:
    return Markup(element("i", value)[3:-4])


def _table(runs: Sequence[Run]) -> Markup:
    rows: list[tuple[str, ...]] = []
    for run in runs:
        figures, outcome = figures_of_description(run), outcome_of(run)
        title = run.title if len(run.title) <= _TITLE_CHARS else run.title[: _TITLE_CHARS - 1] + "…"
        of = f" of {run.vcpus:g}" if run.vcpus else ""
        chosen = element("label", Markup(f'<input type="checkbox" name="run" value="{_attribute(run.name)}">'))
        rows.append(
            (
                element("a", title if run.is_described else run.run_id, href=run_path(run.name)),
                moment(run.started_at),
                units.duration(figures.duration_s),
                element("span", outcome.text, class_=f"badge {outcome.kind}"),
                units.NOTHING if figures.mean_cores is None else f"{units.cores(figures.mean_cores)}{of}",
                units.mebibytes(figures.peak_mib),
                run.host_name,
                element("code", run.run_id),
                joined([chosen]),
            )
        )
    head = ("job or command", "start", "duration", "result", "CPU", "memory", "host", "run", "compare")
    # A column in which nothing is known takes the place of one in which something is.
    shown = [place for place in range(len(head)) if any(row[place] not in ("", units.NOTHING) for row in rows)]
    content = table(
        [head[place] for place in shown],
        [[row[place] for place in shown] for row in rows],
        caption="Recorded runs",
        numbers=[number for number, place in enumerate(shown) if place in _NUMBERS],
    )
    button = element("button", "compare the chosen runs", type="submit")
    return element("form", content, element("p", button), action="/compare", method="get")
