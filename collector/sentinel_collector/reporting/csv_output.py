"""`--output`: the rows as a CSV file, written line by line."""

import contextlib
import os
from collections.abc import Callable

from sentinel_collector.reporting.output_target import OutputTargets, RegularFile, Stream
from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER

_MAX_LINE_BYTES = 4096
_MAX_TIMESTAMP = 253_402_300_799.0
"""The end of the year 9999: a later time stamp is not one of ours."""


class CsvOutput:
    """Appends rows to a file. The first error is reported, and nothing more is written.

    With `continued` the same run's file is continued, after an incomplete last line is removed; otherwise the file is
    replaced. A file that another run has locked is left alone. `last_timestamp` is the last row's, UNIX seconds, 0
    without rows: later rows are stamped after it.
    """

    def __init__(self, path: str, *, targets: OutputTargets, continued: bool, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._target: RegularFile | Stream | None = None
        self.last_timestamp = 0.0
        try:
            self._target = targets.open(path)
            if isinstance(self._target, RegularFile):
                self._start_file(self._target, continued=continued)
            else:
                self._target.write(CSV_HEADER)
        except OSError as error:
            self._disable(error)

    def write(self, rows: bytes) -> None:
        """Append complete CSV lines."""
        if self._target is None:
            return
        try:
            self._target.write(rows)
        except OSError as error:
            self._disable(error)

    @property
    def complete_path(self) -> str:
        """The path when the file has all rows; empty when a row is missing or it is not a regular file."""
        return self._path if isinstance(self._target, RegularFile) else ""

    def close(self) -> None:
        """Close the file."""
        target, self._target = self._target, None
        if target is None:
            return
        try:
            target.close()
        except OSError as error:
            self._report(error)

    def _start_file(self, file: RegularFile, *, continued: bool) -> None:
        size = _complete_lines_bytes(file.fd) if continued else 0
        if os.pread(file.fd, len(CSV_HEADER), 0) != CSV_HEADER:
            size = 0
        file.truncate(size)
        if not size:
            file.write(CSV_HEADER)
        elif size > len(CSV_HEADER):
            self.last_timestamp = _timestamp_of_last_line(file.fd, size)

    def _disable(self, error: OSError) -> None:
        self._report(error)
        target, self._target = self._target, None
        if target is not None:
            with contextlib.suppress(OSError):  # It is reported already.
                target.close()

    def _report(self, error: OSError) -> None:
        self._warn(f"cannot write {self._path}: {error.strerror}")


def _timestamp_of_last_line(fd: int, size: int) -> float:
    """Return the time stamp of the line that ends at `size`; 0 when it is no row."""
    start = max(0, size - _MAX_LINE_BYTES)
    line = os.pread(fd, size - start, start)[:-1].rpartition(b"\n")[2]
    fields = line.split(b",")
    if len(fields) != len(COLUMNS):
        return 0.0
    try:
        timestamp = float(fields[0])
    except ValueError:
        return 0.0
    return timestamp if 0.0 <= timestamp <= _MAX_TIMESTAMP else 0.0


def _complete_lines_bytes(fd: int) -> int:
    size = os.fstat(fd).st_size
    while size:
        start = max(0, size - 4096)
        newline = os.pread(fd, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
