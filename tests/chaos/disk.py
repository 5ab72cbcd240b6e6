"""A small file system that can be filled to the last byte, in a mount name space that ends with its holder."""

import contextlib
import math
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_SCRIPT = 'mount -t tmpfs -o "size=$2" none "$1" && echo ready && exec cat'
SIZE_BYTES = 12 << 20
"""Above the 4 MiB that SQLite's WAL may have, small enough to be filled at once."""
_LATELY_S = 15.0


class SmallDisk:
    """Mounted at `mount` for commands that are run `inside`; where that is not allowed, `is_mounted` is False."""

    def __init__(self, mount: Path) -> None:
        mount.mkdir()
        self._mount = mount
        self._holder: subprocess.Popen[str] | None = None
        if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("nsenter"):
            self._holder = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(mount), str(SIZE_BYTES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert self._holder.stdout is not None
            self.is_mounted = self._holder.stdout.readline() == "ready\n"
        else:
            self.is_mounted = False
        self.is_full = False
        self._freed_at = -math.inf

    @property
    def was_full_lately(self) -> bool:
        """Whether a process that ends now may have started without room."""
        return self.is_full or time.monotonic() - self._freed_at < _LATELY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holder is not None:
            self._holder.communicate(timeout=10)

    def inside(self, *words: str) -> list[str]:
        """Return the words of a command that sees the disk."""
        if not self.is_mounted or self._holder is None:
            return list(words)
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *words]

    def path(self, inside: Path) -> Path:
        """Return where this process finds what is at a path inside."""
        if not self.is_mounted or self._holder is None:
            return inside
        return Path(f"/proc/{self._holder.pid}/root") / inside.relative_to("/")

    def fill(self) -> None:
        """Take every byte that is free at the moment."""
        self.is_full = True
        with (
            contextlib.suppress(OSError),
            open(self.path(self._mount / "stuffing"), "ab", buffering=0) as file,
        ):
            for piece in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(piece)) == piece:
                        pass

    def free(self) -> None:
        """Give the room back."""
        self.is_full = False
        self._freed_at = time.monotonic()
        self.path(self._mount / "stuffing").unlink(missing_ok=True)
