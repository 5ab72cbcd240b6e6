"""`sentinel-uploader`: finds the command and reports its errors."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from sentinel_protocol import __version__
from sentinel_protocol.common.core_dumps import disable_core_dumps
from sentinel_protocol.common.errors import SentinelStreamError, UsageError
from sentinel_protocol.common.settings.sources import did_you_mean
from sentinel_uploader.cli.change import DISCARD, RETRY
from sentinel_uploader.cli.command import Command
from sentinel_uploader.cli.console import close_stdout, print_error, write_output
from sentinel_uploader.cli.doctor import DOCTOR
from sentinel_uploader.cli.drain import DRAIN
from sentinel_uploader.cli.keys import KEYS
from sentinel_uploader.cli.rows import ROWS
from sentinel_uploader.cli.serve import SERVE
from sentinel_uploader.cli.status import SHOW, STATUS

_PROG = "sentinel-uploader"
COMMANDS: dict[str, Command] = {
    "serve": SERVE,
    "status": STATUS,
    "show": SHOW,
    "rows": ROWS,
    "drain": DRAIN,
    "retry": RETRY,
    "discard": DISCARD,
    "doctor": DOCTOR,
    "keys": KEYS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    disable_core_dumps()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv), os.environ)
        # What argparse has printed is flushed here: at the end of the process nothing would catch an error.
        write_output("", required=False)
    except UsageError as error:
        return print_error(error, 2)
    except SentinelStreamError as error:
        return print_error(error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has closed the pipe.
        close_stdout()
        return 1
    return code


def default_parser() -> argparse.ArgumentParser:
    """Return the parser of a call without a command, which is `serve`."""
    width = max(len(f"{name} {command.operands}") for name, command in COMMANDS.items())
    lines = (f"  {f'{name} {command.operands}':<{width}}  {command.summary}" for name, command in COMMANDS.items())
    description = "\n".join(
        (
            "Takes samples from collectors, makes them durable and delivers them.\n",
            "commands (the default is serve):",
            *lines,
            f"`{_PROG} COMMAND --help` says more.",
        )
    )
    parser = SERVE.make_parser(_PROG, description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"{_PROG} {__version__}")
    return parser


def _run(argv: list[str], environ: Mapping[str, str]) -> int:
    try:
        if not argv or argv[0].startswith("-"):
            return SERVE.run(default_parser().parse_args(argv), environ)
        name, *arguments = argv
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}; see `{_PROG} --help`")
        command = COMMANDS[name]
        description = f"{command.summary[0].upper()}{command.summary[1:]}."
        return command.run(command.make_parser(f"{_PROG} {name}", description).parse_args(arguments), environ)
    except SystemExit as ended:
        # argparse ends so for `--help`, `--version` and wrong flags.
        return int(str(ended.code))


if __name__ == "__main__":
    sys.exit(main())
