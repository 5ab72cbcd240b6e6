"""The product as it was at an earlier commit, built from the repository's history and installed beside today's."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from locations import ROOT


class EarlierVersion:
    """A wheel of `commit`, unpacked into `directory`; `packages` are the import names of its two commands.

    Its dependencies are those of today's environment.
    """

    def __init__(self, directory: Path, commit: str, packages: tuple[str, str]) -> None:
        sources, self._site = directory / "sources", directory / "site"
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, timeout=60)
        if archive.returncode:
            pytest.skip(f"the history of this checkout does not reach back to {commit}: {archive.stderr.decode()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(sources, filter="data")
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
        subprocess.run(build, cwd=sources, check=True, capture_output=True, timeout=120)
        (wheel,) = directory.glob("*.whl")
        install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(self._site)]
        subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
        self._collector, self._uploader = packages

    def collector(self) -> list[str]:
        """Return the words that run its collector."""
        return self._module(self._collector)

    def uploader(self) -> list[str]:
        """Return the words that run its uploader."""
        return self._module(self._uploader)

    def _module(self, name: str) -> list[str]:
        # `-m` is what its own uploader is started with; this one's arguments begin behind its name.
        code = (
            "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); name = sys.argv.pop(1);"
            "runpy.run_module(name, run_name='__main__', alter_sys=True)"
        )
        return [sys.executable, "-c", code, str(self._site), name]
