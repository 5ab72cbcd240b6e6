"""CPU, memory, disks, network and processes of the machine, from made-up files and from the real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sentinel_collector.procfs import FdBudget, ProcFile, stat_fields
from sentinel_collector.sensors.interfaces import MemoryReading
from sentinel_collector.sensors.linux.cpu import TICK_US, CpuSensor
from sentinel_collector.sensors.linux.disk import DiskSensor, is_whole_disk
from sentinel_collector.sensors.linux.memory import MemorySensor
from sentinel_collector.sensors.linux.network import NetworkSensor, counted_interfaces
from sentinel_collector.sensors.linux.process_count import ProcessCountSensor

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux' /proc")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stat_text(user: int, nice: int, system: int, *, cpus: int = 2, forks: int = 77) -> str:
    lines = [f"cpu  {user} {nice} {system} 900 5 6 7 8 9 10"]
    lines += [f"cpu{index} 1 2 3 4" for index in range(cpus)]
    return "\n".join([*lines, "intr 1 2 3", "ctxt 5", f"processes {forks}", "procs_running 1"]) + "\n"


def test_cpu_time_is_user_with_nice_and_system_since_the_base_line(tmp_path: Path) -> None:
    put(tmp_path / "stat", stat_text(110, 25, 50))
    sensor = CpuSensor(proc=str(tmp_path), baseline=stat_text(100, 20, 40).encode())
    assert sensor.read() == (2, 77, 15 * TICK_US, 10 * TICK_US)
    assert sensor.read()[2:] == (0, 0)
    sensor.close()


def test_a_cpu_counter_that_falls_has_not_grown(tmp_path: Path) -> None:
    put(tmp_path / "stat", stat_text(50, 0, 60))
    sensor = CpuSensor(proc=str(tmp_path), baseline=stat_text(100, 20, 40).encode())
    assert sensor.read()[2:] == (0, 20 * TICK_US)
    sensor.close()


@pytest.mark.parametrize("text", ["", "cpu", "cpu  x y z q\n", "intr 5\n"])
def test_a_broken_stat_is_unknown(tmp_path: Path, text: str) -> None:
    put(tmp_path / "stat", text)
    sensor = CpuSensor(proc=str(tmp_path), baseline=b"")
    assert sensor.read()[2:] == (None, None)
    sensor.close()


def test_memory_is_found_by_name_and_again_when_the_order_changes(tmp_path: Path) -> None:
    text = "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 600 kB\nBuffers: 10 kB\nCached: 200 kB\n"
    text += "Active: 70 kB\nInactive: 80 kB\nSReclaimable: 30 kB\nHugePages_Total: 0\n"
    put(tmp_path / "meminfo", text)
    sensor = MemorySensor(proc=str(tmp_path))
    expected = MemoryReading(free=300, used=400, buffers=10, cached=230, active=70, inactive=80)
    assert sensor.read() == expected
    assert sensor.read() == expected
    put(tmp_path / "meminfo", "Fresh: 5 kB\n" + text)
    assert sensor.read() == expected
    put(tmp_path / "meminfo", text.replace("MemAvailable: 600 kB\n", ""))
    assert sensor.read().used == 1000 - 300 - 10 - 230
    put(tmp_path / "meminfo", "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 600 kB\n")
    assert sensor.read() == MemoryReading(free=300, used=400)
    put(tmp_path / "meminfo", "MemTotal: 1000 kB\nMemFree: 300 kB\nBuffers: 10 kB\n")
    assert sensor.read() == MemoryReading(free=300, buffers=10)
    put(tmp_path / "meminfo", "MemTotal: 1")
    assert sensor.read() == MemoryReading()
    sensor.close()


DISKS = """   7       0 loop0 9 0 900 0 9 0 900 0 0 0 0
   8       0 sda 5 0 100 0 5 0 200 0 0 0 0
   8       1 sda1 5 0 100 0 5 0 200 0 0 0 0
 259       0 nvme0n1 1 0 8 0 2 0 16 0 0 0 0 0 0 0 0 0 0
 259       1 nvme0n1p1 1 0 8 0 2 0 16 0 0 0 0 0 0 0 0 0 0
 253       0 dm-0 5 0 100 0 5 0 200 0 0 0 0
   9       0 md0 5 0 100 0 5 0 200 0 0 0 0
 104       0 cciss/c0d0 1 0 1 0 1 0 1 0 0 0 0
 259       2 nvme1c0n1 1 0 4000 0 2 0 4000 0 0 0 0
 251       0 vmap0 1 0 4000 0 2 0 4000 0 0 0 0
   8      16 sdb
