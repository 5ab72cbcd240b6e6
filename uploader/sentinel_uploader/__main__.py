"""`python -m sentinel_uploader`, the command `sentinel-uploader`, and the same file run by its path."""

import os
import sys


def run() -> None:
    """Run the command line isolated from the environment's Python variables, and exit with its code."""
    # Run by its path the interpreter knows neither where we are nor, with -E, what PYTHONPATH says.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for entry in (root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.append(entry)
    from sentinel_protocol.common.interpreter import isolate

    isolate(__file__)
    from sentinel_uploader.cli.main import main

    # What is made is private, and can be used, whatever the umask was.
    os.umask(0o077)
    sys.exit(main())


if __name__ == "__main__":
    run()
