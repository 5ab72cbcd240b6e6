"""Memory of the whole machine, from `/proc/meminfo` (`proc(5)`)."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from sentinel_collector.procfs import ProcFile, read_with_reopen
from sentinel_collector.sensors.interfaces import MemoryReading

_WANTED = (
    b"MemTotal:",
    b"MemFree:",
    b"MemAvailable:",
    b"Buffers:",
    b"Cached:",
    b"SReclaimable:",
    b"Active:",
    b"Inactive:",
)
_NEEDED = {b"MemTotal:", b"MemFree:"}
_Getter = Callable[[list[bytes]], Any]


class MemorySensor:
    """Levels of `/proc/meminfo`. The positions of the values are learnt once and checked in each reading."""

    def __init__(self, *, proc: str) -> None:
        self._file = ProcFile(f"{proc}/meminfo")
        self._names: tuple[bytes, ...] = ()
        self._missing: set[bytes] = set()
        self._words = -1
        self._names_of: _Getter = itemgetter(0)
        self._values_of: _Getter = itemgetter(0)

    def read(self) -> MemoryReading:
        """Read `/proc/meminfo` once; all `None` when it cannot be read."""
        data = read_with_reopen(self._file)
        words = data.split(None, self._words)
        if not self._names or len(words) < self._words or self._names_of(words) != self._names:
            words = data.split()
            if not self._learn(words):
                return MemoryReading()
        words.append(b"0")
        try:
            total, free, available, buffers, cached, slab, active, inactive = map(int, self._values_of(words))
        except ValueError:
            return MemoryReading()
        cached += slab
        missing = self._missing
        if not missing:
            return MemoryReading(free, max(0, total - available), buffers, cached, active, inactive)
        used: int | None = max(0, total - available)
        if b"MemAvailable:" in missing:
            # Kernels before 3.14 do not have it; free(1) estimated it like this.
            used = None if missing & {b"Buffers:", b"Cached:"} else max(0, total - free - buffers - cached)
        return MemoryReading(
            free,
            used,
            None if b"Buffers:" in missing else buffers,
            None if b"Cached:" in missing else cached,
            None if b"Active:" in missing else active,
            None if b"Inactive:" in missing else inactive,
        )

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def _learn(self, words: list[bytes]) -> bool:
        where = {word: index for index, word in enumerate(words[:-1]) if word.endswith(b":")}
        self._names, self._words = (), -1
        if not where.keys() >= _NEEDED:
            return False
        self._names = tuple(name for name in _WANTED if name in where)
        self._missing = set(_WANTED) - where.keys()
        self._words = max(where[name] for name in self._names) + 2
        self._names_of = itemgetter(*(where[name] for name in self._names))
        # The value of a missing name is the zero that `read` appends.
        self._values_of = itemgetter(*(where.get(name, -2) + 1 for name in _WANTED))
        return True
