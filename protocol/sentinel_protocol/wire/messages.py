"""Messages between a collector (DEALER) and an uploader (ROUTER).

A message is one ZeroMQ frame: a msgpack array whose first element is the message's tag. New fields are added at the end
with defaults: messages of older peers still decode, and additional fields of newer peers are ignored.

The collector sends `Hello` and gets `Welcome` with the next sequence number that the uploader expects. It sends
`Samples` from there on and gets cumulative `Ack`s. At the end it sends `Finish`, and gets `Finished` once the run is
delivered. Sequence numbers start at 1. After a loss, another `Hello` starts this again.
"""

from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.sample import Sample

_T = TypeVar("_T")

PROTOCOL_VERSION = 1

MAX_COLLECTOR_FRAME_BYTES = 1 << 20
"""Largest frame that an uploader accepts."""
MAX_UPLOADER_FRAME_BYTES = 64 << 10
"""Largest frame that a collector accepts."""
MAX_RUN_KEY_CHARS = 200
MAX_SEQUENCE = 2**53
"""More than any run has, and still exact as a JSON number."""


class RejectCode(StrEnum):
    """Why an uploader rejects a message."""

    HELLO_FIRST = "hello-first"
    SUPERSEDED = "superseded"
    CLOSED = "closed"
    NOT_ALLOWED = "not-allowed"
    TOO_BIG = "too-big"
    BUSY = "busy"
    UNKNOWN_VERSION = "unknown-version"


class _Message(msgspec.Struct, array_like=True, frozen=True, omit_defaults=False):
    """Common options of all messages."""


class Hello(_Message, frozen=True, tag="hello"):
    """Opens or resumes the session of a run.

    `epoch` is a random text of each collector process. `metadata`, `host` and `cloud` hold the contract's registration
    fields (`tags` is a mapping, `command` a list of words). `first_available_seq` is the lowest sequence number that
    the collector still holds, 0 while its rows have no numbers. `ping_interval_s` is the longest time between messages.
    """

    version: int
    run_key: str
    epoch: str
    interval_s: float
    metadata: dict[str, str | int | float | bool | list[str] | dict[str, str] | None] = {}
    host: dict[str, str | int | float] = {}
    cloud: dict[str, str] = {}
    first_available_seq: int = 0
    ping_interval_s: float = 30.0
    cloud_pending: bool = False
    """Cloud discovery has not ended yet; a `Hello` with its result follows."""


class Samples(_Message, frozen=True, tag="s"):
    """Consecutive samples; the first one has the sequence number `first_seq`."""

    first_seq: int
    samples: list[Sample]


class SamplesRaw(_Message, frozen=True, tag="s"):
    """`Samples` for sending, with samples that are encoded already."""

    first_seq: int
    samples: list[msgspec.Raw]


class Finish(_Message, frozen=True, tag="finish"):
    """Ends the run: `last_seq` is its last sample (0: it has none).

    `status` is `finished` or `failed`. `exit_code` is `None` if it is unknown. `time` is UNIX seconds.
    `peak_memory_mib` is the kernel's high-water mark, which includes peaks between two samples.
    """

    last_seq: int
    exit_code: int | None
    status: str
    time: float
    peak_memory_mib: float | None = None
    accounting: str = ""
    """Source of the process tree's CPU time: `proc`, `cgroup`, …"""
    scope: str = ""
    """What the system columns describe: `host` or `container`."""


class Ping(_Message, frozen=True, tag="ping"):
    """Keep-alive; sent if no samples are sent for `Hello.ping_interval_s`."""


class Welcome(_Message, frozen=True, tag="welcome"):
    """Answers `Hello`: the uploader expects `next_seq` next; `run_id` is empty until the run is registered.

    `last_timestamp` is the timestamp of the newest sample that the uploader has (0: none). A collector that resumes the
    run continues after it, so that timestamps increase although its clock was set back.
    """

    next_seq: int
    run_id: str = ""
    last_timestamp: float = 0.0
    undelivered_runs: int = 0
    """Number of other runs of the same owner that ended some time ago and are not delivered."""


class Ack(_Message, frozen=True, tag="ack"):
    """Acknowledges all samples up to `seq` as durable, and with `finish` also the `Finish`.

    It is sent again when the delivery of an ended run fails.
    """

    seq: int
    finish: bool = False
    delivery_error: str = ""
    """Why the run cannot be delivered at the moment, as text for the user."""
    quarantined: bool = False
    """The run is kept and is not delivered until an operator retries it."""


class Finished(_Message, frozen=True, tag="finished"):
    """The run is delivered and closed; has the backend's response and the URLs of the objects."""

    run_id: str
    response: dict[str, Any] = {}
    objects: list[str] = []
    objects_count: int = 0
    rows: int = 0
    object_prefix: str = ""
    """Directory or `s3://` prefix of the objects; `objects` may hold only the first ones."""


class Reject(_Message, frozen=True, tag="reject"):
    """Rejects a message; with `retry`, the same message may be accepted later.

    With `closed`, `seq` is the highest sequence number of the closed run. With `superseded`, it is the highest one when
    a newer collector took the run over (0: unknown).
    """

    code: RejectCode
    text: str = ""
    retry: bool = False
    seq: int = 0


CollectorMessage = Hello | Samples | Finish | Ping
UploaderMessage = Welcome | Ack | Finished | Reject

_encoder = msgspec.msgpack.Encoder()
_collector_decoder: msgspec.msgpack.Decoder[CollectorMessage] = msgspec.msgpack.Decoder(CollectorMessage)
_uploader_decoder: msgspec.msgpack.Decoder[UploaderMessage] = msgspec.msgpack.Decoder(UploaderMessage)

encode = _encoder.encode


def decode_from_collector(frame: bytes) -> CollectorMessage:
    """Decode and validate a collector's message; raises `InvalidMessageError`."""
    return _decode(_collector_decoder, frame)


def decode_from_uploader(frame: bytes) -> UploaderMessage:
    """Decode and validate an uploader's message; raises `InvalidMessageError`."""
    return _decode(_uploader_decoder, frame)


def _decode(decoder: msgspec.msgpack.Decoder[_T], frame: bytes) -> _T:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessageError(f"not a message of the conversation: {error}") from error
