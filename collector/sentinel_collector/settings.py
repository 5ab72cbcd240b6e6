"""The collector's settings. Imported before the job starts: heavy imports stay inside functions."""

from __future__ import annotations

import os

from sentinel_protocol.common.settings.model import Setting, boolean, choice, key_value, path, percent, seconds, text
from sentinel_protocol.common.settings.sources import merge_what_is_right

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sentinel_protocol.common.settings.sources import SettingsFile

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
"""The same as in `sentinel_protocol.wire.messages`, whose import would delay the job's start."""


def run_key(value: Any) -> str:
    """Parse a run key; `ValueError` when the uploader would reject it."""
    key = text(value)
    if len(key) > MAX_RUN_KEY_CHARS or not key.isprintable():
        raise ValueError(f"must be at most {MAX_RUN_KEY_CHARS} printable characters")
    return key


def host_root(value: Any) -> str:
    """Parse the mount point of the machine's root directory; its /proc must show process 1."""
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
    """Return the named settings before the job starts; the file is parsed only if it contains one of the names.

    Errors in the file are reported later, once the job runs.
    """
    open_names = [name for name in names if name not in given]
    if file is not None and any(name.encode() in file.content for name in open_names):
        values, _ = merge_what_is_right(SETTINGS, given, file)
    else:
        values = {setting.name: setting.default for setting in SETTINGS} | dict(given)
    return {name: values[name] for name in names}
