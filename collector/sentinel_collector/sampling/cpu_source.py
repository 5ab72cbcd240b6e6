"""Chooses between two counts of the tree's CPU time: the exact counter's and the ledger's."""

from sentinel_collector.sensors.interfaces import Accounting

_DOUBT_US = 20_000
_DOUBT_PART = 128


class CpuTimeSource:
    """Growth from `accounting` while it can be trusted, then from the ledger for good.

    The ledger never counts too much: it misses processes that ended unseen, and it truncates to whole ticks. So when
    it counts more than the counter, processes have left the counter (a job may move itself into another cgroup). The
    row then makes up for the time that was missed.
    """

    def __init__(self, accounting: Accounting | None) -> None:
        self._accounting = accounting
        self._ledger_us = (0, 0)
        self._shown_us = (0, 0)

    @property
    def name(self) -> str:
        """`proc` (the ledger), or the name of the counter that replaces it."""
        return self._accounting.name if self._accounting is not None else "proc"

    def growth_us(self, ledger_us: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return user and system microseconds for the row, from the ledger's growth; `None`: unknown.

        Call it after the ledger was read: the counter, which is read here, can then not be behind it.
        """
        if self._accounting is None:
            return ledger_us
        exact_us = self._accounting.growth_us()
        if exact_us is None:
            self._accounting = None
            return ledger_us
        if ledger_us is None:
            # The ledger will make up for this row.
            self._shown_us = (self._shown_us[0] + exact_us[0], self._shown_us[1] + exact_us[1])
            return exact_us
        ledger = self._ledger_us = (self._ledger_us[0] + ledger_us[0], self._ledger_us[1] + ledger_us[1])
        shown = self._shown_us
        self._shown_us = (shown[0] + exact_us[0], shown[1] + exact_us[1])
        missed_us = sum(ledger) - sum(self._shown_us)
        if missed_us <= _DOUBT_US + sum(ledger) // _DOUBT_PART:
            return exact_us
        self._accounting = None
        return ledger[0] - shown[0], ledger[1] - shown[1]
