"""Memory of the tree: PSS, read as often as a budget allows, moved by the change of resident pages in between.

`smaps_rollup` costs 47 µs and more, 12 µs for each resident MiB of small pages, and holds the job's memory-map lock
meanwhile. RSS comes for nothing with `/proc/PID/stat`; when it has changed by more than a trifle, `/proc/PID/statm`
says how much of it is anonymous and how much is shared (files and shared memory), for 10 µs.

Between two readings, a change of the anonymous pages is a change of PSS: they are the process' own, and add up. Shared
pages that were touched since may be those of the others, and processes that work on the same memory touch the same:
these are there once. So the tree's shared memory is the sum of the shares that were read, or, where it is more, what
the process has whose shared pages grew most (see `tree_sum`). What this misses is sharing itself, which changes when
processes come and go, when pages that a fork left to both are written, and when processes touch different shared pages.
So a process that has or may have shared pages is read again, within `share` of the elapsed time, when one of these
happened, or when the reading of another one shows that it shares more; the others are read now and then within a
thirtieth of that.

Where processes rush into shared memory (a pool of workers begins), shares that were read one after the other are of
different moments and come to more than there is. Until all have been read while they stood still, the sum has only
what is there at least (`tree_sum`).
"""

import contextlib
from collections import Counter
from collections.abc import Iterable

from sentinel_collector.sensors.process_tree.fork_groups import add_child, is_vfork_child
from sentinel_collector.sensors.process_tree.process import PAGE_KIB, PssState, TrackedProcess
from sentinel_collector.sensors.process_tree.pss_sum import grown_kib, shared_share_kib, tree_sum
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
"""What all changes of RSS that are taken for anonymous unseen may come to, as a part of the sum."""
_BURST_PART = 0.2
"""From what part of the sum on shared pages touched within a row make shares of different moments differ for long."""
_BURST_S = 10.0
_NO_BURST_S = 120.0
"""Where readings never catch up, that is how the tree is: what bounds the sum meanwhile is too low in the long run."""


