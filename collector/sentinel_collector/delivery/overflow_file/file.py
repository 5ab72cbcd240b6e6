"""The overflow file: rows that no uploader has acknowledged yet.

Records (`format`) are only appended. After a kill, the state is rebuilt by replaying them in order. An incomplete
record ends the file: a kill loses at most the record that was being written. The owning collector locks the file
(`flock`).
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

import msgspec

from sentinel_collector.delivery.overflow_file.format import (
    FINISH,
    HEADER,
    MAGIC,
    RESET,
    ROWS,
    SEQ_BASE,
    OverflowFileError,
    OverflowHeader,
    Record,
    decode_rows,
    encode_record,
    read_payload,
    read_records,
)
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.sample import decode_sample, shift_timestamp

_SHIFT = struct.Struct("<q")
_MAX_TORN_BYTES = 64 << 10
"""More than any record that a collector writes: a longer unreadable tail is damage, not an incomplete record."""
_MAX_QUARANTINED = 100
_NEW_SUFFIX = ".new"

_encode = msgspec.msgpack.Encoder().encode


class OverflowFileInUseError(OverflowFileError):
    """A running collector holds the file."""


class Position(NamedTuple):
    """A row's position: its record's offset, and its index in the record."""

    offset: int
    row_index: int


class _Shift(NamedTuple):
    """The time stamps of rows in records from `start` to `end` are `shift_ms` later than written."""

    start: int
    end: int
    shift_ms: int


class OverflowFile:
    """Append-only rows on disk. Rows are addressed by `Position`; no index is held in memory.

    `start`, `first_seq`, `numbered_rows`, `unnumbered_rows` and `last_row` describe the content at `open`.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path
        self.size_bytes = os.fstat(fd).st_size
        """Bytes on disk."""
        self._shifts: list[_Shift] = []
        self.header: OverflowHeader | None = None
        self.finish: Finish | None = None
        self.start = Position(len(MAGIC), 0)
        self.first_seq = 0
        """Sequence number of the first numbered row, 0 when there is none."""
        self.numbered_rows = 0
        self.unnumbered_rows = 0
        """Rows after the numbered ones, never sent."""
        self.last_row: bytes | None = None
        self.quarantined_path: str | None = None
        """Path of the copy of a damaged tail."""

    @classmethod
    def open(cls, path: str, *, create: bool = False) -> "OverflowFile":
        """Open, lock and replay the file; with `create` it must not exist yet.

        Raises `OverflowFileInUseError` when another process holds it, `OverflowFileError` when it is no overflow file,
        and `OSError`.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        fd = os.open(path, flags, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OverflowFileInUseError(f"{path} is in use by another collector") from error
            # Its previous owner may have removed it between our open and our lock.
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            overflow = cls(fd, path)
            try:
                overflow._recover()
            except OSError:
                if create:
                    # The disk is full: do not leave a file without a header.
                    os.unlink(path)
                raise
        except BaseException:
            os.close(fd)
            raise
        return overflow

    @classmethod
    def has_finish(cls, path: str) -> bool:
        """Whether the file has its run's end. Reads without locking. Raises `OSError`."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            overflow = cls(fd, path)
            is_ours = os.pread(fd, len(MAGIC), 0) == MAGIC
            return is_ours and any(record.kind == FINISH for record in overflow._records(len(MAGIC)))
        finally:
            os.close(fd)

    def write_header(self, header: OverflowHeader) -> None:
        """Append the header of the rows that follow; the last header counts."""
        self._append(HEADER, _encode(header))
        self.header = header

    def append_rows(self, rows: list[bytes], first_seq: int) -> None:
        """Append encoded samples; `first_seq` is 0 while they have no numbers."""
        payload = _encode([msgspec.Raw(row) for row in rows])
        self._append(ROWS, payload, rows=len(rows), first_seq=first_seq)

    def write_seq_base(self, first_seq: int, *, start: Position, shift_ms: int = 0) -> None:
        """Assign numbers to the unnumbered rows from `start` on, and move their time stamps by `shift_ms`.

        Durable when this returns: before the first of these rows is sent.
        """
        offset = self._append(SEQ_BASE, _SHIFT.pack(shift_ms), first_seq=first_seq, is_synced=True)
        self._note_shift(start.offset, offset, shift_ms)

    def write_reset(self, header: OverflowHeader, start: Position) -> None:
        """Assign the rows from `start` on to another run, that of `header`, without numbers. Durable on return."""
        self._append(RESET, _encode(header), rows=start.row_index, first_seq=start.offset, is_synced=True)
        self.header = header

    def write_finish(self, finish: Finish) -> None:
        """Record the run's end and make the whole file durable."""
        self._append(FINISH, _encode(finish), is_synced=True)
        self.finish = finish

    def rows_from(self, position: Position) -> Iterator[bytes]:
        """Yield encoded samples from `position` on; raises `OSError`, `OverflowFileError`."""
        for record in self._records(position.offset):
            if record.kind != ROWS:
                continue
            skip = position.row_index if record.offset == position.offset else 0
            try:
                rows = decode_rows(record, read_payload(self._fd, record))
            except msgspec.DecodeError as error:
                raise OverflowFileError(f"{self.path}: damaged at byte {record.offset}") from error
            shift_ms = sum(shift.shift_ms for shift in self._shifts if shift.start <= record.offset < shift.end)
            for row in rows[skip:]:
                yield shift_timestamp(row, shift_ms) if shift_ms else row

    def advance(self, position: Position, count: int) -> Position:
        """Return the position `count` rows later; reads record headers only."""
        if not count:
            return position
        left = count + position.row_index
        for record in self._records(position.offset):
            if record.kind != ROWS:
                continue
            if left < record.rows:
                return Position(record.offset, left)
            left -= record.rows
            if not left:
                return Position(record.end, 0)
        raise OverflowFileError(f"{self.path}: {left} rows are missing")

    def truncate(self, header: OverflowHeader) -> None:
        """Remove all rows, which are delivered; do nothing when the file has the run's end. Raises `OSError`.

        A kill at any moment leaves a file with a header, with or without the rows.
        """
        if self.finish is not None:
            return
        payload = _encode(header)
        first = next(self._records(len(MAGIC)), None)
        if first is not None and first.kind == HEADER and read_payload(self._fd, first) == payload:
            os.ftruncate(self._fd, first.end)
            self.size_bytes = first.end
        else:
            self._replace(MAGIC + encode_record(HEADER, payload, rows=0, first_seq=0))
        self._shifts.clear()
        self.header = header

    def sync(self) -> None:
        """Make the appended records durable."""
        os.fsync(self._fd)

    @property
    def has_no_header(self) -> bool:
        """Whether the file has no records at all."""
        return self.size_bytes <= len(MAGIC) and self.quarantined_path is None

    @property
    def end(self) -> Position:
        """Position of the next row."""
        return Position(self.size_bytes, 0)

    @property
    def modified_at(self) -> float:
        """Modification time, UNIX seconds."""
        return os.fstat(self._fd).st_mtime

    def touch(self) -> None:
        """Set the modification time to now. Raises `OSError`."""
        os.utime(self._fd)

    def unlink(self) -> None:
        """Delete the file; it stays open. Raises `OSError`."""
        os.unlink(self.path)

    def close(self) -> None:
        """Close and unlock."""
        os.close(self._fd)

    def _append(self, kind: int, payload: bytes, *, rows: int = 0, first_seq: int = 0, is_synced: bool = False) -> int:
        """Append a whole record or nothing, and return its offset."""
        record = encode_record(kind, payload, rows=rows, first_seq=first_seq)
        offset = self.size_bytes
        try:
            written = os.pwrite(self._fd, record, offset)
            if written != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            if is_synced:
                os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, offset)
            raise
        self.size_bytes += len(record)
        return offset

    def _replace(self, content: bytes) -> None:
        """Replace the file by a locked one with `content`, atomically."""
        aside = self.path + _NEW_SUFFIX
        fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), aside)
            os.fsync(fd)
            os.rename(aside, self.path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise
        # A process that has opened the old file meanwhile finds it unlinked.
        os.close(self._fd)
        self._fd, self.size_bytes = fd, len(content)

    def _records(self, offset: int) -> Iterator[Record]:
        return read_records(self._fd, offset, self.size_bytes)

    def _note_shift(self, start: int, end: int, shift_ms: int) -> None:
        if shift_ms:
            self._shifts.append(_Shift(start, end, shift_ms))

    def _recover(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            # Left by an owner that was killed in `_replace`.
            os.unlink(self.path + _NEW_SUFFIX)
        magic = os.pread(self._fd, len(MAGIC), 0)
        if not MAGIC.startswith(magic):
            raise OverflowFileError(f"{self.path} is not a file of undelivered samples of this version")
        if magic != MAGIC:
            if os.pwrite(self._fd, MAGIC, 0) != len(MAGIC):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            self.size_bytes = len(MAGIC)
            return
        intact = len(MAGIC)
        is_damaged = False
        for record in self._records(intact):
            payload = read_payload(self._fd, record)
            is_damaged = not record.is_intact(payload) or not self._replay(record, payload)
            if is_damaged:
                break
            intact = record.end
        if intact < self.size_bytes:
            if is_damaged or self.size_bytes - intact > _MAX_TORN_BYTES:
                # More than an incomplete record.
                self.quarantined_path = self._quarantine_tail(intact)
            os.ftruncate(self._fd, intact)
            self.size_bytes = intact

    def _quarantine_tail(self, offset: int) -> str:
        for number in range(1, _MAX_QUARANTINED):
            path = f"{self.path}.damaged-{number}"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            with open(fd, "wb") as file:
                while block := os.pread(self._fd, 1 << 20, offset):
                    file.write(block)
                    offset += len(block)
            return path
        raise OverflowFileError(f"{self.path} is damaged again and again")

    def _replay(self, record: Record, payload: bytes) -> bool:
        """Apply one record; False when it is damaged."""
        try:
            if record.kind == ROWS:
                self._replay_rows(record, payload)
            elif record.kind == HEADER:
                self.header = msgspec.msgpack.decode(payload, type=OverflowHeader)
            elif record.kind == SEQ_BASE:
                self._replay_seq_base(record, *_SHIFT.unpack(payload))
            elif record.kind == FINISH:
                self.finish = msgspec.msgpack.decode(payload, type=Finish)
            elif record.kind == RESET:
                self._replay_reset(record, msgspec.msgpack.decode(payload, type=OverflowHeader))
            else:
                return False
        except (msgspec.DecodeError, struct.error, OverflowFileError):
            return False
        return True

    def _replay_rows(self, record: Record, payload: bytes) -> None:
        last_row = decode_rows(record, payload)[-1]
        decode_sample(last_row)
        self.last_row = last_row
        if not record.first_seq or self.unnumbered_rows:
            self.unnumbered_rows += record.rows
        elif self.numbered_rows and record.first_seq == self.first_seq + self.numbered_rows:
            self.numbered_rows += record.rows
        else:
            # A gap in the numbers: the rows before it were already acknowledged.
            self.start = Position(record.offset, 0)
            self.first_seq = record.first_seq
            self.numbered_rows = record.rows

    def _replay_seq_base(self, record: Record, shift_ms: int) -> None:
        unnumbered = self.advance(self.start, self.numbered_rows)
        if record.first_seq != self.first_seq + self.numbered_rows:
            # The rows before were already acknowledged when these numbers were assigned.
            self.start = unnumbered
            self.numbered_rows = 0
        if not self.numbered_rows:
            self.first_seq = record.first_seq
        self.numbered_rows += self.unnumbered_rows
        self.unnumbered_rows = 0
        self._note_shift(unnumbered.offset, record.offset, shift_ms)
        if shift_ms and self.last_row is not None:
            self.last_row = shift_timestamp(self.last_row, shift_ms)

    def _replay_reset(self, record: Record, header: OverflowHeader) -> None:
        start = Position(record.first_seq, record.rows)
        before = takewhile(lambda other: other.offset < record.offset, self._records(start.offset))
        held = sum(other.rows for other in before if other.kind == ROWS)
        self.header = header
        self.start = start
        self.first_seq = self.numbered_rows = 0
        self.unnumbered_rows = held - start.row_index
