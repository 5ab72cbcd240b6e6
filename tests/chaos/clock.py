"""Wall clocks of single processes that can be set wrong while these run."""

import functools
import mmap
import shutil
import struct
import subprocess
from pathlib import Path

_SHARED = struct.Struct("qQ")
_COMPILERS = ("cc", "gcc", "clang")


class ShiftedClock:
    """The clock of every process that has `environ` in its environment; without a compiler there is none."""

    def __init__(self, directory: Path, name: str) -> None:
        self.environ: dict[str, str] = {}
        shim = _shim(directory)
        if shim is None:
            return
        path = directory / f"{name}.clock"
        path.write_bytes(bytes(_SHARED.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _SHARED.size)
        self.environ = {"LD_PRELOAD": str(shim), "CHAOS_CLOCK": str(path)}

    @property
    def can_be_turned(self) -> bool:
        """Whether there is anything to turn."""
        return bool(self.environ)

    def turn(self, offset_s: float) -> None:
        """Let the clock be wrong by so many seconds from now on."""
        struct.pack_into("q", self._shared, 0, round(offset_s * 1e9))

    @property
    def wrong_readings(self) -> int:
        """How often a process has read a wrong time."""
        if not self.can_be_turned:
            return 0
        _, reads = _SHARED.unpack_from(self._shared)
        return int(reads)


@functools.cache
def _shim(directory: Path) -> Path | None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    shim = directory / "clock_shim.so"
    source = Path(__file__).with_name("clock_shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(shim), str(source)], check=True)
    return shim
