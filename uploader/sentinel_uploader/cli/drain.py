"""`sentinel-uploader drain`."""

import argparse
from collections.abc import Mapping

from sentinel_protocol.common.clock import SystemClock
from sentinel_uploader.admin.client import request_drain
from sentinel_uploader.admin.status_reader import is_undelivered, read_status
from sentinel_uploader.app.factory import spool_dir
from sentinel_uploader.cli.command import Command, read_settings, settings_parser
from sentinel_uploader.cli.console import write_output
from sentinel_uploader.cli.serve import open_service
from sentinel_uploader.spool.lock import lock_owner_pid

_MAX_TIMEOUT_S = 86_400 * 365


def _make_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    parser = settings_parser(prog, summary)
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="default 300")
    return parser


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    values = read_settings(args, environ)
    clock = SystemClock()
    directory = spool_dir(values, environ)
    if lock_owner_pid(directory) is not None:
        request_drain(directory, args.timeout, clock=clock)
    else:
        service = open_service(values, environ, clock, listen=False)
        service.drain(args.timeout)
        service.run()
    left = sum(1 for run in read_status(directory)["runs"] if is_undelivered(run))
    write_output(f"runs with something left to deliver: {left}\n" if left else "everything is delivered\n")
    return 1 if left else 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return value


DRAIN = Command("deliver what the spool holds, then end; exit code 1 if rows are left", _run, make_parser=_make_parser)
