"""Has every run ended, and was the API told the right thing?"""

from collections.abc import Iterator, Sequence

from chaos.collected_state import CollectedState
from chaos.record import VANISHED, End, Generation


def check_ends(state: CollectedState) -> Iterator[str]:
    """Yield a line for every run that has not ended as it must."""
    for generation in state.generations:
        reported = [told.end for told in state.told if told.name == generation.name]
        if reported and state.has_moved(generation.name):
            yield from _ends_of_parts(state, generation, reported)
        else:
            yield from _ends(generation, reported, has_rows=_has_acknowledged_rows(state, generation))
    state.figures["runs orphaned"] = state.orphans
    if state.orphans > state.excused_orphans:
        yield (
            f"{state.orphans} runs were registered and never finished; "
            f"{state.excused_orphans} answers may have been lost"
        )


def _ends_of_parts(state: CollectedState, generation: Generation, reported: Sequence[End]) -> Iterator[str]:
    """A part that was left at an uploader ends without an exit code; the last one as the run does."""
    name = generation.name
    left, homes = {End("finished", None), VANISHED}, state.homes[name]
    if not set(reported) <= {*generation.ends, *left} or (
        generation.ends[-1] not in reported and not generation.abandoned
    ):
        yield f"{name}: finished in parts as {reported} instead of {generation.ends}"
    if len(reported) > len(homes):
        yield f"{name}: {len(reported)} runs were finished, {len(homes)} were begun at uploaders"
    known = {told.run_id for told in state.told if told.name == name} | {place.run_key for place in homes}
    for told in state.told:
        if told.name == name and told.continues is not None and told.continues not in known:
            yield f"{name}: continues {told.continues}, which is no part of it"


def _has_acknowledged_rows(state: CollectedState, generation: Generation) -> bool:
    acknowledged = set().union(*state.acknowledged.values())
    return any(row in acknowledged for part in generation.parts for row in part.rows)


def _ends(generation: Generation, reported: Sequence[End], *, has_rows: bool) -> Iterator[str]:
    if not reported:
        # Nobody but its collector knew of a run that vanished before it had reached an uploader.
        if has_rows or not generation.abandoned:
            yield f"{generation.name}: no run was finished"
    elif generation.abandoned and reported[-1] != VANISHED and set(reported) <= set(generation.ends):
        # An end before was reported, and what began after it vanished before it had reached an uploader.
        return
    elif len(reported) > len(generation.ends):
        yield f"{generation.name}: {len(reported)} runs were finished, {len(generation.ends)} ends were begun"
    elif reported[-1] != generation.ends[-1] or not set(reported) <= set(generation.ends):
        yield f"{generation.name}: finished as {reported} instead of {generation.ends}"
