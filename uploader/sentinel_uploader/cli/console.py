"""Output of the commands, where it may be closed, full, or left by its reader."""

import json
import os
import sys
from io import TextIOWrapper

from sentinel_protocol.common.errors import SentinelStreamError


class OutputError(SentinelStreamError):
    """The output could not be written."""


def write_output(text: str, *, required: bool = True) -> None:
    """Write to the standard output and flush; raises `OutputError`, or `BrokenPipeError` when the reader has gone.

    Unless `required`, a closed output is no error: a service may be started without one.
    """
    # Python has `None` here when the process was started with its output closed.
    if sys.stdout is None:
        if required:
            raise OutputError("cannot write the output: it is closed")
        return
    try:
        if isinstance(sys.stdout, TextIOWrapper):
            # Characters that the terminal's encoding lacks are escaped. This call also flushes.
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        close_stdout()
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def write_json(value: object) -> None:
    """`write_output` as indented JSON."""
    write_output(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def close_stdout() -> None:
    """Discard what is buffered: the interpreter would write it again at its end, and print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(error: Exception, code: int) -> int:
    """Print an error on the standard error, if there is one; returns the exit code."""
    print_note(str(error))
    return code


def print_note(text: str) -> None:
    """Print a line on the standard error, if there is one."""
    if sys.stderr is not None:
        try:
            print(f"sentinel-uploader: {text}", file=sys.stderr, flush=True)
        except OSError:
            # The exit code still reports the error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
