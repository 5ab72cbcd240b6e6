"""The spool's SQLite file: opening, durability, size limit, schema versions.

Pragmas: WAL with `synchronous=FULL`, because an acknowledged sample must survive a power cut; `max_page_count` is the
hard size limit; `auto_vacuum=INCREMENTAL` lets the file shrink; the WAL is bounded by `journal_size_limit`.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.spool.errors import SpoolDamagedError, SpoolError, SpoolFullError
from sentinel_uploader.spool.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION

PAGE_BYTES = 4096
MIN_SPOOL_BYTES = 128 << 10
_WAL_LIMIT_BYTES = 4 << 20
_CHECKPOINT_PAGES = 1000
_COMPACT_PAGES = 2048
"""Free pages that are released at a time: all other threads wait meanwhile."""
_RESERVE_BYTES = 64 << 10
_BUSY_MS = 10_000
_FILE_NAME = "spool.db"
_QUARANTINE_SUFFIX = ".unreadable-"


class Database:
    """One connection to the spool's file. Its owner serialises all calls."""

    def __init__(self, directory: str, *, max_bytes: int) -> None:
        """Open (or create) the spool in `directory`, which must be locked already.

        Raises `SpoolError` for a file of a newer version. A damaged file is renamed to `quarantined_path`, never
        deleted.
        """
        if max_bytes < MIN_SPOOL_BYTES:
            raise UsageError(f"the spool's size limit is {max_bytes} bytes; the smallest is {MIN_SPOOL_BYTES}")
        self.path = os.path.join(directory, _FILE_NAME)
        self.quarantined_path: str | None = None
        self.migrated_from: int | None = None
        """Version of the file, where it was an older one."""
        self.max_bytes = max_bytes
        """The size limit."""
        self._extra_bytes = 0
        self._page_limit = max_bytes // PAGE_BYTES
        self.uncounted_pages = 0
        """Pages that do not count against the limit."""
        self._closed = False
        try:
            self._open()
        except SpoolDamagedError:
            self.quarantined_path = self._quarantine()
            self._open()

    def recreate(self) -> None:
        """Rename the file, because its content cannot be read, and create an empty one."""
        self.connection.close()
        self.quarantined_path = self._quarantine()
        self._open()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction, which is on disk when the block ends without an exception.

        Raises `SpoolFullError` when the disk or the limit leaves no room, `SpoolError` for other errors of the file or
        the disk. Nothing of the block is stored then.
        """
        with self._translate_errors():
            connection = self.connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # After some errors, SQLite has rolled back already.
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query; raises `SpoolError`."""
        with self._translate_errors():
            return self.connection.execute(sql, parameters).fetchall()

    def iterate(self, sql: str) -> Iterator[Any]:
        """Yield the rows of a query one by one; raises `SpoolError`."""
        with self._translate_errors():
            yield from self.connection.execute(sql)

    def used_bytes(self) -> int:
        """Bytes in use that count against the limit."""
        return (self.pages_in_use() - self.uncounted_pages) * PAGE_BYTES

    def pages_in_use(self) -> int:
        """Pages of the file, without free pages; raises `SpoolError`."""
        return self._pragma("page_count") - self._pragma("freelist_count")

    def reserve_extra_bytes(self, beside_bytes: int) -> None:
        """Let the file grow beyond the limit by this much, for tombstones; raises `SpoolError`."""
        self._extra_bytes = beside_bytes
        with self._translate_errors():
            self._limit_pages(at_least=self._pages_needed())

    @property
    def rows_limit_bytes(self) -> int:
        """Rows are accepted up to here, so that changes of state always have room."""
        return self.max_bytes - max(_RESERVE_BYTES, min(self.max_bytes // 20, 8 << 20))

    def compact(self) -> bool:
        """Release free pages and the WAL to the file system; True when there are more.

        One call moves a few MiB at most. Raises `SpoolError`.
        """
        free = self._pragma("freelist_count")
        worthwhile = free * PAGE_BYTES > 1 << 20 or free * 2 * PAGE_BYTES > self.used_bytes()
        with self._translate_errors():
            if worthwhile:
                # `execute` would free one page only: it stops at the first row.
                self.connection.executescript(f"PRAGMA incremental_vacuum({_COMPACT_PAGES})")
            # Do not wait for a reader that uses the WAL: the next call tries again.
            self.connection.execute("PRAGMA busy_timeout = 0")
            try:
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self.connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            still_needed = min(self._page_limit, self._pages_needed())
            self._limit_pages(at_least=still_needed)
        return worthwhile and free > _COMPACT_PAGES

    def data_version(self) -> int:
        """Return a number that changes when another connection has written; raises `SpoolError`."""
        return self._pragma("data_version")

    def close(self) -> None:
        """Close the file; the WAL is merged into it."""
        self._closed = True
        self.connection.close()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        if self._closed:
            raise SpoolError(f"the spool {self.path} is closed")
        try:
            yield
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error

    def _pragma(self, name: str) -> int:
        ((value,),) = self.query(f"PRAGMA {name}")
        return int(value)

    def _open(self) -> None:
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise SpoolError(f"cannot open the spool {self.path}: {error.strerror}") from error
        with self._translate_errors():
            self.connection = connect(self.path)
            try:
                self._prepare(self.connection)
            except BaseException:
                self.connection.close()
                raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = self._pragma("user_version")
        if version > SCHEMA_VERSION:
            # Checked before anything is written.
            raise SpoolError(
                f"the spool {self.path} was written by a newer sentinel-uploader (schema {version}, this one knows "
                f"{SCHEMA_VERSION}); upgrade, or name another --spool"
            )
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        # The WAL of a small spool must not be many times the spool.
        pages = max(16, min(_CHECKPOINT_PAGES, self.max_bytes // PAGE_BYTES // 4))
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        # The limit may have been lowered below the file's size: changes of state still need room.
        self._limit_pages(at_least=self._pages_needed())
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise SpoolDamagedError(f"the spool {self.path} is damaged: {verdict}")
        self._migrate(connection, version)

    def _limit_pages(self, *, at_least: int) -> None:
        self._page_limit = max((self.max_bytes + self._extra_bytes) // PAGE_BYTES, at_least)
        self.connection.execute(f"PRAGMA max_page_count = {self._page_limit}")

    def _pages_needed(self) -> int:
        return self.pages_in_use() + _RESERVE_BYTES // PAGE_BYTES

    def _migrate(self, connection: sqlite3.Connection, version: int) -> None:
        if version == 0:
            connection.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
            return
        for older in range(version, SCHEMA_VERSION):
            connection.executescript(f"BEGIN;{MIGRATIONS[older]}PRAGMA user_version = {older + 1};COMMIT;")
            self.migrated_from = version

    def _quarantine(self) -> str:
        for number in range(1, 10_000):
            aside = f"{self.path}{_QUARANTINE_SUFFIX}{number}"
            if not os.path.exists(aside):
                break
        os.rename(self.path, aside)
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.rename(self.path + suffix, aside + suffix)
        return aside


def _is_disk_full(path: str) -> bool:
    """Whether an I/O error comes from a full disk: SQLite reports it so outside of writes to its file."""
    try:
        room = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < _RESERVE_BYTES


def connect(path: str) -> sqlite3.Connection:
    """Open a connection without implicit transactions. Several threads may use it, one at a time."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)


def database_path(directory: str) -> str:
    """Return the path of the database file."""
    return os.path.join(directory, _FILE_NAME)


def quarantined_files(directory: str) -> list[str]:
    """Return the paths of the renamed, damaged spools in a directory."""
    beginning = f"{_FILE_NAME}{_QUARANTINE_SUFFIX}"
    names = [name for name in os.listdir(directory) if name.startswith(beginning)]
    numbers = sorted(int(number) for name in names if (number := name.removeprefix(beginning)).isdecimal())
    return [os.path.join(directory, f"{beginning}{number}") for number in numbers]


def _translate(error: sqlite3.Error, path: str) -> SpoolError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_disk_full(path)):
        return SpoolFullError(f"no room in the spool {path}: {error}")
    if code == sqlite3.SQLITE_IOERR:
        return SpoolError(f"the disk does not read or write the spool {path}: {error} ({error.sqlite_errorname})")
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return SpoolDamagedError(f"the spool {path} is damaged: {error}")
    return SpoolError(f"the spool {path} cannot be used: {error}")
