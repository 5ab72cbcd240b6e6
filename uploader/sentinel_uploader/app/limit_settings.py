"""The settings for what an uploader takes from its clients."""

from sentinel_protocol.common.settings.model import Setting, integer, seconds, size
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_RUN_KEY_CHARS
from sentinel_uploader.limits import ClientLimits

_DEFAULTS = ClientLimits()


def percentage(value: object) -> float:
    """A part of a whole: `50%` is 0.5."""
    written = value.strip() if isinstance(value, str) else ""
    digits = written.removesuffix("%").rstrip()
    if digits == written or not digits.isdecimal() or not 1 <= int(digits) <= 100:
        raise ValueError("must be a percentage from 1% to 100%")
    return int(digits) / 100


LIMIT_SETTINGS = (
    Setting(
        name="max_connections",
        flag="--max-connections",
        env="SENTINEL_MAX_CONNECTIONS",
        parse=integer(minimum=1),
        metavar="N",
        default_text="what the descriptor limit leaves",
        help="connections at a time; others are turned away and come back",
    ),
    Setting(
        name="max_client_connections",
        flag="--max-client-connections",
        env="SENTINEL_MAX_CLIENT_CONNECTIONS",
        parse=integer(minimum=1),
        metavar="N",
        default_text="three quarters of these",
        help="connections with one client's key at a time",
    ),
    Setting(
        name="max_client_runs",
        flag="--max-client-runs",
        env="SENTINEL_MAX_CLIENT_RUNS",
        parse=integer(minimum=1),
        metavar="N",
        default=_DEFAULTS.max_client_runs,
        help="open runs of one client",
    ),
    Setting(
        name="max_client_rows",
        flag="--max-client-rows",
        env="SENTINEL_MAX_CLIENT_ROWS",
        parse=integer(minimum=100),
        metavar="N",
        default=_DEFAULTS.max_client_rows,
        help="samples a second from one client (a connection, on links without keys)",
    ),
    Setting(
        name="client_spool_share",
        flag="--client-spool-share",
        env="SENTINEL_CLIENT_SPOOL_SHARE",
        parse=percentage,
        metavar="PERCENT",
        default="50%",
        help="most of the spool that one client may take while there are others; less when it is fuller",
    ),
    Setting(
        name="client_burst",
        flag="--client-burst",
        env="SENTINEL_CLIENT_BURST",
        parse=seconds(minimum=1, maximum=3600),
        metavar="SECONDS",
        default=_DEFAULTS.client_burst,
        help="so many seconds' worth of these samples may come at once, from one that catches up",
    ),
    Setting(
        name="max_surplus_messages",
        flag="--max-surplus-messages",
        env="SENTINEL_MAX_SURPLUS_MESSAGES",
        parse=integer(minimum=100),
        metavar="N",
        default=_DEFAULTS.max_surplus_messages,
        help="messages on end beyond these samples after which the connection is cut",
    ),
    Setting(
        name="max_message",
        flag="--max-message",
        env="SENTINEL_MAX_MESSAGE",
        parse=size(minimum=16 << 10, maximum=MAX_COLLECTOR_FRAME_BYTES),
        metavar="SIZE",
        default="1MiB",
        help="size of one message, which is one frame; a connection that sends twice as much is cut",
    ),
    Setting(
        name="max_message_rows",
        flag="--max-message-rows",
        env="SENTINEL_MAX_MESSAGE_ROWS",
        parse=integer(minimum=1, maximum=1 << 16),
        metavar="N",
        default=_DEFAULTS.max_message_rows,
        help="samples in one message; a collector that hears so sends fewer",
    ),
    Setting(
        name="max_unread",
        flag="--max-unread",
        env="SENTINEL_MAX_UNREAD",
        # Beyond the longest message that is answered.
        parse=size(minimum=4 * MAX_COLLECTOR_FRAME_BYTES),
        metavar="SIZE",
        default="8MiB",
        help="what a connection may send without ending a message before it is cut",
    ),
    Setting(
        name="max_surplus_frames",
        flag="--max-surplus-frames",
        env="SENTINEL_MAX_SURPLUS_FRAMES",
        parse=integer(minimum=1),
        metavar="N",
        default=_DEFAULTS.max_surplus_frames,
        help="frames beyond one a message that a connection may send before it is cut",
    ),
    Setting(
        name="max_metadata",
        flag="--max-metadata",
        env="SENTINEL_MAX_METADATA",
        parse=size(minimum=1 << 10, maximum=MAX_COLLECTOR_FRAME_BYTES // 2),
        metavar="SIZE",
        default="16KiB",
        help="size of a run's metadata; a run with more is recorded without them",
    ),
    Setting(
        name="max_run_key",
        flag="--max-run-key",
        env="SENTINEL_MAX_RUN_KEY",
        parse=integer(minimum=50, maximum=MAX_RUN_KEY_CHARS),
        metavar="CHARS",
        default=_DEFAULTS.max_run_key,
        help="length of a run key",
    ),
    Setting(
        name="max_name",
        flag="--max-name",
        env="SENTINEL_MAX_NAME",
        parse=integer(minimum=32, maximum=1000),
        metavar="CHARS",
        default=_DEFAULTS.max_name,
        help="length of a name in the metadata, tags included",
    ),
)
