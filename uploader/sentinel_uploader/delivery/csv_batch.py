"""Encodes rows as `csv.gz`. An object's body is a pure function of its rows."""

import gzip
from collections.abc import Sequence

from sentinel_protocol.wire.sample import CSV_HEADER, Sample, csv_rows

_LEVEL = 6


def to_csv(samples: Sequence[Sample]) -> bytes:
    """Return the header and the rows."""
    return CSV_HEADER + csv_rows(samples)


def gzip_csv(csv: bytes) -> bytes:
    """Return one gzip member without a timestamp in its header: equal rows give equal bytes."""
    return gzip.compress(csv, compresslevel=_LEVEL, mtime=0)


def decompress_rows(body: bytes) -> bytes:
    """Return the rows, without the header, of a body that `gzip_csv` made."""
    return gzip.decompress(body)[len(CSV_HEADER) :]
