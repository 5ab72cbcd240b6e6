"""One run as its description (`run.json`) tells of it, whichever version wrote that.

A description is untrusted: every field is checked, and a field of another type counts as unknown.
"""

from datetime import UTC, datetime
from math import isfinite
from typing import Any

import msgspec

_MAX_STAMP_S = 253_370_764_800.0  # the year 9999, less a day for every time zone
_IDENTITY = ("host_hostname", "host_id", "host_ip")


class Run(msgspec.Struct, kw_only=True):
    """A run's description. Unknown is `None`, an empty text or an empty map, never zero.

    `name` is the run's directory below its place. Times are UNIX seconds. `statistics` is that of `run.json`:
    `{column: {"mean", "max"}}` for gauges, `{column: {"total"}}` for counters. `ending` holds what is known of the end
    beyond the exit code (`oom_kills`, `signal`, `disk_full`), `limits` the job's limits (`memory_mib`, `cpus`).
    """

    name: str
    run_id: str
    is_described: bool = True
    state: str = ""
    status: str = ""
    exit_code: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    interval_s: float | None = None
    rows: int | None = None
    missing_rows: int = 0
    closed_as_stale: bool = False
    peak_memory_mib: float | None = None
    accounting: str = ""
    scope: str = ""
    metadata: dict[str, Any] = {}
    host: dict[str, Any] = {}
    cloud: dict[str, Any] = {}
    statistics: dict[str, dict[str, float]] = {}
    duration_s: float | None = None
    objects: list[str] | None = None
    ending: dict[str, Any] = {}
    limits: dict[str, Any] = {}

    @property
    def job(self) -> str:
        """The job's name, empty when it has none."""
        return text_of(self.metadata.get("job_name"))

    @property
    def command(self) -> str:
        """The command line as a shell would take it, empty when it is unknown."""
        command = self.metadata.get("command")
        if isinstance(command, list):
            import shlex

            return shlex.join(map(str, command))
        return text_of(command)

    @property
    def title(self) -> str:
        """What a person would call the run: its job, else its command, else its host."""
        return self.job or self.command or ("whole host" if self.is_host_run else self.run_id)

    @property
    def is_host_run(self) -> bool:
        """Whether nothing but the host was recorded."""
        return bool(self.statistics) and not any(name.startswith("process_") for name in self.statistics)

    @property
    def is_running(self) -> bool:
        """Whether the description says that the run has not ended."""
        return self.state == "running"

    @property
    def host_name(self) -> str:
        """The host's name where it was shared, else what kind of machine it is."""
        for key in _IDENTITY:
            if text_of(self.host.get(key)):
                return text_of(self.host[key])
        return text_of(self.cloud.get("cloud_instance_type"))

    @property
    def vcpus(self) -> float | None:
        """Processors of the machine, or of the container when the run has its view."""
        return number_of(self.host.get("host_vcpus"))

    @property
    def host_memory_mib(self) -> float | None:
        """Memory of the machine, or the container's limit when the run has its view."""
        return number_of(self.host.get("host_memory_mib"))

    @property
    def cpu_limit(self) -> float | None:
        """Cores that the job may use, where a limit is known."""
        known = number_of(self.limits.get("cpus"))
        return known if known is not None else self.vcpus if self.scope == "container" else None

    @property
    def memory_limit_mib(self) -> float | None:
        """MiB that the job may use, where a limit is known."""
        known = number_of(self.limits.get("memory_mib"))
        return known if known is not None else self.host_memory_mib if self.scope == "container" else None

    def statistic(self, column: str, kind: str) -> float | None:
        """Return `mean`, `max` or `total` of a column from the description."""
        return self.statistics.get(column, {}).get(kind)


def run_of(name: str, description: Any) -> Run:
    """Make a run from the decoded `run.json` in the directory `name`; whatever it holds, this raises nothing."""
    if not isinstance(description, dict):
        return Run(name=name, run_id=name.rpartition("/")[2] or "run", is_described=False)
    statistics = _table(description.get("statistics"))
    rows = number_of(description.get("rows"))
    exit_code = number_of(description.get("exit_code"))
    return Run(
        name=name,
        run_id=text_of(description.get("run_id")) or name.rpartition("/")[2] or "run",
        state=text_of(description.get("state")),
        status=text_of(description.get("status")),
        exit_code=None if exit_code is None else int(exit_code),
        started_at=stamp_of(description.get("started_at")),
        finished_at=stamp_of(description.get("finished_at")),
        interval_s=_positive(description.get("interval_seconds")),
        rows=None if rows is None else int(rows),
        missing_rows=int(number_of(description.get("missing_rows")) or 0),
        closed_as_stale=description.get("closed_as_stale") is True,
        peak_memory_mib=_positive(description.get("peak_memory_mib")),
        accounting=text_of(description.get("accounting")),
        scope=text_of(description.get("scope")),
        metadata=_table(description.get("metadata")),
        host=_table(description.get("host")),
        cloud=_table(description.get("cloud")),
        statistics=_statistics(statistics),
        duration_s=_positive(statistics.get("duration_seconds")),
        objects=_objects(description.get("objects")),
        ending=_table(description.get("ending")),
        limits=_table(description.get("limits")),
    )


def text_of(value: Any) -> str:
    """Return a text or a number as text, anything else as empty."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def number_of(value: Any) -> float | None:
    """Return a finite number, `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def stamp_of(value: Any) -> float | None:
    """Return UNIX seconds of an ISO 8601 text or a number, `None` for anything else."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
            value = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    number = number_of(value)
    return number if number is not None and 0 <= number <= _MAX_STAMP_S else None


def _positive(value: Any) -> float | None:
    number = number_of(value)
    return number if number is not None and number > 0 else None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[str] | None:
    """Return names of files in the run's own directory: a description from elsewhere leads nowhere else."""
    if not isinstance(value, list):
        return None
    return [name for name in value if isinstance(name, str) and "/" not in name and name not in {"", ".", ".."}]


def _statistics(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        column: {kind: number for kind, value in figures.items() if (number := number_of(value)) is not None}
        for column, figures in found.items()
        if isinstance(figures, dict)
    }
