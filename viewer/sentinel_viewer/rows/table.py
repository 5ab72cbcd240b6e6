"""The rows of a run, column by column, and what their time stamps tell: interval lengths and gaps."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import compress, pairwise
from math import isnan, nan
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

TIME = "timestamp"
if TYPE_CHECKING:
    Values: TypeAlias = array[float]
else:
    Values = array
"""A column: doubles, NaN where unknown."""
_DEFAULT_INTERVAL_S = 1.0
_GAP_INTERVALS = 2.5
_COVERED = 0.8
"""A long row is no gap when its CPU figures cover at least this share of it: then the collector was only late."""


class Gap(NamedTuple):
    """A time that no row covers, UNIX seconds."""

    start: float
    end: float


class Rows:
    """Columns of equal length; unknown is NaN. Rows are in time order.

    `columns` has `timestamp` and whatever columns the objects had. `integers` names the columns that hold whole numbers
    only. `remarks` says what was wrong with the objects.
    """

    def __init__(
        self,
        columns: dict[str, Values],
        *,
        integers: Iterable[str] = (),
        interval_s: float | None = None,
        remarks: Iterable[str] = (),
    ) -> None:
        self.columns = columns
        self.integers = frozenset(integers)
        self.remarks = list(remarks)
        self._given_interval_s = interval_s
        self._sort()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def times(self) -> Values:
        """UNIX seconds, ascending."""
        return self.columns.get(TIME, array("d"))

    def has(self, name: str) -> bool:
        """Whether any row has a value in this column."""
        return name in self.columns and not all(map(isnan, self.columns[name]))

    def values(self, name: str) -> Values:
        """Return a column, all unknown when the rows do not have it."""
        found = self.columns.get(name)
        return array("d", [nan]) * len(self) if found is None else found

    @cached_property
    def interval_s(self) -> float:
        """Time between rows as it was meant: as the run says, else the median."""
        if self._given_interval_s:
            return self._given_interval_s
        times = self.times
        steps = [later - earlier for earlier, later in pairwise(times)]
        return median(steps) if steps and median(steps) > 0 else _DEFAULT_INTERVAL_S

    @cached_property
    def lengths(self) -> Values:
        """Seconds that each row covers.

        A row reaches back to the one before it. After a gap, and for the first row, the length follows from the host's
        CPU figures: seconds used divided by cores in use. Where these are unknown it is the interval.
        """
        times = self.times
        if not times:
            return array("d")
        lengths = array("d", [0.0])
        lengths.extend(later - earlier for earlier, later in pairwise(times))
        lengths[0] = self._covered(0, self.interval_s * _GAP_INTERVALS) or self.interval_s
        for gap in self._gap_rows:
            lengths[gap] = min(lengths[gap], self._covered(gap, lengths[gap]) or self.interval_s)
        return lengths

    @cached_property
    def gaps(self) -> list[Gap]:
        """Times between rows that no sample covers."""
        times, lengths = self.times, self.lengths
        return [Gap(times[row - 1], max(times[row - 1], times[row] - lengths[row])) for row in self._gap_rows]

    @cached_property
    def duration_s(self) -> float:
        """Seconds that the rows cover; gaps are not part of it."""
        return sum(self.lengths)

    @cached_property
    def start(self) -> float:
        """When the first row's interval began, UNIX seconds; 0 without rows."""
        return self.times[0] - self.lengths[0] if len(self) else 0.0

    @property
    def end(self) -> float:
        """The last row's time stamp; 0 without rows."""
        return self.times[-1] if len(self) else 0.0

    def followed_by(self, later: "Rows") -> "Rows":
        """Return these rows and those of `later` that are newer than all of them."""
        first = bisect_right(later.times, self.end)
        added = len(later) - first
        names = list(dict.fromkeys([*self.columns, *later.columns])) if added else self.columns
        return Rows(
            {name: self.values(name) + (later.values(name)[first:] if added else array("d")) for name in names},
            integers=self.integers & later.integers if len(self) and added else self.integers | later.integers,
            interval_s=self._given_interval_s,
            remarks=[*self.remarks, *later.remarks],
        )

    def newest(self, count: int) -> "Rows":
        """Return the last rows, at most so many."""
        columns = {name: values[-count:] for name, values in self.columns.items()}
        return Rows(columns, integers=self.integers, interval_s=self._given_interval_s, remarks=self.remarks)

    def rates(self, name: str) -> Values:
        """Return a counter column per second."""
        return array(
            "d",
            [
                value / length if length > 0 else nan
                for value, length in zip(self.values(name), self.lengths, strict=True)
            ],
        )

    @cached_property
    def _gap_rows(self) -> list[int]:
        """Rows with a gap before them."""
        times, longest = self.times, self.interval_s * _GAP_INTERVALS
        found = []
        for row in range(1, len(times)):
            step = times[row] - times[row - 1]
            if step > longest and (self._covered(row, step) or 0.0) < step * _COVERED:
                found.append(row)
        return found

    def _covered(self, row: int, at_most: float) -> float | None:
        usage = self.values("system_cpu_usage")[row]
        if not usage > 0:
            return None
        seconds = self.values("system_utime")[row] + self.values("system_stime")[row]
        return None if isnan(seconds) or seconds <= 0 else min(seconds / usage, at_most)

    def _sort(self) -> None:
        times = self.times
        if any(later < earlier for earlier, later in pairwise(times)):
            self.remarks.append("the rows were not in time order")
            pick: Callable[[Sequence[float]], tuple[float, ...]] = itemgetter(
                *sorted(range(len(times)), key=times.__getitem__)
            )
            self.columns = {name: array("d", pick(values)) for name, values in self.columns.items()}


def known(values: Iterable[float]) -> list[float]:
    """Return the values that are known."""
    return [value for value in values if value == value]


def known_with(values: Sequence[float], others: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the known values, and what stands at their places in `others`."""
    mask = [value == value for value in values]
    return list(compress(values, mask)), list(compress(others, mask))
