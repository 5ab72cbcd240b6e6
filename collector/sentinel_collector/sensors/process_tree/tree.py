"""The tracked process tree on Linux: its processes and their usage.

Processes are found through `/proc/PID/task/TID/children` and identified by pid and start time, also when they are
re-parented. They are read in the order in which they were found. So every process is read before its descendants, as
the ledger needs it. The kernel's count of forks (`processes` of `/proc/stat`) says whether there can be new processes:
while it stands still, no search is made.
"""

import itertools
import os
from collections.abc import Collection, Iterable

from sentinel_collector.procfs import FdBudget, ProcFile
from sentinel_collector.sensors.interfaces import Reap, RUsage, TakeReaped, TreeReading
from sentinel_collector.sensors.process_tree.children import children_by_parent, has_children_files
from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger, ProcessAccount
from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_estimator import DEFAULT_SHARE, PssEstimator
from sentinel_protocol.common.clock import Clock

_SEARCHES_AFTER_CHANGE = 2
"""A search can miss a process that is re-parented meanwhile; the next one finds it."""
_SEARCH_ANYWAY_EVERY = 60


class ProcessTree:
    """`TreeSensor` from `/proc`.

    * `own_child`: the root was started after the baseline, so all of its time counts. Otherwise usage before `__init__`
      does not count.
    * `adopter_pid`: the sub-reaper that started the root, 0 when there is none. Its other children are daemons of the
      job and belong to the tree. `take_reaped` returns those that it has reaped.
    * `inherited_kib`: the peak (`VmHWM`) of the process that started the root. It is a lower bound of the root's
      `ru_maxrss`, because `exec` keeps the peak of the memory map that it replaces, which was ours.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        root_pid: int,
        own_child: bool,
        adopter_pid: int = 0,
        take_reaped: TakeReaped = tuple,
        interval_s: float,
        pss_share: float = DEFAULT_SHARE,
        inherited_kib: int = 0,
        proc: str = "/proc",
        budget: FdBudget | None = None,
    ) -> None:
        self._proc = proc
        self._budget = budget or FdBudget()
        self._adopter_pid = adopter_pid
        self._take_reaped = take_reaped
        self._own_child = own_child
        self._inherited_kib = inherited_kib
        self._reaped_peak_kib = 0
        self._excluded = {os.getpid()}
        self._gone: dict[int, ProcessAccount] = {}
        """Processes that the last reading missed: their adopter may tell a moment later that it has reaped them."""
        self._ledger = CpuLedger()
        self._pss = PssEstimator(clock=clock, share=pss_share, interval_s=interval_s, is_closed=own_child)
        self._has_children_files = has_children_files(proc)
        self._adopted_children = ProcFile(f"{proc}/{adopter_pid}/task/{adopter_pid}/children")
        self._forks = 0
        self._forks_count_up = True
        self._searches_left = _SEARCHES_AFTER_CHANGE
        self._until_search = _SEARCH_ANYWAY_EVERY
        self._io_readable = False
        self._has_hidden = False
        """Whether a process was ever alive and could not be seen."""
        self._processes: dict[int, TrackedProcess] = {}
        self._root_pid = root_pid
        self._root = self._add(root_pid, None)
        self._reported = self._ledger.counted
        # Our own children are searched later: some may have to be excluded first.
        self._visit(search=not own_child)
        if own_child:
            # The only look at the memory of a job that ends before the first row.
            self._pss.update(self._processes.values(), 0.0)
        else:
            self._reported = self._ledger.counted

    def read(self, *, forks: int, elapsed_s: float, reap_root: Reap | None = None) -> TreeReading:
        """Read all processes. The usage of processes that came and went since is part of their parents' totals."""
        search, is_due = self._should_search(forks)
        found = self._visit(search=search)
        if found and is_due:
            # A process was born and the count stood still: this sandbox does not count. Search always.
            self._forks_count_up = False
        usage = reap_root() if reap_root is not None else None
        if usage is not None:
            self.reaped(self._root_pid, usage)
        processes = self._processes.values()
        memory_kib = self._pss.update(processes, elapsed_s)
        if self._has_hidden and any(process.is_hidden for process in processes):
            return self._reading_with_hidden()
        children = sum(not process.is_zombie for process in processes) - (
            self._root_pid in self._processes and not self._root.is_zombie
        )
        counted, reported = self._ledger.counted, self._reported
        self._reported = counted
        return TreeReading(
            user_us=counted[0] - reported[0],
            system_us=counted[1] - reported[1],
            children=children,
            memory_kib=memory_kib,
            read_bytes=counted[2] - reported[2] if self._io_readable else None,
            written_bytes=counted[3] - reported[3] if self._io_readable else None,
        )

    def _reading_with_hidden(self) -> TreeReading:
        """Return a reading without the figures that the hidden processes would be part of."""
        return TreeReading(
            user_us=None, system_us=None, children=None, memory_kib=None, read_bytes=None, written_bytes=None
        )

    def reaped(self, pid: int, usage: RUsage) -> None:
        """Take the exact total of a process of the tree that its parent waited for."""
        if pid in self._excluded:
            return
        self._reaped_peak_kib = max(self._reaped_peak_kib, usage.ru_maxrss)
        user_us, system_us = round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6)
        process = self._processes.pop(pid, None)
        if process is None:
            account = self._gone.pop(pid, None)
            if account is not None or (self._own_child if pid == self._root_pid else self._adopter_pid):
                # Without an account: it came and ended between two readings.
                account = account or ProcessAccount(None)
                self._ledger.close_with_rusage(account, user_us, system_us, was_final=True)
            return
        self._ledger.close_with_rusage(process.account, user_us, system_us, was_final=process.is_zombie)
        process.close()
        self._pss.on_process_gone(process)

    def exclude(self, pid: int) -> None:
        """Leave this child of ours, and its descendants, out of the tree; call it before the next reading."""
        self._excluded.add(pid)

    def root_alive(self) -> bool:
        """Whether the root still runs: same pid, same start time, no zombie."""
        return self._root_pid in self._processes and self._root.is_alive()

    @property
    def pids(self) -> Collection[int]:
        """All processes of the last reading."""
        return self._processes.keys()

    @property
    def peak_kib(self) -> int:
        """The highest sum of a reading, or the highest memory of one process as the kernel recorded it."""
        for process in self._processes.values():
            self._pss.note_peak(process)
        seen_kib, reaped_kib = self._pss.peak_kib, self._reaped_peak_kib
        return max(seen_kib, reaped_kib) if reaped_kib > self._inherited_kib else seen_kib

    def close(self) -> None:
        """Give descriptors back."""
        for process in self._processes.values():
            process.close()
        self._adopted_children.close()

    def _should_search(self, forks: int) -> tuple[bool, bool]:
        """Return whether to search, and whether the search only checks that the count of forks can be trusted."""
        if forks <= 0 or not self._forks_count_up:
            return True, False
        if forks != self._forks:
            self._forks = forks
            self._searches_left = _SEARCHES_AFTER_CHANGE
        if self._searches_left > 0:
            self._searches_left -= 1
            self._until_search = _SEARCH_ANYWAY_EVERY
            return True, False
        self._until_search -= 1
        if self._until_search > 0:
            return False, False
        self._until_search = _SEARCH_ANYWAY_EVERY
        return True, True

    def _visit(self, *, search: bool) -> bool:
        """Read every process, parents first, and new ones on the way; True when a new one was found."""
        by_parent = children_by_parent(self._proc) if search and not self._has_children_files else None
        queue = list(self._processes.values())
        known = len(queue)
        gone: list[TrackedProcess] = []
        self._read_from(0, queue, gone, search=search, by_parent=by_parent)
        if search and self._adopter_pid:
            # After all parents: a process that loses its parent meanwhile is found here.
            start = len(queue)
            self._find_new(self._adopted_pids(by_parent), None, queue)
            self._read_from(start, queue, gone, search=True, by_parent=by_parent)
        for pid, usage in self._take_reaped():
            self.reaped(pid, usage)
        self._gone = {}
        for process in gone:
            if process.account.closed:
                continue
            self._ledger.close(process.account)
            self._gone[process.pid] = process.account
            self._processes.pop(process.pid, None)
            process.close()
            self._pss.on_process_gone(process)
        self._ledger.end_reading()
        found = len(queue) > known
        if found:
            self._pss.on_processes_changed()
        if gone:
            self._searches_left = _SEARCHES_AFTER_CHANGE
        return found

    def _read_from(
        self,
        start: int,
        queue: list[TrackedProcess],
        gone: list[TrackedProcess],
        *,
        search: bool,
        by_parent: dict[int, list[int]] | None,
    ) -> None:
        """Read `queue` from `start` on. Processes that the search finds are appended and read in their turn."""
        ledger = self._ledger
        # islice follows a list that grows.
        for process in itertools.islice(queue, start, None):
            old_parent, is_new = process.parent_pid, not process.start
            if not process.read(ledger):
                gone.append(process)
                continue
            if process.is_hidden:
                self._has_hidden = True
                continue
            if process.parent_pid != old_parent:
                new_parent = self._processes.get(process.parent_pid)
                process.account.parent = new_parent.account if new_parent is not None else None
                self._searches_left = _SEARCHES_AFTER_CHANGE
            if is_new and process is not self._root:
                self._pss.on_process_born(self._processes.get(process.parent_pid), process)
            if process.io_readable:
                self._io_readable = True
            if search:
                pids = process.children() if by_parent is None else by_parent.get(process.pid, ())
                if pids:
                    self._find_new(pids, process, queue)

    def _find_new(self, pids: Iterable[int], parent: TrackedProcess | None, queue: list[TrackedProcess]) -> None:
        unknown = [pid for pid in pids if pid not in self._processes and pid not in self._excluded]
        queue.extend(self._add(pid, parent) for pid in unknown)

    def _adopted_pids(self, by_parent: dict[int, list[int]] | None) -> Iterable[int]:
        if by_parent is not None:
            return by_parent.get(self._adopter_pid, ())
        try:
            # The kernel gives orphans to the sub-reaper's first living thread, the main one.
            return [int(pid) for pid in self._adopted_children.read_list().split()]
        except (OSError, ValueError):
            self._adopted_children.close()
            return ()

    def _add(self, pid: int, parent: TrackedProcess | None) -> TrackedProcess:
        process = TrackedProcess(
            pid,
            proc=self._proc,
            budget=self._budget,
            parent=parent.account if parent is not None else None,
        )
        # If the first reading shows another parent, the process has been re-parented.
        process.parent_pid = parent.pid if parent is not None else self._adopter_pid
        self._processes[pid] = process
        return process
