"""The header of an overflow file: the run that the rows belong to."""

import msgspec

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import Hello


class OverflowFileError(SentinelStreamError):
    """An overflow file cannot be used."""


class OverflowHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The run and the uploader that the rows are for."""

    run_key: str
    incarnation: str
    uploader_url: str = msgspec.field(name="destination")
    """Address of the uploader. The field keeps the name of released versions in the file."""
    hello: bytes
    """The encoded `Hello` of the run."""


def decode_hello(header: OverflowHeader) -> Hello:
    """Return the `Hello` of a run whose collector has ended; raises `OverflowFileError`."""
    try:
        hello = msgspec.msgpack.decode(header.hello, type=Hello)
    except msgspec.DecodeError as error:
        raise OverflowFileError(f"the run {header.run_key!r} was recorded by another version: {error}") from error
    return msgspec.structs.replace(hello, cloud_pending=False)
