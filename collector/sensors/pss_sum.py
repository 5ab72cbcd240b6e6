"""The tree's memory as the sum of what was read of its processes at different times.

Shares that were read together add up. Those of a process that forked and of the ones it forked do not when they were
read at different times: each is a part of what was shared by others than now, and a child that comes or goes halves or
doubles the sum of a row. Anonymous pages are shared by fork alone, so the first one of such a family has all of its
own, whoever it lends them to, and the forked ones add what nobody else can have. That needs no reading at all; it
misses pages that only the forked ones share, so shares that were read together go before it.
"""

from collector.sensors.member import PAGE_KIB, Member, PssState


def _anon_kib(member: Member) -> tuple[int, int]:
    """A process' part of the sum's anonymous memory, and what of it nobody else can have."""
    state = member.pss
    anon = state.anon_kib
    if state.kib < 0:
        # Not read yet. A forked worker's pages are its parent's until it touches them, and touching is a fault;
        # with huge pages that is too little, but such a process is cheap to read and soon has been.
        own = min(anon, member.faults * PAGE_KIB)
        return own, own
    grown = anon - state.read_anon_kib
    # An exec or a big release can leave less than the move takes away.
    share = max(0, min(anon, state.anon_pss_kib + grown))
    return share, max(0, min(share, state.private_kib + grown))


class _Family:
    """A process and those that it forked: their anonymous memory, in KiB."""

    def __init__(self) -> None:
        self.shares = 0
        """Sum of what each has of it."""
        self.least = 0
        """What the first one has, all of which is its own or lent to these, and what is each one's alone."""

    def total(self, head: PssState, epoch: int, *, is_closed: bool) -> int:
        if head.kib < 0 or head.epoch != epoch or head.has_forked or head.is_taken_back:
            # Read when others were there than now: the shares are parts of different wholes.
            return self.least
        return max(self.shares, self.least) if is_closed else self.shares


def _head(state: PssState) -> PssState | None:
    """Return whose family a process belongs to; who was forked and forked again counts by itself."""
    head = state if state.lender is None else state.lender
    return head if head.has_lent and head.lender is None and (head is state or not state.has_lent) else None


def tree_sum(living: list[Member], epoch: int, *, is_closed: bool) -> float:
    """Sum anonymous pages, which add up in their shares, and shared ones, which are there once; in KiB.

    `epoch` numbers the readings that still hold; a tree that `is_closed` shares anonymous pages with nobody outside.
    A process' shared pages are at least there, so they bound the tree's from below; but others outside the tree may
    hold them as well, so that bound raises the sum of the shares by no more than they grew since it was read.
    """
    own = shares = 0
    grown: list[tuple[int, int]] = []
    families: dict[PssState, _Family] = {}
    for member in living:
        state = member.pss
        if state.denied:
            own += member.rss_kib
            continue
        anon_share, anon_alone = _anon_kib(member)
        head = _head(state)
        if head is None or head.rss_now_kib <= 0 or head.denied:
            own += anon_share
        else:
            family = families.setdefault(head, _Family())
            family.shares += anon_share
            family.least += state.anon_kib if head is state else anon_alone
        shared = state.shared_kib
        if state.kib < 0:
            grown.append((shared, shared))
            continue
        share = state.kib - state.anon_pss_kib
        if shared < state.read_shared_kib:
            share = share * shared // state.read_shared_kib
        elif shared > state.read_shared_kib:
            grown.append((shared, shared - state.read_shared_kib))
        shares += share
    own += sum(family.total(head, epoch, is_closed=is_closed) for head, family in families.items())
    return float(own + max([shares, *(min(shared, shares + growth) for shared, growth in grown)]))
