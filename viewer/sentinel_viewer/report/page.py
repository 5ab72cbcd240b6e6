"""The report: one HTML file with everything in it, for one run or for several on top of each other."""

from collections.abc import Sequence
from typing import Any

from sentinel_viewer.analysis.advice import Advice
from sentinel_viewer.analysis.comparison import DIFFERENT, Difference, Measure
from sentinel_viewer.analysis.facts import facts_of, metadata_of
from sentinel_viewer.analysis.view import RunView
from sentinel_viewer.output import units
from sentinel_viewer.report.charts import Chart, Series, charts_of, overlay_of
from sentinel_viewer.report.html import Markup, asset, definition_list, element, joined, json_block, moment, page, table
from sentinel_viewer.report.packing import pack_rows
from sentinel_viewer.rows.downsample import Bucket, into_buckets
from sentinel_viewer.rows.table import Rows

_TABLE_ROWS = 30
_HINT = (
    "Drag to zoom, double-click or Esc for all, Shift and drag to move, Ctrl and the wheel to zoom. "
    "With the keyboard: Tab to a chart, arrows along its rows, Shift and arrows to move, + and - to zoom, 0 for all."
)
Compared = Sequence[tuple[Measure, list[Difference]]]


def report_page(views: Sequence[RunView], compared: Compared = (), *, events: str = "", links: str = "") -> str:
    """Return the document. With several runs, `compared` are their differences from the first one.

    A served page has `links` to others, and follows the server at `events` while there is more to come.
    """
    is_overlay = len(views) > 1
    charts = overlay_of(views) if is_overlay else charts_of(views[0])
    title = " · ".join(view.run.title for view in views)
    body: list[str] = [links, _header(views, title)]
    if is_overlay:
        body.append(_runs(views))
        body.append(_differences(views, compared))
    else:
        body += [_tiles(views[0]), _advice(views[0].advice)]
    drawn = [chart for chart in charts if len(views[0].rows)]
    body += [_charts(views, drawn, is_overlay), *(_details(view, number) for number, view in enumerate(views))]
    body.append(element("footer", "Written by sentinel-stream. Times are those of ", _zone(), "."))
    blocks, described = _data(views)
    settings = {"overlay": is_overlay, "runs": described, "charts": [chart.described() for chart in drawn]}
    content = joined([element("main", *body, data_events=events), *blocks, json_block("settings", settings)])
    names = ["data", "charts", "page", *(["live"] if events else [])]
    scripts = [asset("vendor/uplot/uPlot.iife.min.js"), *(asset(f"assets/{name}.js") for name in names)]
    styles = [asset("vendor/uplot/uPlot.min.css"), asset("assets/report.css")]
    return page(f"{title} - sentinel-stream", content, scripts=scripts, styles=styles, is_served=bool(links))


def _header(views: Sequence[RunView], title: str) -> Markup:
    badge = element("span", views[0].outcome.text, class_=f"badge {views[0].outcome.kind}")
    start = views[0].run.started_at or (views[0].rows.start if len(views[0].rows) else None)
    line = [badge, Markup(" "), moment(start)] if len(views) == 1 else [f"{len(views)} runs, by time since their start"]
    button = Markup('<button type="button" id="theme" hidden>light / dark</button>')
    return element("header", element("div", element("h1", title), element("div", *line)), button)


def _tiles(view: RunView) -> Markup:
    """Return the figures that people ask for first."""
    figures, run = view.figures, view.run
    available = run.cpu_limit or run.vcpus
    of = f" of {available:g} cores" if available else " cores"
    limit = f", limit {units.mebibytes(run.memory_limit_mib)}" if run.memory_limit_mib else ""
    tiles = [
        ("duration", units.duration(figures.duration_s), f"{units.counted(len(view.rows), 'row')}"),
        ("CPU, mean", f"{units.cores(figures.mean_cores)}{of}", f"p95 {units.cores(figures.p95_cores)}"),
        ("CPU time", units.quantity(figures.cpu_s, "s"), f"peak {units.cores(figures.peak_cores)} cores"),
        ("memory, peak", units.mebibytes(figures.peak_mib), f"mean {units.mebibytes(figures.mean_mib)}{limit}"),
        ("disk, written", units.size(figures.disk_write_bytes), f"{units.size(figures.disk_read_bytes)} read"),
    ]
    if figures.peak_gpus or figures.peak_vram_mib:
        vram = f"{units.mebibytes(figures.peak_vram_mib)} of its memory at most"
        tiles.append(("GPU, mean", f"{units.cores(figures.mean_gpus)} GPUs", vram))
    return definition_list(
        ((name, joined((value, element("small", small)))) for name, value, small in tiles), class_="tiles"
    )


