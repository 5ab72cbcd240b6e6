"""`python -m sentinel_viewer`."""

import sys

from sentinel_viewer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
