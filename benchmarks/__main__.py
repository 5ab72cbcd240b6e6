"""`python -m benchmarks [accuracy|overhead|start|columns|day] [options]`; Markdown on stdout, progress on stderr."""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from benchmarks import accuracy, accuracy_table, columns, day, long_run, overhead, overhead_table, start
from benchmarks.trackers import OURS, PEER_PYTHON, default_tracker, has_accounting, has_peer
from benchmarks.workspace import BenchmarkError, Workspace

PARTS = ("accuracy", "overhead", "start", "columns")
DAY = "day"
"""Runs only on request: it does not include the peer."""
_NAMES: dict[str, tuple[str, ...]] = {"accuracy": accuracy.NAMES, "overhead": overhead.NAMES}


def main() -> int:
    """Run the command line. The exit code says whether the measurement worked, not whether the results are good."""
    options = _options()

    def say(text: str) -> None:
        print(f"benchmarks: {text}", file=sys.stderr, flush=True)

    began = time.monotonic()
    sections = [_machine()]
    try:
        parts = [options.part] if options.part else [part for part in PARTS if _knows(part, options.only)]
        sections += [f"## {part.capitalize()}\n\n{_measure(part, options, say)}" for part in parts]
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: stopped, everything is cleaned up", file=sys.stderr)
        return 130
    sections.append(f"Took {time.monotonic() - began:.0f} s.")
    text = "\n\n".join(sections) + "\n"
    print(text, end="")
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=(*PARTS, DAY), help=f"default: all but {DAY}")
    parser.add_argument("--runs", type=int, default=3, help="how often each thing is measured; default 3")
    parser.add_argument("--only", metavar="NAME", help="only this workload or situation")
    parser.add_argument("--markdown", metavar="FILE", help="write what is printed to a file too")
    parser.add_argument("--quick", action="store_true", help="one run, short windows: to see that it works")
    options = parser.parse_args()
    names = {name for part, some in _NAMES.items() if options.part in {None, part} for name in some}
    if options.only and options.only not in names:
        parser.error(
            f"--only: one of {', '.join(sorted(names))}" if names else f"{options.part} has no parts of its own"
        )
    if options.runs < 1:
        parser.error("--runs: at least 1")
    return options


def _knows(part: str, only: str | None) -> bool:
    return only is None or only in _NAMES.get(part, ())


def _measure(part: str, options: argparse.Namespace, say: Callable[[str], None]) -> str:
    runs = 1 if options.quick else options.runs
    with Workspace() as workspace:
        if part == DAY:
            return day.measure(workspace, 3 if options.quick else 24, say)
        workspace.start_uploader()
        if part == "accuracy":
            idle_s = 5.0 if options.quick else 15.0
            trackers = OURS if has_accounting() and not options.quick else (default_tracker(),)
            measured = accuracy.measure(
                workspace, trackers=trackers, runs=runs, only=options.only, idle_s=idle_s, say=say
            )
            return accuracy_table.markdown(measured)
        if part == "overhead":
            return _overhead(workspace, options, runs, say)
        if part == "start":
            return start.measure(workspace, pairs=3 if options.quick else 8, say=say)
        return columns.measure(workspace, window_s=10 if options.quick else 30, say=say)


def _overhead(workspace: Workspace, options: argparse.Namespace, runs: int, say: Callable[[str], None]) -> str:
    plan = overhead.QUICK if options.quick else overhead.FULL
    sections = []
    if situations := overhead.measure(workspace, runs=runs, only=options.only, plan=plan, say=say):
        sections.append(overhead_table.markdown(situations, runs, plan))
    if options.only in {None, overhead.GROWTH}:
        say(f"overhead: {plan.growth_samples} samples as fast as they go")
        sections.append(long_run.measure(workspace, plan.growth_samples))
    return "\n\n".join(sections)


def _machine() -> str:
    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} ?"

    peer = "no peer: `make bench` builds its environment"
    if has_peer():
        words = [PEER_PYTHON, "-c", "from importlib.metadata import version; print(version('resource-tracker'))"]
        peer = f"resource-tracker {subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()}"
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    packages = ", ".join([of("sentinel-stream"), of("pyzmq"), of("msgspec"), peer])
    machine = f"{_cpu_model()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB, Linux {platform.release()}"
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    lines = (
        f"`{command}`, {now} UTC, load at the start {os.getloadavg()[0]:.2f}",
        "",
        f"{machine}; Python {platform.python_version()}, {packages}",
    )
    return "\n".join(lines)


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


if __name__ == "__main__":
    sys.exit(main())
