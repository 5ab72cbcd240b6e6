"""The lines of `top`: what each column shows, and by what it is sorted."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sentinel_viewer.live.watch import LiveEntry
from sentinel_viewer.output import units
from sentinel_viewer.output.sparkline import sparkline
from sentinel_viewer.output.text_table import printable, shortened, table

_SPARK = 20
_TITLE, _HOST = 32, 18


class TopColumn(NamedTuple):
    """A column: its text for a run, and the value that it is sorted by. `descending`: the largest first."""

    key: str
    head: str
    text: Callable[[LiveEntry], str]
    value: Callable[[LiveEntry], Any]
    right: bool = False
    descending: bool = True


def _cpu(one: LiveEntry) -> str:
    if one.cores is None:
        return units.NOTHING
    return units.cores(one.cores) + (f" of {one.vcpus:g}" if one.vcpus else "")


def _history(one: LiveEntry) -> str:
    """Draw the newest rows against the machine's cores, the highest of each stretch."""
    values = one.history
    if len(values) > _SPARK:
        edges = [len(values) * place // _SPARK for place in range(_SPARK + 1)]
        values = [max(values[first:last]) for first, last in pairwise(edges)]
    return sparkline(values, one.vcpus)


def _ago(seconds: float | None) -> str:
    return units.NOTHING if seconds is None else f"{units.duration(seconds)} ago"


COLUMNS = (
    TopColumn("run", "run", lambda one: printable(one.run_id), lambda one: one.run_id, descending=False),
    TopColumn("job", "job or command", lambda one: shortened(one.job, _TITLE), lambda one: one.job, descending=False),
    TopColumn("host", "host", lambda one: shortened(one.host, _HOST), lambda one: one.host, descending=False),
    TopColumn("state", "state", lambda one: one.state, lambda one: one.state, descending=False),
    TopColumn("age", "age", lambda one: units.duration(one.age_s), lambda one: one.age_s or 0.0, right=True),
    TopColumn("cpu", "CPU", _cpu, lambda one: one.cores or 0.0, right=True),
    TopColumn("history", "cores", _history, lambda one: one.cores or 0.0),
    TopColumn(
        "memory", "memory", lambda one: units.mebibytes(one.memory_mib), lambda one: one.memory_mib or 0.0, right=True
    ),
    TopColumn("gpu", "GPU", lambda one: units.cores(one.gpus), lambda one: one.gpus or 0.0, right=True),
    TopColumn("waiting", "rows waiting", lambda one: str(one.rows_waiting), lambda one: one.rows_waiting, right=True),
    TopColumn("row", "newest row", lambda one: _ago(one.newest_row_s), lambda one: one.newest_row_s or 0.0, right=True),
    TopColumn("heard", "last heard", lambda one: _ago(one.heard_s), lambda one: one.heard_s or 0.0, right=True),
    TopColumn("trouble", "trouble", lambda one: printable(one.trouble), lambda one: one.trouble),
)
KEYS = tuple(column.key for column in COLUMNS)


def sorted_entries(entries: Sequence[LiveEntry], key: str) -> list[LiveEntry]:
    """Sort by a column; runs that are equal there stay in the order of their ids."""
    column = next(column for column in COLUMNS if column.key == key)
    return sorted(sorted(entries, key=lambda one: one.run_id), key=column.value, reverse=column.descending)


def filtered(entries: Sequence[LiveEntry], words: str) -> list[LiveEntry]:
    """Return the entries whose texts hold all of the words, whatever their case."""
    wanted = words.lower().split()

    def text_of(one: LiveEntry) -> str:
        return "\n".join((one.run_id, one.job, one.host, one.state, one.trouble, one.client)).lower()

    return [one for one in entries if all(word in text_of(one) for word in wanted)]


def once(entries: Sequence[LiveEntry]) -> str:
    """Return all lines as a table for a pipe; a column in which nothing is known is left out."""
    shown = [column for column in COLUMNS if any(column.text(one) not in ("", units.NOTHING) for one in entries)]
    rows = [[column.head for column in shown], *([column.text(one) for column in shown] for one in entries)]
    return table(rows, right=[place for place, column in enumerate(shown) if column.right])
