"""The settings for what an uploader takes from its clients."""

from protocol.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_RUN_KEY_CHARS
from protocol.settings import Setting, integer, size
from uploader.limits import Limits

_DEFAULTS = Limits()

LIMIT_NAMES = {
    "message_bytes": "max_message",
    "connections": "max_connections",
    "connections_of_client": "max_client_connections",
    "runs_of_client": "max_client_runs",
    "rows_per_s_of_client": "max_client_rows",
    "metadata_bytes": "max_metadata",
    "run_key_chars": "max_run_key",
    "name_chars": "max_name",
}
"""The setting of each field of `Limits`."""

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
        default=_DEFAULTS.runs_of_client,
        help="open runs of one client",
    ),
    Setting(
        name="max_client_rows",
        flag="--max-client-rows",
        env="SENTINEL_MAX_CLIENT_ROWS",
        parse=integer(minimum=100),
        metavar="N",
        default=_DEFAULTS.rows_per_s_of_client,
        help="samples a second from one client (a connection, on links without keys), ten seconds' worth at once",
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
        default=_DEFAULTS.run_key_chars,
        help="length of a run key",
    ),
    Setting(
        name="max_name",
        flag="--max-name",
        env="SENTINEL_MAX_NAME",
        parse=integer(minimum=20, maximum=1000),
        metavar="CHARS",
        default=_DEFAULTS.name_chars,
        help="length of a name in the metadata, tags included",
    ),
)
