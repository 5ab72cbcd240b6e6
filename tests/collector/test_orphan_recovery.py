"""What a collector could not deliver: the next one does, or says where it is. Nothing is dropped in silence."""

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.curve_uploader import Guarded
from fakes.offset_clock import OffsetClock
from fakes.process_harness import COLLECTOR, DEADLINE_S, UPLOADER, Home, rows_of_file, wait_until
from fakes.web import free_port
from rows import row

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.delivery.delivery import TOUCH_INTERVAL_S, Delivery
from sentinel_collector.delivery.orphan_recovery import OrphanRecovery
from sentinel_collector.delivery.overflow_file.file import OverflowFile, OverflowFileInUseError
from sentinel_collector.delivery.overflow_file.format import MAGIC, OverflowFileError, OverflowHeader
from sentinel_collector.delivery.state_dir import open_run_file, save_undeliverable_rows
from sentinel_collector.run_description import RunDescription
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.messages import Finish, Hello, encode
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows, decode_sample

FINISH = Finish(0, 0, "finished", 1.0)
HOUR_S = 3600.0


class Told(Console):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(Verbosity.VERBOSE)
        self.lines: list[str] = []

    def _write(self, text: str) -> None:
        self.lines.append(text)

    def has(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


class Hurried(OffsetClock):
    """What is waited for is over in a moment."""

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        is_set = event.wait(0.01)
        if not is_set:
            self.monotonic_s += timeout_s or 0.0
        return is_set


class State:
    """A state directory and what collectors do in it, in this process."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory = directory / "collector"
        self.address = parse_address(address, bind=False)
        self.told = Told()

    def delivery(
        self, key: str, *, incarnation: str = "0123456789abcdef", clock: OffsetClock | None = None
    ) -> Delivery:
        return Delivery(
            run_key=key,
            incarnation=incarnation,
            addresses=[self.address],
            local_uploader=None,
            state_dir=str(self.directory),
            description=RunDescription(
                interval_s=1.0, metadata={"job_name": key}, host={}, cloud={}, cloud_pending=False
            ),
            clock=clock or SystemClock(),
            console=self.told,
            on_welcome=lambda _: None,
        )

    def left(
        self, key: str, count: int, *, finish: Finish | None = FINISH, first: int = 1, incarnation: str = "0" * 16
    ) -> Path:
        """Be a collector that found nobody: its rows lie in a file when it ends."""
        delivery = self.delivery(key, incarnation=incarnation)
        for number in range(first, first + count):
            delivery.add(row(number))
        path = delivery.path
        assert path is not None
        delivery.close(finish)
        return Path(path)

    def deliver(
        self, *, age_s: float = HOUR_S, timeout_s: float = DEADLINE_S, clock_type: type[OffsetClock] = OffsetClock
    ) -> None:
        clock = clock_type(wall_s=age_s)
        recovery = OrphanRecovery(state_dir=str(self.directory), clock=clock, console=self.told, insecure=False)
        recovery.start(None)
        recovery.finish(timeout_s)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.suffix == ".rows")

    def kept(self) -> list[Path]:
        return sorted((self.directory / "kept").glob("*")) if (self.directory / "kept").exists() else []


@pytest.fixture
def state(home: Home) -> State:
    return State(home.directory, home.address)


def lines(first: int, last: int) -> list[str]:
    return [csv_rows([decode_sample(row(number))]).decode().rstrip("\n") for number in range(first, last + 1)]


def _delivers() -> bool:
    return any(thread.name == "orphan-recovery" for thread in threading.enumerate())


def finished_runs(home: Home) -> list[dict[str, Any]]:
    return [run for run in home.local_runs() if run["state"] == "finished"]


def test_what_one_collector_left_the_next_one_delivers(home: Home, state: State) -> None:
    """Both are the installed command, with an uploader that is not there at first."""
    output = home.directory / "rows.csv"
    words = ("--connect", home.address, "--interval", "0.1", "--state-dir", str(state.directory))
    alone = home.start(COLLECTOR, *words, "--output", str(output), "--job-name", "first")
    wait_until(lambda: output.exists() and len(rows_of_file(output)) >= 3, "the first collector samples")
    while alone.poll() is None:
        # The first one ends the sampling, another one the waiting for an uploader.
        alone.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, err = alone.communicate(timeout=DEADLINE_S)
    # One more may come when all is done and the signals are everybody's again.
    assert alone.returncode in (0, -signal.SIGTERM)
    assert re.search("samples? waits? in", err)
    assert len(state.files()) == 1
    home.start_uploader("--target", str(home.runs))
    done = home.collector(*words, "--wait", "20", "--job-name", "second", "--", "true")
    assert "delivered for an earlier collector" in done.stderr
    wait_until(lambda: len(finished_runs(home)) == 2, "both runs are delivered")
    (first,) = [run for run in finished_runs(home) if run["metadata"]["job_name"] == "first"]
    assert home.local_rows(first) == rows_of_file(output)
    assert (first["status"], first["exit_code"]) == ("finished", 0)
    assert state.files() == []


def test_rows_and_end_of_every_run_arrive_and_the_files_go(home: Home, state: State) -> None:
    for index, key in enumerate(("a", "b", "c")):
        state.left(key, 200 * index + 3)
    home.start_uploader("--target", str(home.runs))
    state.deliver()
    assert state.files() == []
    wait_until(lambda: len(finished_runs(home)) == 3, "all runs are delivered")
    for run in finished_runs(home):
        count = {"a": 3, "b": 203, "c": 403}[run["run_key"]]
        assert home.local_rows(run) == lines(1, count)


def test_an_end_without_rows_is_delivered_too(home: Home, state: State) -> None:
    state.left("only the end", 0)
    home.start_uploader("--target", str(home.runs))
    state.deliver()
    assert state.files() == []
    (run,) = wait_until(lambda: finished_runs(home), "the run is delivered")
    assert run["rows"] == 0


def test_rows_of_a_run_that_was_closed_meanwhile_are_kept_in_a_named_file(home: Home, state: State) -> None:
    state.left("night", 5)
    home.start_uploader("--target", str(home.runs))
    state.deliver()
    wait_until(lambda: finished_runs(home), "the run has ended")
    # Another collector of that run had sent rows 1 to 8 when it was killed; five of them are part of the run.
    overflow = open_run_file(str(state.directory), "night")
    hello = encode(Hello(1, "night", "another", 1.0))
    overflow.write_header(
        OverflowHeader(run_key="night", incarnation="another", uploader_url=home.address, hello=hello)
    )
    overflow.append_rows([row(number) for number in range(1, 9)], 1)
    overflow.close()
    state.deliver()
    (kept,) = state.kept()
    assert kept.name == "night-another.csv"
    assert kept.read_text().splitlines() == [CSV_HEADER.decode().rstrip("\n"), *lines(6, 8)]
    assert state.told.has("3 samples", "closed", str(kept))
    assert state.files() == []
    assert finished_runs(home)[0]["rows"] == 5


def test_a_killed_collector_s_file_is_left_to_whoever_continues_its_run_for_a_while(home: Home, state: State) -> None:
    path = state.left("killed", 4, finish=None)
    home.start_uploader("--target", str(home.runs))
    state.deliver(age_s=0.0)
    assert state.files() == [path.name]
    state.deliver(age_s=HOUR_S)
    assert [run["rows_waiting"] for run in home.status("--spool", str(home.directory / "spool"))] == [4]
    # The rows are gone from the file; that there was a run stays, for whoever continues it.
    assert state.files() == [path.name]
    overflow = OverflowFile.open(str(path))
    assert (overflow.numbered_rows, overflow.unnumbered_rows, overflow.header is not None) == (0, 0, True)
    overflow.close()
    continued = state.delivery("killed", incarnation="again")
    assert continued.is_resumed
    continued.add(row(5))
    ended(continued)
    (run,) = wait_until(lambda: finished_runs(home), "the run is delivered")
    assert home.local_rows(run) == lines(1, 5)


def test_a_file_that_came_later_is_delivered_by_the_next_look(home: Home, state: State) -> None:
    home.start_uploader("--target", str(home.runs))
    clock = OffsetClock(wall_s=HOUR_S)
    recovery = OrphanRecovery(state_dir=str(state.directory), clock=clock, console=state.told, insecure=False)
    recovery.start(None)
    for key in ("first", "second"):
        state.left(key, 3)
        wait_until(lambda: not _delivers(), "the look before is over")
        recovery.start(None)
        wait_until(lambda: state.files() == [], "the file is delivered")
    recovery.finish(DEADLINE_S)


def test_a_living_collectors_file_never_looks_abandoned(state: State) -> None:
    clock = OffsetClock()
    delivery = state.delivery("long", clock=clock)
    assert delivery.path is not None
    os.utime(delivery.path, (1.0, 1.0))
    delivery.poll()
    assert os.stat(delivery.path).st_mtime == 1.0
    clock.monotonic_s += TOUCH_INTERVAL_S
    delivery.poll()
    assert os.stat(delivery.path).st_mtime > 1.0
    delivery.close(FINISH)


def test_a_file_without_rows_is_left_alone_until_it_is_old(state: State) -> None:
    path = state.left("empty", 0, finish=None)
    state.deliver(age_s=HOUR_S)
    assert path.exists()
    state.deliver(age_s=25 * HOUR_S)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", MAGIC[:3], MAGIC])
def test_a_file_of_no_run_goes_when_it_is_some_minutes_old_and_nobody_has_it(state: State, content: bytes) -> None:
    overflow = open_run_file(str(state.directory), "nameless")
    path = Path(overflow.path)
    path.write_bytes(content)
    state.deliver(age_s=HOUR_S)
    assert path.exists(), "its collector lives"
    overflow.close()
    state.deliver(age_s=300.0)
    assert path.exists(), "it may have been made just now"
    path.write_bytes(content)
    state.deliver(age_s=HOUR_S)
    assert not path.exists()
    assert state.told.lines == []


def test_a_file_in_use_is_left_alone(home: Home, state: State) -> None:
    home.start_uploader("--target", str(home.runs))
    state.left("in use", 3)
    with_owner = open_run_file(str(state.directory), "in use")
    before = Path(with_owner.path).read_bytes()
    state.deliver()
    assert Path(with_owner.path).read_bytes() == before
    with_owner.close()


def damaged_magic(content: bytearray) -> None:
    content[0] ^= 0xFF


def damaged_head(content: bytearray) -> None:
    content[40] ^= 0xFF


def damaged_rows(content: bytearray) -> None:
    content[len(content) // 2] ^= 0xFF


@pytest.mark.parametrize("damage", [damaged_magic, damaged_head, damaged_rows])
def test_a_damaged_file_is_reported_and_its_content_never_deleted(
    state: State, damage: Callable[[bytearray], None]
) -> None:
    path = state.left("damaged", 50)
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    state.deliver(timeout_s=1.0)
    remains = b"".join(one.read_bytes() for one in sorted(state.directory.glob(f"{path.name}*")))
    assert remains == content
    assert state.told.has(str(path))


def test_a_destination_that_says_nothing_holds_up_nobody_s_end_for_long(state: State) -> None:
    path = state.left("far away", 3)
    # Far longer than the test may take.
    state.deliver(timeout_s=1000.0, clock_type=Hurried)
    assert not state.told.has("delivered")
    assert state.files() == [path.name]


def test_rows_for_an_uploader_that_does_not_run_are_told_once_with_where_they_are(state: State) -> None:
    paths = [state.left(key, 3) for key in ("one", "two")]
    for _ in range(2):
        state.deliver(timeout_s=1000.0, clock_type=Hurried)
    told = [line for line in state.told.lines if "no uploader answers" in line]
    # One line for each look of a process of its own, however many files wait for the same uploader.
    assert len(told) == 2
    assert all(state.address.url in line for line in told)
    assert any(str(path) in told[0] for path in paths)
    assert "deleting the file discards" in told[0]
    assert len(state.files()) == 2


def test_rows_for_an_uploader_that_lets_nobody_in_are_told_with_its_reason(home: Home, tmp_path: Path) -> None:
    with contextlib.closing(Guarded(tmp_path)) as guarded:
        state = State(home.directory, guarded.url)
        state.left("one", 3)

        def is_told() -> bool:
            # What it wants is not always read before it hangs up.
            state.deliver()
            return state.told.has(f"wait for {guarded.url}, whose uploader requires keys (--server-key, --key), in ")

        wait_until(is_told, "its reason is told")


def test_rows_beyond_this_machine_are_not_sent_without_keys(home: Home, state: State) -> None:
    state.address = parse_address("tcp://192.0.2.1:5555", bind=False)
    path = state.left("beyond", 3)
    state.deliver()
    assert state.told.has(str(path), "--insecure")
    assert state.files() == [path.name]


def test_kept_files_are_whole_named_and_never_replaced(tmp_path: Path) -> None:
    key = "a/b é" + "x" * 300
    paths = [
        save_undeliverable_rows(str(tmp_path), key, "0123456789abcdef", [row(1), row(number)]) for number in (2, 3)
    ]
    assert len(set(paths)) == 2
    for path, number in zip(paths, (2, 3), strict=True):
        assert os.path.basename(path).startswith("a_b__xxx")
        expected = CSV_HEADER + "".join(f"{line}\n" for line in [*lines(1, 1), *lines(number, number)]).encode()
        assert Path(path).read_bytes() == expected
        assert os.stat(path).st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_row_that_is_none_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(OverflowFileError):
        save_undeliverable_rows(str(tmp_path), "key", "x", [row(1), b"\x91\xa1x"])
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.fixture(autouse=True)
def _no_thread_is_left(home: Home) -> Iterator[None]:
    yield
    wait_until(lambda: not _delivers(), "the thread ends")


def pumped(delivery: Delivery, happened: Callable[[], Any], what: str) -> None:
    def look() -> Any:
        delivery.wait(0.02)
        return happened()

    wait_until(look, what)


def ended(delivery: Delivery) -> None:
    """End the run as its collector does, with all of it at the uploader."""
    delivery.finish(FINISH)
    pumped(delivery, lambda: delivery.is_acknowledged, "the end is acknowledged")
    delivery.close(FINISH)


def test_a_collector_that_is_superseded_keeps_its_rows_in_a_file(home: Home, state: State) -> None:
    home.start_uploader("--target", str(home.runs))
    older = state.delivery("shared", incarnation="older")
    older.add(row(1))
    pumped(older, lambda: not older.undelivered_rows, "the older collector's row is acknowledged")
    newer = state.delivery("shared", incarnation="newer")
    assert newer.path != older.path
    newer.add(row(3))
    pumped(newer, lambda: not newer.undelivered_rows, "the newer collector's row is acknowledged")
    older.add(row(2))
    pumped(older, lambda: older.is_superseded, "the older collector hears of it")
    older.close(None)
    ended(newer)
    (kept,) = state.kept()
    assert kept.name == "shared-older.csv"
    assert kept.read_text().splitlines()[1:] == lines(2, 2)
    assert state.told.has("1 sample cannot be added", str(kept))
    assert state.files() == []
    (run,) = wait_until(lambda: finished_runs(home), "the run is delivered")
    assert home.local_rows(run) == [*lines(1, 1), *lines(3, 3)]


def test_a_run_that_a_person_discards_goes_on_as_another_also_after_a_kill(home: Home, state: State) -> None:
    home.start_uploader("--target", str(home.runs))
    delivery = state.delivery("daily")
    delivery.add(row(1))
    pumped(delivery, lambda: not delivery.undelivered_rows, "the row is acknowledged")
    done = home.run(UPLOADER, "discard", "--spool", str(home.directory / "spool"), "daily")
    assert done.returncode == 0, done.stderr
    delivery.add(row(2))
    pumped(delivery, lambda: delivery.run_key != "daily", "the collector begins another run")
    pumped(delivery, lambda: not delivery.undelivered_rows, "the row is acknowledged in the other run")
    assert state.told.has("the run has ended at the uploader")
    other = delivery.run_key
    # A kill: nothing is said, the file stays; whoever comes for the same job goes on with the other run.
    path = delivery.path
    delivery._queue.close()
    delivery._transport.close()
    again = state.delivery("daily", incarnation="again")
    assert (again.run_key, again.path, again.is_resumed) == (other, path, True)
    again.add(row(3))
    ended(again)
    (run,) = wait_until(lambda: finished_runs(home), "the other run is delivered")
    assert run["run_key"] == other
    assert home.local_rows(run) == lines(2, 3)


def test_a_run_that_waits_to_be_delivered_is_not_continued(state: State) -> None:
    path = state.left("nightly", 2)
    delivery = state.delivery("nightly")
    assert delivery.run_key.startswith("nightly~")
    assert (delivery.is_resumed, delivery.last_row) == (False, None)
    delivery.close(FINISH)
    assert len(state.files()) == 2
    overflow = OverflowFile.open(str(path))
    assert (overflow.unnumbered_rows, overflow.finish) == (2, FINISH)
    overflow.close()


def test_a_run_whose_end_somebody_delivers_at_this_moment_is_not_continued(home: Home, state: State) -> None:
    under_way = OverflowFile.open(str(state.left("nightly", 2)))
    home.start_uploader("--target", str(home.runs))
    delivery = state.delivery("nightly")
    delivery.add(row(3))
    ended(delivery)
    under_way.close()
    state.deliver()
    runs = wait_until(lambda: len(finished_runs(home)) == 2 and finished_runs(home), "both runs are delivered")
    rows = {run["run_key"].partition("~")[0] == run["run_key"]: home.local_rows(run) for run in runs}
    assert rows == {True: lines(1, 2), False: lines(3, 3)}
    assert not state.kept()


def test_a_killed_run_whose_rows_somebody_tries_to_deliver_is_continued_with_them(home: Home, state: State) -> None:
    path = state.left("key", 3, finish=None)
    # Nobody answers yet: it goes on trying, and holds the file meanwhile.
    recovery = OrphanRecovery(
        state_dir=str(state.directory), clock=OffsetClock(wall_s=HOUR_S), console=state.told, insecure=False
    )
    recovery.start(None)
    wait_until(lambda: is_held(path), "the file is being delivered")
    delivery = state.delivery("key", incarnation="again")
    assert (delivery.is_resumed, delivery.path, delivery.last_row) == (True, str(path), row(3))
    assert state.files() == [path.name]
    home.start_uploader("--target", str(home.runs))
    delivery.add(row(4))
    ended(delivery)
    recovery.finish(DEADLINE_S)
    (run,) = wait_until(lambda: finished_runs(home), "the run is delivered")
    assert home.local_rows(run) == lines(1, 4)
    assert not state.kept()


def test_a_run_whose_collector_lives_is_continued_beside_it(state: State) -> None:
    older = state.delivery("key")
    newer = state.delivery("key", incarnation="newer")
    assert newer.is_resumed
    assert newer.path != older.path
    newer.close(None)
    older.close(None)


def is_held(path: Path) -> bool:
    try:
        OverflowFile.open(str(path)).close()
    except OverflowFileInUseError:
        return True
    return False


def test_a_whole_run_whose_key_belongs_to_one_that_has_ended_is_delivered_as_another(home: Home, state: State) -> None:
    state.left("nightly", 2)
    uploader = home.start_uploader("--target", str(home.runs))
    state.deliver()
    wait_until(lambda: finished_runs(home), "the first run is delivered")
    uploader.kill()
    uploader.wait()
    state.left("nightly", 2, first=3, incarnation="another")
    home.start_uploader("--target", str(home.runs))
    state.deliver()
    runs = wait_until(lambda: len(finished_runs(home)) == 2 and finished_runs(home), "both runs are delivered")
    rows = {run["run_key"].partition("~")[0] == run["run_key"]: home.local_rows(run) for run in runs}
    assert rows == {True: lines(1, 2), False: lines(3, 4)}
    assert not state.kept()
    assert not state.files()


def test_of_several_files_of_a_run_the_newest_that_is_free_is_continued(state: State) -> None:
    first = state.delivery("key")
    first.add(row(1))
    second = state.delivery("key")
    second.add(row(2))
    second.close(None)
    third = state.delivery("key")
    assert third.path not in {None, first.path}
    assert third.last_row == row(2)
    third.close(None)
    first.close(None)


def test_without_a_place_for_files_rows_are_delivered_from_memory(home: Home, state: State) -> None:
    home.start_uploader("--target", str(home.runs))
    (home.directory / "file").write_text("")
    state.directory = home.directory / "file" / "below"
    clock = OffsetClock()
    delivery = state.delivery("memory", clock=clock)
    assert state.told.has("keeping them in memory")
    delivery.add(row(1))
    clock.monotonic_s += 60.0
    delivery.poll()
    assert sum("in memory" in line for line in state.told.lines) == 1, state.told.lines
    ended(delivery)
    (run,) = wait_until(lambda: finished_runs(home), "the run is delivered")
    assert home.local_rows(run) == lines(1, 1)


def test_rows_that_can_neither_be_sent_nor_written_are_counted(home: Home, state: State) -> None:
    (home.directory / "file").write_text("")
    state.directory = home.directory / "file" / "below"
    delivery = state.delivery("memory")
    for number in range(3):
        delivery.add(row(number))
    delivery.close(FINISH)
    assert state.told.has(f"3 samples are lost: no uploader answered at {state.address.url}", str(state.directory))


def test_rows_that_only_a_file_of_the_users_own_has_are_not_called_lost(home: Home, state: State) -> None:
    (home.directory / "file").write_text("")
    output = home.directory / "o.csv"
    nobody = f"tcp://127.0.0.1:{free_port()}"
    words = ("--state-dir", str(home.directory / "file" / "below"), "--output", str(output), "--connect", nobody)
    done = home.collector(*words, "--", "true")
    assert f"no uploader answered at {nobody}; {len(rows_of_file(output))} sample" in done.stderr
    assert f"not delivered, and only in {output}" in done.stderr
    assert "lost" not in done.stderr


def test_an_end_waits_for_an_uploader_that_may_answer_and_not_where_nobody_listens(home: Home) -> None:
    port = free_port()
    state = State(home.directory / "rows", f"tcp://127.0.0.1:{port}")
    delivery = state.delivery("key")
    delivery.add(row(1))
    path = Path(delivery.path or "")
    empty_bytes = path.stat().st_size

    def can_leave() -> bool:
        delivery.poll()
        return delivery.can_exit_early()

    try:
        wait_until(can_leave, "nobody listens")
        assert path.stat().st_size > empty_bytes
        with socket.create_server(("127.0.0.1", port)) as server:
            taken, _ = server.accept()
            with taken:
                wait_until(lambda: not can_leave(), "somebody is there, who may only be slow")
    finally:
        delivery.close(FINISH)
    assert state.files() == [path.name]


def test_an_end_waits_for_whom_it_can_where_rows_cannot_be_written(home: Home) -> None:
    (home.directory / "file").write_text("")
    state = State(home.directory / "file" / "below", f"tcp://127.0.0.1:{free_port()}")
    delivery = state.delivery("memory")
    delivery.add(row(1))

    def finds_nobody() -> bool:
        delivery.poll()
        return delivery._transport.is_unreachable

    try:
        wait_until(finds_nobody, "nobody listens")
        assert not delivery.can_exit_early()
    finally:
        delivery.close(FINISH)


def test_the_end_names_the_address_where_nobody_answered_and_where_the_rows_are(home: Home) -> None:
    nobody = f"tcp://127.0.0.1:{free_port()}"
    done = home.collector("--quiet", "--connect", nobody, "--", "true")
    (path,) = (home.directory / "state").rglob("*.rows")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sentinel-collector: no uploader answered at {nobody}; ")
    assert f" in {path}; the next collector delivers" in line


def test_a_file_that_cannot_be_read_is_told_and_another_one_used(state: State) -> None:
    path = state.left("key", 2)
    path.write_bytes(b"not ours" * 10)
    delivery = state.delivery("key")
    assert state.told.has("cannot continue the run", str(path))
    delivery.add(row(1))
    delivery.close(FINISH)
    assert path.read_bytes() == b"not ours" * 10
    assert len(state.files()) == 2
