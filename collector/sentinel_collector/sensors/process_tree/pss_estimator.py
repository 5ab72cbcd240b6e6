"""Memory of the tree: PSS is read as often as a budget allows, and moved by the change of resident pages in between.

Costs, and what changes between two readings: `docs/design/pss.md`. `smaps_rollup` takes 12 µs for each resident MiB of
small pages, `statm` 10 µs; RSS comes for nothing with `/proc/PID/stat`. After an event that may change who shares pages
(an *epoch*), a process that has or may have shared pages is read again. Shares of one *generation* add up. During a
burst of touched shared pages, the sum is a lower bound.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable

from sentinel_collector.procfs import peak_rss_kib
from sentinel_collector.sensors.process_tree.fork_groups import add_child, is_vfork_child
from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_state import PAGE_KIB, PssReading, PssState
from sentinel_collector.sensors.process_tree.pss_sum import grown_kib, tree_sum_kib
from sentinel_protocol.common.clock import Clock

DEFAULT_SHARE = 0.01
_ROUTINE_PART = 0.03
_CAP_INTERVALS = 2.5
_ROUTINE_CAP_S = 120.0
_ROUTINE_AGE_S = 10.0
_CALL_COST_S = 60e-6
_KIB_COST_S = 12e-9
_CHANGED_PART = 0.05
_SHARES_BELOW = 0.9
_SIGNIFICANT_PART = 0.02
_FORKED_RSS_DIVISOR = 5
_NOISE_PART = 0.01
"""The part of the sum up to which changes of RSS, all together, count as anonymous without a look."""
_BURST_PART = 0.2
"""Shared pages touched within a row that are more than this part of the sum make a burst."""
_BURST_S = 10.0
_NO_BURST_S = 120.0
"""Where readings never catch up, the tree is like that, and the lower bound would be too low in the long run."""


class PssEstimator:
    """Sums the tree's memory. `share` is the part of the time that reading PSS may take (0: never, RSS is used).

    The tree `is_closed` when its root began with a program of its own: no process outside has its anonymous pages.
    """

    def __init__(self, *, clock: Clock, share: float, interval_s: float, is_closed: bool = False) -> None:
        self.peak_kib = 0
        """The highest sum of a row, or the highest resident set that the kernel recorded for a process (`VmHWM`)."""
        self._clock = clock
        self._is_closed = is_closed
        self._share = share
        self._cap_s = share * interval_s * _CAP_INTERVALS
        self._urgent_s = self._cap_s
        self._routine_s = 0.0
        self._time_s = 0.0
        self._epoch = 0
        """Readings of an earlier epoch may show shares that have changed."""
        self._total_kib = 0.0
        self._found_unknown_sharing = False
        self._shared_kib = 0
        """The shared part of the sum."""
        self._released_kib = 0
        """Shared pages that processes have given back since."""
        self._touched_kib = 0
        """Shared pages touched since the row before, in a burst since `_generation` was last raised."""
        self._generation = 0
        self._burst_until_s = self._no_burst_until_s = 0.0
        self._read_now: list[TrackedProcess] = []
        """Whose reading was tried in this row, in that order."""
        self._last_seen: list[tuple[int, int]] = []
        self._idle_until_s = 0.0
        """No reading is due until then while resident sets and faults stay as in `_last_seen`."""

    def on_processes_changed(self) -> None:
        """Processes came or went: the others may share pages differently now."""
        self._epoch += 1
        # A new process may look like the one that went.
        self._last_seen = []

    def on_process_born(self, parent: TrackedProcess | None, child: TrackedProcess) -> None:
        """A child was read for the first time: until it begins a program of its own, it shares its parent's pages.

        An orphan, whose parent is gone, may share the pages of any process.
        """
        if parent is None:
            child.pss.has_unknown_parent = True
        elif child.rss_kib * _FORKED_RSS_DIVISOR >= parent.rss_kib:
            child.pss.is_new = True
            add_child(parent, child, is_closed=self._is_closed)
            parent.pss.has_forked = True

    def on_process_gone(self, process: TrackedProcess) -> None:
        """A process has no memory any more: what it shared is the others'."""
        state = process.pss
        if state.rss_kib > 0:
            self._released_kib += state.shared_share_kib()
        state.rss_kib = 0
        self.on_processes_changed()
        if state.fork_group is not None:
            # The kernel takes the pages away from it one by one, and may not have finished.
            state.fork_group.has_released = True

    def update(self, processes: Iterable[TrackedProcess], elapsed_s: float) -> float:
        """Return the sum over `processes` in KiB; `elapsed_s` is the time that the budget grows by."""
        self._time_s += elapsed_s
        self._urgent_s = min(self._cap_s, self._urgent_s + elapsed_s * self._share)
        routine_share = self._share * _ROUTINE_PART
        self._routine_s = min(_ROUTINE_CAP_S * routine_share, self._routine_s + elapsed_s * routine_share)
        processes = list(processes)
        seen = [(process.rss_kib, process.faults) for process in processes]
        is_still, self._last_seen = seen == self._last_seen, seen
        if is_still and self._time_s < self._idle_until_s:
            return self._total_kib
        living = []
        for process in processes:
            if process.rss_kib > 0:
                living.append(process)
            elif process.pss.rss_kib > 0:
                # It gives its memory up before it is gone: from now on shared pages are the others'.
                self.on_process_gone(process)
        groups = Counter(process.pss.fork_group for process in living if process.pss.fork_group is not None)
        for group, number in groups.items():
            group.living = number
        if self._share > 0:
            self._total_kib = self._estimate_kib(living)
        else:
            self._total_kib = float(sum(process.rss_kib for process in living))
        self.peak_kib = max(self.peak_kib, int(self._total_kib))
        for group in groups:
            group.has_released = False
        for process in living:
            process.pss.is_new = False
        self._idle_until_s = self._due_at_s(living) if is_still and self._share > 0 else 0.0
        return self._total_kib

    def note_peak(self, process: TrackedProcess) -> None:
        """Take a living process' own peak (`VmHWM` of `/proc/PID/status`) into account."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            self.peak_kib = max(self.peak_kib, peak_rss_kib(process.read_file("status")))

    def _estimate_kib(self, living: list[TrackedProcess]) -> float:
        self._split_changed(living)
        self._detect_shared_burst(living)
        # Before the readings: one that is made among processes that touch the same pages hides how much was touched.
        held_kib = grown_kib(living, self._shared_kib - self._released_kib) if self._is_in_burst() else None
        self._released_kib = 0
        self._read_some(living)
        anon_kib, self._shared_kib = tree_sum_kib(living, self._epoch, held_kib=held_kib, is_closed=self._is_closed)
        self._end_shared_burst(living)
        return float(anon_kib + self._shared_kib)

    def _split_changed(self, living: list[TrackedProcess]) -> None:
        """Bring the parts of each resident set up to date where it changed."""
        noise_kib = self._total_kib * _NOISE_PART / max(1, len(living))
        for process in living:
            rss_kib, state = process.rss_kib, process.pss
            if rss_kib == state.rss_kib and state.is_settled:
                continue
            change_kib = rss_kib - state.rss_kib
            state.rss_kib = rss_kib
            if state.is_settled and abs(rss_kib - state.split_at_rss_kib) <= noise_kib:
                state.anon_kib += change_kib
            elif not state.denied:
                self._split(process)

    def _split(self, process: TrackedProcess) -> None:
        """Read how much of the resident set is anonymous and how much is shared (`statm` of `proc(5)`)."""
        state = process.pss
        before_kib = state.anon_kib, state.shared_kib
        try:
            words = process.read_file("statm").split()
            resident_kib, shared_kib = int(words[1]) * PAGE_KIB, int(words[2]) * PAGE_KIB
        except (OSError, ValueError, IndexError):
            resident_kib = shared_kib = 0
        if resident_kib <= 0:
            # Gone since, or there is no such file: the change counts as anonymous.
            resident_kib, shared_kib = process.rss_kib, min(state.shared_kib, process.rss_kib)
        state.anon_kib, state.shared_kib = resident_kib - shared_kib, shared_kib
        # RSS was read a moment earlier. A difference may pass without RSS ever showing it, so the next row looks again,
        # until the parts stand still (newer kernels count more exactly here than there, and never agree).
        state.is_settled = resident_kib == process.rss_kib or before_kib == (state.anon_kib, shared_kib)
        state.split_at_rss_kib = process.rss_kib
        self._touched_kib += max(0, shared_kib - before_kib[1])
        self._released_kib += max(0, before_kib[1] - shared_kib)

    def _read_some(self, living: list[TrackedProcess]) -> None:
        epoch = self._epoch
        self._read_now.clear()
        self._read_due(living)
        if self._found_unknown_sharing:
            self._found_unknown_sharing = False
            self._epoch += 1
            for process in living:
                process.pss.has_forked = process.pss.has_forked or process.pss.read_at_s != self._time_s
        if self._epoch != epoch:
            # A reading has outdated others: these are due now, not a row later.
            self._read_due(living)
        if len(self._read_now) > 1 and self._is_in_burst():
            self._split_read_generations()

    def _is_in_burst(self) -> bool:
        return self._time_s < self._burst_until_s

    def _detect_shared_burst(self, living: list[TrackedProcess]) -> None:
        """Begin a burst where so many shared pages were touched that shares of before and after do not add up."""
        if self._is_in_burst():
            return
        many_kib = _BURST_PART * (self._total_kib or sum(process.rss_kib for process in living))
        if self._touched_kib > many_kib and self._time_s >= self._no_burst_until_s:
            self._burst_until_s, self._no_burst_until_s = self._time_s + _BURST_S, self._time_s + _NO_BURST_S
            self._generation += 1
        self._touched_kib = 0

    def _end_shared_burst(self, living: list[TrackedProcess]) -> None:
        """End the burst once all significant shares were read while hardly a shared page was touched."""
        if self._is_in_burst() and all(self._is_current(process.pss) for process in living):
            self._burst_until_s = self._no_burst_until_s = 0.0

    def _is_current(self, state: PssState) -> bool:
        if state.reading is None:
            return state.denied
        is_latest = state.reading.generation == self._generation
        return is_latest or state.shared_share_kib() < self._total_kib * _SIGNIFICANT_PART

    def _split_read_generations(self) -> None:
        """Give this row's readings a generation each where shared pages were touched in between."""
        self._bump_generation()
        for process in self._read_now:
            self._split(process)
        if self._bump_generation():
            for process in self._read_now:
                if process.pss.reading is not None:
                    process.pss.reading.generation = self._generation
                self._generation += 1

    def _bump_generation(self) -> bool:
        """Begin a generation where shared pages beyond noise were touched since the last one began."""
        if not self._is_in_burst() or self._touched_kib <= self._total_kib * _NOISE_PART:
            return False
        self._touched_kib = 0
        self._generation += 1
        return True

    def _read_due(self, living: list[TrackedProcess]) -> None:
        urgent, routine = self._due(living)
        # Those without a reading come first, then the one that was read longest ago.
        for process in sorted(urgent, key=_last_read):
            if _expected_cost_s(process) > self._urgent_s < self._cap_s:
                break
            self._urgent_s -= self._read(process)
        for process in sorted(routine, key=_last_read):
            if _expected_cost_s(process) > self._routine_s:
                break
            self._routine_s -= self._read(process)

    def _due(self, living: list[TrackedProcess]) -> tuple[list[TrackedProcess], list[TrackedProcess]]:
        """Return who must be read for the sum to be right, and who should be read once in a while."""
        urgent, routine = [], []
        significant_kib = self._total_kib * _SIGNIFICANT_PART
        is_alone = len(living) == 1
        for process in living:
            state, rss_kib = process.pss, process.rss_kib
            reading = state.reading
            if state.denied or state.read_at_s == self._time_s:
                continue
            if reading is None:
                if not is_vfork_child(process):
                    urgent.append(process)
                continue
            moved = abs(rss_kib - reading.rss_kib) > rss_kib * _CHANGED_PART
            if rss_kib >= significant_kib:
                # Only a reading shows whether the shared pages that it touched are the others' as well.
                may_share = not is_alone and state.shared_kib - reading.shared_kib > rss_kib * _CHANGED_PART
                shares = min(reading.kib, reading.anon_kib) < reading.rss_kib * _SHARES_BELOW
                if may_share or state.has_forked or shares:
                    faulted = (process.faults - reading.faults) * PAGE_KIB > rss_kib * _CHANGED_PART
                    if may_share or state.has_forked or moved or faulted or reading.epoch != self._epoch:
                        urgent.append(process)
                        continue
            if self._is_in_burst() and not self._is_current(state):
                urgent.append(process)
            elif moved or self._time_s - state.read_at_s >= _ROUTINE_AGE_S:
                routine.append(process)
        return urgent, routine

    def _due_at_s(self, living: list[TrackedProcess]) -> float:
        """Return when a reading is due again if all stays as it is; 0 where that may be at the next row.

        A reading of this row, its failure included, may make its process due again, and others with it.
        """
        if any(not process.pss.is_settled or process.pss.read_at_s == self._time_s for process in living):
            return 0.0
        if any(self._due(living)):
            return 0.0
        return min(
            (process.pss.read_at_s + _ROUTINE_AGE_S for process in living if not process.pss.denied), default=0.0
        )

    def _read(self, process: TrackedProcess) -> float:
        """Read one PSS and return its cost: CPU time, so that being preempted does not use up the budget."""
        state, before = process.pss, process.pss.reading
        state.read_at_s = self._time_s
        self._read_now.append(process)
        begin = self._clock.thread_time()
        try:
            reading = PssReading(process.read_file("smaps_rollup"), state, faults=process.faults)
        except PermissionError:
            state.denied = True
        except (OSError, ValueError, IndexError) as error:
            # Gone, or between two programs in an exec: its resident set counts until the next reading.
            state.reading = None
            state.denied = isinstance(error, FileNotFoundError) and process.is_alive()
        else:
            held = before is not None and before.epoch == self._epoch and not state.has_forked
            state.reading = reading
            state.has_forked = False
            self._bump_generation()
            reading.generation = self._generation
            self._propagate(state, reading, before, held=held)
            reading.epoch = self._epoch
            self.note_peak(process)
        cost_s = self._clock.thread_time() - begin
        if state.reading is not None:
            state.reading.cost_s = cost_s
        return cost_s

    def _propagate(self, state: PssState, now: PssReading, before: PssReading | None, *, held: bool) -> None:
        """Outdate the other processes' readings where this one shows that they share differently.

        `before` is the reading before this one; until now it `held`.
        """
        significant_kib = now.rss_kib * _CHANGED_PART
        if now.foreign_shared_kib - (before.foreign_shared_kib if before is not None else 0) > significant_kib:
            # The others that have these pages may have been read when the pages seemed to be theirs alone.
            self._epoch += 1
        shared_kib = before.cow_shared_kib if before is not None and held else now.cow_shared_kib
        if state.fork_group is not None and abs(now.cow_shared_kib - shared_kib) > significant_kib:
            # It has written to pages that it shared, or given them back: the others' parts have changed.
            self._epoch += 1
        if state.has_unknown_parent and now.cow_shared_kib > significant_kib:
            # Only readings show with whom it shares. Once is enough: from then on those are known to share.
            state.has_unknown_parent = False
            self._found_unknown_sharing = True


def _last_read(process: TrackedProcess) -> tuple[bool, float, int]:
    return process.pss.reading is not None, process.pss.read_at_s, process.rss_kib


def _expected_cost_s(process: TrackedProcess) -> float:
    """Return what a reading will take: by the one before, or by the number of small pages."""
    reading = process.pss.reading
    if reading is not None and reading.rss_kib > 0:
        return reading.cost_s * max(1.0, process.rss_kib / reading.rss_kib)
    return _CALL_COST_S + process.rss_kib * _KIB_COST_S