"""


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    for name in ("loop0", "sda", "nvme0n1", "dm-0", "md0", "cciss!c0d0", "nvme1c0n1", "vmap0", "sdc"):
        (tmp_path / "sys/block" / name / "slaves").mkdir(parents=True)
    put(tmp_path / "sys/block/nvme1c0n1/hidden", "1\n")
    put(tmp_path / "sys/block/nvme0n1/hidden", "0\n")
    (tmp_path / "sys/block/vmap0/slaves/sda").mkdir()
    put(tmp_path / "sys/block/nvme0n1/queue/hw_sector_size", "4096\n")
    return tmp_path


def test_whole_disks_are_counted_once_in_units_of_512_bytes(disks: Path) -> None:
    put(
        disks / "diskstats", DISKS.replace("0 100 0 5 0 200", "0 130 0 5 0 260").replace("0 8 0 2 0 16", "0 9 0 2 0 18")
    )
    sensor = DiskSensor(proc=str(disks), sys=str(disks / "sys"), baseline=DISKS.encode())
    # 30 and 60 sectors of sda, 1 and 2 of a disk whose own sectors have 4,096 bytes.
    assert sensor.read() == (31 * 512, 62 * 512)
    assert sensor.read() == (0, 0)
    sensor.close()


def test_a_disk_that_appears_or_was_reset_counts_from_then_on(disks: Path) -> None:
    put(disks / "diskstats", DISKS + "   8      32 sdc 5 0 10 0 5 0 20 0 0 0 0\n")
    sensor = DiskSensor(proc=str(disks), sys=str(disks / "sys"), baseline=DISKS.encode())
    assert sensor.read() == (0, 0)
    put(disks / "diskstats", DISKS + "   8      32 sdc 5 0 3 0 5 0 24 0 0 0 0\n")
    assert sensor.read() == (0, 4 * 512)
    put(disks / "diskstats", DISKS + "   8      32 sdc 5 0 5 0 5 0 24 0 0 0 0\n")
    assert sensor.read() == (2 * 512, 0)
    # Another disk of the same name.
    put(disks / "diskstats", DISKS)
    assert sensor.read() == (0, 0)
    put(disks / "diskstats", DISKS + "   8      32 sdc 5 0 900 0 5 0 900 0 0 0 0\n")
    assert sensor.read() == (0, 0)
    sensor.close()


@pytest.mark.parametrize("damaged", ["x5 0 200", "-130 0 5 0 260", "130 0 5 0 " + "9" * 20])
def test_a_damaged_line_costs_its_disk_one_reading(disks: Path, damaged: str) -> None:
    sensor = DiskSensor(proc=str(disks), sys=str(disks / "sys"), baseline=DISKS.encode())
    put(disks / "diskstats", DISKS.replace("0 100 0 5 0 200", f"0 {damaged}"))
    assert sensor.read() == (0, 0)
    put(disks / "diskstats", DISKS.replace("0 100 0 5 0 200", "0 130 0 5 0 260"))
    assert sensor.read() == (30 * 512, 60 * 512)
    sensor.close()


@pytest.mark.parametrize("first", ["head", "path"])
@pytest.mark.parametrize("head_counts", [False, True])
def test_a_multipath_nvme_counts_once_where_its_kernel_counts_it(disks: Path, first: str, head_counts: bool) -> None:
    def text(path: int) -> str:
        head = 2 * path if head_counts else 0
        lines = [f" 259 2 nvme7n1 1 0 {head} 0 2 0 {head} 0 0 0 0\n"]
        lines += [f" 259 {number} nvme7c{number}n1 1 0 {path} 0 2 0 {path} 0 0 0 0\n" for number in (3, 4)]
        return "".join(lines if first == "head" else reversed(lines))

    (disks / "sys/block/nvme7n1/slaves").mkdir(parents=True)
    for number in (3, 4):
        put(disks / f"sys/block/nvme7c{number}n1/hidden", "1\n")
    put(disks / "diskstats", text(150))
    sensor = DiskSensor(proc=str(disks), sys=str(disks / "sys"), baseline=text(100).encode())
    assert sensor.read() == (100 * 512, 100 * 512)
    sensor.close()


def test_without_a_base_line_the_first_reading_is_it(disks: Path) -> None:
    put(disks / "diskstats", DISKS)
    sensor = DiskSensor(proc=str(disks), sys=str(disks / "sys"), baseline=b"")
    assert sensor.read() == (0, 0)
    sensor.close()


@pytest.mark.parametrize(
    ("name", "whole"),
    [("sda", True), ("sda1", False), ("nvme0n1", True), ("nvme0n1p1", False), ("nvme1c0n1", False), ("vmap0", False),
     ("dm-0", False), ("md0", False), ("loop0", False), ("cciss/c0d0", True)],
)  # fmt: skip
def test_what_is_a_whole_disk(disks: Path, name: str, whole: bool) -> None:
    assert is_whole_disk(name, sys=str(disks / "sys")) is whole


def net_text(**counters: tuple[int, int]) -> str:
    lines = [f"{name:>6}: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0" for name, (received, sent) in counters.items()]
    return "\n".join(["Inter-| Receive | Transmit", " face |bytes packets |bytes packets", *lines]) + "\n"


def interface(sys: Path, name: str, *, hardware: bool = False, master: str = "", files: tuple[str, ...] = ()) -> None:
    directory = sys / "class/net" / name
    directory.mkdir(parents=True)
    if hardware:
        (directory / "device").mkdir()
    if master:
        (directory / "master").symlink_to(f"../{master}")
    for file in files:
        (directory / file).mkdir()


def test_with_hardware_only_the_hardware_counts(tmp_path: Path) -> None:
    sys = tmp_path / "sys"
    interface(sys, "lo")
    interface(sys, "eth0", hardware=True)
    interface(sys, "eth1", hardware=True, master="bond0")
    interface(sys, "enP1", hardware=True, master="eth0")
    interface(sys, "bond0", files=("bonding", "lower_eth1"))
    interface(sys, "docker0", files=("bridge",))
    interface(sys, "veth1", files=("brport",), master="docker0")
    interface(sys, "wg0", files=("tun_flags",))
    names = ["lo", "eth0", "eth1", "enP1", "bond0", "docker0", "veth1", "wg0"]
    assert counted_interfaces(sys_net=str(sys / "class/net"), names=names) == {"eth0", "eth1"}


def test_in_a_container_the_links_end_counts(tmp_path: Path) -> None:
    sys = tmp_path / "sys"
    for name in ("lo", "eth0", "tunl0"):
        interface(sys, name)
    interface(sys, "vlan5", files=("lower_eth0",))
    names = ["lo", "eth0", "tunl0", "vlan5"]
    assert counted_interfaces(sys_net=str(sys / "class/net"), names=names) == {"eth0"}
    assert counted_interfaces(sys_net=str(tmp_path / "none"), names=["lo", "eth0"]) == {"eth0"}


def test_taps_count_where_nothing_else_does(tmp_path: Path) -> None:
    sys = tmp_path / "sys"
    interface(sys, "lo")
    interface(sys, "tap0", files=("tun_flags",))
    interface(sys, "dummy0")
    names = ["lo", "tap0", "dummy0"]
    assert counted_interfaces(sys_net=str(sys / "class/net"), names=names) == {"tap0"}
    interface(sys, "eth0")
    assert counted_interfaces(sys_net=str(sys / "class/net"), names=[*names, "eth0"]) == {"eth0"}


def test_an_interface_that_comes_or_is_renamed_counts_from_its_first_reading(tmp_path: Path) -> None:
    interface(tmp_path / "sys", "tap0", files=("tun_flags",))
    sensor = NetworkSensor(proc=str(tmp_path), sys=str(tmp_path / "sys"), baseline=net_text(tap0=(10, 10)).encode())
    put(tmp_path / "net/dev", net_text(tap0=(12, 13)))
    assert sensor.read() == (2, 3)
    interface(tmp_path / "sys", "eth0")
    put(tmp_path / "net/dev", net_text(tap0=(20, 20), eth0=(5000, 5000)))
    assert sensor.read() == (0, 0)
    put(tmp_path / "net/dev", net_text(tap0=(30, 30), eth0=(5001, 5002)))
    assert sensor.read() == (1, 2)
    (tmp_path / "sys/class/net/eth0").rename(tmp_path / "sys/class/net/ens3")
    put(tmp_path / "net/dev", net_text(tap0=(30, 30), ens3=(5001, 5002)))
    assert sensor.read() == (0, 0)
    put(tmp_path / "net/dev", net_text(tap0=(30, 30), ens3=(5002, 4)))
    assert sensor.read() == (1, 0)
    sensor.close()


def test_network_bytes_leave_loopback_out(tmp_path: Path) -> None:
    interface(tmp_path / "sys", "eth0", hardware=True)
    interface(tmp_path / "sys", "lo")
    put(tmp_path / "net/dev", net_text(lo=(5000, 5000), eth0=(150, 270)))
    before = net_text(lo=(10, 10), eth0=(100, 200)).encode()
    sensor = NetworkSensor(proc=str(tmp_path), sys=str(tmp_path / "sys"), baseline=before)
    assert sensor.read() == (50, 70)
    put(tmp_path / "net/dev", net_text(lo=(5000, 5000), eth0=(151, 270)))
    assert sensor.read() == (1, 0)
    put(tmp_path / "net/dev", net_text(lo=(5000, 5000), eth0=(-9, 280)))
    assert sensor.read() == (0, 0)
    os.unlink(tmp_path / "net/dev")
    sensor.close()
    assert sensor.read() == (None, None)


@linux
def test_processes_are_counted_by_links_as_by_a_listing() -> None:
    sensor = ProcessCountSensor(proc="/proc")
    sensor.read()
    before = sensor.read()
    job = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    counted = sensor.read()
    listed = sum(name.isdigit() for name in os.listdir("/proc"))
    job.communicate(b"\n")
    assert before is not None
    assert counted is not None
    assert abs(counted - listed) <= 5


def test_where_links_do_not_hold_processes_are_listed(tmp_path: Path) -> None:
    for name in ("1", "22", "333", "sys", "self/ns"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink("pid:[4026531836]", tmp_path / "self/ns/pid")
    (tmp_path / "uptime").write_text("")
    sensor = ProcessCountSensor(proc=str(tmp_path))
    # Here the directory's link count holds its directories alone: three too many of them.
    assert [sensor.read() for _ in range(6)] == [3] * 6
    assert ProcessCountSensor(proc=str(tmp_path / "none")).read() is None


def test_a_descriptor_that_went_bad_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "stat", stat_text(1, 1, 1))
    sensor = CpuSensor(proc=str(tmp_path), baseline=b"")
    sensor.read()
    (kept,) = [fd for fd in os.listdir("/proc/self/fd") if _link(fd) == str(tmp_path / "stat")]
    write_only = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.dup2(write_only, int(kept))
    os.close(write_only)
    assert sensor.read().user_us == 0
    sensor.close()


def test_long_files_are_read_whole(tmp_path: Path) -> None:
    text = "x" * 200_000
    put(tmp_path / "long", text)
    file = ProcFile(str(tmp_path / "long"))
    assert file.read() == file.read_list() == file.read() == text.encode()
    file.close()


def test_descriptors_are_given_back_on_failure(tmp_path: Path) -> None:
    descriptors = FdBudget(1)
    directory = ProcFile(str(tmp_path), descriptors)
    for _ in range(3):
        with pytest.raises(OSError, match="directory"):
            directory.read()
    assert descriptors.available == 1


def test_a_name_may_hold_parentheses_and_spaces() -> None:
    line = b"12 (a) R (b c) S 7 12 12 0 -1 rest of it"
    assert stat_fields(line, 2)[:2] == [b"S", b"7"]
    with pytest.raises(ValueError, match="truncated"):
        stat_fields(b"12 (x) S 7", 22)


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
