"""The rows of a run, with those that its uploader has not delivered yet: a live run is seconds old, not minutes."""

import msgspec

from sentinel_viewer.errors import ReadError
from sentinel_viewer.live.uploaders import undelivered_rows
from sentinel_viewer.rows.reader import parse_rows, read_rows
from sentinel_viewer.rows.table import Rows
from sentinel_viewer.runs.naming import FoundRun


def current_rows(found: FoundRun, spool: str | None = None) -> Rows:
    """Read all rows of a run; those of a live run also from its uploader, where there is one. Raises `ReadError`."""
    run = found.run
    if not run.is_running:
        return read_rows(found)
    try:
        # Before the objects are read: what is delivered meanwhile is there twice, and counts once.
        waiting = undelivered_rows(spool, run.run_id).get(run.run_id)
    except ReadError:
        waiting = None
    if waiting is None:
        return read_rows(found)
    if run.objects is not None and len(run.objects) < len(waiting.objects):
        names = [uri.rpartition("/")[2] for uri in waiting.objects]
        found = FoundRun(found.place, msgspec.structs.replace(run, objects=names))
    return read_rows(found).followed_by(parse_rows([("the uploader's rows", waiting.csv)], run.interval_s))
