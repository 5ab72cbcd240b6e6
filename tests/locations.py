"""Where the packages' sources are, for children that do not have what is installed."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SOURCE_ROOTS = [ROOT / name for name in ("collector", "uploader", "protocol", "viewer")]
SOURCE_PATH = os.pathsep.join(map(str, SOURCE_ROOTS))
"""A `PYTHONPATH`."""
