"""The composed services on a real engine, and a witness beside them that reads their volumes and kills from outside."""

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes.process_harness import rows_of_objects, wait_until

from sentinel_protocol.wire.sample import CSV_HEADER

ROOT = Path(__file__).parent.parent.parent
FILES = (ROOT / "docker-compose.yml", Path(__file__).parent / "compose.test.yml")
COMMAND_S = 1200.0
"""An engine that copies whole images for each container may need half a minute for one; a command may want ten."""
PATIENCE_S = 600.0
"""Waits are for a state; only what never comes takes this long."""
_IMAGE = "sentinel-stream"


def docker(*words: str, environ: Mapping[str, str] | None = None) -> bytes:
    """Run `docker` and return what it printed; fails the test with what it complained about."""
    done = subprocess.run(
        ["docker", *words], capture_output=True, timeout=COMMAND_S, env=os.environ | dict(environ or {}), cwd=ROOT
    )
    if done.returncode != 0:
        pytest.fail(f"docker {' '.join(words)}: {done.stderr.decode(errors='replace').strip()[-2000:]}")
    return done.stdout


class Stack:
    """One project of its own: containers, networks and volumes have its name and go with it."""

    def __init__(self, name: str, environ: Mapping[str, str], env_file: Path | None = None) -> None:
        self._name = name
        self._environ = dict(environ)
        self._env_file = env_file
        self._witness = f"{name}-witness"
        self._backend = f"{name}-backend"

    def compose(self, *words: str) -> str:
        """Run `docker compose` for the project."""
        files = [word for path in FILES for word in ("--file", str(path))]
        options = ["--project-name", self._name, *files, "--profile", "remote-example"]
        if self._env_file is not None:
            options += ["--env-file", str(self._env_file)]
        return docker("compose", *options, *words, environ=self._environ).decode()

    def up(self, *, collectors: int) -> None:
        """Start everything; the first time, the witness as well."""
        self.compose("up", "--detach", "--no-build", "--scale", f"collector={collectors}")
        if not docker("ps", "--quiet", "--filter", f"name={self._witness}"):
            volumes = [
                word
                for volume in ("runs", "collector", "remote-collector")
                for word in ("--volume", f"{self._name}_{volume}:/seen/{volume}:ro")
            ]
            options = ["--detach", "--name", self._witness, "--pid", "host", "--user", "0", *volumes]
            docker("run", "--no-healthcheck", *options, _IMAGE, "sleep", "infinity")

    def down(self) -> None:
        """Stop and remove the containers; volumes stay."""
        self.compose("down")

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def inspect(self, container: str, what: str) -> str:
        """Return a fact about a container, by a Go template."""
        return docker("inspect", "--format", what, container).decode().strip()

    def kill(self, container: str) -> float:
        """SIGKILL a container's process as the kernel does when memory is short: `docker kill` would count as a stop.

        Returns when the engine has started it again, with the time of the kill: getting there may take seconds.
        """
        pid, restarts = self.inspect(container, "{{.State.Pid}} {{.RestartCount}}").split()
        assert int(pid) > 0
        killed = docker("exec", self._witness, "sh", "-c", f"kill -9 {pid} && date +%s.%N")
        again = f"true {int(restarts) + 1}"
        wait_until(
            lambda: self.inspect(container, "{{.State.Running}} {{.RestartCount}}") == again,
            f"{container} was killed and is back",
            timeout_s=PATIENCE_S,
        )
        return float(killed)

    def start_backend(self, token: str) -> None:
        """Start a Sentinel API and its storage at the uploader's own loopback addresses."""
        (uploader,) = self.containers("uploader")
        words = ["--name", self._backend, "--network", f"container:{uploader}", "--env", "PYTHONPATH=/tests"]
        docker("create", "--no-healthcheck", *words, _IMAGE, "python3", "-m", "deployment.backend", token)
        docker("cp", f"{ROOT}/tests", f"{self._backend}:/tests")
        docker("start", self._backend)

    def stop_backend(self) -> dict[str, Any]:
        """Return what the backend knows of the runs."""
        docker("stop", "--time", "120", self._backend)
        printed: dict[str, Any] = json.loads(docker("logs", self._backend))
        return printed

    def status(self) -> list[dict[str, Any]]:
        """Return the runs that the uploader knows."""
        listed = self.compose("exec", "--no-TTY", "uploader", "sentinel-uploader", "status", "--json")
        return [run for spool in json.loads(listed) for run in spool["runs"]]

    def seen(self) -> "Seen":
        """Read the volumes as they are now."""
        # A file that grows meanwhile is exit code 1, and none of our business.
        packed = docker("exec", self._witness, "sh", "-c", "tar --create --directory /seen . || test $? -eq 1")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return Seen(
                {
                    member.name.removeprefix("./"): file.read()
                    for member in archive
                    if (file := archive.extractfile(member)) is not None
                }
            )

    def close(self) -> None:
        """Remove everything that has the project's name."""
        docker("rm", "--force", "--volumes", self._witness, self._backend)
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        mark = f"name={self._name}"
        left = [
            *docker("ps", "--all", "--quiet", "--filter", mark).split(),
            *docker("volume", "ls", "--quiet", "--filter", mark).split(),
            *docker("network", "ls", "--quiet", "--filter", mark).split(),
        ]
        assert not left


class Seen:
    """What the volumes `runs`, `collector` and `remote-collector` hold: contents by path."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    @property
    def recorded(self) -> dict[str, list[str]]:
        """Rows that each collector has written down, by its container's id."""
        found = {}
        for path, content in self._files.items():
            if match := re.fullmatch(r"(?:remote-)?collector/(\w+)\.csv", path):
                assert content.startswith(CSV_HEADER)
                # A collector that was killed may have left half a line, which its successor does not go on with.
                found[match[1]] = [line for line in content[len(CSV_HEADER) :].decode().splitlines() if line]
        return found

    @property
    def waiting_bytes(self) -> dict[str, int]:
        """Sizes of the files in which collectors keep what no uploader has acknowledged, by path."""
        return {path: len(content) for path, content in self._files.items() if path.endswith(".rows")}

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The `run.json` of every run, oldest first."""
        return [json.loads(self._files[path]) for path in sorted(self._files) if path.endswith("/run.json")]

    def rows(self, run: Mapping[str, Any]) -> list[str]:
        """The rows of a run's objects, in order."""
        return rows_of_objects(self._files[f"runs/{run['run_id']}/{name}"] for name in run["objects"])
