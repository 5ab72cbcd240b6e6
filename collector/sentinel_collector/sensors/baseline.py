"""The counters as they were before the job: read before it is started, when nothing heavy is imported yet (0.1 ms)."""

from sentinel_collector.procfs import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sentinel_protocol.common.clock import Clock


class Baseline:
    """Raw `/proc/stat`, `/proc/diskstats` and `/proc/net/dev` (empty where missing), and when they were read.

    `status` is this process' own `/proc/self/status`: its peak shows in the `ru_maxrss` of what it spawns.
    `wall` is UNIX seconds, `monotonic` the clock's monotonic seconds.
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

    The machine's own are below `host_root`; `status` is always this process'.
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
    """Return the directory whose `net` is the machine's: `/proc/net` is that of the reader's name space.

    Below `host_root` it is that of the first process (`proc(5)`), readable by everybody.
    """
    return f"{host_root}{proc}/1" if host_root else proc
