"""Which mounts are real file systems, and that each is counted once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from locations import SOURCE_PATH

from sentinel_collector.sensors.linux import filesystems
from sentinel_collector.sensors.linux.filesystems import (
    FilesystemSensor,
    Mount,
    block_types,
    parse_mountinfo,
    real_mounts,
)

BLOCK = frozenset({"ext4", "xfs", "btrfs", "vfat", "squashfs", "iso9660"})


def mount(device: str, point: str, kind: str, source: str = "/dev/sda1") -> Mount:
    return Mount(device, point, kind, source)


def test_mountinfo_is_taken_apart() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime master:1 shared:2 - ext3 /dev/my\\040root rw,errors=continue\n"
        b"37 35 0:4 / /proc rw - proc proc rw\n"
        b"truncated\n"
        b"38 35 8:1 /\n"
    )
    assert list(parse_mountinfo(text)) == [
        Mount("98:0", "/mnt/a b\\c", "ext3", "/dev/my root"),
        Mount("0:4", "/proc", "proc", "proc"),
    ]


def test_a_source_that_is_no_escaped_path_is_taken_as_it_is() -> None:
    text = b"36 35 0:51 / /mnt/c rw - 9p \\\\host\\981\\000\\04 rw\n37 35 0:4 / /a rw - f\xff none rw\n"
    assert list(parse_mountinfo(text)) == [
        Mount("0:51", "/mnt/c", "9p", "\\\\host\\981\\000\\04"),
        Mount("0:4", "/a", "f\udcff", "none"),
    ]


@pytest.mark.parametrize(
    ("one", "real"),
    [
        (mount("8:1", "/", "ext4"), True),
        (mount("8:2", "/boot/efi", "vfat"), True),
        (mount("0:4", "/proc", "proc", "proc"), False),
        (mount("0:5", "/dev/shm", "tmpfs", "tmpfs"), False),
        (mount("7:1", "/snap/core/1", "squashfs", "/dev/loop1"), False),
        (mount("11:0", "/media/cdrom", "iso9660", "/dev/sr0"), False),
        (mount("7:2", "/mnt/image", "ext4", "/dev/loop2"), False),
        (mount("0:50", "/data", "nfs4", "server:/export"), False),
        (mount("0:51", "/efs", "fuse.s3fs", "s3fs"), False),
        (mount("0:52", "/", "overlay", "overlay"), True),
        (mount("0:53", "/", "virtiofs", "root"), True),
        (mount("0:54", "/tank", "zfs", "tank/data"), True),
        (mount("0:2", "/", "rootfs", "rootfs"), False),
    ],
    ids=lambda value: value.kind + value.point if isinstance(value, Mount) else "",
)
def test_what_is_a_real_file_system(one: Mount, real: bool) -> None:
    assert bool(real_mounts([one], block_types=BLOCK)) is real


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "filesystems").write_text("nodev\tproc\nnodev\ttmpfs\n\text4\n\tbtrfs\n")
    return tmp_path


def device_of(path: Path) -> str:
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def space_of(proc: Path, *lines: str) -> tuple[int, int, int] | None:
    (proc / "self/mountinfo").write_text("".join(f"{line}\n" for line in lines))
    sensor = FilesystemSensor(proc=str(proc))
    try:
        return sensor.read()
    finally:
        sensor.close()


def test_bind_mounts_subvolumes_and_overlays_are_counted_once(proc: Path) -> None:
    here, point = device_of(proc), str(proc)
    (proc / "bind").mkdir()
    once = space_of(proc, f"1 0 {here} / {point} rw - ext4 /dev/sda1 rw")
    assert once is not None
    assert once[0] == os.statvfs(point).f_blocks * os.statvfs(point).f_frsize
    again = space_of(
        proc,
        f"1 0 {here} / {point} rw - ext4 /dev/sda1 rw",
        f"2 0 {here} /bind {point}/bind rw - ext4 /dev/sda1 rw",
        f"3 0 0:99 / {point}/bind rw - overlay overlay rw,upperdir={point}",
    )
    assert again is not None
    assert again[0] == once[0]
    subvolumes = space_of(
        proc,
        f"1 0 0:77 /a {point} rw - btrfs /dev/sda2 rw",
        f"2 0 0:77 /b {point}/bind rw - btrfs /dev/sda2 rw",
    )
    assert subvolumes is not None
    assert subvolumes[0] == once[0]
    overlay_alone = space_of(proc, f"3 0 0:99 / {point}/bind rw - overlay overlay rw")
    assert overlay_alone is not None
    assert overlay_alone[0] == once[0]


def test_data_sets_of_a_pool_share_its_free_space(proc: Path) -> None:
    point = str(proc)
    (proc / "data").mkdir()
    found = space_of(proc, f"1 0 0:60 / {point} rw - zfs tank rw", f"2 0 0:61 / {point}/data rw - zfs tank/data rw")
    assert found is not None
    total, used, free = found
    one = os.statvfs(point)
    assert total == used + free
    assert abs(free - one.f_bavail * one.f_frsize) < 1 << 30


def test_a_mount_that_is_covered_or_gone_is_left_out(proc: Path) -> None:
    assert space_of(proc, f"1 0 250:9 / {proc} rw - ext4 /dev/sdz1 rw") is None
    assert space_of(proc, "1 0 250:9 / /does/not/exist rw - ext4 /dev/sdz1 rw") is None
    assert space_of(proc) is None


def test_a_machine_without_a_list_of_mounts_has_no_figure(tmp_path: Path) -> None:
    sensor = FilesystemSensor(proc=str(tmp_path))
    assert sensor.read() is None
    sensor.close()
    assert "ext4" in block_types(str(tmp_path))


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="needs Linux' /proc")
def test_this_machines_root_is_part_of_the_sum() -> None:
    sensor = FilesystemSensor(proc="/proc")
    found = sensor.read()
    sensor.close()
    if found is not None:
        assert found.total >= found.used > 0


def can_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def test_a_mount_that_comes_or_goes_is_noticed(tmp_path: Path) -> None:
    if not can_unshare():
        pytest.skip("needs a mount name space of its own")
    code = """