class PssEstimator:
    """Sums the tree's memory. `share` is the part of the time that reading PSS may take (0: never, RSS is used).

    The tree `is_closed` when its root began with a program of its own: nobody outside has anonymous pages of it.
    """

    def __init__(self, *, clock: Clock, share: float, interval_s: float, is_closed: bool = False) -> None:
        self.peak_kib = 0
        """The highest sum of one reading, or the highest that the kernel recorded for one process (`VmHWM`)."""
        self._clock = clock
        self._is_closed = is_closed
        self._share = share
        self._cap_s = share * interval_s * _CAP_INTERVALS
        self._urgent_s = self._cap_s
        self._routine_s = 0.0
        self._time_s = 0.0
        self._epoch = 0
        self._total_kib = 0.0
        self._found_unknown_sharing = False
        self._shared_kib = 0
        """The part of the sum that is of files and shared memory."""
        self._released_kib = 0
        """What members have given back of such pages since."""
        self._touched_kib = 0
        """Such pages that were touched since the row before, in a rush since `_generation` was last raised."""
        self._generation = 0
        self._burst_until_s = self._no_burst_until_s = 0.0
        self._read_now: list[TrackedProcess] = []
        """Whose reading was tried in this row, in that order."""
        self._last_seen: list[tuple[int, int]] = []
        self._idle_until_s = 0.0
        """Until then nobody is due while all stays as it was seen last."""

    def processes_changed(self) -> None:
        """Processes came or went: who shares pages may share them differently now."""
        self._epoch += 1
        # Who came may look like who went.
        self._last_seen = []

    def process_born(self, parent: TrackedProcess | None, child: TrackedProcess) -> None:
        """A child was read for the first time: until it begins a program of its own, it shares its parent's pages.

        An orphan, whose parent is gone, may share anybody's.
        """
        if parent is None:
            child.pss.has_unknown_parent = True
        elif child.rss_kib * _FORKED_RSS_DIVISOR >= parent.rss_kib:
            child.pss.is_new = True
            add_child(parent, child, is_closed=self._is_closed)
            parent.pss.has_forked = True

    def process_gone(self, member: TrackedProcess) -> None:
        """A process has no memory any more: what it shared is the others'."""
        state = member.pss
        if state.rss_now_kib > 0 and state.kib > 0:
            self._released_kib += shared_share_kib(state)
        state.rss_now_kib = 0
        self.processes_changed()
        if state.fork_group is not None:
            # The kernel takes the pages away from it one by one, and may not have finished.
            state.fork_group.has_released = True

    def update(self, members: Iterable[TrackedProcess], elapsed_s: float) -> float:
        """Return the sum over `members` in KiB; `elapsed_s` is what the budget grows by."""
        self._time_s += elapsed_s
        self._urgent_s = min(self._cap_s, self._urgent_s + elapsed_s * self._share)
        routine_share = self._share * _ROUTINE_PART
        self._routine_s = min(_ROUTINE_CAP_S * routine_share, self._routine_s + elapsed_s * routine_share)
        members = list(members)
        seen = [(member.rss_kib, member.faults) for member in members]
        is_still, self._last_seen = seen == self._last_seen, seen
        if is_still and self._time_s < self._idle_until_s:
            return self._total_kib
        living = []
        for member in members:
            if member.rss_kib > 0:
                living.append(member)
            elif member.pss.rss_now_kib > 0:
                # It gives its memory up before it is gone: from now on shared pages are the others'.
                self.process_gone(member)
        fork_groups = Counter(member.pss.fork_group for member in living if member.pss.fork_group is not None)
        for group, number in fork_groups.items():
            group.living = number
        if self._share > 0:
            self._split_changed(living)
            self._detect_shared_burst(living)
            # Before they are read: a reading among others that touch the same tells no more how much it had touched.
            held_kib = grown_kib(living, self._shared_kib - self._released_kib) if self._is_in_burst() else None
            self._released_kib = 0
            self._read_some(living)
            own_kib, self._shared_kib = tree_sum(living, self._epoch, held_kib=held_kib, is_closed=self._is_closed)
            self._end_shared_burst(living)
            self._total_kib = float(own_kib + self._shared_kib)
        else:
            self._total_kib = float(sum(member.rss_kib for member in living))
        self.peak_kib = max(self.peak_kib, int(self._total_kib))
        for group in fork_groups:
            group.has_released = False
        for member in living:
            member.pss.is_new = False
        self._idle_until_s = self._due_at_s(living) if is_still and self._share > 0 else 0.0
        return self._total_kib

    def note_peak(self, member: TrackedProcess) -> None:
        """Take a living process' own peak (`VmHWM` of `/proc/PID/status`) into account."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            data = member.read_file("status")
            self.peak_kib = max(self.peak_kib, int(data[data.index(b"VmHWM:") + 6 :].split(None, 1)[0]))

    def _split_changed(self, living: list[TrackedProcess]) -> None:
        """Bring the parts of each resident set up to date, where it changed."""
        trifle_kib = self._total_kib * _NOISE_PART / max(1, len(living))
        for member in living:
            rss, state = member.rss_kib, member.pss
            if rss == state.rss_now_kib and state.is_settled:
                continue
            change_kib = rss - state.rss_now_kib
            state.rss_now_kib = rss
            if state.is_settled and abs(rss - state.split_at_rss_kib) <= trifle_kib:
                state.anon_kib += change_kib
            elif not state.denied:
                self._split(member)

    def _split(self, member: TrackedProcess) -> None:
        """Read how much of the resident set is anonymous and how much is shared (`statm` of `proc(5)`)."""
        state = member.pss
        before_kib = state.anon_kib, state.shared_kib
        try:
            words = member.read_file("statm").split()
            resident_kib, shared_kib = int(words[1]) * PAGE_KIB, int(words[2]) * PAGE_KIB
        except (OSError, ValueError, IndexError):
            resident_kib = shared_kib = 0
        if resident_kib <= 0:
            # Gone since, or there is no such file: what changed counts as anonymous.
            resident_kib, shared_kib = member.rss_kib, min(state.shared_kib, member.rss_kib)
        state.anon_kib, state.shared_kib = resident_kib - shared_kib, shared_kib
        # RSS was read a moment earlier. Where this is something else, it may pass without RSS ever showing it, so look
        # again until it stands still (newer kernels count more exactly here than there, and never agree).
        state.is_settled = resident_kib == member.rss_kib or before_kib == (state.anon_kib, shared_kib)
        state.split_at_rss_kib = member.rss_kib
        self._touched_kib += max(0, shared_kib - before_kib[1])
        self._released_kib += max(0, before_kib[1] - shared_kib)

    def _read_some(self, living: list[TrackedProcess]) -> None:
        epoch = self._epoch
        self._read_now.clear()
        self._read_due(living)
        if self._found_unknown_sharing:
            self._found_unknown_sharing = False
            self._epoch += 1
            for member in living:
                member.pss.has_forked = member.pss.has_forked or member.pss.read_at_s != self._time_s
        if self._epoch != epoch:
            # A reading has shown that others, which seemed right, are not: they are due now, not a sample later.
            self._read_due(living)
        if len(self._read_now) > 1 and self._is_in_burst():
            self._split_read_generations()

    def _is_in_burst(self) -> bool:
        return self._time_s < self._burst_until_s

    def _detect_shared_burst(self, living: list[TrackedProcess]) -> None:
        """Look whether so many shared pages were touched that shares of before and after do not add up."""
        if self._is_in_burst():
            return
        many_kib = _BURST_PART * (self._total_kib or sum(member.rss_kib for member in living))
        if self._touched_kib > many_kib and self._time_s >= self._no_burst_until_s:
            self._burst_until_s, self._no_burst_until_s = self._time_s + _BURST_S, self._time_s + _NO_BURST_S
            self._generation += 1
        self._touched_kib = 0

    def _end_shared_burst(self, living: list[TrackedProcess]) -> None:
        """Once all that matter were read while hardly a shared page was touched, their shares add up again."""
        if self._is_in_burst() and all(self._is_current(member.pss) for member in living):
            self._burst_until_s = self._no_burst_until_s = 0.0

    def _is_current(self, state: PssState) -> bool:
        if state.kib < 0:
            return state.denied
        return state.generation == self._generation or shared_share_kib(state) < self._total_kib * _SIGNIFICANT_PART

    def _split_read_generations(self) -> None:
        """See whether shared pages were touched while one after the other was read: their shares do not add up then."""
        self._bump_generation()
        for member in self._read_now:
            self._split(member)
        if self._bump_generation():
            for member in self._read_now:
                member.pss.generation = self._generation
                self._generation += 1

    def _bump_generation(self) -> bool:
        """Count on where more than a trifle of shared pages was touched since the last time."""
        if not self._is_in_burst() or self._touched_kib <= self._total_kib * _NOISE_PART:
            return False
        self._touched_kib = 0
        self._generation += 1
        return True

    def _read_due(self, living: list[TrackedProcess]) -> None:
        urgent, routine = self._due(living)
        # Never read first, then the one that was read longest ago.
        for member in sorted(urgent, key=_last_read):
            if _cost(member) > self._urgent_s < self._cap_s:
                break
            self._urgent_s -= self._read(member)
        for member in sorted(routine, key=_last_read):
            if _cost(member) > self._routine_s:
                break
            self._routine_s -= self._read(member)

    def _due(self, living: list[TrackedProcess]) -> tuple[list[TrackedProcess], list[TrackedProcess]]:
        """Who must be read for the sum to be right, and who should be once in a while."""
        urgent, routine = [], []
        matters_kib = self._total_kib * _SIGNIFICANT_PART
        is_alone = len(living) == 1
        for member in living:
            state = member.pss
            if state.denied or state.read_at_s == self._time_s:
                continue
            if state.kib < 0:
                if not is_vfork_child(member):
                    urgent.append(member)
                continue
            rss = member.rss_kib
            moved = abs(rss - state.rss_kib) > rss * _CHANGED_PART
            if rss >= matters_kib:
                # Whether it is the others' memory too that it touched, only a reading can tell.
                may_share = not is_alone and state.shared_kib - state.read_shared_kib > rss * _CHANGED_PART
                shares = min(state.kib, state.read_anon_kib) < state.rss_kib * _SHARES_BELOW
                if may_share or state.has_forked or shares:
                    faulted = (member.faults - state.faults) * PAGE_KIB > rss * _CHANGED_PART
                    if may_share or state.has_forked or moved or faulted or state.epoch != self._epoch:
                        urgent.append(member)
                        continue
            if self._is_in_burst() and not self._is_current(state):
                urgent.append(member)
            elif moved or self._time_s - state.read_at_s >= _ROUTINE_AGE_S:
                routine.append(member)
        return urgent, routine

    def _due_at_s(self, living: list[TrackedProcess]) -> float:
        """When somebody is due again if all stays as it is; 0 where that may be at the next row.

        What a reading of this row has shown, its failure included, may make it due again, and others with it.
        """
        if any(not member.pss.is_settled or member.pss.read_at_s == self._time_s for member in living):
            return 0.0
        if any(self._due(living)):
            return 0.0
        return min((member.pss.read_at_s + _ROUTINE_AGE_S for member in living if not member.pss.denied), default=0.0)

    def _read(self, member: TrackedProcess) -> float:
        """Read one PSS and return what it cost: CPU time, so that being preempted does not use up the budget."""
        state = member.pss
        state.read_at_s = self._time_s
        self._read_now.append(member)
        begin = self._clock.thread_time()
        try:
            data = member.read_file("smaps_rollup")
            is_known = state.kib >= 0 and state.epoch == self._epoch and not state.has_forked
            state.kib = _field_kib(data, b"\nPss:")
            # Linux before 5.4 does not say: then the anonymous pages are its own.
            has_anon = b"\nPss_Anon:" in data
            state.anon_pss_kib = _field_kib(data, b"\nPss_Anon:") if has_anon else min(state.kib, state.anon_kib)
            before_kib = state.cow_shared_kib if is_known else None
            state.exclusive_anon_kib, state.cow_shared_kib = (
                _anon_parts(data, state) if has_anon else (state.anon_pss_kib, 0)
            )
            exclusive_kib = _field_kib(data, b"\nPrivate_Clean:") + _field_kib(data, b"\nPrivate_Dirty:")
            state.exclusive_shared_kib = max(0, exclusive_kib - state.anon_pss_kib)
        except PermissionError:
            state.denied = True
        except (OSError, ValueError, IndexError) as error:
            # Gone, or between two programs in an exec: its last parts stand in until the next reading.
            state.kib = -1
            state.denied = isinstance(error, FileNotFoundError) and member.is_alive()
        else:
            state.rss_kib, state.faults = member.rss_kib, member.faults
            # Taken before PSS: what came in between counts as grown, and the sum bounds that by what is there.
            state.read_anon_kib, state.read_shared_kib = state.anon_kib, state.shared_kib
            state.has_forked = False
            self._bump_generation()
            state.generation = self._generation
            self._propagate(state, before_kib, matters_kib=member.rss_kib * _CHANGED_PART)
            state.epoch = self._epoch
            self.note_peak(member)
        state.cost_s = self._clock.thread_time() - begin
        return state.cost_s

    def _propagate(self, state: PssState, before_kib: int | None, *, matters_kib: float) -> None:
        """See what a reading says about others; `before_kib`: the `cow_shared_kib` of one that should still hold."""
        foreign_kib = state.shared_kib - shared_share_kib(state)
        if foreign_kib - state.foreign_shared_kib > matters_kib:
            # Those who have the rest of these pages may have been read when they seemed to be theirs alone.
            self._epoch += 1
        state.foreign_shared_kib = foreign_kib
        if (
            state.fork_group is not None
            and before_kib is not None
            and abs(state.cow_shared_kib - before_kib) > matters_kib
        ):
            # It has written to what it shared, or given it back: the others have other parts of it now.
            self._epoch += 1
        if state.has_unknown_parent and state.cow_shared_kib > matters_kib:
            # With whom, only readings can tell. Once is enough: from then on those are known to share.
            state.has_unknown_parent = False
            self._found_unknown_sharing = True


def _last_read(member: TrackedProcess) -> tuple[bool, float, int]:
    return member.pss.kib >= 0, member.pss.read_at_s, member.rss_kib


def _cost(member: TrackedProcess) -> float:
    """What a reading will take, in seconds, from the one before or from the number of small pages."""
    state = member.pss
    if state.kib >= 0 and state.rss_kib > 0:
        return state.cost_s * max(1.0, member.rss_kib / state.rss_kib)
    return _CALL_COST_S + member.rss_kib * _KIB_COST_S


def _field_kib(rollup: bytes, name: bytes) -> int:
    return int(rollup[rollup.index(name) + len(name) :].split(None, 1)[0])


def _anon_parts(rollup: bytes, state: PssState) -> tuple[int, int]:
    """Return how much of its anonymous memory is certainly a process' own, and the rest.

    What is dirty and private, less shared memory, may also be pages of mapped files. What N processes have in common
    is the N-th part of it at least in the share of each, which bounds the rest from above; and the half at most, which
    bounds it from below, also where shared memory is not private to anybody.
    """
    sharers = max(2, 0 if state.fork_group is None else state.fork_group.living)
    anon_kib = _field_kib(rollup, b"\nAnonymous:")
    dirty_kib = _field_kib(rollup, b"\nPrivate_Dirty:") - _field_kib(rollup, b"\nPss_Shmem:")
    at_most_kib = (sharers * state.anon_pss_kib - anon_kib) // (sharers - 1)
    own_kib = max(0, 2 * state.anon_pss_kib - anon_kib, min(at_most_kib, dirty_kib))
    return own_kib, anon_kib - own_kib
