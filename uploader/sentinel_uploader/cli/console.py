"""What a command prints: one place that knows of outputs that are closed, full, or left by their reader."""

import os
import sys
from io import TextIOWrapper

from sentinel_protocol.common.errors import SentinelStreamError


class OutputError(SentinelStreamError):
    """What was asked for could not be written."""


def write_output(text: str, *, required: bool = True) -> None:
    """Write to the standard output, now; raises `OutputError`, or `BrokenPipeError` when its reader has gone.

    An output that is not `required` may be closed: nobody who starts a service without one asked for anything.
    """
    # `None` when the process was started with it closed.
    if sys.stdout is None:
        if required:
            raise OutputError("cannot write the output: it is closed")
        return
    try:
        if isinstance(sys.stdout, TextIOWrapper):
            # A name that the terminal's encoding does not have is no reason to say nothing. This writes what waits.
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        close_stdout()
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def close_stdout() -> None:
    """Let what is buffered go nowhere: it would be tried once more, with a traceback, at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(error: Exception, code: int) -> int:
    """Say on the standard error, where there is one, what went wrong; returns the exit code."""
    if sys.stderr is not None:
        try:
            print(f"sentinel-uploader: {error}", file=sys.stderr, flush=True)
        except OSError:
            # Nobody is left to be told, and the exit code still tells it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code
