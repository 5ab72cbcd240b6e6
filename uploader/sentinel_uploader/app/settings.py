"""The uploader's settings, and what follows from them."""

import functools
import os
from collections.abc import Mapping
from typing import Any

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import parse_address, require_protection
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import SENTINEL_TARGET, agent_place, default_target
from sentinel_protocol.common.paths import make_socket_dir, state_home
from sentinel_protocol.common.settings.model import Setting, boolean, choice, path, seconds, size, text
from sentinel_uploader.app.limit_settings import LIMIT_NAMES, LIMIT_SETTINGS
from sentinel_uploader.app.service import ServiceConfig
from sentinel_uploader.backends.local.run_files import LocalRunBackend
from sentinel_uploader.backends.objectstore.local import DirectoryStore
from sentinel_uploader.intake.rate_limiter import Limits
from sentinel_uploader.runs.ports import Backend
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.key_store import KeyStore
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES
from sentinel_uploader.telemetry.listen_address import http_address

SPOOL = Setting(
    name="spool",
    flag="--spool",
    env="SENTINEL_SPOOL",
    parse=path,
    metavar="DIR",
    default_text="this user's own",
    help="directory of the spool",
)
FIND_SPOOL = Setting(
    name=SPOOL.name,
    flag=SPOOL.flag,
    env=SPOOL.env,
    parse=SPOOL.parse,
    metavar=SPOOL.metavar,
    default_text="all of this user's",
    help=SPOOL.help,
)
"""The same for commands that look at what is there."""
TARGET = Setting(
    name="target",
    flag="--target",
    env="SENTINEL_TARGET",
    parse=path,
    metavar="URL-OR-DIR",
    default_text="`sentinel:` with a token, else this user's directory of runs",
    help="`sentinel:` for the HTTP API, or a directory",
)
KEYS = Setting(
    name="keys",
    flag="--keys",
    env="SENTINEL_KEYS",
    parse=path,
    metavar="DIR",
    default_text="this user's own, if `keys init` has made it",
    help="directory of keys: with it, every `tcp://` address lets in only the clients on its list",
)
LOG_FORMAT = Setting(
    name="log_format",
    flag="--log-format",
    env="SENTINEL_LOG_FORMAT",
    parse=choice("text", "json"),
    metavar="text|json",
    default="text",
    help="how log lines are written",
)
VERBOSE = Setting(name="verbose", flag="--verbose", short="-v", parse=boolean, default=False, help="log more")
SETTINGS = (
    Setting(
        name="bind",
        flag="--bind",
        env="SENTINEL_BIND",
        parse=text,
        repeatable=True,
        metavar="URL",
        default_text="this user's own socket",
        help="address to listen at, `tcp://HOST:PORT` or `ipc:///PATH`; may be given several times",
    ),
    SPOOL,
    Setting(
        name="spool_max",
        flag="--spool-max",
        env="SENTINEL_SPOOL_MAX",
        parse=size(minimum=MIN_SPOOL_BYTES),
        metavar="SIZE",
        default="2GiB",
        help="largest size of what the spool holds for delivery; when it is reached, collectors hold on",
    ),
    Setting(
        name="upload_interval",
        flag="--upload-interval",
        env="TRACKER_UPLOAD_INTERVAL",
        parse=seconds(minimum=0.1, maximum=86_400),
        metavar="SECONDS",
        default=60.0,
        help="how often a run's rows are uploaded",
    ),
    TARGET,
    Setting(
        name="stale_after",
        flag="--stale-after",
        env="SENTINEL_STALE_AFTER",
        parse=seconds(minimum=1),
        metavar="SECONDS",
        default=900.0,
        help="silence after which a run is closed as failed",
    ),
    Setting(
        name="exit_when_idle",
        flag="--exit-when-idle",
        env="SENTINEL_EXIT_WHEN_IDLE",
        parse=seconds(minimum=0.1),
        metavar="SECONDS",
        help="end when all is delivered and nothing was heard for so long",
    ),
    KEYS,
    *LIMIT_SETTINGS,
    Setting(
        name="call_timeout",
        flag="--call-timeout",
        env="SENTINEL_CALL_TIMEOUT",
        parse=seconds(minimum=0.1, maximum=3600),
        metavar="SECONDS",
        default=30.0,
        help="how long the API or storage may be silent before a call is given up and tried again",
    ),
    Setting(
        name="insecure",
        flag="--insecure",
        env="SENTINEL_INSECURE",
        parse=boolean,
        default=False,
        help="listen beyond this machine without keys",
    ),
    Setting(
        name="http",
        flag="--http",
        env="SENTINEL_HTTP",
        parse=http_address,
        metavar="ADDRESS",
        help="serve health and metrics at `PORT` (of 127.0.0.1) or `HOST:PORT`",
    ),
    Setting(
        name="unhealthy_after",
        flag="--unhealthy-after",
        env="SENTINEL_UNHEALTHY_AFTER",
        parse=seconds(minimum=1),
        metavar="SECONDS",
        default=600.0,
        help="how long past the upload interval a row may wait before `/healthz` fails",
    ),
    LOG_FORMAT,
    VERBOSE,
)


