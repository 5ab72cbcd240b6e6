"""Files of `/proc`, kept open and read at once: a `pread` costs a quarter of open, read and close (`proc(5)`)."""

import contextlib
import os
import resource

_SINGLE_BYTES = 1 << 14
_LIST_BYTES = 1 << 15
_SHORT_CHUNK_BYTES = 2048
_MAX_DESCRIPTORS = 4096


class FdBudget:
    """How many descriptors the sensors may keep: a quarter of the soft limit, so that the rest always finds one."""

    __slots__ = ("available",)

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            limit = _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft // 4, _MAX_DESCRIPTORS)
        self.available = limit


class ProcFile:
    """A file that is opened at the first read, kept while `descriptors` last, and opened again when it goes bad."""

    __slots__ = ("_descriptors", "_fd", "path")

    def __init__(self, path: str, descriptors: FdBudget | None = None) -> None:
        self.path = path
        self._descriptors = descriptors
        self._fd = -1

    def read(self, size: int = _SINGLE_BYTES) -> bytes:
        """Return a file that the kernel makes in one piece (stat, meminfo, io, …); raises `OSError`.

        A process' file fails with `ProcessLookupError` or `FileNotFoundError` once the process is gone.
        """
        if self._fd >= 0:
            data = os.pread(self._fd, size, 0)
            return data if len(data) < size else self._read_on(data)
        return self._open_and_read(size, single=True)

    def read_list(self) -> bytes:
        """Return a file that the kernel makes entry by entry (diskstats, children, …); raises `OSError`.

        Such a file comes in pieces of up to a page; a piece well below that is the last one.
        """
        if self._fd >= 0:
            data = os.pread(self._fd, _LIST_BYTES, 0)
            return data if len(data) < _SHORT_CHUNK_BYTES else self._read_on(data)
        return self._open_and_read(_LIST_BYTES, single=False)

    def close(self) -> None:
        """Give the descriptor back; a later read opens the file again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._descriptors is not None:
                self._descriptors.available += 1

    def _open_and_read(self, size: int, *, single: bool) -> bytes:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        keep = self._descriptors is None or self._descriptors.available > 0
        if self._descriptors is not None:
            self._descriptors.available -= 1
        try:
            data = self.read(size) if single else self.read_list()
        except OSError:
            keep = False
            raise
        finally:
            if not keep:
                self.close()
        return data

    def _read_on(self, data: bytes) -> bytes:
        while chunk := os.pread(self._fd, _LIST_BYTES, len(data)):
            data += chunk
        return data


def read_with_reopen(file: ProcFile, *, size: int = _SINGLE_BYTES) -> bytes:
    """Read a file of the whole machine; opens it once more when its descriptor went bad, empty when it is missing."""
    for _ in range(2):
        try:
            return file.read(size)
        except OSError:
            file.close()
    return b""


def read_list_with_reopen(file: ProcFile) -> bytes:
    """Do as `read_with_reopen` for a file that the kernel makes entry by entry."""
    for _ in range(2):
        try:
            return file.read_list()
        except OSError:
            file.close()
    return b""


def read_file(path: str, size: int = _SINGLE_BYTES) -> bytes:
    """Return a small file's beginning, read once; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def link_target(path: str) -> str:
    """Where a symbolic link leads, empty when there is none."""
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def stat_fields(data: bytes, count: int) -> list[bytes]:
    """Split `/proc/PID/stat` after the last `)`: the name before it may hold spaces and parentheses.

    Item 0 is the state, item 1 the parent (fields 3 and 4 of `proc(5)`); what follows item `count - 1` stays in one
    piece at the end. Raises `ValueError` for what is no such line.
    """
    fields = data[data.rindex(b")") + 2 :].split(None, count)
    if len(fields) < count:
        raise ValueError("a truncated stat line")
    return fields
