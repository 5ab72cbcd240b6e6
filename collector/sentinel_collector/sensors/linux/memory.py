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
    b"Active:",
    b"Inactive:",
    b"SReclaimable:",
)
_NEEDED = {b"MemTotal:", b"MemFree:"}
_Getter = Callable[[list[bytes]], Any]


class MemorySensor:
    """Levels of `/proc/meminfo`. The positions of the values are learnt once and checked in each reading."""

    def __init__(self, *, proc: str) -> None:
        self._file = ProcFile(f"{proc}/meminfo")
        self._names: tuple[bytes, ...] = ()
        self._words = -1
        self._names_of: _Getter = itemgetter(0)
        self._values_of: _Getter = itemgetter(0)

    def read(self) -> MemoryReading:
        """Read `/proc/meminfo` once; all `None` when it cannot be read."""
        data = read_with_reopen(self._file)
        words = data.split(None, self._words)
        if not (self._names and self._fits(words)):
            words = data.split()
            if not self._learn(words):
                return MemoryReading()
        try:
            kib = dict(zip(self._names, map(int, self._values_of(words)), strict=True))
        except ValueError:
            return MemoryReading()
        free, buffers = kib[b"MemFree:"], kib.get(b"Buffers:", 0)
        cached = kib.get(b"Cached:", 0) + kib.get(b"SReclaimable:", 0)
        # Kernels before 3.14 have no MemAvailable; free(1) estimated it like this.
        available = kib[b"MemAvailable:"] if b"MemAvailable:" in kib else free + buffers + cached
        used = max(0, kib[b"MemTotal:"] - available)
        return MemoryReading(free, used, buffers, cached, kib.get(b"Active:", 0), kib.get(b"Inactive:", 0))

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def _fits(self, words: list[bytes]) -> bool:
        return len(words) >= self._words and self._names_of(words) == self._names

    def _learn(self, words: list[bytes]) -> bool:
        where = {word: index for index, word in enumerate(words[:-1]) if word.endswith(b":")}
        self._names, self._words = (), -1
        if not where.keys() >= _NEEDED:
            return False
        self._names = tuple(name for name in _WANTED if name in where)
        positions = [where[name] for name in self._names]
        self._words = max(positions) + 2
        self._names_of = itemgetter(*positions)
        self._values_of = itemgetter(*(position + 1 for position in positions))
        return True
