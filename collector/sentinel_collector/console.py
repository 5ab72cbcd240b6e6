"""Lines for people on stderr: few, short, and never in the way of the job's own."""

import os
from enum import IntEnum

PREFIX = "sentinel-collector: "
WAIT = ("waits", "wait")
BE = ("is", "are")


def pluralize(number: int, noun: str, verb: tuple[str, str] | None = None) -> str:
    """Return `1 sample`, `2 samples`; with a verb's two forms `1 sample waits`, `2 samples wait`."""
    words = f"{number} {noun}" if number == 1 else f"{number} {noun}s"
    return words if verb is None else f"{words} {verb[number != 1]}"


class Verbosity(IntEnum):
    """How much is said."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class Console:
    """Writes whole lines straight to the descriptor: nothing is buffered, and nothing raises when it is closed."""

    def __init__(self, level: Verbosity, *, fd: int = 2) -> None:
        self._verbosity = level
        self._fd = fd

    def error(self, text: str) -> None:
        """Say what must be known: always."""
        self._write(text)

    def warn(self, text: str) -> None:
        """Say what may matter: unless told to be quiet."""
        if self._verbosity >= Verbosity.NORMAL:
            self._write(text)

    def debug(self, text: str) -> None:
        """Say what helps to understand: when asked to be verbose."""
        if self._verbosity >= Verbosity.VERBOSE:
            self._write(text)

    def _write(self, text: str) -> None:
        line = "".join(char if char.isprintable() else " " for char in text)
        try:
            os.write(self._fd, f"{PREFIX}{line}\n".encode("utf-8", "replace"))
        except BlockingIOError:
            # Whoever reads is slow: this line is lost, the next may get through.
            return
        except OSError:
            # Nobody listens; a full or closed stderr is no reason to disturb the job.
            self._verbosity = Verbosity.QUIET
