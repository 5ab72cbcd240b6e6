"""Space on the mounted real file systems, each counted once, from `/proc/self/mountinfo` (`proc(5)`) and `statvfs`.

Real file systems are those on a block device of this machine, ZFS, and the root in any case (overlay in a container).
These are left out: pseudo file systems, network file systems (a dead server would block the sensor, and an elastic one
has 8 EB), read-only images, and file systems in a file of another one. A file system is identified by the device
number of its super block, which bind mounts, further mounts and btrfs subvolumes have in common. Data sets of a ZFS
pool share its free space. An overlay is left out where the file system below it is counted.

A file system that a server answers for (FUSE on a disk), or to which the path leads through one, may hang. Such ones
are read in another process with a time limit. While one hangs, there is no figure.
"""

import os
import re
import select
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sentinel_collector.procfs import read_file
from sentinel_collector.sensors.linux.hang_guard import HangGuard

_IMAGES = frozenset({"squashfs", "iso9660", "erofs", "cramfs", "romfs", "udf"})
_NEVER_ROOT = frozenset({"proc", "sysfs", "devtmpfs", "cgroup", "cgroup2", "devpts"})
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat", "ntfs3", "tmpfs", "overlay"})
"""The kernel answers `statvfs` for these from memory."""
_REMOTE = (
    "fuse",
    "nfs",
    "cifs",
    "smb",
    "9p",
    "ceph",
    "glusterfs",
    "afs",
    "lustre",
    "autofs",
    "virtiofs",
    "gpfs",
    "zfs",
)
"""Prefixes of types whose paths may hang."""
_MOUNTS_BYTES = 1 << 20
_ESCAPE = re.compile(rb"\\((?!000)[0-3][0-7]{2})")


class Space(NamedTuple):
    """Bytes. `free` is the space that an unprivileged user can take (`f_bavail`), as `df` shows it."""

    total: int
    used: int
    free: int


class Mount(NamedTuple):
    """One line of mountinfo: device number `major:minor`, mount point, type and source."""

    device: str
    point: str
    kind: str
    source: str


