"""`python -m sentinel_uploader`."""

import sys

from sentinel_uploader.cli.main import main

sys.exit(main())
