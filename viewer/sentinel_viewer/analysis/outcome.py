"""How a run ended, in words."""

import signal
from typing import NamedTuple

from sentinel_viewer.output.units import mebibytes
from sentinel_viewer.runs.run import Run, number_of

OK, FAILED, RUNNING, UNKNOWN = "ok", "failed", "running", "unknown"
_FIRST_SIGNAL_CODE = 128
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP"})
_NEAR_LIMIT = 0.95


class Outcome(NamedTuple):
    """`kind` is one of the constants, `text` what a person reads."""

    kind: str
    text: str


def outcome_of(run: Run) -> Outcome:
    """Return how a run ended, and why as far as that can be known."""
    if not run.is_described:
        return Outcome(UNKNOWN, "unknown (no run.json)")
    if run.is_running:
        return Outcome(RUNNING, "running")
    if run.closed_as_stale:
        return Outcome(FAILED, "lost: its collector went silent")
    code = run.exit_code
    if code is None:
        return _without_code(run)
    if code == 0:
        return Outcome(OK, "finished") if run.status != "failed" else Outcome(FAILED, "stopped before its end")
    return Outcome(FAILED, _failure(run, code))


def signal_name(code: int) -> str | None:
    """Return the signal that an exit code of 128+N names, `None` for any other code."""
    try:
        return signal.Signals(code - _FIRST_SIGNAL_CODE).name
    except ValueError:
        return None


def _without_code(run: Run) -> Outcome:
    if run.status == "failed":
        return Outcome(FAILED, "stopped before its end")
    return Outcome(OK, "finished") if run.status == "finished" else Outcome(UNKNOWN, run.state or "unknown")


def _failure(run: Run, code: int) -> str:
    cause = _cause(run, code)
    name = signal_name(code)
    if name is None:
        words = {_NOT_FOUND: "command not found (127)", _NOT_EXECUTABLE: "command not executable (126)"}.get(
            code, f"failed: exit code {code}"
        )
    elif name in _CRASHES:
        words = f"crashed: {name} ({code})"
    elif name == "SIGINT":
        words = f"interrupted: SIGINT ({code})"
    else:
        words = f"killed by {name} ({code})"
    return f"{words}: {cause}" if cause else words


def _cause(run: Run, code: int) -> str:
    """Return the cause where the run's end tells it, or its memory suggests it."""
    limit = run.memory_limit_mib
    kills = number_of(run.ending.get("oom_kills")) or 0
    if kills and limit is not None:
        return f"memory limit of {mebibytes(limit)} reached"
    if kills:
        return "the kernel was out of memory (OOM kill)"
    if run.ending.get("disk_full") is True:
        return "a disk was full"
    if signal_name(code) != "SIGKILL":
        return ""
    peak = peak_memory_mib(run)
    if limit is not None and peak is not None and peak >= limit * _NEAR_LIMIT:
        return f"probably the memory limit of {mebibytes(limit)} (peak {mebibytes(peak)})"
    used, size = run.statistic("system_memory_used_mib", "max"), run.host_memory_mib
    if used is not None and size is not None and used >= size * _NEAR_LIMIT:
        return f"probably out of memory: the machine's {mebibytes(size)} were used up"
    return ""


def peak_memory_mib(run: Run) -> float | None:
    """Return the run's highest memory: of the tree in its rows, or of one process between them."""
    if run.is_host_run:
        return run.statistic("system_memory_used_mib", "max")
    candidates = (run.peak_memory_mib, run.statistic("process_memory_mib", "max"))
    return max((value for value in candidates if value is not None), default=None)
