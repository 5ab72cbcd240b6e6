"""Growth of the byte counters of several devices, all together."""

from collections.abc import Callable, Iterable

from sentinel_collector.procfs import ProcFile, read_list_with_reopen

_COUNTER_DIGITS = 16
"""More digits, in units of 512 bytes, would exceed a row's integer. No real disk gets there."""


class ByteCounters:
    """Pairs of counters (in and out) by device name.

    A device that appears later has started at zero. A counter that fell was reset, and has started at zero again.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[int, int]] = {}

    def growth(self, readings: Iterable[tuple[bytes, int, int]]) -> tuple[int, int]:
        """Take `(device, in, out)` readings and return the growth of both sums since the last call."""
        last = self._last
        total_in = total_out = 0
        for device, value_in, value_out in readings:
            before_in, before_out = last.get(device, (0, 0))
            total_in += value_in - before_in if value_in >= before_in else value_in
            total_out += value_out - before_out if value_out >= before_out else value_out
            last[device] = (value_in, value_out)
        return total_in, total_out


def parse_pair(value_in: bytes, value_out: bytes) -> tuple[int, int] | None:
    """Return both counters, `None` for text that the kernel never writes: one reading of a damaged line is skipped."""
    if not (value_in.isdigit() and value_out.isdigit()) or max(len(value_in), len(value_out)) > _COUNTER_DIGITS:
        return None
    return int(value_in), int(value_out)


class CounterFile:
    """A file of `/proc` that lists devices with counters. `parse` turns its text into `(device, in, out)` readings.

    The first growth is measured against `baseline`, and is zero where that is empty.
    """

    def __init__(
        self, path: str, *, baseline: bytes, parse: Callable[[bytes], Iterable[tuple[bytes, int, int]]]
    ) -> None:
        self._file = ProcFile(path)
        self._parse = parse
        self._counters = ByteCounters()
        self._last = baseline
        self._counters.growth(parse(baseline))
        self._has_base = bool(baseline)

    def growth(self) -> tuple[int, int] | None:
        """Read the file and return the counters' growth; `None` when it cannot be read."""
        data = read_list_with_reopen(self._file)
        if not data:
            return None
        if data == self._last:
            return 0, 0
        self._last = data
        grown = self._counters.growth(self._parse(data))
        if not self._has_base:
            self._has_base = True
            return 0, 0
        return grown

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()
