"""What an uploader has promised, and what its spool holds when it is killed: acknowledged means on disk."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from sentinel_uploader.spool.run_record import decode_record

_FILES = ("spool.db", "spool.db-wal")


def broken_promises(promised: Mapping[tuple[str, str], int], spool: Path) -> Iterator[str]:
    """Yield a line for each run of which more was `promised` (by key and incarnation) than the spool holds.

    The spool's uploader must be dead; the files are copied, and left as they are for its successor.
    """
    if not (spool / _FILES[0]).exists():
        return
    with tempfile.TemporaryDirectory(prefix="chaos-spool-") as directory:
        for name in _FILES:
            if (spool / name).exists():
                shutil.copyfile(spool / name, Path(directory) / name)
        durable = _durable_seqs(Path(directory) / _FILES[0])
    for whose, seq in durable.items():
        if promised.get(whose, 0) > seq:
            yield f"{whose}: acknowledged up to {promised[whose]}, on disk up to {seq}"


def _durable_seqs(path: Path) -> dict[tuple[str, str], int]:
    with closing(sqlite3.connect(path)) as connection:
        # A killed process may have left a database that was not begun yet.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not version:
            return {}
        frames = dict(connection.execute("SELECT run, max(first_seq + rows - 1) FROM frames GROUP BY run").fetchall())
        records = connection.execute("SELECT id, record FROM runs").fetchall()
    found = {number: decode_record(blob) for number, blob in records}
    return {
        (record.key, record.epoch): max(record.batched_seq, frames.get(number, 0)) for number, record in found.items()
    }
