import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
from fakes.backend import Backend
from fakes.process_harness import Home, home_in
from fakes.raw_collector import Collectors, RawCollector, collectors_of

# How long an example takes says how busy the machine is, nothing about what is tested.
hypothesis.settings.register_profile("ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("ours")
# What is installed is tested: without this a child's `python -c` would find the sources in the working directory.
os.environ["PYTHONSAFEPATH"] = "1"
# A shell starts its background jobs with these ignored, and the programs under test would inherit that.
for _signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.default_int_handler if _signum == signal.SIGINT else signal.SIG_DFL)

_FOR_THE_MAIN_THREAD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_start = threading.Thread.start


def _start_without_signals(thread: threading.Thread) -> None:
    """A thread that a test leaves behind must not take, and die of, the signals that a later test sends itself."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_THREAD)
    try:
        _start(thread)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


threading.Thread.start = _start_without_signals  # type: ignore[method-assign,assignment]  # for every thread of the tests' process


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_running() -> Iterator[None]:
    """A module's tests leave no process behind, not even one that nobody has waited for."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert not left, f"left behind: {left}"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with home_in(tmp_path) as made:
        yield made


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


@pytest.fixture
def collectors(home: Home) -> Iterator[Collectors]:
    with collectors_of(home.address) as made:
        yield made


@pytest.fixture
def collector(collectors: Collectors) -> RawCollector:
    return collectors.connect()
