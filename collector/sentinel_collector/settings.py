"""The collector's settings. Read before the job starts: nothing is imported here but the table itself."""

from __future__ import annotations

import os

from sentinel_protocol.common.api_url import API_URL_VARIABLE, api_url_error, redact_url
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.settings.model import Setting, boolean, choice, key_value, path, percent, seconds, text
from sentinel_protocol.common.settings.sources import merge_file_collecting_errors

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sentinel_protocol.common.endpoints import Address
    from sentinel_protocol.common.settings.sources import SettingsFile
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_METADATA = (
    ("project_name", "name of the project"),
    ("job_name", "name of the job"),
    ("stage_name", "name of the stage"),
    ("task_name", "name of the task"),
    ("team", "who it is run for"),
    ("env", "environment, such as `dev` or `prod`"),
    ("language", "programming language"),
    ("orchestrator", "what schedules the job"),
    ("executor", "what executes it"),
    ("external_run_id", "the run's id elsewhere"),
    ("container_image", "image that the job runs in"),
)
METADATA_NAMES = tuple(name for name, _ in _METADATA)

MAX_RUN_KEY_CHARS = 200
"""`sentinel_protocol.wire.messages` has the same limit, and would cost the job's start too much."""


def run_key(value: Any) -> str:
    """Parse a run key as the uploader takes it."""
    key = text(value)
    if len(key) > MAX_RUN_KEY_CHARS or not key.isprintable():
        raise ValueError(f"must be at most {MAX_RUN_KEY_CHARS} printable characters")
    return key


def host_root(value: Any) -> str:
    """Parse where the machine's root directory is mounted; its first process has to be seen there."""
    root = path(value).rstrip("/")
    if root and not os.path.exists(f"{root}/proc/1/net/dev"):
        raise ValueError("must be where the machine's root directory is mounted, with its /proc")
    return root


SETTINGS = (
    Setting(
        name="pid",
        flag="--pid",
        parse=text,
        metavar="PID",
        help="track the process tree of a running process until it ends",
    ),
    Setting(
        name="connect",
        flag="--connect",
        env="SENTINEL_CONNECT",
        parse=text,
        repeatable=True,
        metavar="URL",
        default_text="this user's own uploader, started when none runs",
        help="address of an uploader, `tcp://HOST:PORT` or `ipc:///PATH`; of several, each run picks one",
    ),
    Setting(
        name="failover_after",
        flag="--failover-after",
        env="SENTINEL_FAILOVER_AFTER",
        parse=seconds(minimum=1),
        metavar="SECONDS",
        default=300.0,
        help="with several uploaders: how long a run's own may be away before the run goes on at another",
    ),
    Setting(
        name="server_key",
        flag="--server-key",
        env="SENTINEL_SERVER_KEY",
        parse=path,
        repeatable=True,
        metavar="FILE-OR-KEY",
        help="the uploader's public key, or the file that holds it; with several uploaders one for all or one each",
    ),
    Setting(
        name="key",
        flag="--key",
        env="SENTINEL_KEY",
        parse=path,
        metavar="FILE",
        help="this collector's secret key file, readable by its owner alone (`sentinel-uploader keys add`)",
    ),
    Setting(
        name="interval",
        flag="--interval",
        env="SENTINEL_INTERVAL",
        parse=seconds(minimum=0.1, maximum=86_400),
        metavar="SECONDS",
        default=1.0,
        help="time between samples",
    ),
    Setting(
        name="accounting",
        flag="--accounting",
        env="SENTINEL_ACCOUNTING",
        parse=choice("auto", "proc", "cgroup"),
        metavar="HOW",
        default="auto",
        help="how the job's CPU time is counted: `cgroup` (exact), `proc`, or `auto`: a cgroup where one can be had",
    ),
    Setting(
        name="pss_budget",
        flag="--pss-budget",
        env="SENTINEL_PSS_BUDGET",
        parse=percent(),
        metavar="PERCENT",
        default=1.0,
        help="how much of the time may go into reading the job's memory with shared pages counted once (PSS); "
        "0: never, each process' RSS is added up",
    ),
    Setting(
        name="scope",
        flag="--scope",
        env="SENTINEL_SCOPE",
        parse=choice("auto", "host", "container"),
        metavar="WHOSE",
        default="auto",
        help="whose the system columns are: the `host`'s, the `container`'s, or `auto`: a container's if it has limits",
    ),
    Setting(
        name="host_root",
        flag="--host-root",
        env="SENTINEL_HOST_ROOT",
        parse=host_root,
        metavar="DIR",
        help="where the machine's root directory is mounted, in a container that records the whole machine",
    ),
    Setting(
        name="run_key",
        flag="--run-key",
        env="SENTINEL_RUN_KEY",
        parse=run_key,
        metavar="KEY",
        default_text="from host, process and start time",
        help="names the run: a collector that is started again with it continues the run",
    ),
    Setting(
        name="state_dir",
        flag="--state-dir",
        env="SENTINEL_STATE_DIR",
        parse=path,
        metavar="DIR",
        default_text="`$XDG_STATE_HOME/sentinel-stream/collector`",
        help="where undelivered samples are kept",
    ),
    Setting(
        name="output",
        flag="--output",
        parse=path,
        metavar="FILE",
        help="also write the rows to a CSV file, as they are taken; one that is there is replaced, "
        "its directories are made",
    ),
    Setting(
        name="wait",
        flag="--wait",
        env="SENTINEL_WAIT",
        parse=seconds(),
        metavar="SECONDS",
        default_text="30; 0 with `--connect`",
        help="how long to wait at the end for the run to be delivered",
    ),
    Setting(
        name="summary_json",
        flag="--summary-json",
        parse=path,
        metavar="FILE",
        help="write the figures of the run to a file; one that is there is replaced, its directories are made",
    ),
    *(
        Setting(
            name=name,
            flag="--" + name.replace("_", "-"),
            env="TRACKER_" + name.upper(),
            parse=text,
            metavar="TEXT",
            help=f"metadata of the run: {words}",
        )
        for name, words in _METADATA
    ),
    Setting(
        name="tag",
        flag="--tag",
        env="SENTINEL_TAGS",
        parse=key_value,
        metavar="K=V",
        help="metadata of the run: a tag; may be given several times",
    ),
    Setting(
        name="command_line",
        flag="--command-line",
        env="SENTINEL_COMMAND_LINE",
        parse=boolean,
        default=True,
        help="put the job's command line into the run's metadata (`--no-command-line` leaves it out)",
    ),
    Setting(
        name="share_identity",
        flag="--share-identity",
        env="SENTINEL_SHARE_IDENTITY",
        parse=boolean,
        default=False,
        help="tell host name, host id, address and cloud account",
    ),
    Setting(
        name="no_cloud",
        flag="--no-cloud",
        env="SENTINEL_NO_CLOUD",
        parse=boolean,
        default=False,
        help="do not ask the cloud provider's metadata service what machine this is",
    ),
    Setting(
        name="insecure",
        flag="--insecure",
        env="SENTINEL_INSECURE",
        parse=boolean,
        default=False,
        help="connect beyond this machine without keys",
    ),
    Setting(
        name="quiet",
        flag="--quiet",
        env="SENTINEL_QUIET",
        parse=boolean,
        default=False,
        help="no summary, and only errors on stderr",
    ),
    Setting(name="verbose", flag="--verbose", short="-v", parse=boolean, default=False, help="say more on stderr"),
)


