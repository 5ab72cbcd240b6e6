import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins.product import Home

# What is installed is tested: without this a child's `python -c` would find the sources in the working directory.
os.environ["PYTHONSAFEPATH"] = "1"
# A shell starts its background jobs with these ignored, and the programs under test would inherit that.
for _signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.default_int_handler if _signum == signal.SIGINT else signal.SIG_DFL)


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
