#!python
"""The command `sentinel-collector`, where no launcher could be compiled; else what the launcher starts."""

import os
import sys

for _entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    # With -E they are not there yet, and the installation may be in one of them.
    if _entry and _entry not in sys.path:
        sys.path.append(_entry)

try:
    from sentinel_collector.__main__ import run
except Exception as error:
    if "--" not in sys.argv[:-1]:
        raise
    import signal

    _ignored = str(sys._xoptions.get("sentinel-ignored", "")).split(",")  # noqa: SLF001 -- documented
    for _signum in (signal.SIGPIPE, signal.SIGXFSZ):
        if str(int(_signum)) not in _ignored:
            signal.signal(_signum, signal.SIG_DFL)
    os.write(2, f"sentinel-collector: {error}; the job runs and is not recorded\n".encode("utf-8", "replace"))
    _command = sys.argv[sys.argv.index("--") + 1 :]
    os.execvp(_command[0], _command)  # noqa: S606 -- the job

run()
