"""What the machine is: the contract's host fields."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sentinel_collector.discovery.host import cpu_model, host_info

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux' /proc")

ARM64 = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) @ 2GHz\nprocessor\t: 1\n", "Intel(R) Xeon(R) @ 2GHz"),
        (ARM64, "ARM Neoverse-N1"),
        (ARM64.replace("0x41", "0x99").replace("0xd0c", "0x123"), "0x99 0x123"),
        (ARM64 + "Hardware\t: BCM2835\n", "BCM2835"),
        ("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n", "POWER9, altivec supported"),
        ("processor\t: 0\n", ""),
    ],
    ids=["x86", "arm64", "unknown arm64", "arm board", "power", "nothing"],
)  # fmt: skip
def test_the_processors_name(tmp_path: Path, text: str, model: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_model(proc=str(tmp_path), sys=str(tmp_path)) == model


def test_the_device_trees_name_stands_in(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    (tmp_path / "firmware/devicetree/base").mkdir(parents=True)
    (tmp_path / "firmware/devicetree/base/model").write_bytes(b"Some Board 4\0")
    assert cpu_model(proc=str(tmp_path), sys=str(tmp_path)) == "Some Board 4"


@linux
def test_hardware_is_told_and_identity_is_not() -> None:
    info = host_info()
    assert info["host_vcpus"] == os.cpu_count()
    memory_mib = info["host_memory_mib"]
    assert isinstance(memory_mib, float)
    assert memory_mib > 100
    assert info.keys() <= {
        "host_vcpus",
        "host_cpu_model",
        "host_memory_mib",
        "host_storage_gb",
        "host_server_allocation",
    }


@linux
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="with one processor there is no part of them")
def test_a_machine_is_dedicated_unless_the_run_is_pinned_to_a_part_of_it() -> None:
    found = {}
    for pinned in (False, True):
        affinity = f"os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); " if pinned else ""
        look = "from sentinel_collector.discovery.host import host_info; print(host_info()['host_server_allocation'])"
        words = [sys.executable, "-c", f"import os; {affinity}{look}"]
        found[pinned] = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    whole = len(os.sched_getaffinity(0)) == os.cpu_count()
    assert found == {False: "dedicated" if whole else "shared", True: "shared"}


@linux
def test_identity_is_told_on_request(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    info = host_info(share_identity=True, etc=str(tmp_path))
    assert info["host_id"] == "0123456789abcdef0123456789abcdef"
    assert info["host_hostname"] == os.uname().nodename
    assert not str(info.get("host_ip", "")).startswith("127.")


def test_an_image_that_never_booted_has_no_id(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("uninitialized\n")
    info = host_info(share_identity=True, proc=str(tmp_path), sys=str(tmp_path), etc=str(tmp_path))
    assert "host_id" not in info
    assert isinstance(info["host_memory_mib"], float)


def test_a_container_with_the_machines_root_mounted_tells_of_the_machine(tmp_path: Path) -> None:
    for name, text in (
        ("proc/meminfo", "MemTotal: 2048 kB\n"),
        ("proc/cpuinfo", "model name : Host CPU\n"),
        ("etc/hostname", "the-machine\n"),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    info = host_info(share_identity=True, host_root=str(tmp_path))
    assert info["host_memory_mib"] == 2.0
    assert info["host_cpu_model"] == "Host CPU"
    assert info["host_server_allocation"] == "dedicated"
    assert (info["host_hostname"], info["host_id"]) == ("the-machine", "0123456789abcdef0123456789abcdef")
    # The address that we could see is the container's.
    assert "host_ip" not in info
