"""`python -m sentinel_collector`."""

import sys

from sentinel_collector.cli import main

sys.exit(main())
