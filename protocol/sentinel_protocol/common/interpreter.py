"""Starts Python without the environment's Python variables: they are meant for the job.

Nothing is imported here that the interpreter itself has not loaded.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Mapping

_HARMLESS = {
    "PYTHONCOERCECLOCALE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONNOUSERSITE",
    "PYTHONSAFEPATH",
    "PYTHONSTARTUP",
    "PYTHONUNBUFFERED",
    "PYTHONUTF8",
}
"""An interpreter that has begun with one of these behaves as we need it."""


def isolate(main_path: str) -> None:
    """Start again without the variables of Python's own, where one of them may change what we do.

    `main_path` is the `__main__.py` that runs. Returns where nothing has to be changed, with the directories of
    `PYTHONPATH` behind all others. They stay, because an installation may be there itself.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(main_path)))
    if not sys.flags.ignore_environment and any(
        name.startswith("PYTHON") and name not in _HARMLESS for name in os.environ
    ):
        try:  # noqa: SIM105 -- contextlib would be an import
            os.execv(sys.executable, [*python_words(os.environ), main_path, *sys.argv[1:]])  # noqa: S606 -- ourselves
        except OSError:
            pass  # the interpreter is not there any more: the one that runs does as well as it can
    extra = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    own = [root] if root in extra or root not in sys.path else []
    sys.path[:] = [entry for entry in sys.path if entry not in extra and entry not in own] + own + extra


def python_words(environ: Mapping[str, str]) -> list[str]:
    """Return the words that start this interpreter so that neither `environ` nor the working directory matters."""
    # -s and -B: where it may look and write is still the user's to say.
    flags = {"PYTHONNOUSERSITE": "-s", "PYTHONDONTWRITEBYTECODE": "-B"}
    return [sys.executable, "-E", "-P", *(flag for name, flag in flags.items() if environ.get(name))]


def module_words(package: str, environ: Mapping[str, str]) -> list[str]:
    """Return the words that start `package` as `python -m` does, but isolated; raises `ModuleNotFoundError`."""
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no package {package}", name=package)
    return [*python_words(environ), os.path.join(spec.submodule_search_locations[0], "__main__.py")]
