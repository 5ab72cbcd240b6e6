"""A wall clock that a test sets, for real processes: their C library's, by LD_PRELOAD."""

import shutil
import subprocess
import time
from pathlib import Path

_SOURCE = Path(__file__).parent.parent / "stubs" / "stepped_clock.c"


class SteppedWall:
    """Processes with `environ` in their environment see the machine's time, `step` seconds off."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "a clock that can be set needs a C compiler (cc or gcc)"
        library = directory / "stepped_clock.so"
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(library), str(_SOURCE), "-ldl"], check=True)
        self._file = directory / "stepped_clock"
        self.offset_s = 0
        self.environ = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        """Set the clock forth, or back."""
        self.offset_s += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self.offset_s}\n", encoding="ascii")
        new.replace(self._file)

    def now(self) -> float:
        """Return what these processes take for the time, UNIX seconds."""
        return time.time() + self.offset_s
