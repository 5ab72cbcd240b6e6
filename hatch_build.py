"""Compiles the launcher of `sentinel-collector` into the wheel.

Without a C compiler, and on systems without `/proc/self/exe`, the command is the Python script itself. It does the same
but for variables that end an interpreter before its first line (PYTHONHOME, PYTHONHASHSEED).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMAND = "sentinel-collector"
SOURCES = os.path.join("collector", "launcher")


class LauncherHook(BuildHookInterface[Any]):
    """Adds the command's files to what a wheel installs into `bin`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling gives it
        """Called by hatchling before it builds; `version` is `standard` or `editable`."""
        script = os.path.join(self.root, SOURCES, f"{COMMAND}.py")
        launcher = os.path.join(self.root, "build", COMMAND)
        if self._compile(launcher):
            build_data["shared_scripts"] |= {launcher: COMMAND, script: f"{COMMAND}.py"}
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False
        else:
            self.app.display_warning(f"no C compiler: {COMMAND} will be a Python script")
            build_data["shared_scripts"] |= {script: COMMAND}

    def _compile(self, launcher: str) -> bool:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None or not sys.platform.startswith("linux"):
            return False
        os.makedirs(os.path.dirname(launcher), exist_ok=True)
        source = os.path.join(self.root, SOURCES, "launcher.c")
        words = [compiler, "-O2", "-Wall", "-Wextra", "-s", "-o", launcher, source]
        # Static: no LD_ variable that is meant for the job matters to it.
        return any(
            subprocess.run([*words, *extra], capture_output=True, check=False).returncode == 0
            for extra in (["-static"], [])
        )
