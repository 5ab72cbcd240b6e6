"""Reads files of `/proc` (`proc(5)`). Imports `os` alone: the job waits for it."""

import os

_SINGLE_BYTES = 1 << 14
_LIST_BYTES = 1 << 15
_SHORT_CHUNK_BYTES = 2048
_WHOLE_BYTES = 1 << 16
_MAX_DESCRIPTORS = 4096

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""`PROC_PID_INIT_INO`, a constant of the kernel: where `/proc/self/ns/pid` leads on the machine itself."""
STAT_STATE = 0
STAT_PARENT = 1
STAT_THREADS = 17
STAT_START = 19
"""Indexes of `stat_fields`. The start is in ticks after boot."""
ENDED_STATES = frozenset({b"Z", b"X", b"x"})
"""States of processes that have ended."""


class FdBudget:
    """The number of descriptors that the sensors may keep open: a quarter of the soft limit."""

    __slots__ = ("available",)

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            import resource

            soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            limit = _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft // 4, _MAX_DESCRIPTORS)
        self.available = limit


class ProcFile:
    """A file that is opened at the first read and then kept open while `budget` lasts.

    A `pread` costs a quarter of open, read and close. A read that fails closes the file; the next one opens it again.
    """

    __slots__ = ("_budget", "_fd", "path")

    def __init__(self, path: str, budget: FdBudget | None = None) -> None:
        self.path = path
        self._budget = budget
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
            if self._budget is not None:
                self._budget.available += 1

    def _open_and_read(self, size: int, *, single: bool) -> bytes:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        keep = self._budget is None or self._budget.available > 0
        if self._budget is not None:
            self._budget.available -= 1
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


def read_with_reopen(file: ProcFile, *, size: int = _SINGLE_BYTES, is_list: bool = False) -> bytes:
    """Read a file of the whole machine; opens it once more when a read fails, empty when it is missing."""
    for _ in range(2):
        try:
            return file.read_list() if is_list else file.read(size)
        except OSError:
            file.close()
    return b""


def read_file(path: str, size: int = _SINGLE_BYTES) -> bytes:
    """Return the first `size` bytes of a file, in one read; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def read_whole(path: str) -> bytes:
    """Return a whole file, empty when it cannot be read."""
    data = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        while chunk := os.read(descriptor, _WHOLE_BYTES):
            data += chunk
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return data


def peak_rss_kib(status: bytes) -> int:
    """Return `VmHWM` of `/proc/PID/status`, 0 where it is missing; raises `ValueError` or `IndexError`."""
    _, found, rest = status.partition(b"\nVmHWM:")
    return int(rest.split(None, 1)[0]) if found else 0


def link_target(path: str) -> str:
    """Return where a symbolic link leads, empty when there is none."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def stat_fields(data: bytes, count: int) -> list[bytes]:
    """Split `/proc/PID/stat` after the last `)`: the name before it may hold spaces and parentheses.

    Item 0 is field 3 of `proc(5)`. The text after item `count - 1` stays in one piece at the end. Raises `ValueError`
    for another or a truncated line.
    """
    fields = data[data.rindex(b")") + 2 :].split(None, count)
    if len(fields) < count:
        raise ValueError("a truncated stat line")
    return fields


def read_stat(pid: int | str, count: int, *, proc: str = "/proc") -> list[bytes]:
    """Return the `stat_fields` of a process; raises `OSError` when it is gone, else `ValueError`."""
    return stat_fields(read_file(f"{proc}/{pid}/stat"), count)


def names_of_running(pids: list[int], *, limit: int = 5) -> str:
    """Return the names and pids of processes that run, as text; empty when none does."""
    names = []
    for pid in sorted(pids):
        try:
            data = read_file(f"/proc/{pid}/stat")
            if stat_fields(data, STAT_STATE + 1)[STAT_STATE] not in ENDED_STATES:
                name = data[data.index(b"(") + 1 : data.rindex(b")")].decode("utf-8", "replace")
                names.append(f"{name} ({pid})")
        except (OSError, ValueError):
            continue
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
