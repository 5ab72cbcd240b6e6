"""The container's view: limits of the cgroups stand in for the machine, and what is used of them for what is used."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes.process_harness import COLLECTOR, Home, python, rows_of_file
from locations import SOURCE_PATH

from sentinel_collector.discovery.host import host_info
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors import baseline
from sentinel_collector.sensors.cgroup.container_view import ContainerView, detect_container, is_in_container
from sentinel_collector.sensors.cgroup.hierarchy import find_mounts
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.wire.messages import Finish, decode_from_collector, encode
from sentinel_protocol.wire.sample import COLUMNS

MIB = 1 << 20
needs_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.call(["unshare", "-C", "-m", "true"]) != 0,
    reason="only root may make name spaces, with unshare(1)",
)
CONTAINED = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
V2_STAT = (
    f"anon {90 * MIB}\nfile {60 * MIB}\nslab_reclaimable {4 * MIB}\n"
    f"inactive_anon {10 * MIB}\nactive_anon {80 * MIB}\ninactive_file {40 * MIB}\nactive_file {20 * MIB}\n"
)
V1_STAT = (
    f"cache {1 * MIB}\ninactive_file 0\ntotal_cache {60 * MIB}\ntotal_inactive_anon {10 * MIB}\n"
    f"total_active_anon {80 * MIB}\ntotal_inactive_file {40 * MIB}\ntotal_active_file {20 * MIB}\n"
)


class Machine:
    """A made-up `/proc` of 8 GiB, and cgroup hierarchies."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.proc = directory / "proc"
        self.own = self.proc / "self"
        (self.own / "ns").mkdir(parents=True)
        (self.proc / "net").mkdir()
        self.names("cgroup:[4026531835]", "pid:[4026531836]")
        (self.proc / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 5242880 kB\nMemAvailable: 6291456 kB\n")
        (self.proc / "stat").write_text("cpu  1000 0 500 0\ncpu0 1\ncpu1 1\nprocesses 9\n")
        (self.proc / "diskstats").write_text("")
        (self.proc / "net/dev").write_text("a\nb\n")
        self._mounts = ["30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
        self._paths: list[str] = []

    def names(self, cgroup: str, pid: str) -> None:
        for name, target in (("cgroup", cgroup), ("pid", pid)):
            (self.own / "ns" / name).unlink(missing_ok=True)
            (self.own / "ns" / name).symlink_to(target)

    def mount(self, names: str, path: str, *, root: str = "/", whole: bool = False) -> Path:
        """Mount a hierarchy (`""`: v2) of which `root` is to be seen, with us in `path`; return our cgroup."""
        place = self.directory / f"cgroup of {names or 'v2'}"
        directory = place / path[len(root.rstrip("/")) :].lstrip("/")
        directory.mkdir(parents=True)
        if whole and names:
            (place / "release_agent").write_text("")
        if not names:
            for each in (place, *directory.parents, directory):
                if each.is_relative_to(place) and not (whole and each == place):
                    (each / "cgroup.type").write_text("domain\n")
        kind = "cgroup" if names else "cgroup2"
        written = str(place).replace(" ", "\\040")
        self._mounts.append(f"31 30 0:27 {root} {written} ro,nosuid master:9 - {kind} {kind} rw,{names}")
        self._paths.append(f"{3 if names else 0}:{names}:{path}")
        (self.own / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.own / "cgroup").write_text("\n".join(self._paths) + "\n")
        return directory

    def view(self, scope: str = "container", environ: Mapping[str, str] | None = None) -> ContainerView | None:
        return detect_container(scope, environ or {}, proc=str(self.proc), root=str(self.directory))


def write(directory: Path, **files: object) -> None:
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def use_v2(directory: Path, *, usage_us: int = 0, current: int = 150 * MIB) -> None:
    write(
        directory,
        cpu__stat=f"usage_usec {usage_us}\nuser_usec {usage_us * 3 // 4}\nsystem_usec {usage_us // 4}",
        memory__current=current,
        memory__stat=V2_STAT,
        cgroup__procs="7\n8\n9",
    )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def opened(view: ContainerView | None) -> ContainerView:
    assert view is not None
    return view


def test_v2_container_has_its_limits_and_its_use(machine: Machine) -> None:
    own = machine.mount("", "/")
    write(own, cpu__max="150000 100000", memory__max=512 * MIB, cpuset__cpus__effective="0-3,8")
    use_v2(own, usage_us=1_000_000)
    view = opened(machine.view())
    assert (view.vcpus, view.memory_mib, view.limited) == (2, 512.0, True)
    memory = view.memory()
    assert memory is not None
    assert (memory.free, memory.used, memory.cached) == (362 * 1024, 110 * 1024, 64 * 1024)
    assert (memory.active, memory.inactive) == (100 * 1024, 50 * 1024)
    use_v2(own, usage_us=1_400_000)
    assert view.cpu_growth_us() == (300_000, 100_000)
    assert view.cpu_growth_us() == (0, 0)
    view.close()


@pytest.mark.parametrize("cpu", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("root", ["/docker/4711", "/"])
def test_v1_container_has_its_limits_and_its_use(machine: Machine, cpu: str, root: str) -> None:
    # Without a cgroup name space paths are those of the machine, and a part of the tree is mounted.
    cpu_place = machine.mount(cpu, root, root=root)
    cpuacct = cpu_place if "cpuacct" in cpu else machine.mount("cpuacct", root, root=root)
    memory_place = machine.mount("memory", root, root=root)
    cpuset = machine.mount("cpuset", root, root=root)
    write(cpu_place, cpu__cfs_quota_us=400000, cpu__cfs_period_us=100000)
    write(cpuacct, cpuacct__usage=2_000_000_000, cpuacct__stat="user 150\nsystem 50")
    write(cpuset, cpuset__cpus="1-2")
    write(memory_place, memory__limit_in_bytes=256 * MIB, memory__usage_in_bytes=150 * MIB, memory__stat=V1_STAT)
    view = opened(machine.view())
    assert (view.vcpus, view.memory_mib, view.limited) == (2, 256.0, True)
    memory = view.memory()
    assert memory is not None
    assert (memory.free, memory.used, memory.cached) == (106 * 1024, 110 * 1024, 60 * 1024)
    write(cpuacct, cpuacct__usage=2_400_000_000, cpuacct__stat="user 180\nsystem 60")
    assert view.cpu_growth_us() == (300_000, 100_000)
    view.close()


def test_the_tightest_limit_counts_and_the_use_of_its_own_cgroup(machine: Machine) -> None:
    own = machine.mount("", "/kube/pod/box", whole=True)
    pod, kube = own.parent, own.parent.parent
    for directory, current in ((own, 50), (pod, 150), (kube, 1500)):
        use_v2(directory, usage_us=current * 1000, current=current * MIB)
    write(own, cpu__max="max 100000", memory__max="max")
    write(pod, cpu__max="200000 100000", memory__max=300 * MIB)
    write(kube, cpu__max="600000 100000", memory__max=4096 * MIB)
    view = opened(machine.view("auto", CONTAINED))
    assert (view.memory_mib, view.processes()) == (300.0, 3 + 3)
    memory = view.memory()
    assert memory is not None
    assert memory.used == 110 * 1024
    use_v2(pod, usage_us=170_000)
    growth = view.cpu_growth_us()
    assert growth is not None
    assert sum(growth) == 20_000
    view.close()


def test_the_quota_of_cpu_finds_its_counter_in_cpuacct(machine: Machine) -> None:
    quota = machine.mount("cpu", "/slice/job/step", whole=True)
    counter = machine.mount("cpuacct", "/slice/job/step", whole=True)
    write(quota.parent, cpu__cfs_quota_us=50000, cpu__cfs_period_us=100000)
    write(counter, cpuacct__usage=1000, cpuacct__stat="user 0\nsystem 0")
    write(counter.parent, cpuacct__usage=5000, cpuacct__stat="user 0\nsystem 0")
    view = opened(machine.view())
    write(counter.parent, cpuacct__usage=9000, cpuacct__stat="user 0\nsystem 0")
    assert (view.vcpus, view.cpu_growth_us(), view.has_memory) == (1, (4, 0), False)
    view.close()


@pytest.mark.parametrize("limit", [None, "max", "9223372036854771712", str(16 << 30)])
def test_without_a_limit_the_hosts_view_is_taken_unless_asked_otherwise(machine: Machine, limit: str | None) -> None:
    own = machine.mount("", "/")
    use_v2(own)
    if limit is not None:
        write(own, cpu__max="max 100000", memory__max=limit)
    assert machine.view("auto", CONTAINED) is None
    assert machine.view("host", CONTAINED) is None
    view = opened(machine.view("container", CONTAINED))
    assert (view.limited, view.memory_mib) == (False, None)
    memory = view.memory()
    assert memory is not None
    assert (memory.used, memory.free) == (110 * 1024, None)
    view.close()


def test_limits_outside_a_container_are_no_reason_for_its_view(machine: Machine) -> None:
    own = machine.mount("", "/system.slice/some.service", whole=True)
    use_v2(own)
    write(own, cpu__max="100000 100000", memory__max=512 * MIB)
    assert machine.view("auto") is None
    opened(machine.view("container")).close()


@pytest.mark.parametrize("content", ["", "0::/\n", "nonsense\n\n:::\n", "0::/../..\n"])
def test_without_cgroups_there_is_no_view(machine: Machine, content: str) -> None:
    (machine.own / "cgroup").write_text(content)
    (machine.own / "mountinfo").write_text("\n1 2 3\n1 2 0:3 /.. /nowhere rw - cgroup2 cgroup2 rw\n")
    assert machine.view() is None


def test_the_whole_machines_root_is_no_container(machine: Machine) -> None:
    root = machine.mount("", "/", whole=True)
    write(root, cpu__stat="usage_usec 1\nuser_usec 1\nsystem_usec 0")
    assert machine.view() is None


def test_a_container_is_known_by_its_name_spaces_and_by_what_engines_leave(machine: Machine, tmp_path: Path) -> None:
    def contained(environ: dict[str, str] | None = None) -> bool:
        return is_in_container(environ or {}, proc=str(machine.proc), root=str(tmp_path))

    assert not contained()
    assert contained(CONTAINED)
    assert contained({"container": "podman"})
    machine.names("cgroup:[4026532999]", "pid:[4026531836]")
    assert contained()
    machine.names("cgroup:[4026531835]", "pid:[4026532999]")
    assert contained()
    machine.names("cgroup:[4026531835]", "pid:[4026531836]")
    (tmp_path / "run").mkdir()
    for name in (".dockerenv", "run/.containerenv"):
        (tmp_path / name).touch()
        assert contained()
        (tmp_path / name).unlink()
    assert not contained()


def test_rows_and_host_fields_are_the_containers(machine: Machine) -> None:
    own = machine.mount("", "/")
    write(own, cpu__max="100000 100000", memory__max=512 * MIB)
    use_v2(own)
    proc = str(machine.proc)
    clock = SystemClock()
    before = baseline.Baseline(clock, proc=proc)
    view = opened(machine.view("auto", CONTAINED))
    sampler = Sampler(
        clock=clock,
        baseline=before,
        root_pid=None,
        own_child=False,
        interval_s=1.0,
        container=view,
        proc=proc,
        sys=proc,
    )
    use_v2(own, usage_us=4)
    row = sampler.sample()
    assert (row.system_processes, row.system_utime, row.system_stime) == (3, 3e-6, 1e-6)
    assert (row.system_memory_used_mib, row.system_memory_free_mib, row.system_memory_buffers_mib) == (110, 362, None)
    assert (row.system_memory_cached_mib, row.system_memory_active_mib, row.system_memory_inactive_mib) == (64, 100, 50)
    (own / "memory.current").unlink()
    (own / "cpu.stat").write_text("")
    row = sampler.sample()
    assert (row.system_memory_used_mib, row.system_utime) == (None, None)
    sampler.close()
    info = host_info(container=view, proc=proc)
    assert (info["host_vcpus"], info["host_memory_mib"]) == (1, 512.0)
    assert info["host_server_allocation"] == "shared"


def test_in_a_pid_name_space_of_its_own_proc_tells_the_processes(machine: Machine) -> None:
    use_v2(machine.mount("", "/"))
    machine.names("cgroup:[4026532999]", "pid:[4026532998]")
    view = opened(machine.view())
    assert view.processes() is None
    view.close()


def test_the_view_travels_to_the_uploader_and_an_older_end_has_none() -> None:
    finish = Finish(3, 0, "finished", 1.0, 2.0, "cgroup", "container")
    assert decode_from_collector(encode(finish)) == finish
    older = decode_from_collector(b"\x97\xa6finish\x03\x00\xa8finished\xcb\x3f\xf0\0\0\0\0\0\0\xc0\xa4proc")
    assert isinstance(older, Finish)
    assert (older.accounting, older.scope) == ("proc", "")


class Box:
    """Real v1 cgroups below our own: 400 MiB, half a processor."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        for place in find_mounts():
            for name in place.controllers & {"memory", "cpu", "cpuacct"}:
                path = f"{place.directory}/test-box-{os.getpid()}"
                os.makedirs(path, exist_ok=True)
                self.paths[name] = path
        Path(self.paths["memory"], "memory.limit_in_bytes").write_text(str(400 * MIB))
        Path(self.paths["cpu"], "cpu.cfs_quota_us").write_text("50000")

    def around(self, *words: str) -> list[str]:
        enter = "".join(f'echo $$ > "{path}/tasks" && ' for path in set(self.paths.values()))
        return ["sh", "-c", f'{enter}exec "$@"', "sh", *words]

    def close(self) -> None:
        for path in set(self.paths.values()):
            os.rmdir(path)


def can_box() -> bool:
    places = [place for place in find_mounts() if not place.is_v2]
    return {"memory", "cpu", "cpuacct"} <= set().union(*(place.controllers for place in places)) and all(
        os.access(place.directory, os.W_OK) and not os.statvfs(place.directory).f_flag & os.ST_RDONLY
        for place in places
    )


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


def boxed_run(home: Home, box: Box, *words: str, **environ: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    home.start_uploader()
    holding = python(
        "import time; held = b'x' * (150 << 20); end = time.monotonic() + 1\nwhile time.monotonic() < end: 0"
    )
    output = home.directory / "rows.csv"
    words = (COLLECTOR, *words, "--interval", "0.4", "--output", str(output), "--connect", home.address, "--wait", "30")
    done = home.run(*box.around(*words, "--", *holding), env=environ)
    assert done.returncode == 0, done.stderr
    (run,) = home.local_runs()
    rows = [dict(zip(COLUMNS, row.split(","), strict=True)) for row in rows_of_file(output)]
    return run, rows


@pytest.mark.skipif(not can_box(), reason="no v1 cgroups with limits can be made here; the made-up trees are the test")
@pytest.mark.parametrize(("words", "environ"), [(("--scope", "container"), {}), ((), {"container": "docker"})])
def test_collector_in_a_real_cgroup_shows_its_limits(
    home: Home, box: Box, words: tuple[str, ...], environ: dict[str, str]
) -> None:
    run, rows = boxed_run(home, box, *words, **environ)
    assert run["scope"] == "container"
    assert (run["host"]["host_vcpus"], run["host"]["host_memory_mib"]) == (1, 400.0)
    assert 150 < max(float(row["system_memory_used_mib"]) for row in rows) < 400
    assert 0 <= min(float(row["system_memory_free_mib"]) for row in rows) < 250
    assert {row["system_memory_buffers_mib"] for row in rows} == {""}
    total = sum(float(row["system_utime"]) + float(row["system_stime"]) for row in rows)
    tree = sum(float(row["process_utime"]) + float(row["process_stime"]) for row in rows)
    # All of the box: the job and, from the base line on, the collector.
    assert 0.05 < tree <= total < tree + 2.0


@pytest.mark.skipif(not can_box(), reason="no v1 cgroups with limits can be made here; the made-up trees are the test")
def test_collector_asked_for_the_host_shows_it_whatever_the_limits(home: Home, box: Box) -> None:
    run, rows = boxed_run(home, box, "--scope", "host")
    assert run["scope"] == "host"
    assert run["host"]["host_vcpus"] == os.cpu_count()
    assert run["host"]["host_memory_mib"] > 400
    assert rows[-1]["system_memory_buffers_mib"] != ""


@needs_unshare
def test_collector_says_when_there_is_no_container_to_show(home: Home) -> None:
    home.start_uploader()
    nothing_to_see = 'umount -a -t cgroup,cgroup2 2>/dev/null; umount -l /sys/fs/cgroup 2>/dev/null; exec "$@"'
    words = (COLLECTOR, "--scope", "container", "--accounting", "cgroup", "--connect", home.address, "--wait", "30")
    done = home.run("unshare", "-m", "sh", "-c", nothing_to_see, "sh", *words, "--", "true")
    assert done.returncode == 0
    assert "no cgroup accounts for this container: the system columns show the host" in done.stderr
    assert "no cgroup for the run, CPU time is read from /proc: no cgroup hierarchy counts CPU time" in done.stderr
    (run,) = home.local_runs()
    assert (run["scope"], run["accounting"]) == ("host", "proc")


def test_scope_is_checked(home: Home) -> None:
    done = home.collector("--scope", "galaxy", "--", "true")
    assert done.returncode == 2
    assert "--scope: 'galaxy': must be one of auto, host, container" in done.stderr


@needs_unshare
def test_a_real_cgroup_name_space_is_a_container() -> None:
    code = "from sentinel_collector.sensors.cgroup.container_view import is_in_container; print(is_in_container({}))"
    command = ["unshare", "-C", *python(code)]
    env = {"PYTHONPATH": SOURCE_PATH, "PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert json.loads(done.stdout.lower())


def test_a_container_with_the_machines_root_mounted_records_the_machine(machine: Machine) -> None:
    root, clock = str(machine.directory), SystemClock()
    (machine.proc / "1/net").mkdir(parents=True)
    counters = machine.proc / "1/net/dev"
    counters.write_text("a\nb\neth0: 100 0 0 0 0 0 0 0 10 0 0 0 0 0 0 0\n")
    (machine.directory / "sys/class/net/eth0/device").mkdir(parents=True)
    (machine.own / "mountinfo").write_text("")
    before = baseline.Baseline(clock, host_root=root)
    counters.write_text("a\nb\neth0: 350 0 0 0 0 0 0 0 60 0 0 0 0 0 0 0\n")
    sampler = Sampler(
        clock=clock, baseline=before, root_pid=None, own_child=False, interval_s=1.0, host_root=str(machine.directory)
    )
    row = sampler.sample()
    sampler.close()
    # `net/dev` beside it is the reader's own name space.
    assert (row.system_net_recv_bytes, row.system_net_sent_bytes) == (250, 50)
    assert row.system_memory_free_mib == 5120.0
    assert row.system_processes == 1


def test_who_records_the_machine_has_no_limits_of_its_own(machine: Machine) -> None:
    directory = machine.mount("", "/docker/abc", root="/docker/abc")
    use_v2(directory)
    (directory / "memory.max").write_text(f"{512 * MIB}\n")
    machine.names("cgroup:[4026532000]", "pid:[4026531836]")
    proc = str(machine.proc)
    assert detect_container("auto", {}, proc=proc) is not None
    assert detect_container("auto", {}, proc=proc, records_host=True) is None


def test_a_host_root_that_is_none_is_refused(home: Home) -> None:
    done = home.collector("--host-root", str(home.directory), "--", "true")
    assert done.returncode == 2
    assert f"--host-root: {str(home.directory)!r}: must be where the machine's root directory is mounted" in done.stderr
