"""`sentinel-stream rm`: deletes runs, after it has asked."""

from sentinel_protocol.common.errors import UsageError
from sentinel_viewer.analysis.outcome import outcome_of
from sentinel_viewer.cli import options
from sentinel_viewer.output import units
from sentinel_viewer.output.console import confirm, note, write
from sentinel_viewer.output.text_table import printable
from sentinel_viewer.runs.naming import FoundRun


def run(words: list[str]) -> int:
    """Say what is deleted, ask, delete."""
    parser = options.parser("rm", "Delete runs: their description and their rows. Asks first.")
    parser.add_argument("run", metavar="RUN", nargs="+", help="see `sentinel-stream --help`")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="also a run that has not ended")
    args = parser.parse_args(words)
    if files := [word for word in args.run if word.endswith((".csv", ".csv.gz"))]:
        raise UsageError(f"{files[0]} is a file: rm deletes whole runs, name the run")
    found = {one.location: one for one in options.library(args).find(args.run)}
    left = 0
    for one in found.values():
        if one.run.is_running and not args.force:
            note(
                f"{one.location} has not ended: its uploader still writes there (see `sentinel-uploader status`); "
                "--force deletes it all the same"
            )
            left += 1
            continue
        write(f"{_described(one)}\n")
        if args.yes or confirm("delete it?"):
            one.place.delete_run(one.run.name)
            write(f"deleted {printable(one.location)}\n")
        else:
            write("kept\n")
            left += 1
    return 1 if left else 0


def _described(found: FoundRun) -> str:
    objects = found.place.list_objects(found.run.name)
    rows = "" if found.run.rows is None else f", {units.counted(found.run.rows, 'row')}"
    what = f"{units.counted(len(objects), 'object')} ({units.size(sum(objects.values()))}{rows})"
    title = printable(found.run.title)
    return (
        f"{printable(found.location)}: {title}, {units.local_time(found.run.started_at)}, "
        f"{outcome_of(found.run).text}; {what}"
    )
