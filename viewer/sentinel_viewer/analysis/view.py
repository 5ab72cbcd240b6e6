"""All that a view of one run needs, read and computed once."""

from typing import NamedTuple

from sentinel_viewer.analysis.advice import Advice, Evidence, advise
from sentinel_viewer.analysis.figures import Figures, figures_of_description, figures_of_rows
from sentinel_viewer.analysis.outcome import OK, Outcome, outcome_of
from sentinel_viewer.rows.reader import read_rows
from sentinel_viewer.rows.statistics import ColumnStatistics, all_statistics
from sentinel_viewer.rows.table import Rows
from sentinel_viewer.runs.naming import FoundRun, Library
from sentinel_viewer.runs.run import Run

_EARLIER = 5


class RunView(NamedTuple):
    """A run with everything that is known of it."""

    found: FoundRun
    rows: Rows
    statistics: dict[str, ColumnStatistics]
    figures: Figures
    outcome: Outcome
    advice: list[Advice]

    @property
    def run(self) -> Run:
        """The run's description."""
        return self.found.run


def view_of(found: FoundRun, library: Library, rows: Rows | None = None) -> RunView:
    """Read a run, unless its rows are given; its advice also considers the last runs of its job that ended well."""
    rows = read_rows(found) if rows is None else rows
    statistics = all_statistics(rows)
    run = found.run
    figures = figures_of_rows(run, rows, statistics) if len(rows) else figures_of_description(run)
    earlier = [figures_of_description(one) for one in library.same_job(found, _EARLIER) if outcome_of(one).kind == OK]
    advice = advise(Evidence(run, rows, figures, earlier))
    return RunView(found, rows, statistics, figures, outcome_of(run), advice)
