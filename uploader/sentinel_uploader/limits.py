"""How much one client may ask of an uploader."""

import msgspec

from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_RUN_KEY_CHARS


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one client, and of all connections. `None`: as many connections as the descriptor limit leaves."""

    max_message: int = MAX_COLLECTOR_FRAME_BYTES
    max_connections: int | None = None
    max_client_connections: int | None = None
    max_message_rows: int = 8192
    """The shortest row takes 2 bytes on the wire and hundreds in memory."""
    max_unread: int = 8 << 20
    max_surplus_frames: int = 20_000
    max_client_runs: int = 10_000
    max_client_rows: int = 10_000
    client_burst: float = 10.0
    """A client may send the rows of so many seconds at once: a collector that catches up after an outage."""
    max_surplus_messages: int = 10_000
    """After so many messages in a row beyond the rate, a connection is closed. A collector never goes on sending."""
    client_spool_share: float = 0.5
    """Part of the spool that one client may use while there are others."""
    max_metadata: int = 16 << 10
    max_run_key: int = MAX_RUN_KEY_CHARS
    max_name: int = 64
