"""The rows as a CSV file of the user's own, written line by line."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable

from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER

_MAX_LINE_BYTES = 4096
_STANDARD_STREAMS = (1, 2)
_LOCKS_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Answers of file systems that know no locks: nobody is kept out there."""
_MAX_TIMESTAMP = 253_402_300_799.0
"""The end of the year 9999: what lies behind it was never written by us."""


class CsvOutput:
    """Appends rows; trouble with the file is told once and never more than that.

    With `continued` the file of the same run is gone on with (a line that a kill cut short is removed first),
    otherwise it is replaced. The file is locked (`flock`) while it is written, and left alone where another run has
    it; its directories are made. What standard output or error go to already is appended to, with them, and neither
    locked nor cut. `last_timestamp` is that of its last row, UNIX seconds, 0 where it has none: rows that
    follow are stamped after it, whatever the clock says, and need not be stamped anew when they are delivered.
    """

    def __init__(self, path: str, *, continued: bool, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._fd: int | None = None
        self._is_file = True
        self.last_timestamp = 0.0
        try:
            make_parent(path)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._open_for_append(self._fd, continued=continued)
        except OSError as error:
            self._disable(error)

    def write(self, rows: bytes) -> None:
        """Append CSV lines, whole ones only."""
        if self._fd is None:
            return
        try:
            self._write_whole(self._fd, rows)
        except OSError as error:
            self._disable(error)

    @property
    def complete_path(self) -> str:
        """Path of the file when all rows are in it; empty when one could not be written, or when it is no file."""
        return self._path if self._fd is not None and self._is_file else ""

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open_for_append(self, fd: int, *, continued: bool) -> None:
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if not self._is_file:
            # A pipe that nobody reads must not stop us.
            os.set_blocking(fd, False)
            self._write_whole(fd, CSV_HEADER)
            return
        stream = _standard_stream(fd)
        if stream is not None:
            # With its offset: what the job and we write there does not lie upon one another.
            os.dup2(stream, fd, inheritable=False)
            self._is_file = False
            self._write_whole(fd, CSV_HEADER)
            return
        _lock(fd)
        size = _complete_lines_bytes(fd) if continued else 0
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

    def _disable(self, error: OSError) -> None:
        self._warn(f"cannot write {self._path}: {error.strerror}")
        self.close()


def make_parent(path: str) -> None:
    """Make the directories that a file is to lie in; raises `OSError`."""
    directory = os.path.dirname(path)
    if directory:
        os.makedirs(directory, exist_ok=True)


def _lock(fd: int) -> None:
    """Lock the file until it is closed; raises `BlockingIOError` when another run has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EWOULDBLOCK, "another run is writing it, this run's rows are not in it") from None
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise


def _standard_stream(fd: int) -> int | None:
    """Return the number of our standard output or error when that goes to the same file."""
    ours = os.fstat(fd)
    for stream in _STANDARD_STREAMS:
        with contextlib.suppress(OSError):  # it may have been closed for us
            if os.path.samestat(ours, os.fstat(stream)):
                return stream
    return None


def _timestamp_of_last_line(fd: int, size: int) -> float:
    """Return the first field of the line that ends at `size`; 0 where that is no row of ours."""
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
