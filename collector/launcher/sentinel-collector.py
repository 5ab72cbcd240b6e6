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
except ImportError as _error:
    _job = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    _end = "; the job runs and is not recorded" if _job else ""
    print(f"sentinel-collector: the installation is damaged: {_error}{_end}", file=sys.stderr, flush=True)
    if not _job:
        sys.exit(1)
    try:
        os.execvp(_job[0], _job)  # noqa: S606 -- what the user asked for
    except OSError as _error:
        print(f"sentinel-collector: {_job[0]}: {_error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(_error, FileNotFoundError) else 126)

run()
