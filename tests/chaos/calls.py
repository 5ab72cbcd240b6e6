"""Was anybody asked again and again, or sooner than they wanted?"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from fakes.faults import Recorded

from chaos.collected_state import CollectedState

BURST_S = 5.0
MOST_FAILURES_IN_BURST = 10
"""Exponential back-off from a second on makes about four; a success of another run may begin it anew."""
MOST_REFRESHES_IN_BURST = 8
"""Credentials that live six seconds make two; each one that is refused or lost makes another."""
MOST_HELLOS_IN_BURST = 20
"""A collector greets on every new connection, and once in three seconds where it hears nothing."""
FASTEST_REPEAT_S = 0.2
MOST_FAST_REPEATS = 4
"""Refused credentials are replaced and tried at once; the success of another run may let this one try sooner."""


def check_calls(state: CollectedState) -> Iterator[str]:
    """Yield a line for every call that is made in a loop, and for every server that is asked before it wanted to be."""
    calls: dict[tuple[object, ...], list[Recorded]] = defaultdict(list)
    for incarnation, request in state.calls:
        calls[request.call, _about(request), incarnation].append(request)
    ambiguous = _ambiguous(state)
    for (call, what, _), requests in calls.items():
        failed = [one.at for one in requests if has_failed(one)]
        state.figures["calls failed"] += len(failed)
        fast = sum(1 for before, after in pairwise(failed) if after - before < FASTEST_REPEAT_S)
        burst = largest_burst(failed)
        if fast > MOST_FAST_REPEATS or burst > MOST_FAILURES_IN_BURST:
            yield f"{call} {what}: {burst} failures in {BURST_S} s, {fast} repeated at once"
        refreshes = largest_burst([one.at for one in requests if call == "refresh"])
        if refreshes > MOST_REFRESHES_IN_BURST:
            yield f"{call} {what}: {refreshes} times in {BURST_S} s"
        if what not in ambiguous:
            yield from _impatient(call, what, requests)
    for (run_key, collector), hello_times in state.hello_times.items():
        if (hellos := largest_burst(hello_times)) > MOST_HELLOS_IN_BURST:
            yield f"{run_key} {collector}: {hellos} Hellos in {BURST_S} s"


def has_failed(request: Recorded) -> bool:
    """Whether the one who asked has got nothing out of it."""
    if request.status is None or request.status >= 400:
        return True
    return request.fault is not None and request.fault.status is not None


def largest_burst(times: Sequence[float]) -> int:
    """Return the largest number of times (sorted) within `BURST_S`."""
    return max((bisect_right(times, at + BURST_S) - number for number, at in enumerate(times)), default=0)


def _about(request: Recorded) -> object:
    if request.call == "put":
        return re.sub(r"/[^/]*$", "", request.path)
    return hash(request.body) if request.call == "register" else request.run_id


def _ambiguous(state: CollectedState) -> set[object]:
    """What more than one run was registered with: a collector that is killed while it ends may begin several."""
    runs: dict[object, set[str]] = defaultdict(set)
    for _, request in state.calls:
        if request.call == "register" and request.run_id is not None:
            runs[_about(request)].add(request.run_id)
    return {what for what, run_ids in runs.items() if len(run_ids) > 1}


def _impatient(call: object, what: object, requests: Sequence[Recorded]) -> Iterator[str]:
    for before, after in pairwise(requests):
        wish = before.fault.headers.get("Retry-After") if before.fault is not None else None
        if wish is not None and after.at - before.at < float(wish):
            yield f"{call} {what}: asked again after {after.at - before.at:.2f} s instead of {wish}"
