"""`--output`: the rows as a CSV file, written line by line."""

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
"""Errors of file systems without locks: another run is not kept out there."""
_MAX_TIMESTAMP = 253_402_300_799.0
"""The end of the year 9999: a later time stamp is not one of ours."""


class CsvOutput:
    """Appends rows to a file. The first error is reported, and nothing more is written.

    With `continued` the same run's file is continued, after an incomplete last line is removed; otherwise the file is
    replaced. Missing directories are made. The file is locked (`flock`); a file that another run has locked is left
    alone. A file that standard output or error already go to is appended to, neither locked nor truncated.
    `last_timestamp` is the last row's, UNIX seconds, 0 without rows: later rows are stamped after it.
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
        """Append complete CSV lines."""
        if self._fd is None:
            return
        try:
            self._write_whole(self._fd, rows)
        except OSError as error:
            self._disable(error)

    @property
    def complete_path(self) -> str:
        """The path when the file has all rows; empty when a row is missing or it is not a regular file."""
        return self._path if self._fd is not None and self._is_file else ""

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open_for_append(self, fd: int, *, continued: bool) -> None:
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if not self._is_file:
            # A pipe without a reader must not block the collector.
            os.set_blocking(fd, False)
            self._write_whole(fd, CSV_HEADER)
            return
        stream = _standard_stream(fd)
        if stream is not None:
            # Share its offset, so that the job and the collector do not overwrite each other.
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
            # The disk filled up within a line: remove the incomplete line.
            os.ftruncate(fd, os.lseek(fd, -written, os.SEEK_CUR))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _disable(self, error: OSError) -> None:
        self._warn(f"cannot write {self._path}: {error.strerror}")
        self.close()


def make_parent(path: str) -> None:
    """Make the directories of a file; raises `OSError`."""
    directory = os.path.dirname(path)
    if directory:
        os.makedirs(directory, exist_ok=True)


def _lock(fd: int) -> None:
    """Lock the file until it is closed; raises `BlockingIOError` when another run has locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EWOULDBLOCK, "another run is writing it, this run's rows are not in it") from None
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise


def _standard_stream(fd: int) -> int | None:
    """Return 1 or 2 when standard output or error goes to the same file."""
    ours = os.fstat(fd)
    for stream in _STANDARD_STREAMS:
        with contextlib.suppress(OSError):  # it may be closed
            if os.path.samestat(ours, os.fstat(stream)):
                return stream
    return None


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