def _advice(pieces: Sequence[Advice]) -> Markup:
    if not pieces:
        return Markup("")
    items = (
        element(
            "li",
            element("p", element("strong", f"{advice.topic}: "), advice.text),
            element("p", f"{advice.basis}. {advice.certainty[:1].upper()}{advice.certainty[1:]}.", class_="soft"),
            class_=advice.urgency,
        )
        for advice in pieces
    )
    return joined((element("h2", "Advice"), element("ul", *items, class_="advice")))


def _runs(views: Sequence[RunView]) -> Markup:
    head = ("run", "job or command", "start", "duration", "result")
    rows = [
        (
            view.run.run_id,
            view.run.title,
            moment(view.run.started_at),
            units.duration(view.figures.duration_s),
            view.outcome.text,
        )
        for view in views
    ]
    return joined((element("h2", "Runs"), table(head, rows, caption="The runs")))


def _differences(views: Sequence[RunView], compared: Compared) -> Markup:
    """Return the table of differences; those that are more than noise stand out, and say so in words."""
    lines = []
    for measure, values in compared:
        cells = [element("th", measure.label, scope="row")]
        for value in values:
            words = units.quantity(value.value, measure.unit)
            if value.percent is not None and value.verdict:
                words += f" ({units.change(value.percent)}, {value.verdict})"
            kind = "number different" if value.verdict == DIFFERENT else "number"
            cells.append(element("td", words, class_=kind, title=value.reason if value.verdict else ""))
        lines.append(element("tr", *cells))
    head = element(
        "tr", element("th", ""), *(element("th", view.run.run_id, class_="number", scope="col") for view in views)
    )
    note = (
        "Noise: runs of the first one's job vary as much. Unsure: it has too few runs to tell. "
        "Different: more than 95 % of pairs of its runs differ less."
    )
    body = element("div", element("table", element("thead", head), element("tbody", *lines)), class_="scroll")
    return joined((element("h2", "Differences from the first run"), body, element("p", note, class_="soft")))


def _charts(views: Sequence[RunView], charts: Sequence[Chart], is_overlay: bool) -> Markup:
    if not charts:
        return element("p", "No rows have been delivered yet: there is nothing to draw.", class_="soft")
    tools = Markup('<button type="button" id="reset" disabled>show all</button>')
    toolbar = element("div", tools, element("span", _HINT, class_="hint"), class_="toolbar")
    trouble = Markup(
        '<p id="trouble" role="alert" hidden></p>'
        "<noscript><p>The charts need JavaScript; the tables below each of them do not.</p></noscript>"
        '<p id="live" class="hidden-text" aria-live="polite"></p>'
    )
    gaps = [gap for view in views for gap in view.rows.gaps]
    note = element("p", "Red: times that no row covers.", class_="soft") if gaps and not is_overlay else Markup("")
    figures = (
        element(
            "figure",
            element("h3", chart.title),
            element(
                "div", id=chart.id, class_="chart", tabindex="0", role="application",
                aria_label=f"Chart of {chart.title}; its data is in the table below",
            ),
            _chart_table(views, chart, is_overlay),
        )
        for chart in charts
    )  # fmt: skip
    return joined((element("h2", "Charts"), toolbar, trouble, note, *figures))


