"""The rows as a CSV file of the user's own, written line by line."""

import errno
import os
import stat
from collections.abc import Callable

from protocol.sample import COLUMNS, CSV_HEADER

_LONGEST_LINE_BYTES = 4096
_LATEST_TIMESTAMP = 253_402_300_799.0
"""The end of the year 9999: what lies behind it was never written by us."""


class CsvOutput:
    """Appends rows; trouble with the file is told once and never more than that.

    With `continued` the file of the same run is gone on with (a line that a kill cut short is removed first),
    otherwise it is replaced. `last_timestamp` is that of its last row, UNIX seconds, 0 where it has none: rows that
    follow are stamped after it, whatever the clock says, and need not be stamped anew when they are delivered.
    """

    def __init__(self, path: str, *, continued: bool, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._fd: int | None = None
        self._is_file = True
        self.last_timestamp = 0.0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if continued else os.O_TRUNC), 0o644)
            self._begin(self._fd)
        except OSError as error:
            self._give_up(error)

    def write(self, rows: bytes) -> None:
        """Append CSV lines, whole ones only."""
        if self._fd is None:
            return
        try:
            self._write_whole(self._fd, rows)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _begin(self, fd: int) -> None:
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if not self._is_file:
            # A pipe that nobody reads must not stop us.
            os.set_blocking(fd, False)
            self._write_whole(fd, CSV_HEADER)
            return
        size = _size_of_whole_lines(fd)
        if os.pread(fd, len(CSV_HEADER), 0) != CSV_HEADER:
            size = 0
        os.ftruncate(fd, size)
        os.lseek(fd, size, os.SEEK_SET)
        if not size:
            self._write_whole(fd, CSV_HEADER)
        elif size > len(CSV_HEADER):
            self.last_timestamp = _timestamp_of_last_line(fd, size)

    def _write_whole(self, fd: int, content: bytes) -> None:
        written = os.write(fd, content)
        if written == len(content):
            return
        if self._is_file:
            # The disk filled up within a line: readers get whole ones.
            os.ftruncate(fd, os.lseek(fd, -written, os.SEEK_CUR))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _give_up(self, error: OSError) -> None:
        self._warn(f"cannot write {self._path}: {error.strerror}")
        self.close()


def _timestamp_of_last_line(fd: int, size: int) -> float:
    """Return the first field of the line that ends at `size`; 0 where that is no row of ours."""
    start = max(0, size - _LONGEST_LINE_BYTES)
    line = os.pread(fd, size - start, start)[:-1].rpartition(b"\n")[2]
    fields = line.split(b",")
    if len(fields) != len(COLUMNS):
        return 0.0
    try:
        timestamp = float(fields[0])
    except ValueError:
        return 0.0
    return timestamp if 0.0 <= timestamp <= _LATEST_TIMESTAMP else 0.0


def _size_of_whole_lines(fd: int) -> int:
    size = os.fstat(fd).st_size
    while size:
        start = max(0, size - 4096)
        newline = os.pread(fd, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
