"""The machine's counters before the job starts. Reading them takes 0.1 ms and imports nothing heavy."""

from sentinel_collector.procfs import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sentinel_protocol.common.clock import Clock


class Baseline:
    """Raw `/proc/stat`, `/proc/diskstats` and `/proc/net/dev` (empty where missing), and the time of reading.

    `status` is this process' own `/proc/self/status`: its peak shows in the `ru_maxrss` of the processes it spawns.
    `wall` is in UNIX seconds, `monotonic` in the clock's monotonic seconds.
    """

    __slots__ = ("diskstats", "monotonic", "net_dev", "stat", "status", "wall")

    def __init__(
        self, *, stat: bytes, diskstats: bytes, net_dev: bytes, status: bytes = b"", wall: float, monotonic: float
    ) -> None:
        self.stat = stat
        self.diskstats = diskstats
        self.net_dev = net_dev
        self.status = status
        self.wall = wall
        self.monotonic = monotonic


def capture(clock: "Clock", *, proc: str = "/proc", host_root: str = "") -> Baseline:
    """Read the counters that the first row's growth is measured against; never raises.

    The machine's counters are below `host_root`; `status` is this process' in any case.
    """
    return Baseline(
        stat=read_whole(f"{host_root}{proc}/stat"),
        diskstats=read_whole(f"{host_root}{proc}/diskstats"),
        net_dev=read_whole(f"{network_proc(proc, host_root)}/net/dev"),
        status=read_whole(f"{proc}/self/status"),
        wall=clock.now(),
        monotonic=clock.monotonic(),
    )


def network_proc(proc: str, host_root: str) -> str:
    """Return the directory whose `net` is the machine's. `/proc/net` shows the reader's own network name space.

    Below `host_root` it is the first process' directory (`proc(5)`), which everybody can read.
    """
    return f"{host_root}{proc}/1" if host_root else proc
