"""The spool's SQLite file: opening, locking, durability, size limit, schema versions.

Pragmas: WAL with `synchronous=FULL`, because an acknowledged sample must survive a power cut; `max_page_count` is the
hard size limit; `auto_vacuum=INCREMENTAL` lets the file shrink; the WAL is bounded by `journal_size_limit`.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import SentinelStreamError, UsageError
from protocol.paths import make_private_dir

SCHEMA_VERSION = 1
PAGE_BYTES = 4096
MIN_SPOOL_BYTES = 128 << 10
_WAL_LIMIT_BYTES = 4 << 20
_FILE_NAME = "spool.db"

_SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    ended_at REAL NOT NULL DEFAULT 0,
    record BLOB NOT NULL
);
CREATE INDEX open_runs ON runs (id) WHERE state NOT IN ('finished', 'failed', 'discarded');
CREATE INDEX ended_runs ON runs (ended_at) WHERE state IN ('finished', 'failed', 'discarded');
-- Appended to and deleted from, never ordered by run: a commit dirties few pages however many runs there are.
CREATE TABLE frames (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE batches (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    body BLOB,
    PRIMARY KEY (run, number)
);
CREATE TABLE destinations (
    name TEXT PRIMARY KEY,
    attempts INTEGER NOT NULL,
    next_try_at REAL NOT NULL,
    error TEXT NOT NULL,
    since REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    run INTEGER,
    answer TEXT
);
"""


class SpoolError(SentinelStreamError):
    """The spool cannot be used."""


class SpoolLockedError(SpoolError):
    """Another uploader owns the spool."""


class SpoolFullError(SpoolError):
    """There is no room for more rows; what is there stays intact."""


class Database:
    """One connection to the spool's file. Its owner serialises all calls."""

    def __init__(self, directory: str, *, max_bytes: int) -> None:
        """Open (or create) the spool in `directory`, which must be locked already.

        Raises `SpoolError` for a file of a newer version. A file that is not a sound database is set aside and named
        in `set_aside`; it is never deleted.
        """
        if max_bytes < MIN_SPOOL_BYTES:
            raise UsageError(f"the spool's size limit is {max_bytes} bytes; the smallest is {MIN_SPOOL_BYTES}")
        self.path = os.path.join(directory, _FILE_NAME)
        self.set_aside: str | None = None
        self._max_bytes = max_bytes
        self._closed = False
        try:
            self.connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise SpoolError(f"cannot open the spool {self.path}: {error}") from error
            self.set_aside = self._move_aside()
            self.connection = self._open()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one durable transaction; it is on disk when the block has ended without an exception.

        Raises `SpoolFullError` when the disk or the limit leaves no room: nothing of the block has happened then.
        """
        connection = self.connection
        if self._closed:
            raise SpoolError(f"the spool {self.path} is closed")
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise _translate(error, self.path) from error
            raise

    def used_bytes(self) -> int:
        """Bytes in use: the file without its free pages."""
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * PAGE_BYTES

    @property
    def max_bytes(self) -> int:
        """The hard limit of the file."""
        return self._max_bytes

    @property
    def rows_limit_bytes(self) -> int:
        """Where rows stop being taken, so that changes of state always have room."""
        return self._max_bytes - max(64 << 10, min(self._max_bytes // 20, 8 << 20))

    def shrink(self) -> None:
        """Give free pages and the WAL back to the file system."""
        (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        if free * PAGE_BYTES > 1 << 20 or free * 2 * PAGE_BYTES > self.used_bytes():
            # `execute` would free one page only: it stops at the first row.
            self.connection.executescript("PRAGMA incremental_vacuum")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def changed_elsewhere(self) -> int:
        """Return a number that changes when another connection has written."""
        (version,) = self.connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def close(self) -> None:
        """Close; the WAL is folded into the file."""
        self._closed = True
        self.connection.close()

    def _open(self) -> sqlite3.Connection:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        connection = connect(self.path)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
            # A smaller limit than the file has already is taken as the file's size.
            connection.execute(f"PRAGMA max_page_count = {self._max_bytes // PAGE_BYTES}")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise SpoolError(
                f"the spool {self.path} was written by a newer sentinel-uploader (schema {version}, this one knows "
                f"{SCHEMA_VERSION}); upgrade, or name another --spool"
            )
        if version == 0:
            connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")

    def _move_aside(self) -> str:
        for number in range(1, 10_000):
            aside = f"{self.path}.unreadable-{number}"
            if not os.path.exists(aside):
                break
        os.rename(self.path, aside)
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.rename(self.path + suffix, aside + suffix)
        return aside


class SpoolLock:
    """Exclusive ownership of a spool directory for as long as the process lives."""

    def __init__(self, directory: str) -> None:
        """Take the lock; raises `SpoolLockedError` that names the owner."""
        make_private_dir(directory)
        path = os.path.join(directory, "lock")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write in the spool directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise SpoolLockedError(f"the spool {directory} is in use by another uploader (process {owner})") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._fd)


def connect(path: str) -> sqlite3.Connection:
    """Open a connection that may be used from several threads, one at a time, without implicit transactions."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)


def database_path(directory: str) -> str:
    """Path of the database file in a spool directory."""
    return os.path.join(directory, _FILE_NAME)


def _is_damage(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _translate(error: sqlite3.OperationalError, path: str) -> SpoolError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
        return SpoolFullError(f"no room in the spool {path}: {error}")
    return SpoolError(f"the spool {path} cannot be written: {error}")
