"""The memory of one process as the PSS estimator knows it, in KiB.

Pages are *anonymous*, or *shared*: those of files and of shared memory.
"""

import os

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class PssReading:
    """One `smaps_rollup` of a process (`proc(5)`), and its resident set at that time."""

    def __init__(self, rollup: bytes, state: "PssState", *, faults: int) -> None:
        """`state` is from before: pages that came in between count as grown, and the sum bounds that by what is there.

        Raises `ValueError` or `IndexError`.
        """
        # How many processes may have the same anonymous pages.
        sharers = 2 if state.fork_group is None else max(2, state.fork_group.living)
        self.kib = _field_kib(rollup, b"\nPss:")
        if b"\nPss_Anon:" in rollup:
            self.anon_pss_kib = _field_kib(rollup, b"\nPss_Anon:")
            self.exclusive_anon_kib, self.cow_shared_kib = _anon_parts(rollup, self.anon_pss_kib, sharers)
        else:
            # Linux before 5.4 does not say: all anonymous pages count as the process' own.
            self.anon_pss_kib = self.exclusive_anon_kib = min(self.kib, state.anon_kib)
            self.cow_shared_kib = 0
        self.shared_pss_kib = self.kib - self.anon_pss_kib
        """Its share of its shared pages."""
        exclusive_kib = _field_kib(rollup, b"\nPrivate_Clean:") + _field_kib(rollup, b"\nPrivate_Dirty:")
        self.exclusive_shared_kib = max(0, exclusive_kib - self.anon_pss_kib)
        """A lower bound of its shared pages that no other process had."""
        self.rss_kib = state.rss_kib
        self.anon_kib = state.anon_kib
        self.shared_kib = state.shared_kib
        self.faults = faults
        """Minor page faults until then."""
        self.epoch = 0
        """The estimator's count of events that change who shares pages."""
        self.generation = 0
        """Shares of readings of the same generation add up: hardly a shared page was touched between them."""
        self.cost_s = 0.0
        """CPU time that the reading took."""

    @property
    def foreign_shared_kib(self) -> int:
        """The other processes' share of its shared pages."""
        return self.shared_kib - self.shared_pss_kib


class ForkGroup:
    """The descendants of `first` by fork. A member that has begun another program shares nothing any more."""

    def __init__(self, first: "PssState", external_kib: int) -> None:
        self.first = first
        self.living = 1
        """Members in this row."""
        self.has_released = False
        """A member has given its memory up since the last sum."""
        self.external_kib = external_kib
        """The part of this memory that processes outside the tree have."""


class PssState:
    """What is known about a process' memory now, and its last reading."""

    def __init__(self) -> None:
        self.reading: PssReading | None = None
        """The last one; `None` before the first, and after one that failed."""
        self.read_at_s = -1.0
        """When a reading was last tried, on the estimator's own clock, which begins at 0."""
        self.denied = False
        """PSS cannot be read: RSS counts."""
        self.rss_kib = 0
        """The resident set that `anon_kib` and `shared_kib` are the parts of."""
        self.anon_kib = 0
        self.shared_kib = 0
        self.split_at_rss_kib = 0
        """The resident set when its parts were last read."""
        self.is_settled = False
        """The parts are known, and belong to `rss_kib`."""
        self.fork_group: ForkGroup | None = None
        """Set when it was forked or has forked."""
        self.is_new = False
        """It was forked, and is in its first row."""
        self.has_forked = False
        """A child with many of its pages appeared since its reading: its own pages are shared now."""
        self.forked_from_kib = 0
        """An upper bound of its anonymous memory that is still its parent's."""
        self.has_unknown_parent = False

    def anon_share_kib(self, faults: int) -> int:
        """Return its part of the sum's anonymous memory; `faults` are its minor page faults so far."""
        reading = self.reading
        if reading is None:
            # A forked process' pages are its parent's until it touches them, and touching is a fault. With huge pages
            # this is too little, but such a process is cheap to read and soon is read.
            return min(self.anon_kib, faults * PAGE_KIB)
        # An exec or a big release can leave less than the change takes away.
        return max(0, min(self.anon_kib, reading.anon_pss_kib + self.anon_kib - reading.anon_kib))

    def exclusive_kib(self, anon_share_kib: int) -> int:
        """Return a lower bound of its anonymous memory that no other process has."""
        reading = self.reading
        if reading is None:
            return anon_share_kib
        return max(0, min(anon_share_kib, reading.exclusive_anon_kib + self.anon_kib - reading.anon_kib))

    def shared_share_kib(self) -> int:
        """Return its share of its shared pages, less what it has given back since the reading; 0 without a reading."""
        reading = self.reading
        if reading is None:
            return 0
        share = reading.shared_pss_kib
        return share * self.shared_kib // reading.shared_kib if self.shared_kib < reading.shared_kib else share


def _field_kib(rollup: bytes, name: bytes) -> int:
    return int(rollup[rollup.index(name) + len(name) :].split(None, 1)[0])


def _anon_parts(rollup: bytes, anon_pss_kib: int, sharers: int) -> tuple[int, int]:
    """Return a lower bound of the anonymous pages that no other process has, and the rest.

    Private dirty pages less shared memory are not that bound alone: they may be pages of mapped files. Of pages that
    N processes have in common, the share of each holds the N-th part at least, which bounds the rest from above. It
    holds the half at most, which bounds the rest from below, also where all shared memory has several users.
    """
    anon_kib = _field_kib(rollup, b"\nAnonymous:")
    dirty_kib = _field_kib(rollup, b"\nPrivate_Dirty:") - _field_kib(rollup, b"\nPss_Shmem:")
    at_most_kib = (sharers * anon_pss_kib - anon_kib) // (sharers - 1)
    exclusive_kib = max(0, 2 * anon_pss_kib - anon_kib, min(at_most_kib, dirty_kib))
    return exclusive_kib, anon_kib - exclusive_kib