class FilesystemSensor:
    """Sums over the mounted real file systems. The list is made again only when the kernel reports a change.

    `warn` gets one line when a file system hangs, `on_started` the pid of the process that reads those that may.
    """

    def __init__(
        self,
        *,
        proc: str,
        warn: Callable[[str], None] = lambda _: None,
        on_started: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._proc = proc
        self._warn = warn
        self._has_warned = False
        self._local = _MountGroup([])
        self._on_started = on_started
        self._others: HangGuard[list[tuple[int, int, int]]] | None = None
        self._poll = select.poll() if hasattr(select, "poll") else None
        self._fd = -1
        self._open()
        self._select_mounts()

    def read(self) -> Space | None:
        """Return the sum of all file systems; `None` when none is known, or one hangs."""
        if self._poll is not None and self._fd >= 0 and self._poll.poll(0):
            self._select_mounts()
        spaces = self._local.spaces()
        if self._others is not None:
            try:
                spaces += (Space(*space) for space in self._others.call())
            except OSError:
                if not self._has_warned:
                    self._has_warned = True
                    self._warn("a file system does not answer: the disk space is not recorded until it does")
                return None
        for point in self._local.overlays:
            space = _space(point)
            if space is not None and all(space.total != other.total for other in spaces):
                spaces.append(space)
        if len(spaces) < 2:
            return spaces[0] if spaces else None
        return Space(*map(sum, zip(*spaces, strict=True)))

    def close(self) -> None:
        """Give the descriptor back."""
        if self._others is not None:
            self._others.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self._fd = os.open(f"{self._proc}/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        if self._poll is not None:
            # A file that cannot be polled (in tests) is always ready for POLLIN, never for POLLPRI.
            self._poll.register(self._fd, select.POLLPRI)

    def _select_mounts(self) -> None:
        mounts = self._read_mounts()
        remote = [f"{mount.point}/" for mount in mounts if mount.kind.startswith(_REMOTE) and mount.point != "/"]
        local: list[Mount] = []
        others: list[Mount] = []
        for mount in real_mounts(mounts, block_types=block_types(self._proc)):
            is_under_remote = f"{mount.point}/".startswith(tuple(remote))
            # Without the root directory nothing works.
            is_local = mount.point == "/" or (mount.kind in _LOCAL and not is_under_remote)
            (local if is_local else others).append(mount)
        self._local = _MountGroup(local)
        if self._others is not None:
            self._others.close()
        self._others = HangGuard(_MountGroup(others).tuples, on_started=self._on_started) if others else None

    def _read_mounts(self) -> list[Mount]:
        if self._fd < 0:
            return []
        data = b""
        try:
            while chunk := os.pread(self._fd, _MOUNTS_BYTES, len(data)):
                data += chunk
        except OSError:
            return []
        return list(parse_mountinfo(data))


class _MountGroup:
    """Some mounts and, once they have been looked at, the mount points to read."""

    def __init__(self, mounts: list[Mount]) -> None:
        self.mounts = mounts
        self.overlays: list[str] = []
        self._pools: list[list[str]] | None = None

    def spaces(self) -> list[Space]:
        """Return the space of each file system other than an overlay."""
        if self._pools is None:
            self._pools = self._select()
        return [space for points in self._pools if (space := _pool_space(points)) is not None]

    def tuples(self) -> list[tuple[int, int, int]]:
        """Return `spaces` as plain tuples."""
        return [(space.total, space.used, space.free) for space in self.spaces()]

    def _select(self) -> list[list[str]]:
        pools: dict[str, list[str]] = {}
        for mount in self.mounts:
            if mount.kind == "overlay":
                self.overlays.append(mount.point)
            elif mount.kind == "zfs":
                pools.setdefault("zfs " + mount.source.partition("/")[0], []).append(mount.point)
            elif mount.device not in pools and _is_on_top(mount):
                pools[mount.device] = [mount.point]
        return list(pools.values())


def parse_mountinfo(data: bytes) -> Iterator[Mount]:
    """Yield the lines of `/proc/PID/mountinfo`; malformed lines are left out."""
    for line in data.splitlines():
        head, separator, tail = line.partition(b" - ")
        fields, kinds = head.split(), tail.split()
        if separator and len(fields) >= 5 and len(kinds) >= 2:
            yield Mount(os.fsdecode(fields[2]), _unescape(fields[4]), os.fsdecode(kinds[0]), _unescape(kinds[1]))


def real_mounts(mounts: list[Mount], *, block_types: frozenset[str]) -> list[Mount]:
    """Return the mounts of real file systems (see the module's docstring), in the order of `mounts`."""
    chosen = []
    for mount in mounts:
        at_root = mount.point == "/"
        if mount.kind in _IMAGES or mount.kind in _NEVER_ROOT:
            continue
        if mount.source.startswith("/dev/loop") and not at_root:
            continue
        if mount.kind in block_types or mount.kind in {"zfs", "overlay"} or (at_root and mount.kind != "rootfs"):
            chosen.append(mount)
    return chosen


def block_types(proc: str) -> frozenset[str]:
    """Return the types of `/proc/filesystems` that need a block device (not `nodev`)."""
    try:
        lines = read_file(f"{proc}/filesystems").decode().splitlines()
    except OSError:
        return frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "f2fs"})
    return frozenset(line.strip() for line in lines if not line.startswith("nodev"))


def _unescape(text: bytes) -> str:
    r"""Undo the kernel's octal escapes of blanks and backslashes in paths (`\040`)."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), text))


def _is_on_top(mount: Mount) -> bool:
    """Whether the path leads to this mount, not to another one on top of it (whose space it would show)."""
    try:
        device = os.stat(mount.point).st_dev
    except OSError:
        return False
    # A btrfs subvolume has a device number of its own, different from the super block's.
    return mount.kind == "btrfs" or f"{os.major(device)}:{os.minor(device)}" == mount.device


def _pool_space(points: list[str]) -> Space | None:
    spaces = [space for point in points if (space := _space(point)) is not None]
    if not spaces:
        return None
    if len(spaces) == 1:
        return spaces[0]
    used, free = sum(space.used for space in spaces), max(space.free for space in spaces)
    return Space(used + free, used, free)


def _space(point: str) -> Space | None:
    try:
        found = os.statvfs(point)
    except OSError:
        return None
    if found.f_blocks == 0:
        return None
    unit = found.f_frsize
    return Space(found.f_blocks * unit, (found.f_blocks - found.f_bfree) * unit, found.f_bavail * unit)
