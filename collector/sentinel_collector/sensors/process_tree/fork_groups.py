"""Processes that were forked by one another: what they have of the anonymous memory that they share.

Anonymous pages are shared by fork alone. Shares that were read together add up; those that were read at different times
are parts of different wholes, and a child that comes or goes halves or doubles the sum of a row. But the first one of a
family has all of its own, whoever it lends them to, and the others add what nobody else can have. That needs no reading
at all; it misses pages that only the forked ones share, so shares that were read together go before it.
"""

from sentinel_collector.sensors.process_tree.process import PAGE_KIB, PssState, TrackedProcess

_FEW_FAULTS = 64
_NEGLIGIBLE = 0.02
"""What part of a family may have been read when others were there than now."""


class ForkGroup:
    """All that descend from `first` by fork; who has begun a program of its own has nothing of it left, and no harm."""

    def __init__(self, first: PssState, external_kib: int) -> None:
        self.first = first
        self.living = 1
        """How many there are at this row."""
        self.has_released = False
        """One of them has given its memory up since the last sum."""
        self.external_kib = external_kib
        """What others outside the tree have of this memory."""


def add_child(parent: TrackedProcess, child: TrackedProcess, *, is_closed: bool) -> None:
    """A child that still has its parent's pages was seen for the first time."""
    state = parent.pss
    if state.fork_group is None:
        external_kib = 0 if is_closed or state.kib < 0 else state.anon_kib - share_kib(parent)
        state.fork_group = ForkGroup(state, external_kib)
    child.pss.fork_group = state.fork_group
    # It was forked a moment ago, from more or from less than there is now.
    child.pss.forked_from_kib = max(state.anon_kib, parent.rss_kib)


def is_vfork_child(member: TrackedProcess) -> bool:
    """Whether a new child has hardly touched a page: it may have its parent's memory itself (`vfork(2)`), not a copy.

    Until such a one begins its program a reading would count all of its parent's memory twice.
    """
    return member.pss.is_new and member.faults <= _FEW_FAULTS


def share_kib(member: TrackedProcess) -> int:
    """Return a process' part of the sum's anonymous memory."""
    state = member.pss
    if state.kib < 0:
        # Not read yet. A forked worker's pages are its parent's until it touches them, and touching is a fault;
        # with huge pages that is too little, but such a process is cheap to read and soon has been.
        return min(state.anon_kib, member.faults * PAGE_KIB)
    # An exec or a big release can leave less than the move takes away.
    return max(0, min(state.anon_kib, state.anon_pss_kib + state.anon_kib - state.read_anon_kib))


def exclusive_kib(state: PssState, share: int) -> int:
    """Return what of a process' anonymous memory nobody else can have; `share` is its `share_kib`."""
    return (
        share if state.kib < 0 else max(0, min(share, state.exclusive_anon_kib + state.anon_kib - state.read_anon_kib))
    )


class ForkGroupSum:
    """The living members of one family, added up in KiB."""

    def __init__(self, family: ForkGroup) -> None:
        self._group = family
        self._shares = self._all = self._outdated = 0
        self._exclusive = self._own = self._most = 0

    def add(self, member: TrackedProcess, epoch: int) -> None:
        """Count one; `epoch` numbers the readings that still hold."""
        state, share = member.pss, share_kib(member)
        alone = exclusive_kib(state, share)
        if state.kib < 0 and is_vfork_child(member):
            self._outdated += state.anon_kib
            self._own += alone
            self._exclusive += alone
            return
        self._shares += share
        self._all += state.anon_kib
        if state.kib < 0 or state.has_forked or (state.epoch != epoch and alone < state.anon_kib):
            self._outdated += state.anon_kib
        self._own += (
            state.anon_kib if state is self._group.first else max(alone, state.anon_kib - state.forked_from_kib)
        )
        if state.has_forked:
            # What it had alone when it was read may be lent now, to those that are counted here as well.
            alone = 0
        self._exclusive += alone
        self._most = max(self._most, state.anon_kib - alone)

    def total(self, *, is_closed: bool) -> int:
        """Return what all of them have; a tree that `is_closed` shares nothing with anybody outside."""
        family, first = self._group, self._group.first
        if first.denied:
            # It counts with all it has.
            return self._shares
        # What is each one's alone, and the most that one has beside it: all there is at least, also without the first.
        least = self._exclusive + self._most
        if first.rss_now_kib > 0:
            least = max(least, self._own)
        if family.has_released or self._outdated > self._all * _NEGLIGIBLE:
            return max(0, least - family.external_kib)
        if is_closed:
            return max(self._shares, least)
        family.external_kib = max(0, least - self._shares)
        return self._shares
