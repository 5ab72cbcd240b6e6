"""Limits on what clients may send and hold: each is one field of `ClientLimits`, with its setting beside it."""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from sentinel_protocol.common.settings.model import Parse, Setting, integer, seconds, setting, size
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_RUN_KEY_CHARS

_T = TypeVar("_T")


def limit(reason: str, parse: Parse, default: _T, text: str, **facts: Any) -> _T:
    """Declare a field of `ClientLimits` with its setting, which has the field's name without its unit.

    `rejected_total` counts what exceeds it as `reason`.
    """
    return field(default=default, metadata={"reason": reason, "row": {"parse": parse, "help": text, **facts}})


def percentage(value: object) -> float:
    """Parse `50%` to 0.5; raises `ValueError`."""
    written = value.strip() if isinstance(value, str) else ""
    digits = written.removesuffix("%").rstrip()
    if digits == written or not digits.isdecimal() or not 1 <= int(digits) <= 100:
        raise ValueError("must be a percentage from 1% to 100%")
    return int(digits) / 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLimits:
    """Limits of an uploader's clients; `None` for connections: as many as the descriptor limit allows."""

    max_connections: int | None = limit(
        "connections",
        integer(minimum=1),
        None,
        "most connections at a time; more are refused, and their collectors try again",
        default_text="what the descriptor limit leaves",
    )
    max_client_connections: int | None = limit(
        "connections-of-client",
        integer(minimum=1),
        None,
        "most connections with one client's key at a time",
        default_text="three quarters of `max_connections`",
    )
    max_client_runs: int = limit("runs-of-client", integer(minimum=1), 10_000, "most open runs of one client")
    max_client_rows_per_s: int = limit(
        "rate",
        integer(minimum=100),
        10_000,
        "most samples a second from one client (from one connection, where there are no keys)",
    )
    client_spool_share: float = limit(
        "spool-share",
        percentage,
        0.5,
        "largest part of the spool for one client while there are others; less when the spool is fuller",
        metavar="PERCENT",
        default_text="50%",
    )
    client_burst_s: float = limit(
        "rate",
        seconds(minimum=1, maximum=3600),
        10.0,
        "a client that catches up may send the samples of so many seconds at once",
    )
    # Our own collectors stop sending when they get `busy`.
    max_rejected_messages: int = limit(
        "flood",
        integer(minimum=100),
        10_000,
        "a connection is closed after so many messages in a row beyond `max_client_rows`",
        name="max_surplus_messages",
    )
    max_message_bytes: int = limit(
        "message-size",
        size(minimum=16 << 10, maximum=MAX_COLLECTOR_FRAME_BYTES),
        MAX_COLLECTOR_FRAME_BYTES,
        "largest message (one frame); a connection that sends twice as much is closed",
    )
    # The shortest row takes 2 bytes on the wire and hundreds in memory.
    max_message_rows: int = limit(
        "message-rows",
        integer(minimum=1, maximum=1 << 16),
        8192,
        "most samples in one message; the collector gets an error and sends fewer",
    )
    # The minimum is more than the longest message that is answered.
    max_unread_bytes: int = limit(
        "unread",
        size(minimum=4 * MAX_COLLECTOR_FRAME_BYTES),
        8 << 20,
        "a connection is closed after so many bytes without the end of a message",
    )
    max_extra_frames: int = limit(
        "frames",
        integer(minimum=1),
        20_000,
        "a connection is closed after so many frames beyond one a message",
        name="max_surplus_frames",
    )
    max_metadata_bytes: int = limit(
        "metadata-size",
        size(minimum=1 << 10, maximum=MAX_COLLECTOR_FRAME_BYTES // 2),
        16 << 10,
        "largest metadata of a run; a run with more is recorded without them",
    )
    max_run_key_chars: int = limit(
        "run-key", integer(minimum=50, maximum=MAX_RUN_KEY_CHARS), MAX_RUN_KEY_CHARS, "longest run key", metavar="CHARS"
    )
    max_name_chars: int = limit(
        "metadata-names",
        integer(minimum=32, maximum=1000),
        64,
        "longest name in the metadata, tags included",
        metavar="CHARS",
    )


def _declare(each: Field[Any]) -> Setting:
    name = re.sub(r"(_per)?_(s|bytes|chars)$", "", each.name)
    return setting(**{"name": name, "default": each.default, **each.metadata["row"]})


LIMIT_REASONS = tuple(dict.fromkeys(str(each.metadata["reason"]) for each in fields(ClientLimits)))
LIMIT_SETTINGS = tuple(map(_declare, fields(ClientLimits)))


def limits_of(values: Mapping[str, Any]) -> ClientLimits:
    """Return the limits that the values of `LIMIT_SETTINGS` say."""
    named = zip(fields(ClientLimits), LIMIT_SETTINGS, strict=True)
    return ClientLimits(**{each.name: values[declared.name] for each, declared in named})
