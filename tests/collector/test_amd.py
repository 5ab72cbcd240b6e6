"""AMD GPUs: made-up sysfs and /proc trees, laid out as the kernel does."""

import os
import shutil
from pathlib import Path

import pytest
from fakes.nvml import GpuReader, HandClock, NvmlPlay, break_library, build_nvml_stub
from fakes.unprivileged import unprivileged

from sentinel_collector.sensors.gpu.amd import AmdGpus, find_amd_cards
from sentinel_collector.sensors.gpu.devices import DeviceFacts, DeviceReading, GpuFaultError, describe_devices
from sentinel_collector.sensors.gpu.drm_clients import FORGET_AFTER_SCANS, DrmClient, parse_fdinfo
from sentinel_collector.sensors.interfaces import GpuReading

MIB = 1 << 20
FIRST, SECOND = "0000:03:00.0", "0000:83:00.0"
FDINFO = """\
pos:\t0
flags:\t02100002
mnt_id:\t27
ino:\t1049
drm-driver:\tamdgpu
drm-client-id:\t{client}
drm-pdev:\t{pci}
pasid:\t32770
drm-total-vram:\t999999 KiB
drm-shared-vram:\t0
drm-memory-vram:\t{vram_kib} KiB
drm-memory-gtt: \t4096 KiB
drm-engine-gfx:\t{gfx_ns} ns
drm-engine-compute:\t{compute_ns} ns
drm-engine-capacity-compute:\t4
drm-engine-dma:\t77777777 ns
"""


