"""What names a run: the same as long as the process lives, another one otherwise."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sentinel_collector.delivery.failover import rank_uploaders
from sentinel_collector.run_key import run_key_of_host, run_key_of_process, successor_run_key
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.messages import MAX_RUN_KEY_CHARS


def test_a_process_keeps_its_key_and_another_has_another() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        key = run_key_of_process(child.pid)
        assert key == run_key_of_process(child.pid)
        assert key != run_key_of_process(os.getpid())
        child.communicate(b"\n")


def fake_proc(directory: Path, *, boot: str, start: int, name: str = "x") -> str:
    (directory / "sys/kernel/random").mkdir(parents=True)
    (directory / "sys/kernel/random/boot_id").write_text(boot + "\n")
    (directory / "7").mkdir()
    fields = ["S", *["0"] * 18, str(start), "0"]
    (directory / "7/stat").write_text(f"7 ({name}) " + " ".join(fields))
    return str(directory)


def test_boot_and_start_time_are_part_of_the_key_and_the_name_is_not(tmp_path: Path) -> None:
    first = run_key_of_process(7, proc=fake_proc(tmp_path / "a", boot="1", start=5))
    assert first == run_key_of_process(7, proc=fake_proc(tmp_path / "b", boot="1", start=5, name="a) S 1 (b"))
    others = [
        run_key_of_process(7, proc=fake_proc(tmp_path / "c", boot="2", start=5)),
        run_key_of_process(7, proc=fake_proc(tmp_path / "d", boot="1", start=6)),
    ]
    assert len({first, *others}) == 3


def test_a_process_that_is_gone_has_a_key_too() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert run_key_of_process(child.pid).startswith("process-")


def test_a_host_has_a_key_for_each_state_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert run_key_of_host(str(tmp_path)) == run_key_of_host(str(tmp_path / "link"))
    assert run_key_of_host(str(tmp_path)) != run_key_of_host(str(tmp_path / "x"))
    assert os.uname().nodename not in run_key_of_host(str(tmp_path))


def test_what_follows_a_run_has_its_name_and_never_grows() -> None:
    key = "~home/nightly~1"
    first = successor_run_key(key, "0123456789ab")
    assert first == "~home/nightly~1~0123456789ab"
    assert successor_run_key(first, "ffffffffffff") == "~home/nightly~1~ffffffffffff"
    assert len(successor_run_key("x" * MAX_RUN_KEY_CHARS, "0123456789ab")) <= MAX_RUN_KEY_CHARS


def test_runs_are_spread_over_uploaders_and_stay_where_they_are() -> None:
    addresses = [parse_address(f"tcp://10.0.0.{number}:5555", bind=False) for number in range(1, 5)]
    keys = [f"run-{number}" for number in range(400)]
    chosen = {key: rank_uploaders(addresses, key)[0] for key in keys}
    assert chosen == {key: rank_uploaders(addresses[::-1], key)[0] for key in keys}
    assert all(60 <= count <= 140 for count in Counter(chosen.values()).values())
    # Without one of them only its own runs move.
    left = addresses[1:]
    for key in keys:
        assert rank_uploaders(left, key) == [one for one in rank_uploaders(addresses, key) if one in left]
    assert all(rank_uploaders(left, key)[0] == address for key, address in chosen.items() if address in left)
