"""Fuzz for as long as asked: with atheris, which looks for new ways through the code, or else with hypothesis.

What fails is written to `crash-*` (atheris) or printed (hypothesis), to be put into `corpus/` with its mend.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

from sentinel_protocol.common.clock import SystemClock

CORPUS = Path(__file__).parent / "corpus"
_REPORT_FRAMES = 250_000
_WARM_FRAMES = 500_000
_GROWTH = 0.10
_MIB = 1 << 20


class Meter:
    """Counts frames, watches memory and says when it is enough."""

    def __init__(self, frames: int, seconds: float) -> None:
        self._wanted = frames
        self._clock = SystemClock()
        self._until = self._clock.monotonic() + seconds
        self._process = psutil.Process()
        self._warm_rss = 0
        self._next_report = _REPORT_FRAMES
        self.frames = self.inputs = 0
        self.outcomes: set[str] = set()

    def add(self, frames: int, outcomes: set[str]) -> bool:
        """Count what one play did; True when that was enough."""
        self.frames += frames
        self.inputs += 1
        self.outcomes |= outcomes
        if not self._warm_rss and self.frames >= _WARM_FRAMES:
            self._warm_rss = self._process.memory_info().rss
        if self.frames >= self._next_report:
            self._next_report += _REPORT_FRAMES
            print(self.summary(), file=sys.stderr, flush=True)
        return self.frames >= self._wanted or self._clock.monotonic() >= self._until

    def summary(self) -> str:
        rss = self._process.memory_info().rss
        since = f", {self._warm_rss / _MIB:.1f} after {_WARM_FRAMES:,}" if self._warm_rss else ""
        words = f"{self.frames:,} frames in {self.inputs:,} plays, RSS {rss / _MIB:.1f} MiB{since}"
        return f"{words}; outcomes: {', '.join(sorted(self.outcomes))}"

    @property
    def has_grown(self) -> bool:
        """Whether memory is more than a tenth above what it was after the first frames."""
        return bool(self._warm_rss) and self._process.memory_info().rss > self._warm_rss * (1 + _GROWTH)


def _end(meter: Meter) -> int:
    print(meter.summary(), file=sys.stderr)
    if meter.has_grown:
        print("memory has grown", file=sys.stderr)
        return 1
    return 0


def _with_atheris(directory: str, meter: Meter, found: Path) -> int:
    import atheris

    with atheris.instrument_imports(include=["sentinel_protocol", "sentinel_uploader"]):
        from fuzz.play import CLIENTS, play
        from fuzz.site import Site
    site = Site(Path(directory), CLIENTS)

    def one(data: bytes) -> None:
        if meter.add(*play(site, data)):
            # libFuzzer does not return: what is to be done at the end has to be done here.
            site.close()
            shutil.rmtree(directory)
            os._exit(_end(meter))

    words = [sys.argv[0], "-max_len=4096", "-len_control=0", "-rss_limit_mb=0", f"-artifact_prefix={found}/crash-"]
    atheris.Setup([*words, str(found), str(CORPUS)], one)
    atheris.Fuzz()
    return 0


def _with_hypothesis(directory: str, meter: Meter) -> int:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from fuzz.play import CLIENTS, play
    from fuzz.site import Site

    site = Site(Path(directory), CLIENTS)
    is_enough = False

    @settings(
        max_examples=10_000,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(max_size=4096))
    def one(data: bytes) -> None:
        nonlocal is_enough
        is_enough = is_enough or meter.add(*play(site, data))

    while not is_enough:
        one()
    return _end(meter)


def main() -> int:
    """Run until so many frames, or seconds, are over; exit code 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--engine", choices=["atheris", "hypothesis"], default="atheris")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where new inputs and crashes are kept")
    arguments = parser.parse_args()
    arguments.found.mkdir(exist_ok=True)
    # In memory: ten million frames are hundreds of thousands of transactions.
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    logging.disable(logging.ERROR)
    meter = Meter(arguments.frames, arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="sentinel-fuzz-", dir=fast) as directory:
        if arguments.engine == "atheris":
            return _with_atheris(directory, meter, arguments.found)
        return _with_hypothesis(directory, meter)


if __name__ == "__main__":
    sys.exit(main())
