"""A terminal to type into: a pseudo terminal whose other end is a program's controlling terminal."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from types import TracebackType

PATIENCE_S = 20.0
"""Far longer than anything takes; what runs into it has failed."""


class Terminal:
    """Runs `command` as the leader of a session of its own, in the foreground of this terminal."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._master_fd, slave_fd = pty.openpty()
        self.shown = b""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-E", __file__, *command],
                stdin=slave_fd,
                stdout=slave_fd,
                stderr=slave_fd,
                env=environ,
                start_new_session=True,
            )
        finally:
            os.close(slave_fd)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        self.hang_up()

    def type(self, keys: bytes) -> None:
        """Press keys; `\\x03` is Ctrl-C, `\\x1a` Ctrl-Z, `\\x1c` Ctrl-\\."""
        os.write(self._master_fd, keys)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size, which the foreground process group hears of."""
        fcntl.ioctl(self._master_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Take the terminal away; may be called twice."""
        if self._master_fd >= 0:
            os.close(self._master_fd)
            self._master_fd = -1

    def wait_for(self, text: bytes) -> None:
        """Read what is shown until `text` is there."""
        while text not in self.shown:
            ready, _, _ = select.select([self._master_fd], [], [], PATIENCE_S)
            assert ready, f"{text!r} is not in {self.shown!r}"
            try:
                self.shown += os.read(self._master_fd, 4096)
            except OSError as error:  # Linux: EIO once the last program has closed its end
                raise AssertionError(f"{text!r} is not in {self.shown!r}") from error

    def wait(self) -> int:
        """Return the program's exit code."""
        return self.process.wait(PATIENCE_S)


if __name__ == "__main__":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
