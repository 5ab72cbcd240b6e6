"""Growth of the byte counters of several devices, all together."""

from collections.abc import Callable, Iterable

from sentinel_collector.procfs import ProcFile, read_with_reopen

DAMAGED = (-1, -1)
_COUNTER_DIGITS = 16
"""More digits, in units of 512 bytes, would exceed a row's integer. No real disk gets there."""


class ByteCounters:
    """Pairs of counters (in and out) by device name.

    A device counts from its first reading: it may have been renamed, or come from another name space, with all that it
    has counted there. A counter that fell was reset: that is no growth.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[int, int]] = {}

    def growth(self, readings: Iterable[tuple[bytes, int, int]]) -> tuple[int, int]:
        """Take `(device, in, out)` readings and return the growth of both sums since the last call."""
        last = self._last
        now: dict[bytes, tuple[int, int]] = {}
        total_in = total_out = 0
        for device, value_in, value_out in readings:
            if value_in < 0:
                if device in last:
                    now[device] = last[device]
                continue
            counters = now[device] = (value_in, value_out)
            before_in, before_out = last.get(device, counters)
            if value_in > before_in:
                total_in += value_in - before_in
            if value_out > before_out:
                total_out += value_out - before_out
        # A device that is gone is forgotten: the next one of its name is another.
        self._last = now
        return total_in, total_out


def parse_pair(value_in: bytes, value_out: bytes) -> tuple[int, int]:
    """Return both counters, `DAMAGED` for text that the kernel never writes: `growth` skips that reading."""
    if not (value_in.isdigit() and value_out.isdigit()) or max(len(value_in), len(value_out)) > _COUNTER_DIGITS:
        return DAMAGED
    return int(value_in), int(value_out)


class CounterFile:
    """A file of `/proc` that lists devices with counters. `parse` turns its text into `(device, in, out)` readings.

    The first growth is measured against `baseline`, and is zero where that is empty.
    """

    __slots__ = ("_counters", "_file", "_last", "_parse")

    def __init__(
        self, path: str, *, baseline: bytes, parse: Callable[[bytes], Iterable[tuple[bytes, int, int]]]
    ) -> None:
        self._file = ProcFile(path)
        self._parse = parse
        self._counters = ByteCounters()
        self._last = baseline
        self._counters.growth(parse(baseline))

    def growth(self) -> tuple[int, int] | None:
        """Read the file and return the counters' growth; `None` when it cannot be read."""
        data = read_with_reopen(self._file, is_list=True)
        if not data:
            return None
        if data == self._last:
            return 0, 0
        self._last = data
        return self._counters.growth(self._parse(data))

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()
