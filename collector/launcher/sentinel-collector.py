#!python
"""The command `sentinel-collector`, where no launcher could be compiled; else what the launcher starts."""

import os
import sys

for _entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    # With -E they are not there yet, and the installation may be in one of them.
    if _entry and _entry not in sys.path:
        sys.path.append(_entry)

from sentinel_collector.__main__ import run  # noqa: E402 -- found from here on

run()
