"""A file system of a few pages, in a mount namespace of its own: nothing of it is left when its holder ends."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

PATIENCE_S = 20.0
_HOLD = 'mount -t tmpfs -o "size=$2" none "$1" && echo mounted && read line'


class SmallDisk:
    """A tmpfs at `mount`, seen only by processes that are started with `prefix`.

    Skips the test where mounting is not allowed.
    """

    def __init__(self, mount: Path, *, size: str = "1m") -> None:
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            pytest.skip("needs unshare and nsenter")
        mount.mkdir()
        self.mount = mount
        as_root = [] if os.geteuid() == 0 else ["-r"]
        self._holder = subprocess.Popen(
            ["unshare", *as_root, "-m", "sh", "-c", _HOLD, "sh", str(mount), size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            self.close()
            pytest.skip("mounting is not allowed here")
        user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        self.prefix = ["nsenter", "-t", str(self._holder.pid), *user, "-m", "--"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fill(self) -> None:
        """Write until there is no room."""
        with open(self._stuffing(), "ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert os.statvfs(self._stuffing()).f_bfree == 0

    def empty(self) -> None:
        """Give the room back."""
        self._stuffing().unlink()

    def remount(self, how: str) -> None:
        """Make it read-only (`ro`) or not (`rw`)."""
        subprocess.run([*self.prefix, "mount", "-o", f"remount,{how}", str(self.mount)], check=True, timeout=PATIENCE_S)

    def _stuffing(self) -> Path:
        """Return where it is seen from outside of the namespace."""
        return Path(f"/proc/{self._holder.pid}/root{self.mount}/stuffing")

    def close(self) -> None:
        """End the holder, and with it the file system."""
        self._holder.communicate(timeout=PATIENCE_S)
