"""Libraries of a few lines in front of the C library's own, for real processes: `LD_PRELOAD`."""

import shutil
import subprocess
import time
from pathlib import Path

_STUBS = Path(__file__).parent.parent / "stubs"


def build_preload(directory: Path, name: str) -> Path:
    """Compile `tests/stubs/NAME.c` into the directory; a machine without a C compiler fails the tests that need it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, f"the tests need a C compiler (cc or gcc) for {name}.c"
    library = directory / f"{name}.so"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(library), str(_STUBS / f"{name}.c"), "-ldl"], check=True)
    return library


class SteppedWall:
    """A wall clock that a test sets: processes with `environ` see the machine's time, `offset_s` seconds off."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "stepped_clock"
        self.offset_s = 0
        self.environ = {
            "LD_PRELOAD": str(build_preload(directory, "stepped_clock")),
            "STEPPED_CLOCK": str(self._file),
        }

    def step(self, seconds: int) -> None:
        """Set the clock forth, or back."""
        self.offset_s += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self.offset_s}\n", encoding="ascii")
        new.replace(self._file)

    def now(self) -> float:
        """Return what these processes take for the time, UNIX seconds."""
        return time.time() + self.offset_s


class SyncLog:
    """Which files processes with `environ` have made durable, in order."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "sync_log"
        self._file.touch()
        self.environ = {"LD_PRELOAD": str(build_preload(directory, "sync_log")), "SYNC_LOG": str(self._file)}

    def paths(self) -> list[str]:
        """Return the paths, one for each `fsync` or `fdatasync`."""
        return self._file.read_text().splitlines()
