"""`python -m sentinel_collector`, the command `sentinel-collector`, and the same file run by its path."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def run() -> None:
    """Run the command line isolated from what the environment says of Python, and exit with its code."""
    # Run by its path the interpreter knows neither where we are nor, with -E, what PYTHONPATH says.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for entry in (root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.append(entry)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        from sentinel_protocol.common.interpreter import isolate

        isolate(__file__)
        from sentinel_collector.cli import main

        sys.exit(main())
    except Exception as error:  # noqa: BLE001 -- the job must run whatever we lack
        run_unrecorded(error, mask)


def run_unrecorded(error: Exception, mask: Iterable[int]) -> None:
    """Become the job, or wait for it when it runs already; never returns. Imports and opens nothing."""
    process = sys.modules.get("sentinel_collector.job.process")
    pid = process.Job.started_pid if process is not None else 0
    command = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    reason = f"{type(error).__name__}: {error}"
    if not command:
        raise error
    os.write(2, f"sentinel-collector: {reason}; the job runs and is not recorded\n".encode("utf-8", "replace"))
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    ignored = str(sys._xoptions.get("sentinel-ignored", "")).split(",")  # noqa: SLF001 -- documented
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        if str(int(signum)) not in ignored:
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvp(command[0], command)  # noqa: S606 -- the job
    except OSError as failure:
        os.write(2, f"sentinel-collector: {command[0]}: {failure.strerror}\n".encode("utf-8", "replace"))
        os._exit(127 if isinstance(failure, FileNotFoundError) else 126)


if __name__ == "__main__":
    run()
