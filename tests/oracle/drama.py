"""Plays a schedule against real processes, then waits until everything is delivered."""

import heapq
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from standins.keyring import Keyring
from standins.product import COLLECTOR, Home
from standins.s3 import S3Server
from standins.sentinel_api import SentinelServer

from oracle.relay import Relay, free_port
from oracle.schedule import Disturbance
from oracle.subjects import END_WAIT_S, INTERVAL_S, Collector, Process, Uploader
from oracle.witness import Witness

if TYPE_CHECKING:
    from standins.faults import Fault

TOKEN = "token-of-the-oracle"
STOP_LIMIT_S = 12.0
"""A told uploader ends within ten seconds, whatever hangs; the rest is this machine's load."""
QUIET_LIMIT_S = 150.0
_LIFETIME_S, _SHORT_LIFETIME_S = 3600.0, 6.0
_MOST_SWEEPS = 3
"""Collectors that are given the chance to deliver what others left; what still lies there then is reported."""
_TICK_S = 0.02
_FRESH = "fresh"


class Drama:
    """The cast and its stage. `play`, then `calm`; what does not go as it must is added to `problems`."""

    def __init__(
        self,
        home: Home,
        api: SentinelServer,
        s3: S3Server,
        relay: Relay,
        witness: Witness,
        port: int,
        collectors: int,
    ) -> None:
        self.witness = witness
        self.home = home
        self.api = api
        self.s3 = s3
        self._relay = relay
        environ = {
            "SENTINEL_API_URL": api.url,
            "SENTINEL_API_TOKEN": TOKEN,
            "AWS_ENDPOINT_URL_S3": s3.url,
        }
        self.uploader = Uploader(home, port, environ)
        self.collectors = [Collector(home, number, relay.url) for number in range(collectors)]
        self.figures: Counter[str] = Counter()
        self.faults: list[tuple[str, Fault]] = []
        self.problems: list[str] = []
        self.fresh_output = home.directory / f"{_FRESH}.csv"
        self._began_at = 0.0
        self._tickets = itertools.count()
        self._actions: list[tuple[float, int, Callable[[], None]]] = []

    def play(self, disturbances: Iterable[Disturbance]) -> None:
        """Start everything, and disturb it until the last disturbance and its consequences are over."""
        self._began_at = time.monotonic()
        self.uploader.start()
        for collector in self.collectors:
            collector.start()
        for disturbance in disturbances:
            self._at(disturbance.at_s, lambda chosen=disturbance: self._disturb(chosen))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
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
        self._until(self._all_are_up, "every process is up again", restart=True)
        self._until(lambda: all(one.has_sampled for one in self.collectors), "every collector samples again")
        for collector in self.collectors:
            collector.end_target()
        self._until(lambda: all(one.process is None for one in self.collectors), "every collector ends")
        self._fresh_run()
        for _ in range(_MOST_SWEEPS):
            if self._left_behind():
                self.home.run(*self._fresh_words("--job-name", "sweep"), "--", "true")
        self._until(self._is_everything_finished, "every run is finished")
        self.uploader.terminate()
        self._until(lambda: self.uploader.process is None, "the uploader ends")
        for collector in self.collectors:
            collector.close()

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._actions, (at_s, next(self._tickets), action))

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._at(time.monotonic() - self._began_at + delay_s, action)

    def _disturb(self, what: Disturbance) -> None:
        if self._do(what):
            self.figures[what.label] += 1
        else:
            self.figures["skipped"] += 1

    def _do(self, what: Disturbance) -> bool:
        """Do it and plan its end; False where it makes no sense at the moment."""
        subject, _, verb = what.kind.partition("-")
        if subject == "relay":
            self._trouble_network(verb, what)
        elif subject in {"api", "storage"}:
            server = self.api if subject == "api" else self.s3
            fault = server.faults.add(what.call, **what.fault)
            self.faults.append((what.label, fault))
            self._after(what.lasts_s, fault.lift if fault.hang else lambda: None)
        elif subject == "revoke":
            self.api.keyring.revoke_all(what.code)
        elif subject == "short":
            self.api.behaviour.lifetime_s = _SHORT_LIFETIME_S
            self._after(what.lasts_s, lambda: setattr(self.api.behaviour, "lifetime_s", _LIFETIME_S))
        elif subject == "uploader":
            return self._trouble_process(self.uploader, verb, what)
        else:
            return self._trouble_process(self.collectors[what.which % len(self.collectors)], verb, what)
        return True

    def _trouble_network(self, verb: str, what: Disturbance) -> None:
        if verb == "reset":
            self._relay.reset()
        elif verb == "hold":
            self._relay.hold()
            self._after(what.lasts_s, self._relay.release)
        else:
            self._relay.delay(what.latency_s)
            self._after(what.lasts_s, lambda: self._relay.delay(0.0))

    def _trouble_process(self, one: Uploader | Collector, verb: str, what: Disturbance) -> bool:
        if one.process is None:
            return False
        if verb == "kill":
            one.kill()
            self._after(what.lasts_s, one.start)
            return True
        # A process that was just started dies of SIGTERM like any other, having done nothing yet.
        if one.paused or not one.is_up or not self._has_begun(one):
            return False
        if verb == "pause":
            process = one.process
            one.send(signal.SIGSTOP)
            self._after(what.lasts_s, lambda: one.send(signal.SIGCONT) if one.process is process else None)
        else:
            one.terminate()
            if what.kill_after_s is not None:
                self._after(what.kill_after_s, lambda: self._kill_ending(one))
        return True

    def _kill_ending(self, one: Uploader | Collector) -> None:
        if one.process is not None and one.told_to_end_at is not None:
            one.kill()
            self.figures["kill while ending"] += 1
            self._after(0.0, one.start)

    def _has_begun(self, one: Uploader | Collector) -> bool:
        if isinstance(one, Collector):
            return one.has_sampled
        return "uploader ready" in one.log.read_text(encoding="utf-8").rpartition("--- ")[2]

    def _look_after_processes(self, *, restart: bool) -> None:
        for collector in self.collectors:
            if (code := collector.poll()) is not None:
                collector.ended(code)
                if restart:
                    self._after(0.0, collector.start)
        told_at = self.uploader.told_to_end_at
        if (code := self.uploader.poll()) is not None:
            if code or told_at is None:
                self.problems.append(f"the uploader ended with {code}, see {self.uploader.log}")
            if restart:
                self._after(0.0, self.uploader.start)
        elif self.uploader.process is not None and told_at is not None and time.monotonic() > told_at + STOP_LIMIT_S:
            self.problems.append(f"the uploader had not ended {STOP_LIMIT_S} s after SIGTERM")
            self.uploader.kill()
            self._after(0.0, self.uploader.start)

    def _all_are_up(self) -> bool:
        everybody: list[Process] = [self.uploader, *self.collectors]
        return all(one.is_up for one in everybody)

    def _until(
        self,
        happened: Callable[[], bool],
        what: str,
        *,
        restart: bool = False,
    ) -> None:
        deadline = time.monotonic() + QUIET_LIMIT_S
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {QUIET_LIMIT_S} s: {what}")
            while self._actions:
                heapq.heappop(self._actions)[2]()
            self._look_after_processes(restart=restart)
            time.sleep(_TICK_S)

    def _fresh_run(self) -> None:
        done = self.home.run(*self._fresh_words("--output", str(self.fresh_output)), "--job-name", _FRESH, "--", "true")
        if done.returncode or not self._is_finished(_FRESH):
            self.problems.append(f"a fresh run does not pass: {done.returncode} {done.stderr}")

    def _fresh_words(self, *words: str) -> list[str]:
        address = self._relay.url
        return [COLLECTOR, "--connect", address, "--interval", str(INTERVAL_S), "--wait", str(END_WAIT_S * 20), *words]

    def _is_finished(self, name: str) -> bool:
        runs = [run for run in self.api.runs.values() if run.registration.get("job_name") == name]
        return any(run.finish is not None for run in runs)

    def _left_behind(self) -> list[Path]:
        return sorted((self.home.state / "collector").glob("*.rows"))

    def _is_everything_finished(self) -> bool:
        time.sleep(0.2)
        runs = self.home.status("--spool", str(self.uploader.spool))
        return all(run["state"] in {"finished", "failed", "parked"} for run in runs)


class Stage:
    """The servers and the relay around a `Drama`; `with` starts and stops them."""

    def __init__(self, home: Home, collectors: int) -> None:
        self._home = home
        self._collectors = collectors
        self._keyring = Keyring()
        self._s3 = S3Server(self._keyring)
        root = "s3://bucket/some prefix+@x"
        self._api = SentinelServer(token=TOKEN, keyring=self._keyring, upload_root=root, fetch=self._s3.fetch)
        self._port = free_port()
        self._witness = witness = Witness()
        self._relay = Relay(self._port, witness)

    def __enter__(self) -> Drama:
        for server in (self._s3, self._api, self._relay):
            server.__enter__()
        return Drama(self._home, self._api, self._s3, self._relay, self._witness, self._port, self._collectors)

    def __exit__(self, *failure: object) -> None:
        # The processes first: what they were connected to must not go away under them.
        self._home.close()
        for server in (self._relay, self._api, self._s3):
            server.__exit__(None, None, None)
