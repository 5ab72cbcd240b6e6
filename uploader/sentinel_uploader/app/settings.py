"""The uploader's settings."""

from sentinel_protocol.common.settings.model import boolean, choice, directory, path, seconds, setting, size, text
from sentinel_uploader.limits import LIMIT_SETTINGS
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES
from sentinel_uploader.telemetry.listen_address import http_address

SPOOL = setting("spool", directory, "directory of the spool", default_text="this user's own")
SPOOL_FOR_INSPECTION = setting("spool", directory, SPOOL.help, default_text="all of this user's")
"""`SPOOL` of the commands that read existing spools."""
TARGET = setting(
    "target",
    path,
    "`sentinel:` for the HTTP API, or a directory",
    metavar="URL-OR-DIR",
    default_text="`sentinel:` with a token, else this user's directory of runs",
)
KEYS = setting(
    "keys",
    directory,
    "directory of keys: with it, `tcp://` addresses accept only the clients on its list",
    default_text="this user's own, if `keys init` has made it",
)
SETTINGS = (
    setting(
        "bind",
        text,
        "address to listen at, `tcp://HOST:PORT` or `ipc:///PATH`; may be given several times",
        metavar="URL",
        repeatable=True,
        default_text="this user's own socket",
    ),
    SPOOL,
    setting(
        "spool_max",
        size(minimum=MIN_SPOOL_BYTES),
        "largest size of undelivered data in the spool; when it is reached, collectors keep their samples",
        default="2GiB",
    ),
    setting(
        "upload_interval",
        seconds(minimum=0.1, maximum=86_400),
        "how often a run's rows are uploaded",
        env="TRACKER_UPLOAD_INTERVAL",
        default=60.0,
    ),
    TARGET,
    setting(
        "stale_after",
        seconds(minimum=1),
        "a run is closed as failed when its collector is silent for so long",
        default=900.0,
    ),
    setting("exit_when_idle", seconds(minimum=0.1), "end when all is delivered and no message has arrived for so long"),
    KEYS,
    *LIMIT_SETTINGS,
    setting(
        "call_timeout",
        seconds(minimum=0.1, maximum=3600),
        "a call to the API or the storage is repeated when nothing is received for so long",
        default=30.0,
    ),
    setting("insecure", boolean, "listen beyond this machine without keys", default=False),
    setting(
        "http", http_address, "serve health and metrics at `PORT` (of 127.0.0.1) or `HOST:PORT`", metavar="ADDRESS"
    ),
    setting(
        "unhealthy_after",
        seconds(minimum=1),
        "`/healthz` fails when a row waits for so long past the upload interval",
        default=600.0,
    ),
    setting("log_format", choice("text", "json"), "format of log lines", metavar="text|json", default="text"),
    setting("verbose", boolean, "log more", env=None, short="-v", default=False),
)
