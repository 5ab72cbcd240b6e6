"""Asks the uploaders of this user what they have, by the commands that people use too: `status` and `rows`.

The uploader's spool is its own business; these commands are its interface.
"""

import json
import os
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

from sentinel_viewer.errors import ReadError
from sentinel_viewer.runs.run import Run, number_of, run_of, text_of

_TIMEOUT_S = 20
_COMMAND = "sentinel-uploader"
ENDED_STATES = frozenset({"finished", "failed"})


class LiveRun(NamedTuple):
    """A run as its uploader has it.

    `objects` are the URIs of what is delivered. `next_try_at` is UNIX seconds, 0 when nothing is waiting for a retry.
    `is_late`: the collector is silent for longer than it should be. `is_revoked`: its key is not accepted any more.
    """

    run: Run
    client: str
    state: str
    rows_delivered: int
    rows_waiting: int
    objects: list[str]
    next_try_at: float
    trouble: str
    has_uploader: bool
    last_heard_at: float | None = None
    is_late: bool = False
    is_revoked: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the run is over and delivered."""
        return self.state in ENDED_STATES


class RowsAtUploader(NamedTuple):
    """Rows of a run that are not delivered: CSV with a header. `objects` are the URIs of the objects before them."""

    csv: bytes
    objects: list[str]


def live_runs(spool: str | None = None) -> list[LiveRun]:
    """Return the runs of one spool, or of all of this user's uploaders; raises `ReadError` where none answers."""
    return runs_of(_asked("status", spool=spool))


def undelivered_rows(
    spool: str | None = None, run_id: str = "", *, newest: int | None = None
) -> dict[str, RowsAtUploader]:
    """Return the rows that are not delivered, of one run or of all that are not over, by run id.

    A run that is not registered yet has its run key instead of an id. Raises `ReadError` where no uploader answers.
    """
    words = ["rows", *([run_id] if run_id else []), *([] if newest is None else ["--newest", str(newest)])]
    entries = _asked(*words, spool=spool)
    found: dict[str, RowsAtUploader] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and text_of(entry.get("csv")):
            name = text_of(entry.get("run_id")) or text_of(entry.get("key"))
            found[name] = RowsAtUploader(entry["csv"].encode(), _uris(entry.get("objects")))
    return found


def _asked(*words: str, spool: str | None) -> Any:
    """Return the uploader's answer to a command as decoded JSON; raises `ReadError`."""
    command = [_program(), words[0], "--json", *(["--spool", spool] if spool else []), *words[1:]]
    name = f"`{_COMMAND} {words[0]}`"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)  # noqa: PLW1510 -- looked at below
    except subprocess.TimeoutExpired:
        raise ReadError(f"{name} did not answer within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise ReadError(f"cannot run {_COMMAND}: {error.strerror}") from error
    if done.returncode:
        raise ReadError(f"{name} failed: {done.stderr.strip() or done.returncode}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise ReadError(f"{name} answered no JSON: {error}") from error


def runs_of(statuses: Any) -> list[LiveRun]:
    """Return the runs in the output of `status --json`; what another version has there and is unknown is left out."""
    found = []
    for status in statuses if isinstance(statuses, list) else ():
        has_uploader = status.get("uploader_pid") is not None
        found += [_run(entry, has_uploader) for entry in status.get("runs", ()) if isinstance(entry, dict)]
    return found


def _run(entry: dict[str, Any], has_uploader: bool) -> LiveRun:
    state = text_of(entry.get("state"))
    description = {
        "run_id": text_of(entry.get("run_id")) or text_of(entry.get("key")),
        "state": state if state in ENDED_STATES else "running",
        "started_at": entry.get("created_at"),
        "interval_seconds": entry.get("interval_seconds"),
        "rows": entry.get("rows_delivered"),
        **{name: entry.get(name) for name in ("metadata", "host", "cloud", "statistics", "exit_code", "status")},
        **{name: entry.get(name) for name in ("missing_rows", "closed_as_stale")},
    }
    return LiveRun(
        run=run_of(text_of(description["run_id"]), description),
        client=text_of(entry.get("client")),
        state=state,
        rows_delivered=int(number_of(entry.get("rows_delivered")) or 0),
        rows_waiting=int(number_of(entry.get("rows_waiting")) or 0),
        objects=_uris(entry.get("objects")),
        next_try_at=number_of(entry.get("next_try_at")) or 0.0,
        trouble=text_of(entry.get("last_error")),
        has_uploader=has_uploader,
        last_heard_at=number_of(entry.get("last_heard_at")),
        is_late=entry.get("late") is True,
        is_revoked=entry.get("revoked") is True,
    )


def _uris(value: Any) -> list[str]:
    return [uri for uri in value if isinstance(uri, str)] if isinstance(value, list) else []


def _program() -> str:
    """Return the uploader's command: the one beside this interpreter, else the one on the path."""
    places = os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)
    found = shutil.which(_COMMAND, path=os.pathsep.join(places))
    if found is None:
        raise ReadError(f"{_COMMAND} is not installed here: it knows the live runs")
    return found
