"""`sentinel-uploader rows`: the rows that are not delivered yet."""

import argparse
from collections.abc import Mapping

from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.admin.rows_reader import UndeliveredRows, read_undelivered
from sentinel_uploader.cli.command import Command
from sentinel_uploader.cli.console import print_note, write_json, write_output
from sentinel_uploader.cli.inspection import choose_spools, find_run, make_parser, read_statuses
from sentinel_uploader.runs.lifecycle import ENDED_STATES


def _make_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    parser = make_parser(prog, summary)
    help_text = "run id (a part of it will do) or run key; with --json, without it: every run that is not over"
    parser.add_argument("run", metavar="RUN", nargs="?", help=help_text)
    parser.add_argument("--after", metavar="SEQ", type=_count, default=0, help="only rows with higher numbers")
    parser.add_argument("--newest", metavar="N", type=_count, help="of each run at most so many, the newest")
    return parser


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.run is None:
        if not args.json or args.after:
            raise UsageError("rows: name a RUN; without one there are --json and --newest")
        write_json([one.as_json() for one in _of_all_runs(args, environ)])
        return 0
    directory, run = find_run(args, environ)
    found = read_undelivered(directory, [run["number"]], after=args.after, newest=args.newest)
    if not found:
        raise UsageError(f"the uploader has forgotten the run {args.run!r}")
    if args.json:
        write_json([found[0].as_json()])
        return 0
    write_output(found[0].csv.decode("ascii"))
    print_note(f"{found[0].rows} rows; --after {found[0].last_seq} shows those that come next")
    return 0


def _of_all_runs(args: argparse.Namespace, environ: Mapping[str, str]) -> list[UndeliveredRows]:
    over = {str(state) for state in ENDED_STATES}
    statuses, _ = read_statuses(choose_spools(args, environ))
    found: list[UndeliveredRows] = []
    for status in statuses:
        numbers = [run["number"] for run in status["runs"] if run["state"] not in over]
        found += read_undelivered(status["spool"], numbers, newest=args.newest)
    return found


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


ROWS = Command("the rows of a run that are not delivered, as CSV", _run, "RUN", _make_parser)
