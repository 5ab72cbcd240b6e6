"""The tree's memory as the sum of readings that were made at different times."""

from sentinel_collector.sensors.process_tree.fork_groups import ForkGroupSum
from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_state import ForkGroup


def tree_sum_kib(living: list[TrackedProcess], epoch: int, *, held_kib: int | None, is_closed: bool) -> tuple[int, int]:
    """Return the tree's anonymous and shared memory in KiB.

    Anonymous pages add up in their shares. Shared pages are there once. Readings of another `epoch` are outdated. A
    tree that `is_closed` shares no anonymous pages with processes outside. `held_kib` is set where shares of different
    moments do not add up: the shared memory of the row before, less what was given back, plus what has grown since.
    """
    anon_kib = 0
    generations: dict[int, tuple[int, int]] = {}
    fork_groups = dict[ForkGroup, ForkGroupSum]()
    for process in living:
        state = process.pss
        if state.denied:
            anon_kib += process.rss_kib
            continue
        if state.fork_group is None:
            anon_kib += state.anon_share_kib(process.faults)
        else:
            fork_groups.setdefault(state.fork_group, ForkGroupSum(state.fork_group)).add(process, epoch)
        reading = state.reading
        if reading is not None:
            share = state.shared_share_kib()
            shares, exclusive = generations.get(reading.generation, (0, 0))
            generations[reading.generation] = shares + share, exclusive + min(share, reading.exclusive_shared_kib)
    anon_kib += sum(group.total_kib(is_closed=is_closed) for group in fork_groups.values())
    shares = sum(shares for shares, _ in generations.values())
    if held_kib is not None:
        shares = min(shares, max(_least_kib(generations), held_kib))
    return anon_kib, grown_kib(living, shares)


def grown_kib(living: list[TrackedProcess], shares_kib: int) -> int:
    """Return the shares together with what processes have touched since their readings.

    A process' shared pages bound the tree's from below. Processes outside the tree may hold them as well, so this bound
    raises the sum of the shares by no more than the pages that grew since the reading.
    """
    most = shares_kib
    for process in living:
        state = process.pss
        if not state.denied:
            reading = state.reading
            grown = state.shared_kib if reading is None else state.shared_kib - reading.shared_kib
            most = max(most, min(state.shared_kib, shares_kib + grown))
    return most


def _least_kib(generations: dict[int, tuple[int, int]]) -> int:
    """Return a lower bound of the shared memory, from shares and exclusive pages by the generation of their reading.

    A page that another process touches between two readings counts as a whole in the first and as a half in the second.
    So the shares of one generation add up, with the exclusive pages of later ones.
    """
    least = later = 0
    for number in sorted(generations, reverse=True):
        shares, exclusive = generations[number]
        least = max(least, shares + later)
        later += exclusive
    return least
