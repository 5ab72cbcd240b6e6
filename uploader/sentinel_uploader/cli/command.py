"""Declaration of a command."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sentinel_protocol.common.settings.sources import build_parser, resolve
from sentinel_uploader.app.settings import SETTINGS


def settings_parser(prog: str, summary: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of all settings."""
    return build_parser(SETTINGS, prog, summary)


class Command(NamedTuple):
    """A command: its line in the overview (`summary`, `operands` after its name), its parser, and its action.

    `run` gets the parsed arguments and the environment. It returns the exit code, or raises `SentinelStreamError`.
    """

    summary: str
    run: Callable[[argparse.Namespace, Mapping[str, str]], int]
    operands: str = ""
    make_parser: Callable[[str, str], argparse.ArgumentParser] = settings_parser


def read_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the value of every setting; raises `UsageError`."""
    return resolve(SETTINGS, args, environ, args.config)