def _chart_table(views: Sequence[RunView], chart: Chart, is_overlay: bool) -> Markup:
    """Return what the chart shows as a table: mean and extremes of equal stretches of time."""
    per_second = chart.unit == "bytes/s"
    unit = "bytes" if per_second else chart.unit
    longest = max(view.rows.end - view.rows.start for view in views)
    columns = [_buckets(views[series.run].rows, series, longest) for series in chart.series]
    rows = []
    for number in range(len(columns[0])):
        first = columns[0][number]
        start = first.start - views[chart.series[0].run].rows.start if is_overlay else first.start
        cells: list[str] = [units.duration(start) if is_overlay else moment(start)]
        for buckets in columns:
            bucket = buckets[number]
            values = (bucket.mean, bucket.low, bucket.high)
            cells += [units.quantity(value, unit, per_second=per_second) for value in values]
        rows.append(cells)
    names = [name for one in chart.series for name in (f"{one.label}, mean", "lowest", "highest")]
    head = ["from", *names]
    content = table(head, rows, caption=f"{chart.title} over time", numbers=range(1, len(head)))
    return element("details", element("summary", f"{chart.title} as a table"), content, class_="data")


def _buckets(rows: Rows, series: Series, longest: float) -> list[Bucket]:
    values = rows.rates(series.column) if series.rate else rows.values(series.column)
    count = max(1, min(_TABLE_ROWS, len(rows)))
    return into_buckets(rows.times, values, rows.start, rows.start + longest, count if longest else 1)


def _details(view: RunView, number: int) -> Markup:
    """Return what is known of a run beyond its charts: facts, statistics, metadata, and its rows."""
    title = f"Run {view.run.run_id}"
    parts = [element("h2", title), element("div", definition_list(facts_of(view), class_="facts"), class_="card")]
    if view.rows.remarks:
        parts.append(element("ul", *(element("li", remark) for remark in view.rows.remarks), class_="soft"))
    if view.statistics:
        parts += [element("h3", "Statistics", class_="space"), _statistics(view)]
    metadata = metadata_of(view.run)
    if metadata:
        content = table(("name", "value"), metadata, caption="Metadata")
        parts.append(element("details", element("summary", "Metadata"), content))
    if len(view.rows):
        button = Markup(f'<button type="button" data-run="{number}" hidden>save the rows as CSV</button>')
        words = f" all {units.counted(len(view.rows), 'row')} are in this file"
        parts.append(element("p", button, element("span", words, class_="soft")))
    return element("section", *parts)


def _statistics(view: RunView) -> Markup:
    rows = []
    has_gpu = bool(view.figures.peak_gpus or view.figures.peak_vram_mib or view.run.host.get("host_gpu_count"))
    for one in view.statistics.values():
        if "_gpu_" in one.column.name and not has_gpu and not one.high:
            continue
        is_rate = one.total is not None
        values = (one.mean, one.low, one.median, one.p95, one.high)
        cells = [units.quantity(value, one.column.unit, per_second=is_rate) for value in values]
        total = units.quantity(one.total, one.column.unit) if is_rate else ""
        rows.append((one.column.label, *cells, moment(one.high_at), total))
    head = ("", "mean", "lowest", "median", "p95", "highest", "at", "total")
    return table(head, rows, caption="Statistics", numbers=(1, 2, 3, 4, 5, 7))


def _data(views: Sequence[RunView]) -> tuple[list[Markup], list[dict[str, Any]]]:
    """Return the blocks that hold the rows, and what the page's script has to know of them."""
    blocks, described = [], []
    for number, view in enumerate(views):
        rows = view.rows
        if not len(rows):
            continue
        packed = pack_rows(rows)
        block = f"rows-{number}"
        blocks.append(Markup(f'<script type="application/octet-stream" id="{block}">{packed.block}</script>\n'))
        gap_rows = [row for row, length in enumerate(rows.lengths) if row == 0 or _is_other(rows, row, length)]
        described.append(
            {
                "block": block,
                "file": view.run.run_id,
                "start": rows.start,
                "rows": len(rows),
                "interval": rows.interval_s,
                "gaps": [[gap.start, gap.end] for gap in rows.gaps],
                "lengths": {str(row): rows.lengths[row] for row in gap_rows},
                "columns": packed.columns,
            }
        )
    return blocks, described


def _is_other(rows: Rows, row: int, length: float) -> bool:
    """Whether a row's length is not the time since the row before."""
    return length != rows.times[row] - rows.times[row - 1]


def _zone() -> Markup:
    return element("span", "UTC", class_="zone")
