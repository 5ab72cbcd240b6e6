"""What a file of undelivered samples says of its run."""

import msgspec

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import Hello


class SpillError(SentinelStreamError):
    """A file of undelivered samples cannot be used."""


class SpillHead(msgspec.Struct, frozen=True, kw_only=True):
    """Whose rows these are and where they were going."""

    run_key: str
    incarnation: str
    destination: str
    """Address of the uploader (or of this user's agent)."""
    hello: bytes
    """The encoded `Hello` of the run."""


def hello_of(head: SpillHead) -> Hello:
    """Return the greeting of a run whose collector is gone, as it was written to its file; raises `SpillError`."""
    try:
        hello = msgspec.msgpack.decode(head.hello, type=Hello)
    except msgspec.DecodeError as error:
        raise SpillError(f"the run {head.run_key!r} was recorded by another version: {error}") from error
    return msgspec.structs.replace(hello, cloud_pending=False)
