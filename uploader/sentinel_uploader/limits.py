"""Limits on what clients may send and hold: each is one field of `ClientLimits`, with its setting beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from sentinel_protocol.common.settings.model import Parse, Setting, integer, seconds, setting, size
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_RUN_KEY_CHARS

_T = TypeVar("_T")


def limit(
    name: str,
    default: _T,
    parse: Parse,
    metavar: str,
    reason: str,
    help: str,  # noqa: A002 - the word of `Setting` for it
    default_text: str | None = None,
) -> _T:
    """Declare a field of `ClientLimits` with its setting; `rejected_total` counts what exceeds it as `reason`."""
    declared = setting(name, parse, metavar, help, default=default, default_text=default_text)
    return field(default=default, metadata={"reason": reason, "setting": declared})


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
        "max_connections",
        None,
        integer(minimum=1),
        "N",
        "connections",
        "most connections at a time; more are refused, and their collectors try again",
        "what the descriptor limit leaves",
    )
    max_client_connections: int | None = limit(
        "max_client_connections",
        None,
        integer(minimum=1),
        "N",
        "connections-of-client",
        "most connections with one client's key at a time",
        "three quarters of `max_connections`",
    )
    max_client_runs: int = limit(
        "max_client_runs", 10_000, integer(minimum=1), "N", "runs-of-client", "most open runs of one client"
    )
    max_client_rows_per_s: int = limit(
        "max_client_rows",
        10_000,
        integer(minimum=100),
        "N",
        "rate",
        "most samples a second from one client (from one connection, where there are no keys)",
    )
    spool_share: float = limit(
        "client_spool_share",
        0.5,
        percentage,
        "PERCENT",
        "spool-share",
        "largest part of the spool for one client while there are others; less when the spool is fuller",
        "50%",
    )
    burst_s: float = limit(
        "client_burst",
        10.0,
        seconds(minimum=1, maximum=3600),
        "SECONDS",
        "rate",
        "a client that catches up may send the samples of so many seconds at once",
    )
    # A collector of ours never sends on after it was told to wait.
    max_rejected_messages: int = limit(
        "max_surplus_messages",
        10_000,
        integer(minimum=100),
        "N",
        "flood",
        "a connection is closed after so many messages in a row beyond `max_client_rows`",
    )
    max_message_bytes: int = limit(
        "max_message",
        MAX_COLLECTOR_FRAME_BYTES,
        size(minimum=16 << 10, maximum=MAX_COLLECTOR_FRAME_BYTES),
        "SIZE",
        "message-size",
        "largest message (one frame); a connection that sends twice as much is closed",
    )
    # The shortest row takes 2 bytes on the wire and hundreds in memory.
    max_message_rows: int = limit(
        "max_message_rows",
        8192,
        integer(minimum=1, maximum=1 << 16),
        "N",
        "message-rows",
        "most samples in one message; the collector is told and sends fewer",
    )
    # The minimum is more than the longest message that is answered.
    max_unread_bytes: int = limit(
        "max_unread",
        8 << 20,
        size(minimum=4 * MAX_COLLECTOR_FRAME_BYTES),
        "SIZE",
        "unread",
        "a connection is closed after so many bytes without the end of a message",
    )
    max_extra_frames: int = limit(
        "max_surplus_frames",
        20_000,
        integer(minimum=1),
        "N",
        "frames",
        "a connection is closed after so many frames beyond one a message",
    )
    max_metadata_bytes: int = limit(
        "max_metadata",
        16 << 10,
        size(minimum=1 << 10, maximum=MAX_COLLECTOR_FRAME_BYTES // 2),
        "SIZE",
        "metadata-size",
        "largest metadata of a run; a run with more is recorded without them",
    )
    max_run_key_chars: int = limit(
        "max_run_key",
        MAX_RUN_KEY_CHARS,
        integer(minimum=50, maximum=MAX_RUN_KEY_CHARS),
        "CHARS",
        "run-key",
        "longest run key",
    )
    max_name_chars: int = limit(
        "max_name",
        64,
        integer(minimum=32, maximum=1000),
        "CHARS",
        "metadata-names",
        "longest name in the metadata, tags included",
    )


LIMIT_REASONS = tuple(dict.fromkeys(str(each.metadata["reason"]) for each in fields(ClientLimits)))
LIMIT_SETTINGS: tuple[Setting, ...] = tuple(each.metadata["setting"] for each in fields(ClientLimits))


def limits_of(values: Mapping[str, Any]) -> ClientLimits:
    """Return the limits that the values of `LIMIT_SETTINGS` say."""
    return ClientLimits(**{each.name: values[each.metadata["setting"].name] for each in fields(ClientLimits)})