def pre_start_settings(given: Mapping[str, Any], file: SettingsFile | None, *names: str) -> dict[str, Any]:
    """Return the settings that matter before the job starts; the file is understood only where it names them.

    What is wrong in it is told later, once the job runs.
    """
    open_names = [name for name in names if name not in given]
    if file is not None and any(name.encode() in file.content for name in open_names):
        values, _ = merge_file_collecting_errors(SETTINGS, given, file)
    else:
        values = {setting.name: setting.default for setting in SETTINGS} | dict(given)
    return {name: values[name] for name in names}


def check_local_uploader_config(
    given: Mapping[str, Any], file: SettingsFile | None, environ: Mapping[str, str]
) -> None:
    """Raise `UsageError` where this user's own uploader would not start for what the environment says."""
    url = environ.get(API_URL_VARIABLE)
    fault = api_url_error(url) if url else ""
    # What costs time is done for a wrong address only.
    if not url or not fault or pre_start_settings(given, file, "connect")["connect"]:
        return
    from sentinel_protocol.common.local_uploader import SENTINEL_TARGET, default_target

    if default_target(environ) == SENTINEL_TARGET:
        raise UsageError(f"{API_URL_VARIABLE} {redact_url(url)!r}: {fault}")


def settings_for_started_job(
    given: Mapping[str, Any], file: SettingsFile | None
) -> tuple[dict[str, Any], list[Address], list[UsageError]]:
    """Return all settings, the uploaders' addresses, and what is wrong with the file: the job is recorded without that.

    Where the file cannot be trusted it may have meant to keep the command line back, so that stays out.
    """
    settings, errors = merge_file_collecting_errors(SETTINGS, given, file)
    try:
        addresses = uploader_addresses(settings)
    except UsageError as error:
        assert file is not None  # what was given otherwise was checked before the job began
        errors.append(UsageError(f"{file.path}: {error}"))
        settings["connect"] = addresses = []
    if errors and "command_line" not in given:
        settings["command_line"] = False
    return settings, addresses, errors


def uploader_addresses(values: Mapping[str, Any]) -> list[Address]:
    """Return the checked addresses of uploaders, none when this user's own is meant; raises `UsageError`."""
    if not values.get("connect"):
        return []
    from sentinel_protocol.common.endpoints import parse_address, require_encryption

    addresses = [parse_address(url, bind=False) for url in values["connect"]]
    has_keys = bool(client_curve_keys(values))
    for address in addresses:
        require_encryption(address, has_keys=has_keys, insecure=bool(values.get("insecure")), role="connect")
    return addresses


def client_curve_keys(values: Mapping[str, Any]) -> dict[str, ClientCurveKeys]:
    """Return the keys for each uploader's URL, none where no keys are given; raises `UsageError`."""
    server_keys, key, urls = values.get("server_key") or [], values.get("key"), values.get("connect") or []
    if not urls or not (server_keys or key):
        return {}
    if not server_keys or not key:
        raise UsageError(
            "keys are two: --server-key (the uploader's public key) and --key (this collector's secret file)"
        )
    if len(server_keys) not in {1, len(urls)}:
        raise UsageError(
            f"{len(server_keys)} times --server-key for {len(urls)} times --connect: give one, or one each"
        )
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys, load_server_key, read_key_pair

    own = read_key_pair(key)
    servers = [load_server_key(text) for text in server_keys]
    return {url: ClientCurveKeys(own, servers[index % len(servers)]) for index, url in enumerate(urls)}


def load_keys_without_core_dumps(values: Mapping[str, Any]) -> dict[str, ClientCurveKeys]:
    """Return the keys for each uploader's URL; no core file holds them."""
    keys = client_curve_keys(values)
    if keys:
        # The job, which runs already, keeps its own limit.
        from sentinel_protocol.common.core_dumps import disable_core_dumps

        disable_core_dumps()
    return keys
