"""What a service manager is told, through the socket that systemd would listen at."""

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.manual_clock import TurningClock
from fakes.process_harness import Home, wait_until

from sentinel_uploader.telemetry.sd_notify import SystemdNotifier


@pytest.fixture
def manager(home: Home) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(home.runtime / "notify"))
        listener.settimeout(60)
        yield listener


def heard(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def test_the_uploader_says_when_it_serves_that_it_lives_and_when_it_ends(home: Home, manager: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": str(home.runtime / "notify"), "WATCHDOG_USEC": "400000"}
    process = home.start_uploader(env=env)
    assert heard(manager).startswith("READY=1\nSTATUS=listening at ipc://")
    assert [heard(manager) for _ in range(3)] == ["WATCHDOG=1"] * 3
    process.send_signal(signal.SIGTERM)
    said = wait_until(lambda: (text := heard(manager)) != "WATCHDOG=1" and text, "it says that it stops")
    assert said.startswith("STOPPING=1\n")
    assert process.wait(60) == 0


def test_a_watchdog_is_fed_four_times_in_its_time(tmp_path: Path) -> None:
    clock = TurningClock()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # An abstract address, as systemd uses for containers.
        manager.bind(f"\0sentinel-stream{tmp_path}"[:100])
        manager.settimeout(0)
        name = "@" + str(manager.getsockname()[1:], "utf-8")
        notifier = SystemdNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000000"}, clock=clock)
        times = 0
        for _ in range(200):
            notifier.watchdog()
            with contextlib.suppress(BlockingIOError):
                times += manager.recv(100) == b"WATCHDOG=1"
            clock.time_s += 0.5
        assert times == 20


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "1000"}, {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "soon"}],
    ids=["no manager", "no socket", "gone"],
)
def test_where_nobody_listens_nothing_happens(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    notifier = SystemdNotifier(environ, clock=TurningClock())
    notifier.ready("listening")
    notifier.watchdog()
    notifier.stopping("stopping")
    assert len(caplog.messages) == ("NOTIFY_SOCKET" in environ)


def test_another_process_watchdog_is_not_fed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(0)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
        SystemdNotifier(environ, clock=TurningClock()).watchdog()
        with pytest.raises(BlockingIOError):
            manager.recv(100)
