"""The collector's own files: one of undelivered samples for each run, and what could not be delivered any more."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO

import msgspec

from sentinel_collector.delivery.overflow_file.file import OverflowFile, OverflowFileInUseError
from sentinel_collector.delivery.overflow_file.header import OverflowFileError, OverflowHeader
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.common.hashing import sha256
from sentinel_protocol.common.paths import make_private_dir
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows, decode_samples

_SUFFIX = ".rows"
_NAME_CHARS = 24
_MAX_FILES_PER_RUN = 100
_MAX_WRITE_ROWS = 1000
_MAX_RECORD_ROWS = 128
_MAX_UNDELIVERABLE_FILES = 1000


def open_run_file(state_dir: str, run_key: str) -> OverflowFile:
    """Open and lock the newest file of a run that no living collector holds, or make one.

    Raises `OSError`, `UsageError`, or `OverflowFileError` for a file that cannot be read.
    """
    make_private_dir(state_dir)
    ended: OverflowFile | None = None
    for path in sorted(_existing_files(state_dir, run_key), key=modified_at, reverse=True):
        try:
            overflow = OverflowFile.open(path)
        except (OverflowFileInUseError, FileNotFoundError):
            continue
        if overflow.finish is None:
            if ended is not None:
                ended.close()
            return overflow
        if ended is None:
            ended = overflow
        else:
            overflow.close()
    return ended or create_run_file(state_dir, run_key)


def has_ended_file(state_dir: str, run_key: str) -> bool:
    """Whether a file tells the end of the run, one that another collector delivers at the moment included."""
    for path in _existing_files(state_dir, run_key):
        with contextlib.suppress(OSError):
            if OverflowFile.has_finish(path):
                return True
    return False


def has_other_file(state_dir: str, run_key: str, path: str) -> bool:
    """Whether there is a file of the run beside the one at `path`."""
    return any(other != path for other in _existing_files(state_dir, run_key))


def claim_other_file(state_dir: str, run_key: str, path: str) -> OverflowFile | None:
    """Open a file of the run beside the one at `path`, if there is a free one without an end.

    Raises `OSError`, or `OverflowFileError` for a file that cannot be read.
    """
    for other in _existing_files(state_dir, run_key):
        if other == path:
            continue
        try:
            overflow = OverflowFile.open(other)
        except (OverflowFileInUseError, FileNotFoundError):
            continue
        if overflow.finish is None:
            return overflow
        overflow.close()
    return None


def is_run_in_use(path: str) -> bool:
    """Whether another collector holds a file of the same run as the one at `path`; raises `OSError`."""
    directory, name = os.path.split(path)
    return any(
        other != path and os.path.basename(other).startswith(name[:_NAME_CHARS]) and _is_locked(other)
        for other in run_files(directory)
    )


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def create_run_file(state_dir: str, run_key: str) -> OverflowFile:
    """Make another file of a run; raises `OSError`, `UsageError` or `OverflowFileError`."""
    make_private_dir(state_dir)
    for path in _candidate_paths(state_dir, run_key):
        try:
            return OverflowFile.open(path, create=True)
        except (FileExistsError, OverflowFileInUseError):
            continue
    raise OverflowFileError(f"there are {_MAX_FILES_PER_RUN} files of the run {run_key!r} already")


def write_finished_part(
    state_dir: str, run_key: str, header: OverflowHeader, numbered: tuple[int, list[bytes]], end: Finish
) -> str:
    """Write a whole run, its rows from the given number on, to another file and return its path.

    Raises what `create_run_file` raises; nothing is left then.
    """
    first_seq, rows = numbered
    left = create_run_file(state_dir, run_key)
    try:
        left.write_header(header)
        for start in range(0, len(rows), _MAX_RECORD_ROWS):
            left.append_rows(rows[start : start + _MAX_RECORD_ROWS], first_seq + start)
        left.write_finish(end)
    except (OSError, SentinelStreamError):
        left.unlink()
        raise
    finally:
        left.close()
    return left.path


def run_files(state_dir: str) -> Iterator[str]:
    """Yield the paths of all runs' files."""
    try:
        names = sorted(os.listdir(state_dir))
    except OSError:
        return
    yield from (os.path.join(state_dir, name) for name in names if name.endswith(_SUFFIX))


def save_undeliverable_rows(state_dir: str, run_key: str, incarnation: str, rows: Iterable[bytes]) -> str:
    """Write rows that no uploader takes any more to a CSV file of their own and return its path.

    The file is there whole or not at all. Raises `OSError`, `UsageError`, or `OverflowFileError` for invalid rows.
    """
    directory = make_private_dir(os.path.join(state_dir, "kept"))
    safe_key = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in run_key)
    stem = os.path.join(directory, f"{safe_key[:100]}-{incarnation[:8]}")
    part = f"{stem}.{os.getpid()}.part"
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            _write_csv(file, rows)
        for number in range(_MAX_UNDELIVERABLE_FILES):
            path = f"{stem}{f'-{number}' if number else ''}.csv"
            with contextlib.suppress(FileExistsError):
                # Unlike a rename, a link never takes the place of what an earlier collector kept.
                os.link(part, path)
                return path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    raise OverflowFileError(f"there are {_MAX_UNDELIVERABLE_FILES} files {stem}*.csv already")


def _write_csv(file: BinaryIO, rows: Iterable[bytes]) -> None:
    file.write(CSV_HEADER)
    remaining = iter(rows)
    try:
        while batch := decode_samples(islice(remaining, _MAX_WRITE_ROWS)):
            file.write(csv_rows(batch))
    except msgspec.DecodeError as error:
        raise OverflowFileError(f"a row is not a sample: {error}") from error
    file.flush()
    os.fsync(file.fileno())


def _existing_files(state_dir: str, run_key: str) -> list[str]:
    """Return the files of a run that are there. One look at the directory: a hundred at what may be in it take 2 ms."""
    there = set(run_files(state_dir))
    return [path for path in _candidate_paths(state_dir, run_key) if path in there]


def _candidate_paths(state_dir: str, run_key: str) -> Iterator[str]:
    name = sha256(run_key.encode("utf-8", "surrogatepass")).hex()[:_NAME_CHARS]
    for number in range(_MAX_FILES_PER_RUN):
        yield os.path.join(state_dir, f"{name}{f'-{number}' if number else ''}{_SUFFIX}")


def modified_at(path: str) -> int:
    """Return when a file was last written, in nanoseconds; 0 for one that is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
