"""What the commands' options have in common."""

import argparse
import os
import re
from datetime import UTC, datetime

from sentinel_viewer.runs.naming import RUNS_VARIABLE, Library

_AGE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[smhdw])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parser(command: str, description: str, *, examples: str = "") -> argparse.ArgumentParser:
    """Return a command's parser with `--runs`; flags may not be abbreviated."""
    made = argparse.ArgumentParser(
        prog=f"sentinel-stream {command}",
        description=description,
        epilog=f"examples:\n{examples}" if examples else None,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--runs",
        metavar="PLACE",
        help=f"a directory or s3://BUCKET/PREFIX (default this user's own; env {RUNS_VARIABLE})",
    )
    return made


def library(args: argparse.Namespace) -> Library:
    """Return the runs that the command is about."""
    return Library(args.runs, os.environ)


def moment(text: str, now: float) -> float:
    """Return UNIX seconds of an age (`30m`, `12h`, `7d`, `2w`) or a date, which is local time unless it says otherwise.

    Raises `argparse.ArgumentTypeError`.
    """
    age = _AGE.fullmatch(text)
    if age:
        return now - float(age["number"]) * _UNIT_S[age["unit"]]
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is no age (12h, 7d) and no date (2026-11-30)") from None
