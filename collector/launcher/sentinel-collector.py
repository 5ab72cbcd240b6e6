#!python
"""The command `sentinel-collector`, where no launcher could be compiled; else what the launcher starts."""

import os
import sys

for _name in ("PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__"):
    # The launcher has hidden them: they would change where this interpreter finds its own modules.
    if f"SENTINEL_JOB_{_name}" in os.environ:
        os.environ[_name] = os.environ.pop(f"SENTINEL_JOB_{_name}")
if sys.flags.no_site:
    _prefix = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    _site = f"{_prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    if os.path.exists(f"{_site}/sentinel_collector/__main__.py"):
        sys.path.append(_site)
    else:
        # An editable installation, one of the user's or of the distribution: `site` knows.
        import site

        site.main()
for _entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    # With -E they are not there yet, and the installation may be in one of them.
    if _entry and _entry not in sys.path:
        sys.path.append(_entry)

try:
    from sentinel_collector.__main__ import run
except Exception as _error:  # noqa: BLE001 -- whatever is wrong with the installation, the job runs
    _job = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    if not _job:
        sys.exit(f"sentinel-collector: the installation is damaged: {_error}")
    import signal

    _ignored = str(sys._xoptions.get("sentinel-ignored", "")).split(",")  # noqa: SLF001 -- documented
    for _signum in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores both; the job finds them as we did.
        if str(int(_signum)) not in _ignored:
            signal.signal(_signum, signal.SIG_DFL)
    _text = f"sentinel-collector: the installation is damaged: {_error}; the job runs and is not recorded\n"
    os.write(2, _text.encode("utf-8", "replace"))
    try:
        os.execvp(_job[0], _job)  # noqa: S606 -- what the user asked for
    except OSError as _error:
        os.write(2, f"sentinel-collector: {_job[0]}: {_error.strerror}\n".encode("utf-8", "replace"))
        sys.exit(127 if isinstance(_error, FileNotFoundError) else 126)

run()