class Machine:
    """A sysfs and a /proc; files are written as the kernel would show them."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.proc = root / "sys", root / "proc"
        (self.sysfs / "class/drm").mkdir(parents=True)
        self.proc.mkdir()

    def add_card(self, number: int, *, vendor: str = "0x1002", pci: str = FIRST, **files: str) -> Path:
        device = self.sysfs / f"class/drm/card{number}/device"
        (device / "power").mkdir(parents=True)
        (self.sysfs / f"class/drm/card{number}-DP-1").mkdir()
        self.write(device / "vendor", vendor)
        self.write(device / "uevent", f"DRIVER=amdgpu\nPCI_ID=1002:740F\nPCI_SLOT_NAME={pci}")
        self.write(device / "power/runtime_status", "active")
        for name, text in files.items():
            self.write(device / name, text)
        return device

    def add_amd_card(self, number: int, *, pci: str = FIRST, busy: int = 25, used_mib: int = 512) -> Path:
        return self.add_card(
            number,
            pci=pci,
            gpu_busy_percent=str(busy),
            mem_info_vram_used=str(used_mib * MIB),
            mem_info_vram_total=str(65520 * MIB),
        )

    def open_file(self, pid: int, descriptor: int, target: str) -> None:
        directory = self.proc / f"{pid}/fd"
        directory.mkdir(parents=True, exist_ok=True)
        link = directory / str(descriptor)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def open_gpu(
        self,
        pid: int,
        descriptor: int,
        *,
        client: int,
        pci: str = FIRST,
        vram_mib: int = 0,
        gfx_s: float = 0,
        compute_s: float = 0,
    ) -> None:
        self.open_file(pid, descriptor, "/dev/dri/renderD128")
        text = FDINFO.format(
            client=client,
            pci=pci,
            vram_kib=vram_mib << 10,
            gfx_ns=int(gfx_s * 1e9),
            compute_ns=int(compute_s * 1e9),
        )
        (self.proc / f"{pid}/fdinfo").mkdir(exist_ok=True)
        self.write(self.proc / f"{pid}/fdinfo/{descriptor}", text)

    def write(self, path: Path, text: str) -> None:
        path.write_text(text + "\n")


class Gpus:
    """The cards of a machine, read at times that the test sets."""

    def __init__(self, machine: Machine) -> None:
        self.clock = HandClock()
        self.source = AmdGpus(find_amd_cards(str(machine.sysfs)), clock=self.clock, proc=str(machine.proc))

    def read(self, *pids: int, after_s: float = 1.0) -> list[DeviceReading]:
        self.clock.elapsed_s += after_s
        return self.source.devices(pids)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_only_amd_cards_count_in_the_order_of_their_numbers(machine: Machine) -> None:
    machine.add_card(10, pci=SECOND)
    machine.add_card(0, vendor="0x8086")
    machine.add_card(2, pci=FIRST)
    assert [card.pci_address for card in find_amd_cards(str(machine.sysfs))] == [FIRST, SECOND]


def test_usage_and_memory_come_from_sysfs(machine: Machine) -> None:
    machine.add_amd_card(0, busy=25, used_mib=512)
    machine.add_amd_card(1, pci=SECOND, busy=0, used_mib=10)
    assert Gpus(machine).read() == [DeviceReading(0.25, 512, 0, 0), DeviceReading(0, 10, 0, 0)]


def test_a_card_that_does_not_tell_its_usage_leaves_it_unknown(machine: Machine) -> None:
    (machine.add_amd_card(0) / "gpu_busy_percent").unlink()
    assert Gpus(machine).read() == [DeviceReading(None, 512, 0, 0)]


def test_a_card_that_sleeps_uses_nothing_and_is_not_woken(machine: Machine) -> None:
    device = machine.add_amd_card(0)
    (device / "gpu_busy_percent").unlink()
    machine.write(device / "power/runtime_status", "suspended")
    assert Gpus(machine).read() == [DeviceReading(0, 0, 0, 0)]


def test_a_card_that_is_gone_is_a_fault_and_comes_back(machine: Machine) -> None:
    device = machine.add_amd_card(0)
    gpus = Gpus(machine)
    gpus.read()
    shutil.rmtree(device)
    with pytest.raises(GpuFaultError, match=r"0000:03:00\.0"):
        gpus.read()
    (machine.sysfs / "class/drm/card0-DP-1").rmdir()
    machine.add_amd_card(0, busy=10)
    assert gpus.read() == [DeviceReading(0.1, 512, 0, 0)]


def test_a_client_counts_once_across_descriptors_and_processes(machine: Machine) -> None:
    machine.add_amd_card(0)
    for pid, descriptor in ((7, 5), (7, 6), (8, 5)):
        machine.open_gpu(pid, descriptor, client=3, vram_mib=100, gfx_s=1, compute_s=2)
    gpus = Gpus(machine)
    assert gpus.read(7, 8) == [DeviceReading(0.25, 512, None, 100)], "no interval has passed yet"
    for pid, descriptor in ((7, 5), (7, 6), (8, 5)):
        machine.open_gpu(pid, descriptor, client=3, vram_mib=120, gfx_s=1.5, compute_s=2.25)
    machine.open_gpu(8, 9, client=4, vram_mib=1, gfx_s=0.5)
    assert gpus.read(7, 8, after_s=2) == [DeviceReading(0.25, 512, (0.5 + 0.25 + 0.5) / 2, 121)]


def test_each_card_gets_its_own_clients_and_other_processes_none(machine: Machine) -> None:
    machine.add_amd_card(0)
    machine.add_amd_card(1, pci=SECOND)
    gpus = Gpus(machine)
    gpus.read()
    machine.open_gpu(7, 3, client=1, pci=SECOND, vram_mib=50, gfx_s=0.5)
    machine.open_gpu(9, 3, client=2, vram_mib=70, gfx_s=0.9)
    assert [reading[2:4] for reading in gpus.read(7)] == [(0, 0), (0.5, 50)]


def test_a_client_older_than_the_interval_has_no_usage_at_first(machine: Machine) -> None:
    machine.add_amd_card(0)
    gpus = Gpus(machine)
    gpus.read()
    machine.open_gpu(7, 3, client=1, gfx_s=3600)
    assert gpus.read(7)[0].process_usage == 0
    machine.open_gpu(7, 3, client=1, gfx_s=3600.25)
    assert gpus.read(7)[0].process_usage == 0.25


def test_a_counter_that_falls_is_passed_by_before_it_counts_again(machine: Machine) -> None:
    machine.add_amd_card(0)
    gpus = Gpus(machine)
    usage = []
    for gfx_s in (10, 10.5, 10.2, 10.75):
        machine.open_gpu(7, 3, client=1, gfx_s=gfx_s)
        usage.append(gpus.read(7)[0].process_usage)
    assert usage == [None, 0.5, 0, 0.25]


def test_a_tree_never_uses_more_than_the_whole_card(machine: Machine) -> None:
    machine.add_amd_card(0)
    gpus = Gpus(machine)
    gpus.read()
    machine.open_gpu(7, 3, client=1, gfx_s=0.9, compute_s=0.9)
    assert gpus.read(7)[0].process_usage == 1


def test_a_process_that_ended_uses_nothing(machine: Machine) -> None:
    machine.add_amd_card(0)
    gpus = Gpus(machine)
    gpus.read(7)
    assert gpus.read(7) == [DeviceReading(0.25, 512, 0, 0)]


def test_a_rocm_process_has_memory_but_no_usage_that_could_be_known(machine: Machine) -> None:
    machine.add_amd_card(0)
    gpus = Gpus(machine)
    gpus.read()
    machine.open_gpu(7, 3, client=1, vram_mib=2048)
    machine.open_file(7, 4, "/dev/kfd")
    assert gpus.read(7) == [DeviceReading(0.25, 512, None, 2048)]


def test_a_descriptor_that_became_a_gpu_is_found_after_some_readings(machine: Machine) -> None:
    machine.add_amd_card(0)
    machine.open_file(7, 3, "socket:[123]")
    gpus = Gpus(machine)
    gpus.read(7)
    machine.open_gpu(7, 3, client=1, vram_mib=5)
    vram = [gpus.read(7)[0].process_vram_mib for _ in range(FORGET_AFTER_SCANS)]
    assert vram[0] == 0
    assert vram[-1] == 5


@pytest.mark.parametrize(("state", "share"), [("Z", (0, 0)), ("S", (None, None))])
def test_a_process_of_somebody_else_is_unknown_but_a_zombie_uses_nothing(
    state: str, share: tuple[float | None, float | None], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_amd_card(0)
    machine.open_gpu(7, 3, client=1)
    (machine.proc / "7/fd").chmod(0)
    machine.write(machine.proc / "7/stat", f"7 (a) S b) {state} 1 7 7 0")
    clock = HandClock()
    # The way to the tree is closed to the user that we become: start inside.
    machine.proc.parent.chmod(0o755)
    monkeypatch.chdir(machine.proc.parent)
    source = AmdGpus(find_amd_cards("sys"), clock=clock, proc="proc")
    source.devices([])
    clock.elapsed_s += 1
    with unprivileged(), pytest.raises(PermissionError):
        os.listdir("proc/7/fd")
    with unprivileged():
        readings = source.devices([7])
    assert [reading[2:4] for reading in readings] == [share]


def test_fdinfo_is_read_as_the_kernel_documents_it() -> None:
    text = FDINFO.format(client=12, pci=FIRST, vram_kib=2048, gfx_ns=5, compute_ns=7)
    assert parse_fdinfo(text.encode()) == DrmClient(FIRST, 12, 12, 2048 << 10)
    resident = text + "drm-resident-vram:\t3 MiB\n"
    assert parse_fdinfo(resident.encode()) == DrmClient(FIRST, 12, 12, 3 * MIB)
    in_bytes = text.replace("2048 KiB", "4096")
    assert parse_fdinfo(in_bytes.encode()) == DrmClient(FIRST, 12, 12, 4096)
    assert parse_fdinfo(text.replace("amdgpu", "i915").encode()) is None
    assert parse_fdinfo(b"pos:\t0\nflags:\t02\n") is None
    assert parse_fdinfo(text.replace("2048 KiB", "many").encode()) is None


def test_facts_name_the_product_or_its_pci_id(machine: Machine) -> None:
    device = machine.add_amd_card(0)
    assert Gpus(machine).source.facts() == [DeviceFacts("AMD GPU 1002:740F", 65520)]
    machine.write(device / "product_name", "AMD INSTINCT MI210")
    assert Gpus(machine).source.facts() == [DeviceFacts("AMD INSTINCT MI210", 65520)]


def test_memory_of_all_gpus_is_left_out_when_one_does_not_tell() -> None:
    devices = [DeviceFacts("a", 100), DeviceFacts("b", None), DeviceFacts("b", 100)]
    assert describe_devices(devices) == {"host_gpu_count": 3, "host_gpu_model": "b"}


def test_the_sensor_reads_amd_cards_without_pynvml_and_warns_once_when_one_is_gone(
    machine: Machine, tmp_path: Path
) -> None:
    device = machine.add_amd_card(0)
    machine.open_gpu(7, 3, client=1, vram_mib=5)
    with GpuReader(break_library(tmp_path), sysfs=machine.sysfs, proc=machine.proc) as reader:
        opened = reader.open()
        reader.read([])
        machine.open_gpu(7, 3, client=1, vram_mib=5, gfx_s=0.5)
        answer = reader.read([7])
        shutil.rmtree(device)
        gone = [reader.read([7]) for _ in range(3)]
    assert opened.info == {"host_gpu_model": "AMD GPU 1002:740F", "host_gpu_count": 1, "host_gpu_memory_mib": 65520}
    assert answer.reading == GpuReading(0.25, 512, 1, 0.5, 5, 1)
    assert not answer.has_pynvml
    assert {one.reading for one in gone} == {GpuReading(None, None, None, None, None, None)}
    (warning,) = gone[-1].warnings
    assert "AMD GPU 0000:03:00.0" in warning


def test_gpus_of_both_vendors_are_one_sum(machine: Machine, tmp_path: Path) -> None:
    machine.add_amd_card(0, busy=25, used_mib=512)
    play = NvmlPlay(tmp_path)
    play.say("device 0 used 100 reserved 0 total 24000 util 50 mig 0 name NVIDIA L4")
    with GpuReader(build_nvml_stub(tmp_path), play, sysfs=machine.sysfs, proc=machine.proc) as reader:
        info = reader.open().info
        assert reader.read([]).reading == GpuReading(0.75, 612, 2, 0, 0, 0)
    assert info == {"host_gpu_model": "NVIDIA L4", "host_gpu_count": 2, "host_gpu_memory_mib": 89520}


def test_a_broken_nvidia_driver_leaves_the_amd_cards_readable(machine: Machine, tmp_path: Path) -> None:
    machine.add_amd_card(0)
    play = NvmlPlay(tmp_path)
    play.say("error nvmlInitWithFlags - 18")
    with GpuReader(build_nvml_stub(tmp_path), play, sysfs=machine.sysfs, proc=machine.proc) as reader:
        opened = reader.open()
        answer = reader.read([])
    assert answer.reading == GpuReading(0.25, 512, 1, 0, 0, 0)
    assert play.count("error nvmlInitWithFlags -") == 1
    assert (opened.warnings, len(answer.warnings)) == ([], 1)


def test_one_card_of_two_that_is_gone_is_left_out(machine: Machine) -> None:
    machine.add_amd_card(0, busy=10)
    device = machine.add_amd_card(1, busy=20)
    gpus = Gpus(machine)
    gpus.read()
    shutil.rmtree(device)
    first, second = gpus.read()
    assert (first.usage, first.fault) == (0.1, "")
    assert second.usage is None
    assert "it is gone" in second.fault
