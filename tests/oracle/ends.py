"""Has every run ended, and was the API told the right thing?"""

from collections.abc import Iterator, Sequence

from oracle.evidence import Evidence
from oracle.record import VANISHED, End, Generation


def check_ends(evidence: Evidence) -> Iterator[str]:
    """Yield a line for every run that has not ended as it must."""
    for generation in evidence.generations:
        reported = [told.end for told in evidence.told if told.name == generation.name]
        yield from _ends(generation, reported, has_rows=_has_acknowledged_rows(evidence, generation))
    evidence.figures["runs orphaned"] = evidence.orphans
    if evidence.orphans > evidence.excused_orphans:
        yield (
            f"{evidence.orphans} runs were registered and never finished; "
            f"{evidence.excused_orphans} answers may have been lost"
        )


def _has_acknowledged_rows(evidence: Evidence, generation: Generation) -> bool:
    acknowledged = set().union(*evidence.acknowledged.values())
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
