"""The conversation between a collector (DEALER) and an uploader (ROUTER).

Every message is one ZeroMQ frame: a msgpack array whose first element is the message's tag. New fields go last
and have defaults, so that an older peer's message still decodes and a newer peer's extra fields are ignored.

A collector says `Hello`, hears `Welcome` with the next sequence number that the uploader wants, sends `Samples`
from there on and hears cumulative `Ack`s; at the end it says `Finish` and hears, once all is delivered,
`Finished`. Sequence numbers start at 1. Whatever is lost on the way comes back by saying `Hello` again.
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
"""Far beyond any run, and still exact in every JSON reader."""


class RejectCode(StrEnum):
    """Why an uploader does not take a message."""

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
    """Opens (or opens again) the conversation about one run.

    `epoch` is drawn at random by each collector process; `metadata`, `host` and `cloud` hold the contract's
    registration fields (`tags` is a mapping, `command` a list of words). `first_available_seq` is the lowest sequence
    number that the collector still holds, 0 when its rows have no numbers yet; `ping_interval_s` is the longest
    silence that the uploader has to expect.
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
    """Cloud discovery is still under way: a `Hello` with what it found follows."""


class Samples(_Message, frozen=True, tag="s"):
    """Consecutive samples; `first_seq` is the sequence number of the first one."""

    first_seq: int
    samples: list[Sample]


class SamplesRaw(_Message, frozen=True, tag="s"):
    """`Samples` as a collector sends it: each sample was encoded when it was taken."""

    first_seq: int
    samples: list[msgspec.Raw]


class Finish(_Message, frozen=True, tag="finish"):
    """The run is over: nothing follows `last_seq` (0: the run saw no sample).

    `status` is `finished` or `failed`; `exit_code` is `None` where nobody can know it; `time` is UNIX seconds;
    `peak_memory_mib` is the highest memory use that the kernel saw, also between two samples.
    """

    last_seq: int
    exit_code: int | None
    status: str
    time: float
    peak_memory_mib: float | None = None
    accounting: str = ""
    """What the tree's CPU time was read from: `proc`, `cgroup`, …"""
    scope: str = ""
    """Whose the system columns are: `host` or `container`."""


class Ping(_Message, frozen=True, tag="ping"):
    """Still here; sent when samples are further apart than `Hello.ping_interval_s`."""


class Welcome(_Message, frozen=True, tag="welcome"):
    """`next_seq` is what the uploader wants next; `run_id` is empty until the run is registered.

    `last_timestamp` is the time stamp of the newest sample it holds (0: none), so that a collector that continues
    the run after a step of the clock keeps the time stamps increasing.
    """

    next_seq: int
    run_id: str = ""
    last_timestamp: float = 0.0
    undelivered_runs: int = 0
    """Other runs of the same owner that have ended some time ago and are not delivered."""


class Ack(_Message, frozen=True, tag="ack"):
    """Everything up to and including `seq` is durable, and the `Finish` when `finish` says so.

    Also said anew when something keeps an ended run from being delivered.
    """

    seq: int
    finish: bool = False
    delivery_error: str = ""
    """What keeps the run from being delivered at the moment, for people."""
    quarantined: bool = False
    """Nothing more happens to the run until a person has looked at it; its data is kept."""


class Finished(_Message, frozen=True, tag="finished"):
    """The run is delivered and closed: what the backend answered, and where the objects are."""

    run_id: str
    response: dict[str, Any] = {}
    objects: list[str] = []
    objects_count: int = 0
    rows: int = 0
    object_prefix: str = ""
    """Directory or `s3://` prefix of the objects; `objects` holds only the first of a long list."""


class Reject(_Message, frozen=True, tag="reject"):
    """A message was not taken; `retry` says whether the same may work later.

    With `closed`, `seq` is the highest sequence number that is part of the closed run; with `superseded`, the highest
    one that the run had when a newer collector took it over (0: not known).
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
    """Decode and validate what a collector sent; raises `InvalidMessageError`."""
    return _decode(_collector_decoder, frame)


def decode_from_uploader(frame: bytes) -> UploaderMessage:
    """Decode and validate what an uploader sent; raises `InvalidMessageError`."""
    return _decode(_uploader_decoder, frame)


def _decode(decoder: msgspec.msgpack.Decoder[_T], frame: bytes) -> _T:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessageError(f"not a message of the conversation: {error}") from error
