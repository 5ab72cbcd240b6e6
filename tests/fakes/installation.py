"""Environments of their own with some of what is installed here: the base package alone, or nothing at all."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fakes.process_harness import BIN

BASE_PACKAGE = (
    "sentinel_collector",
    "sentinel_protocol",
    "sentinel_uploader",
    "msgspec",
    "psutil",
    "pyzmq.libs",
    "zmq",
)
"""What is installed without an extra, `pynvml` left out."""
_SITE = next(path for path in map(Path, sys.path) if (path / "sentinel_collector").is_dir())


class Environment:
    """A virtual environment with `packages`, linked to those of ours, and both commands."""

    def __init__(self, directory: Path, packages: Sequence[str]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        (site,) = directory.glob("lib/python*/site-packages")
        link_packages(site, packages)
        self.bin = directory / "bin"
        self.python = str(self.bin / "python")
        shutil.copy(BIN / "sentinel-collector", self.bin)
        for name in ("sentinel-collector.py", "sentinel-uploader"):
            lines = (BIN / name).read_text(encoding="utf-8").splitlines(keepends=True)
            (self.bin / name).write_text("".join([f"#!{self.python}\n", *lines[1:]]), encoding="utf-8")
            (self.bin / name).chmod(0o755)

    @property
    def collector(self) -> str:
        """The command `sentinel-collector`."""
        return str(self.bin / "sentinel-collector")

    @property
    def uploader(self) -> str:
        """The command `sentinel-uploader`."""
        return str(self.bin / "sentinel-uploader")


def link_packages(directory: Path, packages: Sequence[str]) -> None:
    """Put links to packages of ours there."""
    for name in packages:
        if (_SITE / name).exists():
            (directory / name).symlink_to(_SITE / name)
