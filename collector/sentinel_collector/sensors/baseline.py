"""The machine's counters before the job starts. Reading them takes 0.1 ms and imports nothing heavy."""

from sentinel_collector.procfs import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sentinel_protocol.common.clock import Clock


class Baseline:
    """Raw `/proc/stat`, `/proc/diskstats` and `/proc/net/dev` (empty where missing), and the time of reading.

    The first row's growth is measured against these counters, which are the machine's below `host_root`. `status` is
    this process' own `/proc/self/status`: its peak shows in the `ru_maxrss` of the processes it spawns. `wall` is in
    UNIX seconds, `monotonic` in the clock's monotonic seconds.
    """

    __slots__ = ("diskstats", "monotonic", "net_dev", "stat", "status", "wall")

    def __init__(self, clock: "Clock", *, proc: str = "/proc", host_root: str = "") -> None:
        """Read the counters; never raises."""
        self.stat = read_whole(f"{host_root}{proc}/stat")
        self.diskstats = read_whole(f"{host_root}{proc}/diskstats")
        self.net_dev = read_whole(f"{network_proc(proc, host_root)}/net/dev")
        self.status = read_whole(f"{proc}/self/status")
        self.wall = clock.now()
        self.monotonic = clock.monotonic()


def continued_baseline(first: Baseline, clock: "Clock", *, host_root: str = "") -> Baseline:
    """Return the counters now; `status` is still that of the process which has started the job."""
    now = Baseline(clock, host_root=host_root)
    now.status = first.status
    return now


def network_proc(proc: str, host_root: str) -> str:
    """Return the directory whose `net` is the machine's. `/proc/net` shows the reader's own network name space.

    Below `host_root` it is the first process' directory (`proc(5)`), which everybody can read.
    """
    return f"{host_root}{proc}/1" if host_root else proc
