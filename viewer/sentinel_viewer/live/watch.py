"""What live runs use now: their newest delivered rows, read once each, and those that their uploader still has."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_viewer.errors import ReadError
from sentinel_viewer.live.uploaders import LiveRun, RowsAtUploader, undelivered_rows
from sentinel_viewer.output import units
from sentinel_viewer.rows.reader import parse_rows, read_rows
from sentinel_viewer.rows.table import Rows, known
from sentinel_viewer.runs.naming import Library

_NEWEST = 3
"""So many of a run's newest objects are looked at."""
_KEPT_ROWS = 4000
_ROWS_PER_LOOK = 60
_NOW_S = 10.0
_TROUBLE_CHARS = 60


class LiveEntry(NamedTuple):
    """One line of `top`. `None` is unknown; `cores` and `gpus` are means of the last seconds that are known.

    `history` are cores in use, oldest first. `newest_row_s` is how long ago the newest row was taken,
    `heard_s` how long ago the uploader heard the collector.
    """

    run_id: str
    job: str
    host: str
    client: str
    state: str
    age_s: float | None
    cores: float | None
    vcpus: float | None
    history: list[float]
    memory_mib: float | None
    gpus: float | None
    rows_waiting: int
    newest_row_s: float | None
    trouble: str
    heard_s: float | None = None


class Watch:
    """Looks at live runs again and again; rows that were read are kept until their run has newer ones."""

    def __init__(
        self,
        ask: Callable[[], list[LiveRun]],
        library: Library,
        ask_rows: Callable[[], dict[str, RowsAtUploader]] = dict,
    ) -> None:
        self._ask = ask
        self._ask_rows = ask_rows
        self._library = library
        self._recent: dict[str, tuple[list[str], Rows | None]] = {}

    def look(self, now: float, *, all_runs: bool = False) -> list[LiveEntry]:
        """Return the runs that are not over, or all that the uploader still knows; raises `ReadError`."""
        runs = [one for one in self._ask() if all_runs or not one.has_ended]
        try:
            waiting = self._ask_rows() if runs else {}
        except ReadError:
            # An uploader of an earlier version has no such command.
            waiting = {}
        entries = [self._entry(one, waiting.get(one.run.run_id), now) for one in runs]
        self._recent = {name: self._recent[name] for name in self._recent.keys() & {one.run_id for one in entries}}
        return entries

    def _entry(self, one: LiveRun, waiting: RowsAtUploader | None, now: float) -> LiveEntry:
        run, rows = one.run, self._rows(one, waiting)
        scope = "system" if rows is None and run.is_host_run else "process"
        if rows is not None and not rows.has("process_cpu_usage"):
            scope = "system"
        memory = "process_memory_mib" if scope == "process" else "system_memory_used_mib"
        return LiveEntry(
            run_id=run.run_id,
            job=run.title,
            host=run.host_name,
            client=one.client,
            state=_state(one),
            age_s=None if run.started_at is None else max(0.0, now - run.started_at),
            cores=_now(rows, f"{scope}_cpu_usage"),
            vcpus=run.cpu_limit or run.vcpus,
            history=[] if rows is None else known(rows.values(f"{scope}_cpu_usage")),
            memory_mib=_now(rows, memory),
            gpus=_now(rows, f"{scope}_gpu_usage") if run.host.get("host_gpu_count") else None,
            rows_waiting=one.rows_waiting,
            newest_row_s=None if rows is None else max(0.0, now - rows.end),
            trouble=_trouble(one, now),
            heard_s=None if one.last_heard_at is None else max(0.0, now - one.last_heard_at),
        )

    def _rows(self, one: LiveRun, waiting: RowsAtUploader | None) -> Rows | None:
        newest = one.objects[-_NEWEST:]
        known_objects, rows = self._recent.get(one.run.run_id, ([], None))
        if newest and newest != known_objects:
            # The uploader may be on another machine, or write where this user may not read: what was seen stays.
            with contextlib.suppress(SentinelStreamError):
                found = self._library.find(newest)
                rows = read_rows(found[0]) if found else rows
        if waiting is not None:
            at_uploader = parse_rows([("", waiting.csv)], one.run.interval_s)
            rows = at_uploader if rows is None else rows.followed_by(at_uploader)
        rows = rows.newest(_KEPT_ROWS) if rows is not None and len(rows) else None
        self._recent[one.run.run_id] = (newest, rows)
        return rows


def newest_rows(spool: str | None) -> dict[str, RowsAtUploader]:
    """Return some of each live run's newest undelivered rows, as `Watch` wants them; raises `ReadError`."""
    return undelivered_rows(spool, newest=_ROWS_PER_LOOK)


def _now(rows: Rows | None, name: str) -> float | None:
    """Return the mean of the last seconds."""
    if rows is None:
        return None
    values = known(value for value, time in zip(rows.values(name), rows.times, strict=True) if time > rows.end - _NOW_S)
    return sum(values) / len(values) if values else None


def _state(one: LiveRun) -> str:
    marks = {"no uploader": not one.has_uploader, "late": one.is_late, "revoked": one.is_revoked}
    return ", ".join([one.state, *(mark for mark, is_set in marks.items() if is_set)])


def _trouble(one: LiveRun, now: float) -> str:
    if not one.trouble:
        return ""
    text = " ".join(one.trouble.split())
    wait = (
        f", next try in {units.duration(one.next_try_at - now)}" if one.next_try_at > now and one.has_uploader else ""
    )
    return (text if len(text) <= _TROUBLE_CHARS else text[: _TROUBLE_CHARS - 1] + "…") + wait
