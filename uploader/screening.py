"""What is taken from a client and what is not. Pure functions."""

import math

import msgspec

from protocol.messages import (
    MAX_RUN_KEY_CHARS,
    MAX_SEQUENCE,
    PROTOCOL_VERSION,
    Finish,
    Hello,
    Reject,
    RejectCode,
    Samples,
)
from uploader.plain import plain

MAX_FRAME_ROWS = 8192
"""The shortest row takes 2 bytes on the wire, hundreds in memory."""
MAX_METADATA_BYTES = 16 << 10
MAX_INCARNATION_CHARS = 64
MAX_INTERVAL_S = 86_400.0
MAX_TIME_S = 253_402_300_799.0
"""The end of the year 9999, the last that ISO-8601 can write."""


def sound_timestamps(message: Samples) -> bool:
    """Whether each sample has a time."""
    return all(0.0 < sample.timestamp < math.inf for sample in message.samples)


def sound_finish(message: Finish) -> bool:
    """Whether the end is one that can be told to the API."""
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


def cleaned(hello: Hello) -> Hello:
    """Return the greeting with nothing in its fields that JSON cannot carry."""
    return msgspec.structs.replace(
        hello, metadata=plain(hello.metadata), host=plain(hello.host), cloud=plain(hello.cloud)
    )


def complaint(hello: Hello) -> Reject | None:
    """Return why the greeting is not accepted, in words for the person who reads it at the collector."""
    if hello.version != PROTOCOL_VERSION:
        text = f"this uploader speaks version {PROTOCOL_VERSION} of the protocol, not {hello.version}"
        return Reject(RejectCode.UNKNOWN_VERSION, text)
    if not hello.run_key or len(hello.run_key) > MAX_RUN_KEY_CHARS or not hello.run_key.isprintable():
        return Reject(RejectCode.NOT_ALLOWED, f"a run key has 1 to {MAX_RUN_KEY_CHARS} printable characters")
    if not 1 <= len(hello.incarnation) <= MAX_INCARNATION_CHARS:
        return Reject(RejectCode.NOT_ALLOWED, "the incarnation is missing or too long")
    if not 0.0 < hello.interval_s <= MAX_INTERVAL_S:
        return Reject(RejectCode.NOT_ALLOWED, f"the interval must be above 0 and at most {MAX_INTERVAL_S:.0f} s")
    if not 0 <= hello.oldest_seq <= MAX_SEQUENCE:
        return Reject(RejectCode.NOT_ALLOWED, "the sequence number is out of range")
    if len(msgspec.msgpack.encode((hello.metadata, hello.host, hello.cloud))) > MAX_METADATA_BYTES:
        return Reject(RejectCode.TOO_BIG, f"the metadata are longer than {MAX_METADATA_BYTES} bytes")
    return None
