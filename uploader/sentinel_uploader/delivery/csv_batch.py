"""Rows to `csv.gz`: the body of an object is a pure function of its rows."""

import gzip
from collections.abc import Iterable, Sequence

from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.messages import Samples, decode_from_collector
from sentinel_protocol.wire.sample import CSV_HEADER, Sample, csv_rows

_LEVEL = 6


def decode_frames(payloads: Iterable[bytes]) -> list[Sample]:
    """Return the samples of stored frames, in order.

    They were validated when they came in; raises `InvalidMessageError` for one that was damaged since.
    """
    samples: list[Sample] = []
    for payload in payloads:
        message = decode_from_collector(payload)
        if not isinstance(message, Samples):
            raise InvalidMessageError(f"a {type(message).__name__} where samples were stored")
        samples.extend(message.samples)
    return samples


def to_csv(samples: Sequence[Sample]) -> bytes:
    """Header and rows."""
    return CSV_HEADER + csv_rows(samples)


def gzip_csv(csv: bytes) -> bytes:
    """One gzip member without a time stamp in its header."""
    return gzip.compress(csv, compresslevel=_LEVEL, mtime=0)


def decompress_rows(body: bytes) -> bytes:
    """Return the rows of a body that `gzip_csv` made, without the header."""
    return gzip.decompress(body)[len(CSV_HEADER) :]


def object_uri(prefix: str, number: int) -> str:
    """Return where object `number` (from 1) of a run goes."""
    return f"{prefix.rstrip('/')}/{number:04d}.csv.gz"
