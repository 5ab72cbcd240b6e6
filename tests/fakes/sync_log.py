"""A library of a few lines in front of the C library's own, for real processes: `LD_PRELOAD`."""

import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).parent.parent / "stubs" / "sync_log.c"


class SyncLog:
    """Which files processes with `environ` have made durable, in order."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "the test needs a C compiler (cc or gcc)"
        library = directory / "sync_log.so"
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(library), str(_SOURCE), "-ldl"], check=True)
        self._file = directory / "sync_log"
        self._file.touch()
        self.environ = {"LD_PRELOAD": str(library), "SYNC_LOG": str(self._file)}

    def paths(self) -> list[str]:
        """Return the paths, one for each `fsync` or `fdatasync`."""
        return self._file.read_text().splitlines()
