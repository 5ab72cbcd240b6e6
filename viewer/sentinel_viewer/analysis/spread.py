"""Further runs of a job, by which the differences of two of them are judged."""

from collections.abc import Sequence

from sentinel_viewer.analysis.figures import Figures, figures_of_description
from sentinel_viewer.analysis.outcome import OK, outcome_of
from sentinel_viewer.runs.naming import FoundRun, Library

_EARLIER = 20


def spread_of(library: Library, found: Sequence[FoundRun]) -> list[Figures]:
    """Return the figures of further runs of the first one's job that ended well."""
    compared = {one.run.run_id for one in found}
    others = library.same_job(found[0], _EARLIER)
    return [figures_of_description(one) for one in others if outcome_of(one).kind == OK and one.run_id not in compared]
