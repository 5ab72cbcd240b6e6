"""`sentinel-uploader doctor`."""

import argparse
from collections.abc import Mapping

import msgspec

from sentinel_protocol.common.clock import SystemClock
from sentinel_uploader.cli.command import Command, read_settings, settings_parser
from sentinel_uploader.cli.console import write_json, write_output


def _make_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    parser = settings_parser(prog, summary)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--put", action="store_true", help="also register, store and finish one empty run")
    return parser


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    # Its checks import urllib3 and botocore.
    from sentinel_uploader.doctor.findings import exit_code, report
    from sentinel_uploader.doctor.run import run_checks

    found = []
    for finding in run_checks(read_settings(args, environ), environ, clock=SystemClock(), put=args.put):
        found.append(finding)
        if not args.json:
            write_output(report([finding]))
    if args.json:
        write_json(msgspec.to_builtins(found))
    return exit_code(found)


DOCTOR = Command(
    "check spool, disk, token, API, storage and clock; exit code 1 if something does not work",
    _run,
    make_parser=_make_parser,
)
