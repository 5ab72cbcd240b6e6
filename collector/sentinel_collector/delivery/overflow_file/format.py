"""The format of an overflow file: 8 magic bytes, then records. A header record says which run the rows belong to.

A record is a 21-byte header (kind, payload bytes, rows, first sequence number, CRC-32 of these and of the payload;
little endian) and a payload. The `write_` methods of `OverflowFile` explain the kinds.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import Hello

MAGIC = b"SSPILL1\n"
HEADER, ROWS, SEQ_BASE, FINISH, RESET = 1, 2, 3, 4, 5
MAX_RECORD_ROWS = 128
"""Most rows that a writer puts into a record."""
_FIELDS = struct.Struct("<BIIQ")
_CRC = struct.Struct("<I")
_RECORD_HEADER_BYTES = _FIELDS.size + _CRC.size
_MAX_PAYLOAD_BYTES = 16 << 20

_decode_rows = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class OverflowFileError(SentinelStreamError):
    """An overflow file cannot be used."""


class OverflowHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The run and the uploader that the rows are for."""

    run_key: str
    incarnation: str
    uploader_url: str = msgspec.field(name="destination")
    """Address of the uploader. The field keeps the name of released versions in the file."""
    hello: bytes
    """The encoded `Hello` of the run."""


class Record(NamedTuple):
    """A record's header, and the record's offset in the file."""

    kind: int
    size: int
    """Bytes of the payload."""
    rows: int
    first_seq: int
    crc: int
    offset: int

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return self.offset + _RECORD_HEADER_BYTES + self.size

    def is_intact(self, payload: bytes) -> bool:
        """Whether header and payload match the CRC."""
        return _crc(_FIELDS.pack(self.kind, self.size, self.rows, self.first_seq), payload) == self.crc


def encode_record(kind: int, payload: bytes, *, rows: int, first_seq: int) -> bytes:
    """Return a record's bytes."""
    fields = _FIELDS.pack(kind, len(payload), rows, first_seq)
    return fields + _CRC.pack(_crc(fields, payload)) + payload


def read_records(fd: int, offset: int, file_size: int) -> Iterator[Record]:
    """Yield the complete records from `offset` on, without reading their payloads; raises `OSError`."""
    while offset + _RECORD_HEADER_BYTES <= file_size:
        header = os.pread(fd, _RECORD_HEADER_BYTES, offset)
        kind, size, rows, first_seq = _FIELDS.unpack_from(header)
        (crc,) = _CRC.unpack_from(header, _FIELDS.size)
        record = Record(kind, size, rows, first_seq, crc, offset)
        if size > _MAX_PAYLOAD_BYTES or record.end > file_size:
            return
        yield record
        offset = record.end


def read_payload(fd: int, record: Record) -> bytes:
    """Read a record's payload; raises `OSError`."""
    return os.pread(fd, record.size, record.offset + _RECORD_HEADER_BYTES)


def decode_rows(record: Record, payload: bytes) -> list[bytes]:
    """Return a record's rows, at least one; raises `msgspec.DecodeError` when they do not match the header."""
    rows = [bytes(row) for row in _decode_rows(payload)]
    if not rows or len(rows) != record.rows:
        raise msgspec.DecodeError(f"{len(rows)} rows in a record of {record.rows}")
    return rows


def decode_hello(header: OverflowHeader) -> Hello:
    """Return the `Hello` of a run whose collector has ended; raises `OverflowFileError`."""
    try:
        hello = msgspec.msgpack.decode(header.hello, type=Hello)
    except msgspec.DecodeError as error:
        raise OverflowFileError(f"the run {header.run_key!r} was recorded by another version: {error}") from error
    return msgspec.structs.replace(hello, cloud_pending=False)


def _crc(fields: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(fields))
