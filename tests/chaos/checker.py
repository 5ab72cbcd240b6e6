"""What has to be true when the curtain has fallen; every check returns a line for each thing that is not."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from chaos.calls import check_calls
from chaos.collected_state import CollectedState
from chaos.ends import check_ends
from chaos.rows import check_objects, check_rows
from chaos.scenario import Scenario

OFTEN = 8
"""A disturbance that was made so often without an effect does not work."""
_SPOOL_FILES = {"spool.db", "lock"} | {
    name for file in ("turned_away.json", "heard.json") for name in (file, f".{file}.part")
}
"""The last one where an uploader was killed while it wrote the one before, and nothing was rejected since."""


def check(state: CollectedState) -> list[str]:
    """Return what is wrong, nothing when every guarantee holds; adds to the state's figures."""
    checks = (check_rows, check_ends, check_objects, check_calls, check_disturbances)
    return [problem for find_problems in checks for problem in find_problems(state)]


def check_disturbances(state: CollectedState) -> Iterator[str]:
    """Yield a line for each kind of disturbance that had no effect."""
    for name, times in state.planned.items():
        if times >= OFTEN and not state.fired[name]:
            yield f"{name}: done {times} times without an effect"
    for name in state.expected:
        if not state.fired[name]:
            yield f"{name}: expected to happen, and has not"


def left_over(scenario: Scenario) -> Iterator[str]:
    """Yield a line for each process, file and row that is left; the uploaders have ended."""
    mark = str(scenario.home.runtime)
    for process in psutil.process_iter():
        try:
            if process.pid != psutil.Process().pid and process.environ().get("XDG_RUNTIME_DIR") == mark:
                yield f"process {process.pid} is left over: {process.cmdline()}"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    yield from _files_left_over(scenario)
    for uploader in scenario.uploaders:
        for run in uploader.runs():
            if run["rows_waiting"] or run["state"] not in {"finished", "failed"}:
                yield f"{uploader.name}: {run['rows_waiting']} rows of {run['run_id']} wait: {run['state']}"
        unknown = {path.name for path in uploader.disk.path(uploader.spool).iterdir()} - _SPOOL_FILES
        if unknown:
            yield f"{uploader.name}: {sorted(unknown)} are left over in the spool"


def _files_left_over(scenario: Scenario) -> Iterator[str]:
    vanished = sum(run.abandoned for one in scenario.collectors for run in one.generations)
    may_be_kept = vanished or scenario.moves()
    for state_dir in {one.state_dir for one in scenario.collectors}:
        # Files of runs that are not continued stay for a day, or are what could not be added to a closed run.
        files = [path for path in _files(state_dir) if path.suffix not in {".rows", ".csv"} or not may_be_kept]
        for path in files:
            yield f"{path} is left over"
    rows_files = sum(1 for one in {one.state_dir for one in scenario.collectors} for _ in one.glob("**/*.rows"))
    if rows_files > vanished:
        yield f"{rows_files} files of undelivered samples are left over, {vanished} collectors have vanished"
    for path in _files(scenario.home.runtime):
        yield f"{path} is left over"


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if not path.is_dir()) if directory.exists() else []
