"""Checks of what a client sends. Pure functions."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from sentinel_protocol.wire.messages import (
    MAX_SEQUENCE,
    PROTOCOL_VERSION,
    Finish,
    Hello,
    Reject,
    RejectCode,
    Samples,
)
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.util.json_safe import to_json_safe

MAX_INCARNATION_CHARS = 64
MAX_INTERVAL_S = 86_400.0
MAX_TIME_S = 253_402_300_799.0
"""The end of the year 9999, the last one that ISO 8601 can write."""


class InvalidHello(NamedTuple):
    """Why a `Hello` is not accepted: the reason to count, and the reply to its sender."""

    reason: str
    reject: Reject


def has_valid_timestamps(message: Samples) -> bool:
    """Whether each sample has a time (UNIX seconds)."""
    # A loop: a generator takes twice the time, for each message.
    for sample in message.samples:  # noqa: SIM110
        if not 0.0 < sample.timestamp < math.inf:
            return False
    return True


def is_valid_finish(message: Finish) -> bool:
    """Whether the API accepts this end."""
    code = message.exit_code
    peak = message.peak_memory_mib
    return (
        message.status in {"finished", "failed"}
        and (code is None or 0 <= code <= 255)
        and not (code and message.status == "finished")
        and 0.0 <= message.time <= MAX_TIME_S
        and (peak is None or 0.0 <= peak < math.inf)
        and max(len(message.accounting), len(message.scope)) <= MAX_INCARNATION_CHARS
    )


def sanitize_hello(hello: Hello) -> Hello:
    """Return the `Hello` with values replaced that JSON cannot represent."""
    return msgspec.structs.replace(
        hello, metadata=to_json_safe(hello.metadata), host=to_json_safe(hello.host), cloud=to_json_safe(hello.cloud)
    )


def validate_hello(hello: Hello, limits: ClientLimits) -> InvalidHello | None:
    """Return why the `Hello` is not accepted, `None` if it is. The collector shows the text to its user."""
    if hello.version != PROTOCOL_VERSION:
        text = f"this uploader speaks version {PROTOCOL_VERSION} of the protocol, not {hello.version}"
        return InvalidHello("version", Reject(RejectCode.UNKNOWN_VERSION, text))
    if not hello.run_key or len(hello.run_key) > limits.max_run_key_chars or not hello.run_key.isprintable():
        return _invalid("run-key", f"a run key has 1 to {limits.max_run_key_chars} printable characters")
    if not 1 <= len(hello.epoch) <= MAX_INCARNATION_CHARS:
        return _invalid("incarnation", "the incarnation is missing or too long")
    if not 0.0 < hello.interval_s <= MAX_INTERVAL_S:
        return _invalid("interval", f"the interval must be above 0 and at most {MAX_INTERVAL_S:.0f} s")
    if not 0 <= hello.first_available_seq <= MAX_SEQUENCE:
        return _invalid("sequence", "the sequence number is out of range")
    # The collector tries again without its metadata.
    if len(msgspec.msgpack.encode((hello.metadata, hello.host, hello.cloud))) > limits.max_metadata_bytes:
        text = f"the metadata are longer than {limits.max_metadata_bytes} bytes"
        return InvalidHello("metadata-size", Reject(RejectCode.TOO_BIG, text))
    if not all(0 < len(name) <= limits.max_name_chars and name.isprintable() for name in _names(hello)):
        text = f"a name in the metadata has 1 to {limits.max_name_chars} printable characters"
        return InvalidHello("metadata-names", Reject(RejectCode.TOO_BIG, text))
    return None


def _invalid(reason: str, text: str) -> InvalidHello:
    return InvalidHello(reason, Reject(RejectCode.NOT_ALLOWED, text))


def _names(hello: Hello) -> Iterator[str]:
    """Yield the names of all fields, including those of tags."""
    for fields in (hello.metadata, hello.host, hello.cloud):
        for name, value in fields.items():
            yield name
            if isinstance(value, dict):
                yield from value
