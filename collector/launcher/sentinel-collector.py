#!python
"""The command `sentinel-collector`, where no launcher could be compiled; else what the launcher starts."""

import os
import sys

if sys.flags.no_site:
    _prefix = os.path.dirname(os.path.dirname(sys.executable))
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

from sentinel_collector.__main__ import run  # noqa: E402 -- found from here on

run()
