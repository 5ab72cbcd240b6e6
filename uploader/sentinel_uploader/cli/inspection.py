"""What the commands share that read existing spools: which spools, and which run."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import spool_dirs
from sentinel_protocol.common.settings.sources import SettingsFile, build_parser, merge_file, parse_flags_and_env
from sentinel_uploader.admin.status_reader import NoSpoolError, read_status, runs_named
from sentinel_uploader.app.factory import spool_dir
from sentinel_uploader.app.settings import SETTINGS, SPOOL_FOR_INSPECTION, TARGET


class Spools(NamedTuple):
    """Spool directories of a command: the one that was named, or all of this user's own."""

    directories: list[str]
    is_named: bool


def make_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    """Return a parser with `--spool`, `--config` and `--json`."""
    parser = build_parser((SPOOL_FOR_INSPECTION,), prog, summary)
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def make_run_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    """Return the same parser with a run's name."""
    parser = make_parser(prog, summary)
    parser.add_argument("run", metavar="RUN", help="run id (a part of it will do) or run key")
    return parser


def choose_spools(args: argparse.Namespace, environ: Mapping[str, str]) -> Spools:
    """Return the spools that flags, environment and file name; raises `UsageError`."""
    given = parse_flags_and_env((SPOOL_FOR_INSPECTION, TARGET), args, environ)
    values = merge_file(SETTINGS, given, None if args.config is None else SettingsFile(args.config))
    # A file stands for the one spool of the uploader that is started with it.
    if values["spool"] or args.config:
        return Spools([spool_dir(values, environ)], is_named=True)
    return Spools(spool_dirs(environ), is_named=False)


def read_statuses(spools: Spools) -> tuple[list[dict[str, Any]], list[NoSpoolError]]:
    """Return the status of each spool, and the errors of this user's own spools that cannot be read.

    Raises `NoSpoolError` for a spool that was named.
    """
    statuses, errors = [], []
    for directory in spools.directories:
        try:
            statuses.append(read_status(directory))
        except NoSpoolError as error:
            if spools.is_named:
                raise
            errors.append(error)
    return statuses, errors


def find_run(args: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the spool directory and the status of the one run that `args.run` names; raises `UsageError`."""
    spools = choose_spools(args, environ)
    statuses, _ = read_statuses(spools)
    places = {id(run): status["spool"] for status in statuses for run in status["runs"]}
    found = runs_named((run for status in statuses for run in status["runs"]), args.run)
    if not found:
        where = ", ".join(spools.directories) or "any spool of this user's"
        raise UsageError(f"there is no run {args.run!r} in {where}; `sentinel-uploader status` lists them")
    if len(found) > 1:
        raise UsageError(f"{args.run!r} names {len(found)} runs; write more of the id")
    return places[id(found[0])], found[0]
