"""Byte counters of several devices: what they grew by, all together."""

from collections.abc import Iterable


class ByteCounters:
    """Pairs of counters (in and out) by device name.

    A device that appears later started at zero; one whose counter fell was reset and started at zero again.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[int, int]] = {}

    def growth(self, readings: Iterable[tuple[bytes, int, int]]) -> tuple[int, int]:
        """Take `(device, in, out)` readings and return what both grew by since the last time."""
        last = self._last
        total_in = total_out = 0
        for device, value_in, value_out in readings:
            before_in, before_out = last.get(device, (0, 0))
            total_in += value_in - before_in if value_in >= before_in else value_in
            total_out += value_out - before_out if value_out >= before_out else value_out
            last[device] = (value_in, value_out)
        return total_in, total_out
