"""The file in which a collector keeps what no uploader has acknowledged yet.

Layout: 8 magic bytes, then records, each a 21-byte header (kind, payload bytes, rows, first sequence number, CRC-32
of the payload; little endian) and a payload. A record that is cut short or damaged ends the file: whatever was
killed while it wrote has lost at most that record. The file is locked (`flock`) by the collector that owns it.
"""

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from protocol.errors import SentinelStreamError
from protocol.messages import Finish

_MAGIC = b"SSPILL1\n"
_HEADER = struct.Struct("<BIIQI")
_HEAD, _ROWS, _BASE, _FINISH = 1, 2, 3, 4
_MAX_PAYLOAD_BYTES = 16 << 20

_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class SpillError(SentinelStreamError):
    """A file of undelivered samples cannot be used."""


class SpillInUseError(SpillError):
    """The file belongs to a collector that is running."""


class SpillHead(msgspec.Struct, frozen=True, kw_only=True):
    """Whose rows these are and where they were going."""

    run_key: str
    incarnation: str
    destination: str
    """Address of the uploader (or of this user's agent)."""
    hello: bytes
    """The encoded `Hello` of the run."""


class _Record(NamedTuple):
    kind: int
    size: int
    rows: int
    first_seq: int
    crc: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + _HEADER.size + self.size


class Position(NamedTuple):
    """A row's place: the offset of a record and how many rows of it lie before."""

    offset: int
    skip: int


