"""`sentinel-uploader status` and `show`."""

import argparse
from collections.abc import Mapping

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.local_uploader import spools_home
from sentinel_uploader.admin.status_reader import read_status
from sentinel_uploader.admin.status_table import describe_run, status_text
from sentinel_uploader.cli.command import Command
from sentinel_uploader.cli.console import print_error, write_json, write_output
from sentinel_uploader.cli.inspection import choose_spools, find_run, make_parser, make_run_parser, read_statuses


def _status(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.run is not None:
        directory, run = find_run(args, environ)
        statuses = [read_status(directory) | {"runs": [run]}]
    else:
        statuses, errors = read_statuses(choose_spools(args, environ))
        for error in errors:
            print_error(error, 0)
    if args.json:
        write_json(statuses)
    elif not statuses:
        write_output(f"no spool in {spools_home(environ)}; --spool DIR or --config FILE names one elsewhere\n")
    else:
        write_output(status_text(statuses, now=SystemClock().now()))
    return 0


def _show(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    _, run = find_run(args, environ)
    if args.json:
        write_json(run)
    else:
        write_output(describe_run(run))
    return 0


def _make_status_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    parser = make_parser(prog, summary)
    parser.add_argument("run", metavar="RUN", nargs="?", help="only this run: its id (a part will do) or run key")
    return parser


STATUS = Command(
    "every run: job, state, rows waiting, objects, next try and last error", _status, "[RUN]", _make_status_parser
)
SHOW = Command("everything about one run", _show, "RUN", make_run_parser)
