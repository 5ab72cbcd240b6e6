"""`sentinel-uploader retry` and `discard`."""

import argparse
import functools
from collections.abc import Mapping

from sentinel_protocol.common.clock import SystemClock
from sentinel_uploader.admin.client import request_change
from sentinel_uploader.cli.command import Command
from sentinel_uploader.cli.console import write_output
from sentinel_uploader.cli.inspection import find_run, make_run_parser
from sentinel_uploader.spool.control_channel import DISCARD as DISCARD_RUN
from sentinel_uploader.spool.control_channel import RETRY as RETRY_RUN


def _retry_or_discard(kind: str, args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    directory, run = find_run(args, environ)
    request_change(directory, kind, run["number"], clock=SystemClock())
    write_output(f"{kind}: {run['run_id'] or run['key']} done\n")
    return 0


RETRY = Command(
    "deliver a parked run again (parked: set aside for an operator)",
    functools.partial(_retry_or_discard, RETRY_RUN),
    "RUN",
    make_run_parser,
)
DISCARD = Command(
    "give a run up and delete its undelivered rows",
    functools.partial(_retry_or_discard, DISCARD_RUN),
    "RUN",
    make_run_parser,
)
