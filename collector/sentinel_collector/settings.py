"""The collector's settings. Imported before the job starts: heavy imports stay inside functions."""

from __future__ import annotations

import os

from sentinel_protocol.common.settings.model import boolean, choice, key_value, path, percent, seconds, setting, text
from sentinel_protocol.common.settings.sources import merge_file_collecting_errors

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
    ("team", "team that owns the job"),
    ("env", "environment, such as `dev` or `prod`"),
    ("language", "programming language"),
    ("orchestrator", "program that schedules the job"),
    ("executor", "program that executes the job"),
    ("external_run_id", "the run's id in another system"),
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
    setting("pid", text, "track the process tree of a running process until it ends", metavar="PID", env=None),
    setting(
        "connect",
        text,
        "address of an uploader, `tcp://HOST:PORT` or `ipc:///PATH`; of several, each run picks one",
        metavar="URL",
        repeatable=True,
        default_text="this user's own uploader, started when none runs",
    ),
    setting(
        "failover_after",
        seconds(minimum=1),
        "with several uploaders: a run moves to another when its own is away for so long",
        default=300.0,
    ),
    setting(
        "server_key",
        path,
        "the uploader's public key, or the file that holds it; with several uploaders one for all or one each",
        metavar="FILE-OR-KEY",
        repeatable=True,
    ),
    setting(
        "key",
        path,
        "this collector's secret key file, readable by its owner alone (`sentinel-uploader keys add`)",
        metavar="FILE",
    ),
    setting("interval", seconds(minimum=0.1, maximum=86_400), "time between samples", default=1.0),
    setting(
        "accounting",
        choice("auto", "proc", "cgroup"),
        "source of the job's CPU time: `cgroup` (exact), `proc`, or `auto`: a cgroup if one can be created",
        metavar="HOW",
        default="auto",
    ),
    setting(
        "pss_budget",
        percent(),
        "share of the time for reading the job's memory with shared pages counted once (PSS); "
        "0: never, the RSS of all processes is added up",
        default=1.0,
    ),
    setting(
        "scope",
        choice("auto", "host", "container"),
        "what the system columns describe: the `host`, the `container`, or `auto`: the container if it has limits",
        metavar="WHOSE",
        default="auto",
    ),
    setting(
        "host_root",
        host_root,
        "where the machine's root directory is mounted, in a container that records the whole machine",
        metavar="DIR",
    ),
    setting(
        "run_key",
        run_key,
        "identifies the run: a collector that is started again with it continues the run",
        metavar="KEY",
        default_text="from host, process and start time",
    ),
    setting(
        "state_dir",
        path,
        "directory of undelivered samples",
        metavar="DIR",
        default_text="`$XDG_STATE_HOME/sentinel-stream/collector`",
    ),
    setting(
        "output",
        path,
        "also write the rows to a CSV file as they are taken (- for stdout); an existing file is replaced, directories "
        "are created",
        metavar="FILE",
        env=None,
    ),
    setting(
        "wait",
        seconds(),
        "how long to wait at the end for the run to be delivered",
        default_text="30; 0 with `--connect`",
    ),
    setting(
        "summary_json",
        path,
        "write the figures of the run to a file (- for stdout); an existing file is replaced, directories are created",
        metavar="FILE",
        env=None,
    ),
    *(
        setting(name, text, f"metadata of the run: {meaning}", metavar="TEXT", env=f"TRACKER_{name.upper()}")
        for name, meaning in _METADATA
    ),
    setting(
        "tag", key_value, "metadata of the run: a tag; may be given several times", metavar="K=V", env="SENTINEL_TAGS"
    ),
    setting(
        "command_line",
        boolean,
        "put the job's command line into the run's metadata (`--no-command-line` leaves it out)",
        default=True,
    ),
    setting("share_identity", boolean, "send host name, host id, address and cloud account", default=False),
    setting("no_cloud", boolean, "do not ask the cloud provider's metadata service", default=False),
    setting("insecure", boolean, "connect beyond this machine without keys", default=False),
    setting("quiet", boolean, "print no summary, and only errors on stderr", default=False),
    setting("verbose", boolean, "print more on stderr", env=None, short="-v", default=False),
)


def pre_start_settings(given: Mapping[str, Any], file: SettingsFile | None, *names: str) -> dict[str, Any]:
    """Return the named settings before the job starts; the file is parsed only if it contains one of the names.

    Errors in the file are reported later, once the job runs.
    """
    open_names = [name for name in names if name not in given]
    if file is not None and any(name.encode() in file.content for name in open_names):
        values, _ = merge_file_collecting_errors(SETTINGS, given, file)
    else:
        values = {setting.name: setting.default for setting in SETTINGS} | dict(given)
    return {name: values[name] for name in names}
