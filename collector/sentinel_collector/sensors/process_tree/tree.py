"""The tracked process tree on Linux: who belongs to it, and what it uses.

Members are found through `/proc/PID/task/TID/children` and kept by pid and start time, also when they are re-parented.
They are read in the order in which they were found, so every process is read before its descendants, as the
ledger needs it. The kernel's count of forks (`processes` of `/proc/stat`) says whether there can be anybody new:
while it stands still, nobody is looked for.
"""

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable
from resource import struct_rusage

from sentinel_collector.procfs import FdBudget, ProcFile
from sentinel_collector.sensors.interfaces import Reap, TreeReading
from sentinel_collector.sensors.process_tree.children import children_by_parent, has_children_files
from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger, ProcessAccount
from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_estimator import DEFAULT_SHARE, PssEstimator
from sentinel_protocol.common.clock import Clock

_SEARCHES_AFTER_CHANGE = 2
"""A process that is re-parented during a search can be missed by it, not by the next one too."""
_SEARCH_ANYWAY_EVERY = 60


class ProcessTree:
    """`TreeSensor` from `/proc`.

    With `own_child` the root was started by this process after the base line, so all its time counts; else what
    the tree used before now does not. With `adopt_orphans` this process is a sub-reaper: its other children are
    daemons of the job; they belong to the tree, and the sensor waits for them when they have ended.
    `inherited_kib` is this process' peak (`VmHWM`) when it started the root: a lower bound of the root's `ru_maxrss`
    (`exec` takes over the peak of the memory map that it replaces, and that was ours).
    """

    def __init__(
        self,
        *,
        clock: Clock,
        root_pid: int,
        own_child: bool,
        adopt_orphans: bool = False,
        interval_s: float,
        pss_share: float = DEFAULT_SHARE,
        inherited_kib: int = 0,
        proc: str = "/proc",
        budget: FdBudget | None = None,
    ) -> None:
        self._proc = proc
        self._budget = budget or FdBudget()
        self._own_pid = os.getpid()
        self._inherited_kib = inherited_kib
        self._reaped_peak_kib = 0
        self._adopt_orphans = adopt_orphans
        self._excluded: set[int] = set()
        self._ledger = CpuLedger()
        self._pss = PssEstimator(clock=clock, share=pss_share, interval_s=interval_s, is_closed=own_child)
        self._has_children_files = has_children_files(proc)
        self._own_children = ProcFile(f"{proc}/self/task/{self._own_pid}/children")
        self._forks = 0
        self._forks_count_up = True
        self._searches_left = _SEARCHES_AFTER_CHANGE
        self._until_search = _SEARCH_ANYWAY_EVERY
        self._io_readable = False
        self._members: dict[int, TrackedProcess] = {}
        self._root_pid = root_pid
        self._root = self._add(root_pid, None)
        self._reported = self._ledger.counted
        # Children of our own are looked for later: some may have to be excluded first.
        self._visit(search=not own_child)
        if own_child:
            # A job that ends before the first row has its memory seen this once.
            self._pss.update(self._members.values(), 0.0)
        else:
            self._reported = self._ledger.counted

    def read(self, *, forks: int, elapsed_s: float, reap_root: Reap | None = None) -> TreeReading:
        """Read all members; what processes use that came and went since is part of their parents' times."""
        search, is_due = self._should_search(forks)
        found = self._visit(search=search)
        if found and is_due:
            # Somebody was born and the count did not move: a sandbox that does not count. Always search.
            self._forks_count_up = False
        usage = reap_root() if reap_root is not None else None
        if usage is not None:
            self.reaped(self._root_pid, usage)
        members = self._members.values()
        memory_kib = self._pss.update(members, elapsed_s)
        children = sum(not member.is_zombie for member in members) - (
            self._root_pid in self._members and not self._root.is_zombie
        )
        counted, reported = self._ledger.counted, self._reported
        self._reported = counted
        return TreeReading(
            counted[0] - reported[0],
            counted[1] - reported[1],
            children,
            memory_kib,
            counted[2] - reported[2] if self._io_readable else None,
            counted[3] - reported[3] if self._io_readable else None,
        )

    def reaped(self, pid: int, usage: struct_rusage) -> None:
        """Take the exact total of a member that this process waited for."""
        self._reaped_peak_kib = max(self._reaped_peak_kib, usage.ru_maxrss)
        user_us, system_us = round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6)
        member = self._members.pop(pid, None)
        if member is None:
            if self._adopt_orphans and pid not in self._excluded and pid != self._root_pid:
                # An orphan that came to us and ended between two readings.
                self._ledger.close_with_rusage(ProcessAccount(None), user_us, system_us, was_final=True)
            return
        self._ledger.close_with_rusage(member.account, user_us, system_us, was_final=member.is_zombie)
        member.close()
        self._pss.process_gone(member)

    def exclude(self, pid: int) -> None:
        """This child of our own, and what it starts, is no part of the tree; say so before the next reading."""
        self._excluded.add(pid)

    def root_alive(self) -> bool:
        """The root still runs: same pid, same start time, no zombie."""
        return self._root_pid in self._members and self._root.is_alive()

    @property
    def pids(self) -> Collection[int]:
        """All members that the last reading saw."""
        return self._members.keys()

    @property
    def peak_kib(self) -> int:
        """Highest sum of a reading, or highest of one process as the kernel recorded it."""
        for member in self._members.values():
            self._pss.note_peak(member)
        seen_kib, reaped_kib = self._pss.peak_kib, self._reaped_peak_kib
        return max(seen_kib, reaped_kib) if reaped_kib > self._inherited_kib else seen_kib

    def close(self) -> None:
        """Give descriptors back."""
        for member in self._members.values():
            member.close()
        self._own_children.close()

    def _should_search(self, forks: int) -> tuple[bool, bool]:
        """Whether to look for new members, and whether only to check that the count of forks can be trusted."""
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
        """Read every member, parents first, and those found on the way; True when somebody new was found."""
        by_parent = children_by_parent(self._proc) if search and not self._has_children_files else None
        queue = list(self._members.values())
        known = len(queue)
        gone: list[TrackedProcess] = []
        self._read_from(0, queue, gone, search=search, by_parent=by_parent)
        if search and self._adopt_orphans:
            # After all parents: who loses its parent meanwhile is found here instead of there.
            start = len(queue)
            self._find_new(self._own_child_pids(by_parent), None, queue)
            self._read_from(start, queue, gone, search=True, by_parent=by_parent)
        for member in gone:
            self._members.pop(member.pid, None)
            member.close()
            self._pss.process_gone(member)
        self._ledger.end_reading()
        if self._adopt_orphans:
            self._reap_orphans()
        found = len(queue) > known
        if found:
            self._pss.processes_changed()
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
        """Read `queue` from `start` on; whom a search finds is appended to it, and read in its turn."""
        ledger = self._ledger
        # islice follows a list that grows.
        for member in itertools.islice(queue, start, None):
            old_parent, is_new = member.parent_pid, not member.start
            if not member.read(ledger):
                ledger.close(member.account)
                gone.append(member)
                continue
            if member.parent_pid != old_parent:
                heir = self._members.get(member.parent_pid)
                member.account.parent = heir.account if heir is not None else None
                self._searches_left = _SEARCHES_AFTER_CHANGE
            if is_new and member is not self._root:
                self._pss.process_born(self._members.get(member.parent_pid), member)
            if member.io_readable:
                self._io_readable = True
            if search:
                pids = member.children() if by_parent is None else by_parent.get(member.pid, ())
                if pids:
                    self._find_new(pids, member, queue)

    def _find_new(self, pids: Iterable[int], parent: TrackedProcess | None, queue: list[TrackedProcess]) -> None:
        unknown = [pid for pid in pids if pid not in self._members and pid not in self._excluded]
        queue.extend(self._add(pid, parent) for pid in unknown)

    def _own_child_pids(self, by_parent: dict[int, list[int]] | None) -> Iterable[int]:
        if by_parent is not None:
            return by_parent.get(self._own_pid, ())
        try:
            # The kernel gives orphans to the sub-reaper's first living thread: the main one.
            return [int(pid) for pid in self._own_children.read_list().split()]
        except (OSError, ValueError):
            self._own_children.close()
            return ()

    def _reap_orphans(self) -> None:
        for member in list(self._members.values()):
            if not member.is_zombie or member.parent_pid != self._own_pid or member is self._root:
                continue
            with contextlib.suppress(ChildProcessError):
                pid, _status, usage = os.wait4(member.pid, os.WNOHANG)
                if pid == member.pid:
                    self.reaped(pid, usage)

    def _add(self, pid: int, parent: TrackedProcess | None) -> TrackedProcess:
        member = TrackedProcess(
            pid,
            proc=self._proc,
            budget=self._budget,
            parent=parent.account if parent is not None else None,
        )
        # The first reading's parent is the one it was found under; a difference is a re-parenting.
        member.parent_pid = parent.pid if parent is not None else self._own_pid
        self._members[pid] = member
        return member
