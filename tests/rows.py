"""Rows as a collector has them, told apart by their process id."""

from sentinel_protocol.wire.sample import Sample, decode_sample, encode_sample

FIRST_TIMESTAMP = 1_700_000_000.0


def row(number: int, *, timestamp: float | None = None) -> bytes:
    """An encoded sample that carries its number; by default one a second."""
    return encode_sample(Sample(FIRST_TIMESTAMP + number if timestamp is None else timestamp, process_pid=number))


def numbers(rows: list[bytes]) -> list[int]:
    return [decode_sample(one).process_pid or 0 for one in rows]


def timestamps(rows: list[bytes]) -> list[float]:
    return [decode_sample(one).timestamp for one in rows]
