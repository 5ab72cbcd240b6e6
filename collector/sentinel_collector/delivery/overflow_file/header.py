"""What a file of undelivered samples says of its run."""

import msgspec

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import Hello


class OverflowFileError(SentinelStreamError):
    """A file of undelivered samples cannot be used."""


class OverflowHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Whose rows these are and where they were going."""

    run_key: str
    incarnation: str
    uploader_url: str = msgspec.field(name="destination")
    """Address of the uploader (or of this user's agent)."""
    hello: bytes
    """The encoded `Hello` of the run."""


def decode_hello(header: OverflowHeader) -> Hello:
    """Return the `Hello` in a file whose collector is gone; raises `OverflowFileError`."""
    try:
        hello = msgspec.msgpack.decode(header.hello, type=Hello)
    except msgspec.DecodeError as error:
        raise OverflowFileError(f"the run {header.run_key!r} was recorded by another version: {error}") from error
    return msgspec.structs.replace(hello, cloud_pending=False)
