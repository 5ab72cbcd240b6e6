"""The tree's memory as the sum of what was read of its processes at different times."""

from sentinel_collector.sensors.process_tree.fork_groups import ForkGroup, ForkGroupSum, share_kib
from sentinel_collector.sensors.process_tree.process import PssState, TrackedProcess


def tree_sum(living: list[TrackedProcess], epoch: int, *, held_kib: int | None, is_closed: bool) -> tuple[int, int]:
    """Sum anonymous pages, which add up in their shares, and shared ones, which are there once; both in KiB.

    `epoch` numbers the readings that still hold; a tree that `is_closed` shares anonymous pages with nobody outside.
    Where shares that were read at different moments do not add up, `held_kib` is what there was of shared pages in the
    row before, less what was given back and with what has grown since, else `None`.
    """
    own = 0
    groups: dict[int, tuple[int, int]] = {}
    fork_groups: dict[ForkGroup, ForkGroupSum] = {}
    for member in living:
        state = member.pss
        if state.denied:
            own += member.rss_kib
            continue
        if state.fork_group is None:
            own += share_kib(member)
        else:
            fork_groups.setdefault(state.fork_group, ForkGroupSum(state.fork_group)).add(member, epoch)
        if state.kib >= 0:
            share = shared_share_kib(state)
            shares, sole = groups.get(state.generation, (0, 0))
            groups[state.generation] = shares + share, sole + min(share, state.exclusive_shared_kib)
    own += sum(family.total(is_closed=is_closed) for family in fork_groups.values())
    shares = sum(shares for shares, _ in groups.values())
    if held_kib is not None:
        shares = min(shares, max(_least_kib(groups), held_kib))
    return own, grown_kib(living, shares)


def grown_kib(living: list[TrackedProcess], shares_kib: int) -> int:
    """Return what shares come to with what processes have touched since they were read.

    A process' shared pages are at least there, so they bound the tree's from below; but others outside the tree may
    hold them as well, so that bound raises the sum of the shares by no more than they grew since it was read.
    """
    most = shares_kib
    for member in living:
        state = member.pss
        if not state.denied:
            grown = state.shared_kib if state.kib < 0 else state.shared_kib - state.read_shared_kib
            most = max(most, min(state.shared_kib, shares_kib + grown))
    return most


def shared_share_kib(state: PssState) -> int:
    """Return a process' share of files and shared memory, less what it has given back since that was read."""
    share = state.kib - state.anon_pss_kib
    return share * state.shared_kib // state.read_shared_kib if state.shared_kib < state.read_shared_kib else share


def _least_kib(groups: dict[int, tuple[int, int]]) -> int:
    """Return what is there at least; `groups` has shares and sole pages by the number of their sharing.

    A page that was touched by another process between two readings is all the first one's and half the second one's.
    What was read together adds up, and what later readings found to be nobody else's.
    """
    least = later = 0
    for number in sorted(groups, reverse=True):
        shares, sole = groups[number]
        least = max(least, shares + later)
        later += sole
    return least
