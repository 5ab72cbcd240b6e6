"""Messages for people on stderr."""

from __future__ import annotations

import os
from enum import IntEnum

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "sentinel-collector: "


def pluralize(number: int, noun: str, verb: tuple[str, str] | None = None) -> str:
    """Return `1 sample`, `2 samples`; with a verb's two forms `1 sample waits`, `2 samples wait`."""
    text = f"{number} {noun}" if number == 1 else f"{number} {noun}s"
    return text if verb is None else f"{text} {verb[number != 1]}"


class Verbosity(IntEnum):
    """Which messages are written."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class Console:
    """Writes whole lines to a descriptor, unbuffered. A closed or full descriptor raises nothing.

    `is_writable` is asked before each line: a line is lost where writing it would block.
    """

    def __init__(self, level: Verbosity, *, fd: int = 2, is_writable: Callable[[int], bool] | None = None) -> None:
        self.verbosity = level
        self._fd = fd
        self._is_writable = is_writable

    def error(self, text: str) -> None:
        """Write at every verbosity."""
        self._write(text)

    def warn(self, text: str) -> None:
        """Write unless `QUIET`."""
        if self.verbosity >= Verbosity.NORMAL:
            self._write(text)

    def debug(self, text: str) -> None:
        """Write when `VERBOSE`."""
        if self.verbosity >= Verbosity.VERBOSE:
            self._write(text)

    def _write(self, text: str) -> None:
        if self._is_writable is not None and not self._is_writable(self._fd):
            return
        line = "".join(char if char.isprintable() else " " for char in text)
        try:
            os.write(self._fd, f"{PREFIX}{line}\n".encode("utf-8", "replace"))
        except BlockingIOError:
            # The reader is slow: this line is lost, a later one may be written.
            return
        except OSError:
            # stderr is closed or its disk is full: write no more.
            self.verbosity = Verbosity.QUIET
