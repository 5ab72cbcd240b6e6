"""One process of the tree: its files and their last contents."""

import os

from sentinel_collector.procfs import (
    STAT_PARENT,
    STAT_START,
    STAT_STATE,
    STAT_THREADS,
    FdBudget,
    ProcFile,
    read_file,
    stat_fields,
)
from sentinel_collector.sensors.linux.byte_counters import DAMAGED, parse_pair
from sentinel_collector.sensors.linux.cpu import TICK_US
from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger, ProcessAccount
from sentinel_collector.sensors.process_tree.pss_state import PAGE_KIB, PssState

_STAT_FIELDS = 22
"""Up to the resident set, field 24 of `proc(5)`."""


class TrackedProcess:
    """A process by pid and start time. Reading a process that is gone raises nothing."""

    def __init__(self, pid: int, *, proc: str, budget: FdBudget, parent: ProcessAccount | None) -> None:
        self.pid = pid
        self.start = b""
        """Ticks after boot, as the kernel writes them; empty until the first reading."""
        self.parent_pid = 0
        self.threads = 1
        self.is_zombie = False
        self.is_hidden = False
        """It is alive, and cannot be read: another user's under `hidepid` (`proc(5)`), or no descriptor is left."""
        self.rss_kib = 0
        self.faults = 0
        """Minor page faults so far."""
        self.io_readable: bool | None = None
        self.account = ProcessAccount(parent)
        self.pss = PssState()
        self._budget = budget
        self._directory = f"{proc}/{pid}"
        self._stat_file = ProcFile(f"{self._directory}/stat", budget)
        self._io_file = ProcFile(f"{self._directory}/io", budget)
        self._children_files: dict[str, ProcFile] = {}
        self._last_stat = b""
        self._last_io = b""

    def read(self, ledger: CpuLedger) -> bool:
        """Read times and bytes into the ledger; False when the process is gone or another one has its pid."""
        try:
            data = self._stat_file.read()
        except (ProcessLookupError, FileNotFoundError):
            self.is_hidden = self._exists_unseen()
            return self.is_hidden
        except OSError:
            self.is_hidden = True
            return True
        self.is_hidden = False
        # The line of an idle process stays the same to the byte.
        if data != self._last_stat and not self._parse_stat(data, ledger):
            return False
        if self.io_readable is not False:
            self._read_io(ledger)
        return True

    def is_alive(self) -> bool:
        """Return whether the process still runs, without counting anything."""
        try:
            fields = stat_fields(self._stat_file.read(), _STAT_FIELDS)
        except (ProcessLookupError, FileNotFoundError):
            return self._exists_unseen()
        except (OSError, ValueError):
            return True
        return not _is_zombie(fields) and (not self.start or fields[STAT_START] == self.start)

    def children(self) -> list[int]:
        """Return the children of all its threads (`/proc/PID/task/TID/children`)."""
        names = [str(self.pid)]
        if self.threads > 1:
            try:
                names = os.listdir(f"{self._directory}/task")
            except OSError:
                return []
        files = self._children_files
        if len(files) > len(names):
            for gone in files.keys() - set(names):
                files.pop(gone).close()
        found: list[int] = []
        for name in names:
            file = files.get(name)
            if file is None:
                file = files[name] = ProcFile(f"{self._directory}/task/{name}/children", self._budget)
            try:
                data = file.read_list()
            except OSError:
                files.pop(name).close()
                continue
            if data:
                found.extend(int(word) for word in data.split() if word.isdigit())
        return found

    def read_file(self, name: str) -> bytes:
        """Read another file of the process, opened each time because an `exec` replaces it; raises `OSError`."""
        return read_file(f"{self._directory}/{name}")

    def close(self) -> None:
        """Give all descriptors back."""
        self._stat_file.close()
        self._io_file.close()
        for file in self._children_files.values():
            file.close()
        self._children_files.clear()

    def _parse_stat(self, data: bytes, ledger: CpuLedger) -> bool:
        try:
            fields = stat_fields(data, _STAT_FIELDS)
            times = [int(field) * TICK_US for field in fields[11:15]]
            parent_pid, threads = int(fields[STAT_PARENT]), int(fields[STAT_THREADS])
            faults, rss = int(fields[7]), int(fields[21])
        except ValueError:
            return bool(self.start)
        if self.start and fields[STAT_START] != self.start:
            return False
        self.start = fields[STAT_START]
        self.is_zombie = _is_zombie(fields)
        self.parent_pid, self.faults, self.threads, self.rss_kib = parent_pid, faults, threads, rss * PAGE_KIB
        ledger.count_cpu(self.account, (times[0], times[1]), (times[2], times[3]))
        self._last_stat = data
        return True

    def _exists_unseen(self) -> bool:
        """Whether there is a process of this pid although `/proc` does not show it."""
        if not self._directory.startswith("/proc/"):
            return False
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return not os.path.exists(self._directory)

    def _read_io(self, ledger: CpuLedger) -> None:
        try:
            data = self._io_file.read()
        except PermissionError:
            self.io_readable = False
            self._io_file.close()
            return
        except OSError:
            # Gone since its stat was read, which the next reading shows. Or a kernel without I/O accounting.
            return
        self.io_readable = True
        if data != self._last_io:
            self._last_io = data
            try:
                words = data.split()
                index = words.index(b"read_bytes:")
                io = parse_pair(words[index + 1], words[index + 3])
            except (ValueError, IndexError):
                return
            if io != DAMAGED:
                ledger.count_io(self.account, io)


def _is_zombie(fields: list[bytes]) -> bool:
    """Whether a process has ended and waits to be reaped. A process whose main thread alone has ended shows Z too."""
    return fields[STAT_STATE] in b"ZXx" and fields[STAT_THREADS] in {b"0", b"1"}
