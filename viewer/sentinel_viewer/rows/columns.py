"""What each column counts: its unit, and how its values become figures and lines."""

from typing import NamedTuple

GAUGE = "gauge"
"""A state or a mean over the interval: it has a mean and extremes."""
COUNTER = "counter"
"""An amount of the interval: it has a total, and a rate per second."""
LABEL = "label"
"""A number that stands for something: neither sums nor means make sense."""


class Column(NamedTuple):
    """One column of the rows. `unit` is that of a value: `cores`, `MiB`, `GB`, `bytes`, `s`, `GPUs`, or empty."""

    name: str
    unit: str
    kind: str
    label: str
    decimals: int


_TABLE = (
    Column("timestamp", "s", LABEL, "time", 3),
    Column("system_processes", "", GAUGE, "processes on the host", 0),
    Column("system_utime", "s", COUNTER, "host CPU, user", 6),
    Column("system_stime", "s", COUNTER, "host CPU, system", 6),
    Column("system_cpu_usage", "cores", GAUGE, "host CPU", 4),
    Column("system_memory_free_mib", "MiB", GAUGE, "host memory, free", 3),
    Column("system_memory_used_mib", "MiB", GAUGE, "host memory, used", 3),
    Column("system_memory_buffers_mib", "MiB", GAUGE, "host memory, buffers", 3),
    Column("system_memory_cached_mib", "MiB", GAUGE, "host memory, cached", 3),
    Column("system_memory_active_mib", "MiB", GAUGE, "host memory, active", 3),
    Column("system_memory_inactive_mib", "MiB", GAUGE, "host memory, inactive", 3),
    Column("system_disk_read_bytes", "bytes", COUNTER, "host disk, read", 0),
    Column("system_disk_write_bytes", "bytes", COUNTER, "host disk, written", 0),
    Column("system_disk_space_total_gb", "GB", GAUGE, "file systems, size", 3),
    Column("system_disk_space_used_gb", "GB", GAUGE, "file systems, used", 3),
    Column("system_disk_space_free_gb", "GB", GAUGE, "file systems, free", 3),
    Column("system_net_recv_bytes", "bytes", COUNTER, "host network, received", 0),
    Column("system_net_sent_bytes", "bytes", COUNTER, "host network, sent", 0),
    Column("system_gpu_usage", "GPUs", GAUGE, "host GPUs in use", 4),
    Column("system_gpu_vram_mib", "MiB", GAUGE, "host GPU memory", 3),
    Column("system_gpu_utilized", "", GAUGE, "host GPUs above zero", 0),
    Column("process_pid", "", LABEL, "process id", 0),
    Column("process_children", "", GAUGE, "job's child processes", 0),
    Column("process_utime", "s", COUNTER, "job CPU, user", 6),
    Column("process_stime", "s", COUNTER, "job CPU, system", 6),
    Column("process_cpu_usage", "cores", GAUGE, "job CPU", 4),
    Column("process_memory_mib", "MiB", GAUGE, "job memory", 3),
    Column("process_disk_read_bytes", "bytes", COUNTER, "job disk, read", 0),
    Column("process_disk_write_bytes", "bytes", COUNTER, "job disk, written", 0),
    Column("process_gpu_usage", "GPUs", GAUGE, "job GPUs in use", 4),
    Column("process_gpu_vram_mib", "MiB", GAUGE, "job GPU memory", 3),
    Column("process_gpu_utilized", "", GAUGE, "job GPUs above zero", 0),
)
COLUMNS: dict[str, Column] = {column.name: column for column in _TABLE}


def column_of(name: str) -> Column:
    """Return what is known of a column; one of a later version counts as a gauge without a unit."""
    return COLUMNS.get(name) or Column(name, "", GAUGE, name, 6)
