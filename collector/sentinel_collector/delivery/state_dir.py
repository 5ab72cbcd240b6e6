"""The collector's state directory: overflow files, one or more a run, and CSV files of undeliverable rows."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple

import msgspec

from sentinel_collector.console import Console
from sentinel_collector.delivery.overflow_file.file import OverflowFile, OverflowFileInUseError
from sentinel_collector.delivery.overflow_file.format import MAX_RECORD_ROWS, OverflowFileError, OverflowHeader
from sentinel_collector.run_key import successor_run_key
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.common.hashing import sha256
from sentinel_protocol.common.paths import make_private_dir
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows, decode_samples

_SUFFIX = ".rows"
_NAME_CHARS = 24
_MAX_FILES_PER_RUN = 100
_MAX_WRITE_ROWS = 1000
_MAX_UNDELIVERABLE_FILES = 1000
_CLAIM_ATTEMPTS = 10
_CLAIM_RETRY_S = 0.1


class RunFileClaim(NamedTuple):
    """A run's file, and how the run goes on."""

    file: OverflowFile | None
    """Open and locked; `None` when none can be used."""
    run_key: str
    """The key to record under."""
    is_resumed: bool
    """An earlier collector of the run left a file."""


def claim_run_file(state_dir: str, run_key: str, *, clock: Clock, console: Console) -> RunFileClaim:
    """Find the file that an earlier collector of a run may have left, or make one; without any, there is a warning.

    The file is named after the given key also when the run continues under another: a restarted collector looks there.
    """
    current_key, is_resumed = run_key, False
    try:
        overflow = _open_or_create(state_dir, run_key, console)
        if overflow.finish is not None:
            # That run has ended and waits for its delivery: record another.
            overflow.close()
            current_key = successor_run_key(run_key)
            overflow = create_run_file(state_dir, run_key)
        elif overflow.header is None and _has_ended_file(state_dir, run_key):
            # The same, but another collector is delivering it. Continuing that run would stop the delivery.
            current_key = successor_run_key(run_key)
        elif _other_files(state_dir, run_key, overflow):
            is_resumed = True
            if overflow.header is None:
                overflow = _wait_for_other_file(state_dir, run_key, overflow, clock)
    except (OSError, SentinelStreamError) as error:
        console.warn(f"cannot keep undelivered samples in {state_dir}; keeping them in memory: {error}")
        return RunFileClaim(None, current_key, is_resumed)
    return RunFileClaim(overflow, current_key, is_resumed or overflow.header is not None)


def _open_or_create(state_dir: str, run_key: str, console: Console) -> OverflowFile:
    try:
        return open_run_file(state_dir, run_key)
    except OverflowFileError as error:
        console.error(f"cannot continue the run: {error}")
        return create_run_file(state_dir, run_key)


def _wait_for_other_file(state_dir: str, run_key: str, own: OverflowFile, clock: Clock) -> OverflowFile:
    """Return the run's file that another collector recovers: it releases that file when it sees ours.

    A collector that records the run does not. Then our own file is used, and we take over the run.
    """
    never = threading.Event()
    for _ in range(_CLAIM_ATTEMPTS):
        with contextlib.suppress(OverflowFileError):
            for other in _open_unlocked(_other_files(state_dir, run_key, own)):
                if other.finish is None:
                    own.unlink()
                    own.close()
                    return other
                other.close()
        clock.wait_for(never, _CLAIM_RETRY_S)
    return own


def _other_files(state_dir: str, run_key: str, own: OverflowFile) -> list[str]:
    return [path for path in _existing_files(state_dir, run_key) if path != own.path]


def _has_ended_file(state_dir: str, run_key: str) -> bool:
    """Whether a file of the run, locked or not, has the run's end."""
    for path in _existing_files(state_dir, run_key):
        with contextlib.suppress(OSError):
            if OverflowFile.has_finish(path):
                return True
    return False


def open_run_file(state_dir: str, run_key: str) -> OverflowFile:
    """Open and lock the newest unlocked file of a run, preferably one without an end, or make one.

    Raises `OSError`, `UsageError`, or `OverflowFileError` for an unreadable file.
    """
    make_private_dir(state_dir)
    ended: OverflowFile | None = None
    newest_first = sorted(_existing_files(state_dir, run_key), key=modified_at, reverse=True)
    for overflow in _open_unlocked(newest_first):
        if overflow.finish is None:
            if ended is not None:
                ended.close()
            return overflow
        if ended is None:
            ended = overflow
        else:
            overflow.close()
    return ended or create_run_file(state_dir, run_key)


def _open_unlocked(paths: Iterable[str]) -> Iterator[OverflowFile]:
    for path in paths:
        with contextlib.suppress(OverflowFileInUseError, FileNotFoundError):
            yield OverflowFile.open(path)


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
    """Make a new file of a run; raises `OSError`, `UsageError` or `OverflowFileError`."""
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
    """Write a run with its end to a new file and return the path; `numbered` is the first number and the rows.

    Raises the same as `create_run_file`, and leaves no file then.
    """
    first_seq, rows = numbered
    left = create_run_file(state_dir, run_key)
    try:
        left.write_header(header)
        for start in range(0, len(rows), MAX_RECORD_ROWS):
            left.append_rows(rows[start : start + MAX_RECORD_ROWS], first_seq + start)
        left.write_finish(end)
    except (OSError, SentinelStreamError):
        left.unlink()
        raise
    finally:
        left.close()
    return left.path


def run_files(state_dir: str) -> Iterator[str]:
    """Yield the paths of all overflow files."""
    try:
        names = sorted(os.listdir(state_dir))
    except OSError:
        return
    yield from (os.path.join(state_dir, name) for name in names if name.endswith(_SUFFIX))


def save_undeliverable_rows(state_dir: str, run_key: str, incarnation: str, rows: Iterable[bytes]) -> str:
    """Write rows that can no longer be delivered to a new CSV file and return its path.

    The file appears complete or not at all. Raises `OSError`, `UsageError`, or `OverflowFileError` for invalid rows.
    """
    directory = make_private_dir(os.path.join(state_dir, "kept"))
    safe_key = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in run_key)
    stem = os.path.join(directory, f"{safe_key[:100]}-{incarnation[:8]}")
    part = f"{stem}.{os.getpid()}.part"
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            _write_csv(file, rows)
        for number in range(_MAX_UNDELIVERABLE_FILES):
            path = f"{stem}{f'-{number}' if number else ''}.csv"
            with contextlib.suppress(FileExistsError):
                # Unlike a rename, a link never replaces the file of an earlier collector.
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
    """Return a run's files. Lists the directory once: a hundred checks for candidates take 2 ms."""
    there = set(run_files(state_dir))
    return [path for path in _candidate_paths(state_dir, run_key) if path in there]


def _candidate_paths(state_dir: str, run_key: str) -> Iterator[str]:
    name = sha256(run_key.encode("utf-8", "surrogatepass")).hex()[:_NAME_CHARS]
    for number in range(_MAX_FILES_PER_RUN):
        yield os.path.join(state_dir, f"{name}{f'-{number}' if number else ''}{_SUFFIX}")


def modified_at(path: str) -> int:
    """Return the modification time in nanoseconds, 0 for a missing file."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
