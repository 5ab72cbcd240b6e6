"""Rows to `csv.gz`: the body of an object is a pure function of its rows."""

import gzip
from collections.abc import Sequence

from sentinel_protocol.wire.sample import CSV_HEADER, Sample, csv_rows

_LEVEL = 6


def to_csv(samples: Sequence[Sample]) -> bytes:
    """Header and rows."""
    return CSV_HEADER + csv_rows(samples)


def gzip_csv(csv: bytes) -> bytes:
    """One gzip member without a time stamp in its header."""
    return gzip.compress(csv, compresslevel=_LEVEL, mtime=0)


def decompress_rows(body: bytes) -> bytes:
    """Return the rows of a body that `gzip_csv` made, without the header."""
    return gzip.decompress(body)[len(CSV_HEADER) :]
