"""The tree's memory as the sum of what was read of its processes at different times."""

from collector.sensors.member import Member
from collector.sensors.pss_family import Family, FamilySum, share_kib


def tree_sum(living: list[Member], epoch: int, *, is_closed: bool) -> float:
    """Sum anonymous pages, which add up in their shares, and shared ones, which are there once; in KiB.

    `epoch` numbers the readings that still hold; a tree that `is_closed` shares anonymous pages with nobody outside.
    A process' shared pages are at least there, so they bound the tree's from below; but others outside the tree may
    hold them as well, so that bound raises the sum of the shares by no more than they grew since it was read.
    """
    own = shares = 0
    grown: list[tuple[int, int]] = []
    families: dict[Family, FamilySum] = {}
    for member in living:
        state = member.pss
        if state.denied:
            own += member.rss_kib
            continue
        if state.family is None:
            own += share_kib(member)
        else:
            families.setdefault(state.family, FamilySum(state.family)).add(member, epoch)
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
    own += sum(family.total(is_closed=is_closed) for family in families.values())
    return float(own + max([shares, *(min(shared, shares + growth) for shared, growth in grown)]))
