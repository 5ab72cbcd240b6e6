"""The collector's own files: one of undelivered samples for each run, and what could not be delivered any more."""

import hashlib
import os
from collections.abc import Iterable, Iterator

from collector.spill import SpillError, SpillFile, SpillInUseError
from protocol.paths import make_private_dir
from protocol.sample import CSV_HEADER, csv_rows, decode_sample

_SUFFIX = ".rows"
_MOST_OF_ONE_RUN = 10
_ROWS_A_WRITE = 1000


def open_run_file(state_dir: str, run_key: str) -> SpillFile:
    """Open and lock the file of a run, new or as an earlier collector of the run left it.

    While an older collector of the run still holds its file, another one is made beside it. Raises `OSError`,
    `UsageError` or `SpillError`.
    """
    make_private_dir(state_dir)
    name = hashlib.sha256(run_key.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    for number in range(_MOST_OF_ONE_RUN):
        path = os.path.join(state_dir, f"{name}{f'-{number}' if number else ''}{_SUFFIX}")
        try:
            return SpillFile.open(path)
        except SpillInUseError:
            continue
    raise SpillError(f"{_MOST_OF_ONE_RUN} collectors claim the run {run_key!r}")


def run_files(state_dir: str) -> Iterator[str]:
    """Yield the paths of all runs' files."""
    try:
        names = sorted(os.listdir(state_dir))
    except OSError:
        return
    yield from (os.path.join(state_dir, name) for name in names if name.endswith(_SUFFIX))


def keep_rows(state_dir: str, run_key: str, incarnation: str, rows: Iterable[bytes]) -> str:
    """Write rows that no uploader takes any more to a CSV file and return its path; raises `OSError`."""
    directory = make_private_dir(os.path.join(state_dir, "kept"))
    safe_key = "".join(char if char.isalnum() or char in "._-" else "_" for char in run_key)[:100]
    path = os.path.join(directory, f"{safe_key}-{incarnation[:8]}.csv")
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(CSV_HEADER)
        batch = []
        for row in rows:
            batch.append(decode_sample(row))
            if len(batch) == _ROWS_A_WRITE:
                file.write(csv_rows(batch))
                batch.clear()
        file.write(csv_rows(batch))
        file.flush()
        os.fsync(file.fileno())
    return path
