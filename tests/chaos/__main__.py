"""`python -m chaos --seed S --duration SECONDS`: exits with 0 when every guarantee has held, else prints why not."""

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from fakes.process_harness import Home

from chaos.replay import Report, play


def main() -> int:
    """Run one scenario in a directory of its own, which is kept when something is wrong."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="what happens and when (default: drawn, and printed)")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of disturbance (default: %(default)s)")
    parser.add_argument("--collectors", type=int, default=4, help="how many collectors (default: %(default)s)")
    parser.add_argument("--uploaders", type=int, default=2, help="how many uploaders (default: %(default)s)")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(
        f"seed {seed}, {arguments.duration:g} s, {arguments.collectors} collectors, {arguments.uploaders} uploaders",
        flush=True,
    )
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    runtime = Path(tempfile.mkdtemp(prefix="ss-"))
    report = play(
        Home(directory, runtime, os.environ),
        seed=seed,
        duration_s=arguments.duration,
        collectors=arguments.collectors,
        uploaders=arguments.uploaders,
    )
    shutil.rmtree(runtime)
    _print(report)
    if not report.problems:
        shutil.rmtree(directory)
        print("every guarantee has held")
        return 0
    print("\n".join(report.problems))
    print(f"logs and files: {directory}\n{report.repeat}")
    return 1


def _print(report: Report) -> None:
    print("    done     met  disturbance")
    for name, times in sorted(report.planned.items()):
        print(f"{times:8d}{report.fired[name]:8d}  {name}")
    print(f"{report.kills:8d}  processes killed")
    for name, figure in sorted(report.figures.items()):
        print(f"{figure:8d}  {name}")


if __name__ == "__main__":
    sys.exit(main())
