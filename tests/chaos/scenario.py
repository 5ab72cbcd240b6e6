"""Plays a schedule against real processes, then waits until everything is delivered."""

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fakes.keyring import Keyring
from fakes.process_harness import COLLECTOR, Home
from fakes.s3 import S3Server
from fakes.sentinel_api import SentinelServer
from fakes.strict_http_server import free_port

from chaos.fault_injector import FaultInjector
from chaos.processes import END_WAIT_S, INTERVAL_S, Collector, Process, Uploader
from chaos.relay import Relay
from chaos.schedule import Disturbance
from chaos.traffic_recorder import TrafficRecorder

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "token-of-chaos"
STOP_LIMIT_S = 12.0
"""A told uploader ends within ten seconds, whatever hangs; the rest is this machine's load."""
QUIET_LIMIT_S = 200.0
FRESH, SWEEP = "fresh", "sweep"
_MOST_SWEEPS = 3
"""Collectors that are given the chance to deliver what others left; what still lies there then is reported."""
_NO_ROOM_AGAIN_S = 0.5
_TICK_S = 0.02
_GONE_STATES = {"finished", "failed"}
_MOVERS = {2, 3}
"""Of six: one has a state directory of its own, one shares it; one tracks a foreign process, one wraps its job."""


class Scenario:
    """All processes and servers. Call `play`, then `calm`; anything wrong is added to `problems`."""

    def __init__(
        self,
        home: Home,
        *,
        api: SentinelServer,
        s3: S3Server,
        relays: Sequence[Relay],
        recorder: TrafficRecorder,
        uploaders: Sequence[Uploader],
        collectors: Sequence[Collector],
    ) -> None:
        self.home = home
        self.api = api
        self.s3 = s3
        self.relays = relays
        self.recorder = recorder
        self.uploaders = uploaders
        self.collectors = collectors
        self.injector = FaultInjector(self)
        self.problems: list[str] = []
        self.fresh_outputs: list[Path] = []
        self._began_at = 0.0
        self._tickets = itertools.count()
        self._actions: list[tuple[float, int, Callable[[], None]]] = []

    def play(self, disturbances: Iterable[Disturbance]) -> None:
        """Start everything, and disturb it until the last disturbance and its consequences are over."""
        everybody: list[Process] = [*self.uploaders, *self.collectors]
        for one in everybody:
            one.start()
        # However slow the machine is: what is disturbed is there.
        self._until(lambda: all(one.has_begun for one in everybody), "everybody has begun")
        self._began_at = time.monotonic()
        for disturbance in disturbances:
            self._at(disturbance.at_s, lambda chosen=disturbance: self.injector.disturb(chosen))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        while self._actions:
            when, _, action = self._actions[0]
            if time.monotonic() - self._began_at >= when:
                heapq.heappop(self._actions)
                action()
            else:
                time.sleep(_TICK_S)
            self._look_after_processes(restart=True)

    def calm(self) -> None:
        """No more faults: everything ends, is delivered, and a fresh run passes."""
        self.api.faults.clear()
        self.s3.faults.clear()
        while self._actions:
            heapq.heappop(self._actions)[2]()
        self._until(self._all_are_up, "every process is up again", restart=True)
        self._until(lambda: all(one.has_begun for one in self.collectors), "every collector samples again")
        for collector in self.collectors:
            collector.end_target()
        self._until(lambda: all(one.process is None for one in self.collectors), "every collector ends")
        for number, relay in enumerate(self.relays):
            self._fresh_run(number, relay.url)
        for _ in range(_MOST_SWEEPS):
            for state_dir in {one.state_dir for one in self.collectors if any(one.state_dir.glob("*.rows"))}:
                self._short_run(SWEEP, self.relays[0].url, "--state-dir", str(state_dir))
        self._until(self._is_everything_finished, "every run is finished")

    def end(self) -> None:
        """The uploaders end as well."""
        for uploader in self.uploaders:
            uploader.terminate()
        self._until(lambda: all(one.process is None for one in self.uploaders), "the uploaders end")
        for collector in self.collectors:
            collector.close()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something so many seconds from now; at once when the calm begins before."""
        self._at(time.monotonic() - self._began_at + delay_s, action)

    def refused_puts(self) -> int:
        """Count the objects that storage has refused of its own accord."""
        return sum(1 for one in self.s3.requests.of("put") if one.fault is None and one.status in {400, 403})

    def refused_calls(self) -> int:
        """Count the calls that the API has refused for their form."""
        return sum(1 for one in self.api.requests.of() if one.fault is None and one.status in {415, 422})

    def moves(self) -> int:
        """Count the runs that have gone on at another uploader."""
        return sum(one.moves for one in self.collectors)

    def uploader_at_hand(self, collector: Collector) -> Uploader | None:
        """Return the uploader that a collector has spoken to last, `None` before it has."""
        homes = dict(self.recorder.homes.get(collector.run.name, {}))
        if not homes:
            return None
        port = max(homes, key=homes.__getitem__).port
        return next(uploader for uploader in self.uploaders if uploader.port == port)

    def refusals_for_room(self) -> int:
        """Count what uploaders have refused because it could not be written, starting included."""
        failed_starts = sum(one.log.read_text(encoding="utf-8").count("no room in the spool") for one in self.uploaders)
        return self.recorder.rejects["busy"] + failed_starts

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._actions, (at_s, next(self._tickets), action))

    def _look_after_processes(self, *, restart: bool) -> None:
        for collector in self.collectors:
            collector.look()
            if (code := collector.poll()) is not None:
                collector.ended(code)
                if restart:
                    self.after(0.0, collector.start_if_down)
        for uploader in self.uploaders:
            self._look_after_uploader(uploader, restart=restart)

    def _look_after_uploader(self, uploader: Uploader, *, restart: bool) -> None:
        told_at = uploader.told_to_end_at
        again_s = 0.0
        if (code := uploader.poll()) is not None:
            if code == 1 and uploader.disk.was_full_lately:
                # Without room it cannot even open its spool: it says so, and whoever started it tries again.
                again_s = _NO_ROOM_AGAIN_S
            elif code or told_at is None:
                self.problems.append(f"{uploader.name} ended with {code}, see {uploader.log}")
        elif uploader.process is not None and told_at is not None and time.monotonic() > told_at + STOP_LIMIT_S:
            self.problems.append(f"{uploader.name} had not ended {STOP_LIMIT_S} s after SIGTERM")
            uploader.kill()
        else:
            return
        if restart:
            self.after(again_s, uploader.start_if_down)

    def _all_are_up(self) -> bool:
        everybody: list[Process] = [*self.uploaders, *self.collectors]
        return all(one.is_up for one in everybody)

    def _until(self, happened: Callable[[], bool], what: str, *, restart: bool = False) -> None:
        deadline = time.monotonic() + QUIET_LIMIT_S
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {QUIET_LIMIT_S} s: {what}")
            while self._actions:
                heapq.heappop(self._actions)[2]()
            self._look_after_processes(restart=restart)
            time.sleep(_TICK_S)

    def _fresh_run(self, number: int, address: str) -> None:
        output = self.home.directory / f"{FRESH}-{number}.csv"
        self.fresh_outputs.append(output)
        name = f"{FRESH}-{number}"
        failure = self._short_run(name, address, "--output", str(output))
        finished = [run for run in self.api.runs.values() if run.registration.get("job_name") == name and run.finish]
        if failure or not finished:
            self.problems.append(f"a fresh run does not pass: {failure}")

    def _short_run(self, name: str, address: str, *words: str) -> str:
        """Run a collector to its end; returns what it said where it failed."""
        done = self.home.run(
            COLLECTOR, "--connect", address, "--interval", str(INTERVAL_S), "--wait", str(END_WAIT_S * 15), *words,
            "--job-name", name, "--", "true",
        )  # fmt: skip
        return f"{done.returncode} {done.stderr}" if done.returncode else ""

    def _is_everything_finished(self) -> bool:
        time.sleep(0.2)
        return all(run["state"] in _GONE_STATES for uploader in self.uploaders for run in uploader.runs())


@contextmanager
def stage(home: Home, *, collectors: int, uploaders: int, stale_after_s: float) -> Iterator[Scenario]:
    """Set up servers, relays and disks, and take everything down again, the processes first."""
    keyring, recorder = Keyring(), TrafficRecorder()
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server(keyring))
        root = "s3://bucket/some prefix+@x"
        api = stack.enter_context(SentinelServer(token=TOKEN, keyring=keyring, upload_root=root, fetch=s3.fetch))
        relays, servers = [], []
        environ = {"SENTINEL_API_URL": api.url, "AWS_ENDPOINT_URL_S3": s3.url}
        for number in range(uploaders):
            port = free_port()
            token = f"{TOKEN}-{number}"
            api.tokens.add(token)
            relays.append(stack.enter_context(Relay(port, recorder)))
            # The last one's spool is so small that an outage fills it.
            small = number == uploaders - 1 and number > 0
            uploader = Uploader(
                home, f"uploader-{number}", port=port, stale_after_s=stale_after_s, environ=environ, token=token,
                small=small,
            )  # fmt: skip
            stack.enter_context(uploader.disk)
            servers.append(uploader)
        urls = [relay.url for relay in relays]
        cast = [
            Collector(home, number, urls if number % 6 in _MOVERS else [urls[number // 2 % uploaders]])
            for number in range(collectors)
        ]
        stack.callback(home.close)
        yield Scenario(home, api=api, s3=s3, relays=relays, recorder=recorder, uploaders=servers, collectors=cast)
