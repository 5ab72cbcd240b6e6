"""Anonymous memory of processes that were forked by one another (`docs/design/pss.md`, "Forks").

Shares that were read together add up. Else the first process of a group counts with all that it has, and each other one
with its exclusive pages: this misses pages that only the children share.
"""

from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_state import ForkGroup

_FEW_FAULTS = 64
_OUTDATED_PART = 0.02
"""The part of a group's memory that may have been read while the group was another one."""


def add_child(parent: TrackedProcess, child: TrackedProcess, *, is_closed: bool) -> None:
    """Put a child that still has its parent's pages into its parent's group."""
    state = parent.pss
    if state.fork_group is None:
        is_shared_outside = not is_closed and state.reading is not None
        external_kib = state.anon_kib - state.anon_share_kib(parent.faults) if is_shared_outside else 0
        state.fork_group = ForkGroup(state, external_kib)
    child.pss.fork_group = state.fork_group
    # It was forked a moment ago, from more or from less than there is now.
    child.pss.forked_from_kib = max(state.anon_kib, parent.rss_kib)


def is_vfork_child(process: TrackedProcess) -> bool:
    """Whether a new child has hardly touched a page: it may use its parent's memory itself (`vfork(2)`), not a copy.

    A reading would count all of its parent's memory twice until it begins its program.
    """
    return process.pss.is_new and process.faults <= _FEW_FAULTS


class ForkGroupSum:
    """Adds up the living members of one group, in KiB."""

    def __init__(self, group: ForkGroup) -> None:
        self._group = group
        self._shares = self._all = self._outdated = 0
        self._exclusive = self._own = self._most = 0

    def add(self, process: TrackedProcess, epoch: int) -> None:
        """Add a member; readings of another `epoch` are outdated."""
        state = process.pss
        reading = state.reading
        share = state.anon_share_kib(process.faults)
        exclusive = state.exclusive_kib(share)
        if reading is None and is_vfork_child(process):
            self._outdated += state.anon_kib
            self._own += exclusive
            self._exclusive += exclusive
            return
        self._shares += share
        self._all += state.anon_kib
        if reading is None or state.has_forked or (reading.epoch != epoch and exclusive < state.anon_kib):
            self._outdated += state.anon_kib
        is_first = state is self._group.first
        self._own += state.anon_kib if is_first else max(exclusive, state.anon_kib - state.forked_from_kib)
        if state.has_forked:
            # Its exclusive pages at the reading may be lent now, to members that are added here as well.
            exclusive = 0
        self._exclusive += exclusive
        self._most = max(self._most, state.anon_kib - exclusive)

    def total_kib(self, *, is_closed: bool) -> int:
        """Return the group's memory; a tree that `is_closed` shares nothing with processes outside."""
        group, first = self._group, self._group.first
        if first.denied:
            # It counts with its whole resident set elsewhere.
            return self._shares
        # A lower bound, also without the first: all exclusive pages, and the most that one member has beside its own.
        least = self._exclusive + self._most
        if first.rss_kib > 0:
            least = max(least, self._own)
        if group.has_released or self._outdated > self._all * _OUTDATED_PART:
            return max(0, least - group.external_kib)
        if is_closed:
            return max(self._shares, least)
        group.external_kib = max(0, least - self._shares)
        return self._shares