import os, subprocess, sys
from sentinel_collector.sensors.linux.filesystems import FilesystemSensor
base = sys.argv[1]
sensor = FilesystemSensor(proc="/proc")
def total():
    found = sensor.read()
    return found.total if found else 0
print(total())
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", base], check=True)
for name in "lower", "upper", "work", "merged":
    os.mkdir(f"{base}/{name}")
options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
mounted = subprocess.run(["mount", "-t", "overlay", "-o", options, "none", f"{base}/merged"], capture_output=True)
print(mounted.returncode)
print(total())
subprocess.run(["umount", f"{base}/merged"])
print(total())
"""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE_PATH},
    )
    assert done.returncode == 0, done.stderr
    before, mounted, during, after = map(int, done.stdout.split())
    if mounted != 0:
        pytest.skip("no overlay file system here")
    assert during == before + (8 << 20)
    assert after == before


HUNG_MOUNTS = """\
1 0 {here} / / rw - ext4 /dev/sda1 rw
2 1 0:50 / {remote} rw - fuseblk /dev/sdb1 rw
3 2 0:51 / {remote}/below rw - xfs /dev/sdc1 rw
"""


def test_a_file_system_that_hangs_empties_the_figure_and_holds_nothing_up(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call hangs in another process, which is told to the process tree and ends with the sensor."""
    remote, gate = proc / "remote", proc / "gate"
    real_statvfs, ours = os.statvfs, os.getpid()

    def statvfs(path: str) -> os.statvfs_result:
        while str(path).startswith(str(remote)) and gate.exists():
            time.sleep(0.01)
        return real_statvfs("/")

    def is_on_top(mount: Mount) -> bool:
        assert os.getpid() != ours or mount.point == "/", "our own process looks at it"
        return True

    monkeypatch.setattr(os, "statvfs", statvfs)
    (proc / "self/mountinfo").write_text(HUNG_MOUNTS.format(here=device_of(Path("/")), remote=remote))
    remote.mkdir()
    monkeypatch.setattr(filesystems, "_is_on_top", is_on_top)
    (proc / "filesystems").write_text("nodev\tproc\n\text4\n\txfs\n\tfuseblk\n")
    (remote / "below").mkdir()
    warnings: list[str] = []
    started: list[int] = []
    sensor = FilesystemSensor(proc=str(proc), warn=warnings.append, on_started=started.append)
    first = sensor.read()
    assert first is not None
    assert first.total == 3 * real_statvfs("/").f_blocks * real_statvfs("/").f_frsize
    gate.touch()
    assert [sensor.read() for _ in range(3)] == [None] * 3
    assert len(warnings) == 1
    gate.unlink()
    found = None
    while found is None:
        found = sensor.read()
    assert found.total == first.total
    (pid,) = started
    os.kill(pid, signal.SIGKILL)
    while sensor.read() is not None:
        pass
    assert sensor.read() is not None
    assert len(started) == 2
    sensor.close()
    for pid in started:
        while True:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                break
