import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins.product import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    # A Unix socket's path is short; pytest's own directories are not.
    runtime = Path(tempfile.mkdtemp(prefix="ss-"))
    made = Home(tmp_path, runtime, os.environ)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(runtime)