def service_config(
    values: Mapping[str, Any], environ: Mapping[str, str], target: Backend, *, listen: bool
) -> ServiceConfig:
    """Check what the settings say together and return it; raises `UsageError`."""
    place = agent_place(environ, values["target"])
    urls = values["bind"] if listen else []
    if listen and not urls:
        make_socket_dir(place.socket_path.rpartition("/")[0])
        urls = [place.url]
    addresses = [parse_address(url, bind=True) for url in urls]
    store = key_store(values["keys"], environ)
    has_keys = any(url.startswith("tcp:") for url in urls) and (bool(values["keys"]) or store.exists)
    for address in addresses:
        require_protection(address, has_keys=has_keys, insecure=values["insecure"], role="bind")
    return ServiceConfig(
        addresses=addresses,
        keys=store if has_keys else None,
        limits=Limits(**{name: values[setting] for name, setting in LIMIT_NAMES.items()}),
        spool_dir=spool_dir(values, environ),
        spool_max_bytes=values["spool_max"],
        policy=Policy(
            upload_interval_s=values["upload_interval"],
            stale_after_s=values["stale_after"],
            inline_limit_bytes=target.api.inline_limit_bytes,
        ),
        exit_when_idle_s=values["exit_when_idle"],
        http=values["http"] if listen else None,
        unhealthy_after_s=values["unhealthy_after"],
    )


def spool_dir(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the spool's directory, named or this user's own for the target."""
    return values["spool"] or agent_place(environ, values["target"]).spool_dir


def key_store(named: str | None, environ: Mapping[str, str]) -> KeyStore:
    """Return the directory of keys, named or this user's own."""
    return KeyStore(named or os.path.join(state_home(environ), "keys"))


def open_target(values: Mapping[str, Any], environ: Mapping[str, str], clock: Clock) -> Backend:
    """Return where runs are delivered; raises `UsageError` for what cannot be used."""
    where = values["target"] or default_target(environ)
    if where != SENTINEL_TARGET:
        if "://" in where:
            raise UsageError(f"--target {where!r}: expected {SENTINEL_TARGET} or a directory")
        return Backend(api=LocalRunBackend(where), store=DirectoryStore(), needs_credentials=False)
    try:
        # urllib3 and botocore come with the extra, and only for those who need them.
        from sentinel_uploader.backends.http.client import TOTAL_TIMEOUT_S, HttpClient
        from sentinel_uploader.backends.objectstore.s3.store import AUTHORITY_VARIABLES, S3Store
        from sentinel_uploader.backends.sentinel.backend import SentinelBackend
        from sentinel_uploader.backends.sentinel.endpoint import DEFAULT_BASE_URL
        from sentinel_uploader.backends.sentinel.token import token_source
    except ImportError as error:
        raise UsageError(
            f"the Sentinel API needs more than the base package ({error.name} is missing): "
            "pip install 'sentinel-stream[uploader]'"
        ) from error
    token = token_source(environ)
    if token is None:
        raise UsageError("no API token: set SENTINEL_API_TOKEN or SENTINEL_API_TOKEN_FILE, or name a directory")
    timeout_s = values["call_timeout"]
    new_client = functools.partial(
        HttpClient,
        environ=environ,
        clock=clock,
        read_timeout_s=timeout_s,
        total_timeout_s=max(TOTAL_TIMEOUT_S, 2 * timeout_s),
    )
    base_url = environ.get("SENTINEL_API_URL") or DEFAULT_BASE_URL
    return Backend(
        api=SentinelBackend(token, base_url, clock, environ, client=new_client()),
        store=S3Store(environ=environ, clock=clock, client=new_client(authority_variables=AUTHORITY_VARIABLES)),
        needs_credentials=True,
    )
