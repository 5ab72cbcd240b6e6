"""Memory of the tree: PSS, read as often as a budget allows, moved by the change of RSS in between.

`smaps_rollup` costs 47 µs and more, 12 µs for each resident MiB of small pages, and holds the job's memory-map lock
meanwhile. RSS comes for nothing with `/proc/PID/stat`. A change of RSS is a change of PSS as long as the pages are
the process' own; what it misses is sharing, which changes when processes come and go and when shared pages are written.
So a process that shares is read again, within `share` of the elapsed time, when one of these happened; the others are
read now and then within a thirtieth of that.
"""

import contextlib
from collections.abc import Iterable

from collector.sensors.member import PAGE_KIB, Member
from protocol.clock import Clock

DEFAULT_SHARE = 0.01
_ROUTINE_PART = 0.03
_CAP_INTERVALS = 2.5
_ROUTINE_CAP_S = 120.0
_ROUTINE_AGE_S = 10.0
_CALL_COST_S = 60e-6
_KIB_COST_S = 12e-9
_MOVED = 0.05
_SHARES_BELOW = 0.9
_MATTERS_FROM = 0.02
_FORKED_FROM = 5


class PssMeter:
    """Sums the tree's memory. `share` is the part of the time that reading PSS may take (0: never, RSS is used)."""

    def __init__(self, *, clock: Clock, share: float, interval_s: float) -> None:
        self.peak_kib = 0
        """The highest sum of one reading, or the highest that the kernel recorded for one process (`VmHWM`)."""
        self._clock = clock
        self._share = share
        self._cap_s = share * interval_s * _CAP_INTERVALS
        self._urgent_s = self._cap_s
        self._routine_s = 0.0
        self._time_s = 0.0
        self._epoch = 0
        self._total_kib = 0.0

    def members_changed(self) -> None:
        """Processes came or went: who shares pages may share them differently now."""
        self._epoch += 1

    def member_born(self, parent: Member, child: Member) -> None:
        """A child was read for the first time: until it begins a program of its own, it shares its parent's pages."""
        if child.rss_kib * _FORKED_FROM >= parent.rss_kib:
            parent.pss.has_forked = True

    def measure(self, members: Iterable[Member], elapsed_s: float) -> float:
        """Return the sum over `members` in KiB; `elapsed_s` is what the budget grows by."""
        self._time_s += elapsed_s
        self._urgent_s = min(self._cap_s, self._urgent_s + elapsed_s * self._share)
        routine_share = self._share * _ROUTINE_PART
        self._routine_s = min(_ROUTINE_CAP_S * routine_share, self._routine_s + elapsed_s * routine_share)
        living = [member for member in members if member.rss_kib > 0]
        if self._share > 0:
            self._read_some(living)
        self._total_kib = _total(living) if self._share > 0 else float(sum(member.rss_kib for member in living))
        self.peak_kib = max(self.peak_kib, int(self._total_kib))
        return self._total_kib

    def note_peak(self, member: Member) -> None:
        """Take a living process' own peak (`VmHWM` of `/proc/PID/status`) into account."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            data = member.read_file("status")
            self.peak_kib = max(self.peak_kib, int(data[data.index(b"VmHWM:") + 6 :].split(None, 1)[0]))

    def _read_some(self, living: list[Member]) -> None:
        urgent, routine = [], []
        matters_kib = self._total_kib * _MATTERS_FROM
        for member in living:
            state = member.pss
            if state.denied:
                continue
            if state.kib < 0:
                urgent.append(member)
                continue
            rss = member.rss_kib
            moved = abs(rss - state.rss_kib) > rss * _MOVED
            if rss >= matters_kib and (state.has_forked or state.kib < state.rss_kib * _SHARES_BELOW):
                faulted = (member.faults - state.faults) * PAGE_KIB > rss * _MOVED
                if state.has_forked or moved or faulted or state.epoch != self._epoch:
                    urgent.append(member)
                    continue
            if moved or self._time_s - state.read_at_s >= _ROUTINE_AGE_S:
                routine.append(member)
        # Never read first, then the one that was read longest ago.
        for member in sorted(urgent, key=_last_read):
            if _cost(member) > self._urgent_s < self._cap_s:
                break
            self._urgent_s -= self._read(member)
        for member in sorted(routine, key=_last_read):
            if _cost(member) > self._routine_s:
                break
            self._routine_s -= self._read(member)

    def _read(self, member: Member) -> float:
        """Read one PSS and return what it cost."""
        state = member.pss
        begin = self._clock.monotonic()
        try:
            data = member.read_file("smaps_rollup")
            start = data.index(b"\nPss:") + 5
            state.kib = int(data[start:].split(None, 1)[0])
        except (PermissionError, FileNotFoundError):
            state.denied = True
        except (OSError, ValueError, IndexError):
            # Gone, or between two programs in an exec: RSS stands in until the next reading.
            state.kib = -1
        else:
            state.rss_kib, state.faults = member.rss_kib, member.faults
            state.has_forked = False
            state.epoch, state.read_at_s = self._epoch, self._time_s
            self.note_peak(member)
        state.cost_s = self._clock.monotonic() - begin
        return state.cost_s


def _last_read(member: Member) -> tuple[bool, float, int]:
    return member.pss.kib >= 0, member.pss.read_at_s, member.rss_kib


def _cost(member: Member) -> float:
    """What a reading will take, in seconds, from the one before or from the number of small pages."""
    state = member.pss
    if state.kib >= 0 and state.rss_kib > 0:
        return state.cost_s * max(1.0, member.rss_kib / state.rss_kib)
    return _CALL_COST_S + member.rss_kib * _KIB_COST_S


def _total(living: list[Member]) -> float:
    total = 0
    for member in living:
        state = member.pss
        rss = member.rss_kib
        if state.kib >= 0:
            # An exec or a big release can leave less than the move takes away.
            total += max(0, min(rss, state.kib + rss - state.rss_kib))
        elif state.denied:
            total += rss
        else:
            # Not read yet. A forked worker's pages are its parent's until it touches them, and touching is a fault;
            # with huge pages that is too little, but such a process is cheap to read and soon has been.
            total += min(rss, member.faults * PAGE_KIB)
    return float(total)
