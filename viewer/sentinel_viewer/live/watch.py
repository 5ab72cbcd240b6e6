"""What live runs use now: their newest delivered rows, read once each."""

from collections.abc import Callable
from typing import NamedTuple

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_viewer.live.uploaders import LiveRun
from sentinel_viewer.output import units
from sentinel_viewer.rows.reader import read_rows
from sentinel_viewer.rows.table import Rows, known
from sentinel_viewer.runs.naming import Library

_NEWEST = 3
"""So many of a run's newest objects are looked at."""
_NOW_S = 10.0
_TROUBLE_CHARS = 60


class LiveEntry(NamedTuple):
    """One line of `top`. `None` is unknown; `cores` and `gpus` are means of the last seconds that were delivered.

    `history` are cores in use, oldest first. `newest_row_s` is how long ago the newest delivered row was taken.
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


class Watch:
    """Looks at live runs again and again; rows that were read are kept until their run has newer ones."""

    def __init__(self, ask: Callable[[], list[LiveRun]], library: Library) -> None:
        self._ask = ask
        self._library = library
        self._recent: dict[str, tuple[list[str], Rows | None]] = {}

    def look(self, now: float, *, all_runs: bool = False) -> list[LiveEntry]:
        """Return the runs that are not over, or all that the uploader still knows; raises `ReadError`."""
        runs = [one for one in self._ask() if all_runs or not one.has_ended]
        entries = [self._entry(one, now) for one in runs]
        self._recent = {name: self._recent[name] for name in self._recent.keys() & {one.run_id for one in entries}}
        return entries

    def _entry(self, one: LiveRun, now: float) -> LiveEntry:
        run, rows = one.run, self._rows(one)
        scope = "system" if rows is None and run.is_host_run else "process"
        if rows is not None and not rows.has("process_cpu_usage"):
            scope = "system"
        memory = "process_memory_mib" if scope == "process" else "system_memory_used_mib"
        return LiveEntry(
            run_id=run.run_id,
            job=run.title,
            host=run.host_name,
            client=one.client,
            state=one.state if one.has_uploader else f"{one.state}, no uploader",
            age_s=None if run.started_at is None else max(0.0, now - run.started_at),
            cores=_now(rows, f"{scope}_cpu_usage"),
            vcpus=run.cpu_limit or run.vcpus,
            history=[] if rows is None else known(rows.values(f"{scope}_cpu_usage")),
            memory_mib=_now(rows, memory),
            gpus=_now(rows, f"{scope}_gpu_usage") if run.host.get("host_gpu_count") else None,
            rows_waiting=one.rows_waiting,
            newest_row_s=None if rows is None else max(0.0, now - rows.end),
            trouble=_trouble(one, now),
        )

    def _rows(self, one: LiveRun) -> Rows | None:
        newest = one.objects[-_NEWEST:]
        known_objects, rows = self._recent.get(one.run.run_id, ([], None))
        if newest and newest != known_objects:
            try:
                found = self._library.find(newest)
                rows = read_rows(found[0]) if found else None
            except SentinelStreamError:
                # The uploader is on another machine, or writes where this user may not read.
                rows = None
            rows = rows if rows is not None and len(rows) else None
        self._recent[one.run.run_id] = (newest, rows)
        return rows


def _now(rows: Rows | None, name: str) -> float | None:
    """Return the mean of the last seconds."""
    if rows is None:
        return None
    values = known(value for value, time in zip(rows.values(name), rows.times, strict=True) if time > rows.end - _NOW_S)
    return sum(values) / len(values) if values else None


def _trouble(one: LiveRun, now: float) -> str:
    if not one.trouble:
        return ""
    text = " ".join(one.trouble.split())
    wait = (
        f", next try in {units.duration(one.next_try_at - now)}" if one.next_try_at > now and one.has_uploader else ""
    )
    return (text if len(text) <= _TROUBLE_CHARS else text[: _TROUBLE_CHARS - 1] + "…") + wait
