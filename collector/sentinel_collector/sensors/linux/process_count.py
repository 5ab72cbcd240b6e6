"""The number of processes of the machine."""

import os

from sentinel_collector.procfs import INITIAL_PID_NAMESPACE, link_target

_VERIFY_EVERY = 600


class ProcessCountSensor:
    """The number of processes: from the link count of `/proc`, which includes them, or by listing it.

    The kernel adds the number of all processes of the machine to the link count of `/proc`. So the link count is used
    in the initial pid name space only. Its offset is learnt from a listing and checked every `_VERIFY_EVERY` readings.
    Where the check fails (a sandbox, a module that adds a directory), the offset is learnt again. After the third
    failure in a row, processes are listed from then on.
    """

    def __init__(self, *, proc: str) -> None:
        self._proc = proc
        self._until_check = 0
        self._offset = 0
        self._failures = 0
        self._by_links = link_target(f"{proc}/self/ns/pid") == INITIAL_PID_NAMESPACE

    def read(self) -> int | None:
        """Return the number of processes, zombies included; `None` without `/proc`."""
        try:
            if not self._by_links:
                return _listed(self._proc)[0]
            if self._until_check > 0:
                self._until_check -= 1
                return os.stat(self._proc).st_nlink - self._offset
            return self._check()
        except OSError:
            return None

    def _check(self) -> int:
        before = os.stat(self._proc).st_nlink
        processes, directories = _listed(self._proc)
        after = os.stat(self._proc).st_nlink
        offset = 2 + directories
        # Processes come and go during the listing: the result must lie between both counts, give or take one.
        if not min(before, after) - 1 <= processes + offset <= max(before, after) + 1:
            self._failures += 1
            self._by_links = self._failures < 3
            return processes
        self._failures = 0
        self._offset = offset
        self._until_check = _VERIFY_EVERY
        return after - offset


def _listed(proc: str) -> tuple[int, int]:
    """Return the number of processes and of other directories in `/proc`."""
    processes = directories = 0
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isdigit():
                processes += 1
            elif entry.is_dir(follow_symlinks=False):
                directories += 1
    return processes, directories
