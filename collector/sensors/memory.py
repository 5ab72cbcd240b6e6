"""Memory of the whole machine, from `/proc/meminfo` (`proc(5)`)."""

from collector.sensors.procfs import KeptFile, read_machine
from collector.sensors.readings import MemoryReading

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


class MemorySensor:
    """Levels of `/proc/meminfo`. Where each value stands among the words is learnt once and checked every time."""

    def __init__(self, *, proc: str) -> None:
        self._file = KeptFile(f"{proc}/meminfo")
        self._places: tuple[int, ...] = ()
        self._words = 0

    def read(self) -> MemoryReading:
        """Read `/proc/meminfo` once; all `None` when it cannot be read."""
        data = read_machine(self._file)
        words = data.split(None, self._words) if self._words else data.split()
        if not self._fits(words):
            words = data.split()
            if not self._learn(words):
                return MemoryReading()
        try:
            total, free, available, buffers, cached, active, inactive, slab = (
                int(words[place]) if place else 0 for place in self._places
            )
        except ValueError:
            return MemoryReading()
        cached += slab
        if not self._places[2]:
            # Kernels before 3.14 do not say; this is what free(1) took then.
            available = free + buffers + cached
        return MemoryReading(free, max(0, total - available), buffers, cached, active, inactive)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def _fits(self, words: list[bytes]) -> bool:
        return (
            bool(self._places)
            and len(words) > self._words - 1
            and all(words[place - 1] == name for place, name in zip(self._places, _WANTED, strict=True) if place)
        )

    def _learn(self, words: list[bytes]) -> bool:
        where = {word: index + 1 for index, word in enumerate(words[:-1]) if word.endswith(b":")}
        self._places = tuple(where.get(name, 0) for name in _WANTED)
        self._words = max(self._places) + 1
        if self._places[0] and self._places[1]:
            return True
        self._places, self._words = (), 0
        return False
