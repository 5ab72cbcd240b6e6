"""This process' cgroup in each mounted hierarchy (`cgroups(7)`; `/proc/PID/mountinfo`: `proc(5)`).

Imports `os` alone: the job waits for it.
"""

from __future__ import annotations

import os

from sentinel_collector.procfs import read_whole


class CgroupMount:
    """One hierarchy as it is mounted here.

    `controllers` are those of a v1 hierarchy, empty for v2. `directory` is our own cgroup, `top` the topmost visible
    one: the root of the hierarchy, or a container's own cgroup.
    """

    def __init__(self, *, controllers: frozenset[str], is_v2: bool, top: str, directory: str) -> None:
        self.controllers = controllers
        self.is_v2 = is_v2
        self.top = top
        self.directory = directory

    def ancestors(self) -> list[str]:
        """Return our own cgroup and those above it, nearest first, without the root, which has no limits."""
        levels = [self.directory]
        while levels[-1] != self.top:
            levels.append(os.path.dirname(levels[-1]))
        if self.is_root_visible:
            levels.pop()
        return levels

    @property
    def is_root_visible(self) -> bool:
        """Whether `top` is the hierarchy's root: the one cgroup without a type (v2) or with a release agent (v1)."""
        if self.is_v2:
            return not os.path.exists(f"{self.top}/cgroup.type")
        return os.path.exists(f"{self.top}/release_agent")


def find_mounts(proc: str = "/proc") -> list[CgroupMount]:
    """Return every mounted hierarchy in which our own cgroup is visible; never raises."""
    paths: dict[bytes, bytes] = {}
    for line in read_whole(f"{proc}/self/cgroup").splitlines():
        _number, names, path = (*line.split(b":", 2), b"", b"")[:3]
        paths[names] = path
    mounts: list[CgroupMount] = []
    for line in read_whole(f"{proc}/self/mountinfo").splitlines():
        head, _, tail = line.partition(b" - ")
        if tail.startswith(b"cgroup") and (mount := _parse_mount(head.split(), tail.split(), paths)) is not None:
            mounts.append(mount)
    return mounts


def _parse_mount(head: list[bytes], tail: list[bytes], paths: dict[bytes, bytes]) -> CgroupMount | None:
    is_v2 = tail[0] == b"cgroup2"
    names = b""
    if not is_v2:
        mounted = set(tail[-1].split(b","))
        names = next((names for names in paths if names and mounted.issuperset(names.split(b","))), b"")
        if not names:
            return None
    if names not in paths or len(head) < 5:
        return None
    below = _relative_path(paths[names], _unescape(head[3]))
    top = os.fsdecode(_unescape(head[4]))
    directory = top + os.fsdecode(below or b"")
    if below is None or not os.path.isdir(directory):
        return None
    # Of several mounts of one hierarchy the first one is used.
    del paths[names]
    controllers = frozenset(name.decode() for name in names.split(b",") if name)
    return CgroupMount(controllers=controllers, is_v2=is_v2, top=top, directory=directory)


def _relative_path(path: bytes, root: bytes) -> bytes | None:
    """Return `path` below `root`, the mounted part of the hierarchy; `None` when it is not in that part."""
    if b"/.." in path or b"/.." in root:
        return None
    root = root.rstrip(b"/")
    if path.rstrip(b"/") == root:
        return b""
    return path[len(root) :].rstrip(b"/") if path.startswith(root + b"/") else None


def _unescape(text: bytes) -> bytes:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    if b"\\" not in text:
        return text
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
        text = text.replace(code, bytes([int(code[1:], 8)]))
    return text
