"""Decoding of stored frames."""

from collections.abc import Iterable

from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.messages import Samples, decode_from_collector
from sentinel_protocol.wire.sample import Sample


def decode_frames(payloads: Iterable[bytes]) -> list[Sample]:
    """Return the samples of stored frames, in order.

    They were validated when received. Raises `InvalidMessageError` for one that was damaged since.
    """
    samples: list[Sample] = []
    for payload in payloads:
        message = decode_from_collector(payload)
        if not isinstance(message, Samples):
            raise InvalidMessageError(f"a {type(message).__name__} where samples were stored")
        samples.extend(message.samples)
    return samples
