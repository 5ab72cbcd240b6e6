"""What a command prints, and what it asks."""

import os
import shutil
import sys
from io import TextIOWrapper

_PIPE_COLUMNS = 100


def write(text: str) -> None:
    """Write to the standard output, now; raises `BrokenPipeError` when its reader has gone."""
    if sys.stdout is None:
        return
    if isinstance(sys.stdout, TextIOWrapper):
        # A name that the terminal's encoding does not have is no reason to show nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line for a person to the standard error."""
    if sys.stderr is not None:
        print(f"sentinel-stream: {text}", file=sys.stderr, flush=True)


def confirm(question: str) -> bool:
    """Ask a person; whatever is not a clear yes, and no person there, is a no."""
    if sys.stdin is None or sys.stderr is None:
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    return answer.strip().lower() in {"y", "yes"}


def is_terminal() -> bool:
    """Whether a person reads the standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def columns() -> int:
    """Return how wide the output may be."""
    return shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns if is_terminal() else _PIPE_COLUMNS


def discard_output() -> None:
    """Drop buffered output: the interpreter would try it again at its end, and print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