class SpillFile:
    """Append-only rows on disk; rows are addressed by `Position` and counted, never indexed in memory."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path
        self._size = os.fstat(fd).st_size
        self.head: SpillHead | None = None
        self.finish: Finish | None = None
        self.first_seq = 0
        """Sequence number of the first numbered row, 0 when there is none."""
        self.numbered_rows = 0
        self.unnumbered_rows = 0
        self.last_row: bytes | None = None
        self.start = Position(len(_MAGIC), 0)

    @classmethod
    def open(cls, path: str, *, create: bool = True) -> "SpillFile":
        """Open and lock the file and read what it holds.

        Raises `SpillInUseError` when another process holds it, `SpillError` when it is not such a file and
        `OSError` when the file system refuses.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        fd = os.open(path, flags, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SpillInUseError(f"{path} is in use by another collector") from error
            # Its last owner may have removed it between our open and our lock.
            if os.fstat(fd).st_nlink == 0:
                raise SpillInUseError(f"{path} was just delivered by another collector")
            spill = cls(fd, path)
            spill._recover()
        except BaseException:
            os.close(fd)
            raise
        return spill

    def write_head(self, head: SpillHead) -> None:
        """Write whose rows follow; the last head of a file counts."""
        self._append(_HEAD, _encode(head))
        self.head = head

    def append_rows(self, rows: list[bytes], first_seq: int) -> None:
        """Append encoded samples; `first_seq` 0 means that they have no numbers yet."""
        payload = _encode([msgspec.Raw(row) for row in rows])
        self._append(_ROWS, payload, rows=len(rows), first_seq=first_seq)

    def write_base(self, first_seq: int) -> None:
        """Give the rows without numbers their numbers, on disk before the first of them is sent."""
        self._append(_BASE, b"", first_seq=first_seq)
        os.fsync(self._fd)

    def write_finish(self, finish: Finish) -> None:
        """Record that the run is over and make the whole file durable."""
        self._append(_FINISH, _encode(finish))
        os.fsync(self._fd)

    def rows_from(self, position: Position) -> Iterator[tuple[bytes, Position]]:
        """Yield encoded samples from there on, each with the position after it."""
        for record in self._records(position.offset):
            if record.kind != _ROWS:
                continue
            skip = position.skip if record.offset == position.offset else 0
            rows = _decode_rows(os.pread(self._fd, record.size, record.offset + _HEADER.size))
            for index in range(skip, len(rows)):
                after = Position(record.end, 0) if index + 1 == len(rows) else Position(record.offset, index + 1)
                yield bytes(rows[index]), after

    def advance(self, position: Position, count: int) -> Position:
        """Return the position `count` rows further on; reads headers only."""
        if not count:
            return position
        left = count + position.skip
        for record in self._records(position.offset):
            if record.kind != _ROWS:
                continue
            if left < record.rows:
                return Position(record.offset, left)
            left -= record.rows
            if not left:
                return Position(record.end, 0)
        raise SpillError(f"{self.path}: {left} rows are missing")

    def clear(self) -> None:
        """Forget all rows: they are delivered."""
        os.ftruncate(self._fd, len(_MAGIC))
        self._size = len(_MAGIC)
        if self.head is not None:
            self.write_head(self.head)

    def sync(self) -> None:
        """Make what was appended durable."""
        os.fsync(self._fd)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._size

    @property
    def modified_at(self) -> float:
        """When it was last written, UNIX seconds."""
        return os.fstat(self._fd).st_mtime

    def remove(self) -> None:
        """Delete the file and close it."""
        os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Close and unlock."""
        os.close(self._fd)

    def _append(self, kind: int, payload: bytes, *, rows: int = 0, first_seq: int = 0) -> None:
        record = _HEADER.pack(kind, len(payload), rows, first_seq, zlib.crc32(payload)) + payload
        try:
            written = os.pwrite(self._fd, record, self._size)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        if written != len(record):
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._size += len(record)

    def _records(self, offset: int) -> Iterator[_Record]:
        """Yield the records from there on, without looking at their payloads."""
        while offset + _HEADER.size <= self._size:
            kind, size, rows, first_seq, crc = _HEADER.unpack(os.pread(self._fd, _HEADER.size, offset))
            record = _Record(kind, size, rows, first_seq, crc, offset)
            if size > _MAX_PAYLOAD_BYTES or record.end > self._size:
                return
            yield record
            offset = record.end

    def _recover(self) -> None:
        if not self._size:
            os.pwrite(self._fd, _MAGIC, 0)
            self._size = len(_MAGIC)
            return
        if os.pread(self._fd, len(_MAGIC), 0) != _MAGIC:
            raise SpillError(f"{self.path} is not a file of undelivered samples of this version")
        intact = len(_MAGIC)
        for record in self._records(intact):
            payload = os.pread(self._fd, record.size, record.offset + _HEADER.size)
            if zlib.crc32(payload) != record.crc or not self._take(record, payload):
                break
            intact = record.end
        if intact < self._size:
            os.ftruncate(self._fd, intact)
            self._size = intact

    def _take(self, record: _Record, payload: bytes) -> bool:
        """Count one recovered record; False when it is damaged."""
        try:
            if record.kind == _HEAD:
                self.head = msgspec.msgpack.decode(payload, type=SpillHead)
            elif record.kind == _FINISH:
                self.finish = msgspec.msgpack.decode(payload, type=Finish)
            elif record.kind == _ROWS:
                self._take_rows(record, _decode_rows(payload))
            elif record.kind == _BASE:
                self._take_base(record)
        except msgspec.DecodeError:
            return False
        return record.kind in {_HEAD, _ROWS, _BASE, _FINISH}

    def _take_rows(self, record: _Record, rows: list[Any]) -> None:
        self.last_row = bytes(rows[-1])
        if not record.first_seq or self.unnumbered_rows:
            self.unnumbered_rows += record.rows
            return
        self._restart_at(record.first_seq, record.offset)
        self.numbered_rows += record.rows

    def _take_base(self, record: _Record) -> None:
        numbered = self.numbered_rows
        if numbered and record.first_seq != self.first_seq + numbered:
            # The rows before were durable already when these numbers were given.
            self.start = self.advance(self.start, numbered)
            self.numbered_rows = 0
            self.first_seq = record.first_seq
        elif not numbered:
            self.first_seq = record.first_seq
        self.numbered_rows += self.unnumbered_rows
        self.unnumbered_rows = 0

    def _restart_at(self, first_seq: int, offset: int) -> None:
        """Numbered rows follow one another; where they do not, those before were durable already."""
        if not self.numbered_rows or first_seq != self.first_seq + self.numbered_rows:
            self.first_seq = first_seq
            self.numbered_rows = 0
            self.start = Position(offset, 0)
