"""`sentinel-stream`: one command to look at runs."""

import importlib
import signal
import sys
from collections.abc import Sequence

from sentinel_protocol import __version__
from sentinel_protocol.common.errors import SentinelStreamError, UsageError
from sentinel_protocol.common.settings.sources import did_you_mean
from sentinel_viewer.output.console import discard_output, note, write

_HELP = """usage: sentinel-stream COMMAND [options]

Looks at recorded runs, wherever they are. It never changes a run; only `rm` deletes, and it asks first.

commands:
  ls              all runs, the newest last
  show RUN        figures, a picture of each in a line, advice
  report RUN…     one HTML file with charts, statistics, advice and all rows; it needs no network
  open RUN        the report, in the browser
  compare A B…    runs side by side, and which differences are more than noise
  export RUN…     one table: CSV, JSON or Parquet
  rm RUN…         delete runs
  top             runs that are being recorded, live
  web             all of this in a browser
  completion      completion for bash, zsh and fish
`sentinel-stream COMMAND --help` says more.

a RUN is:
  latest, latest~2             the newest run, the one two before it
  20261121-234326-67d2a39b     an id, or any part that only one id has: 67d2
  train, train~1               the newest run of a job, the one before it
  path/to/run, rows.csv        a run's directory, a file of rows
  s3://bucket/prefix/run       a run in a bucket, or its objects: s3://bucket/prefix/run/0001.csv.gz

examples:
  sentinel-stream ls --failed --since 7d
  sentinel-stream report latest --open
  sentinel-stream compare train~1 train
  sentinel-stream --runs s3://bucket/prefix ls

options:
  --runs PLACE    where the runs are: a directory or s3://BUCKET/PREFIX
                  (default this user's own; env SENTINEL_RUNS)
  --version       show the version
  --help          show this help
"""
COMMANDS = ("ls", "show", "report", "open", "compare", "export", "rm", "top", "web", "completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong use."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        note(str(error))
        return 2
    except SentinelStreamError as error:
        note(str(error))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has seen enough.
        discard_output()
        return 1
    except SystemExit as ended:
        # argparse ends with this: `--help`, a flag that it does not know.
        return ended.code if isinstance(ended.code, int) else 0


def _run(words: list[str]) -> int:
    before: list[str] = []
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in {"-h", "--help"}:
            write(_HELP)
            return 0
        if word in {"-V", "--version"}:
            write(f"sentinel-stream {__version__}\n")
            return 0
        if word == "--runs" and words:
            before += [word, words.pop(0)]
        elif word.startswith("--runs="):
            before.append(word)
        else:
            raise UsageError(f"unknown option {word!r}; see `sentinel-stream --help`")
    if not words:
        write(_HELP)
        return 2 if before else 0
    command = words.pop(0)
    if command not in COMMANDS:
        raise UsageError(
            f"there is no command {command!r}{did_you_mean(command, COMMANDS)}; see `sentinel-stream --help`"
        )
    module = importlib.import_module(f"sentinel_viewer.cli.{command}")
    code: int = module.run([*before, *words])
    return code
