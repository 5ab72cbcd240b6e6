"""Injects the faults of a schedule, lifts each when its time is over, and counts whether it had an effect."""

import signal
from collections import Counter
from typing import TYPE_CHECKING

from chaos.expected_state import broken_promises
from chaos.processes import Collector, Uploader
from chaos.schedule import AWAY, SPILLED_AFTER_S, VANISHED, Disturbance

if TYPE_CHECKING:
    from fakes.faults import Fault

    from chaos.scenario import Scenario

LIFETIME_S, SHORT_LIFETIME_S = 3600.0, 6.0
REFILL_S = 0.2
"""What is given back to a full disk is taken again so soon."""
PATIENCE = 30
_AGAIN_S = 0.3
_RARE = (VANISHED, AWAY, "collector killed while cut off")
_MOVING_S = 2.0
"""A collector that was busy with something else has moved by then, once its uploader is back."""
KILLS = ("uploader killed", "collector killed", "collector killed while cut off", VANISHED, "killed while it ends")


class FaultInjector:
    """`planned` counts injections and `fired` those with an effect, by name; `skipped` counts those without a sense."""

    def __init__(self, scenario: "Scenario") -> None:
        self._scenario = scenario
        self.planned: Counter[str] = Counter()
        self._fired: Counter[str] = Counter()
        self._faults: list[tuple[str, Fault]] = []
        self.skipped = 0

    @property
    def fired(self) -> Counter[str]:
        """How often each kind of disturbance has had an effect so far."""
        scenario = self._scenario
        fired = self._fired.copy()
        for name, fault in self._faults:
            fired[name] += fault.fired
        for relay in scenario.relays:
            fired["connections reset"] += relay.cut
            fired["connections in a black hole"] += relay.held
            fired["latency"] += relay.delayed
        fired["uploader's clock set"] += sum(one.clock.wrong_readings for one in scenario.uploaders)
        fired["collector's clock set"] += sum(one.clock.wrong_readings for one in scenario.collectors)
        return fired

    def disturb(self, what: Disturbance, patience: int = PATIENCE) -> None:
        """Do it, and plan its end, unless it makes no sense at the moment; what is rare is tried again soon."""
        if self._do(what):
            self.planned[what.name] += 1
        elif what.name in _RARE and patience:
            self._scenario.after(_AGAIN_S, lambda: self.disturb(what, patience - 1))
        else:
            self.skipped += 1

    def _do(self, what: Disturbance) -> bool:
        scenario = self._scenario
        match what.name:
            case name if name.startswith(("API: ", "storage: ")):
                server = scenario.api if name.startswith("API: ") else scenario.s3
                fault = server.faults.add(what.fault.call, **what.fault.what)
                self._faults.append((name, fault))
                self._let_go(fault, what.lasts_s)
            case "storage away for long" | "servers ask for time" | "credentials revoked":
                self._disturb_servers(what)
            case "credentials that live 6 s":
                self._shorten_credentials(what)
            case "API refuses gzip and a field":
                self._make_fussy(what)
            case "connections reset" | "connections in a black hole" | "latency":
                self._disturb_network(what)
            case "spool's disk full":
                return self._fill_disk(what)
            case "everything told to end at once":
                return self._end_everything(what)
            case name if name == AWAY:
                return self._keep_away(what)
            case name if name.startswith("uploader"):
                return self._disturb_process(scenario.uploaders[what.which % len(scenario.uploaders)], what)
            case "collector's clock set":
                alone = [one for one in scenario.collectors if one.is_alone]
                return bool(alone) and self._disturb_process(alone[what.which % len(alone)], what)
            case name if name in _RARE:
                # Whoever is there at the moment will do.
                there = [one for one in scenario.collectors if _may_be_told(one)]
                return bool(there) and self._disturb_process(there[what.which % len(there)], what)
            case _:
                return self._disturb_process(scenario.collectors[what.which % len(scenario.collectors)], what)
        return True

    def _let_go(self, fault: "Fault", lasts_s: float, patience: int = PATIENCE) -> None:
        """Let a call hang for so long; where none comes for some seconds, none has to."""
        if not fault.hang:
            return
        if fault.fired or not patience:
            self._scenario.after(lasts_s, fault.lift)
        else:
            self._scenario.after(_AGAIN_S, lambda: self._let_go(fault, lasts_s, patience - 1))

    def _disturb_servers(self, what: Disturbance) -> None:
        scenario = self._scenario
        match what.name:
            case "credentials revoked":
                self._revoke(what)
            case "servers ask for time":
                wish = {"Retry-After": f"{what.amount_s:g}"}
                self._faults.append((what.name, scenario.api.faults.add(status=429, headers=wish, times=2)))
                self._faults.append((what.name, scenario.s3.faults.add("put", code="SlowDown", headers=wish, times=2)))
            case _:
                fault = scenario.s3.faults.add("put", code="ServiceUnavailable")
                self._faults.append((what.name, fault))
                scenario.after(2 * what.lasts_s, fault.lift)

    def _revoke(self, what: Disturbance) -> None:
        scenario = self._scenario
        scenario.api.keyring.revoke_all(what.code)
        before = scenario.refused_puts()
        scenario.after(5.0, lambda: self._note(what.name, scenario.refused_puts() - before))

    def _shorten_credentials(self, what: Disturbance) -> None:
        scenario = self._scenario
        before = len(scenario.api.keyring.all())

        def lengthen() -> None:
            scenario.api.behaviour.lifetime_s = LIFETIME_S
            self._note(what.name, len(scenario.api.keyring.all()) - before)

        scenario.api.behaviour.lifetime_s = SHORT_LIFETIME_S
        scenario.after(what.lasts_s, lengthen)

    def _make_fussy(self, what: Disturbance) -> None:
        behaviour = self._scenario.api.behaviour
        before = self._scenario.refused_calls()

        def relent() -> None:
            behaviour.gzip = "any"
            behaviour.refuse.clear()
            self._note(what.name, self._scenario.refused_calls() - before)

        behaviour.gzip = "refused"
        behaviour.refuse.add("host_cpu_model")
        self._scenario.after(what.lasts_s, relent)

    def _disturb_network(self, what: Disturbance) -> None:
        relay = self._scenario.relays[what.which % len(self._scenario.relays)]
        match what.name:
            case "connections reset":
                relay.reset()
            case "latency":
                relay.delay(what.amount_s)
                self._scenario.after(what.lasts_s, lambda: relay.delay(0.0))
            case _:
                relay.hold()
                self._scenario.after(what.lasts_s, relay.release)

    def _fill_disk(self, what: Disturbance) -> bool:
        scenario = self._scenario
        disks = [one.disk for one in scenario.uploaders if one.disk.is_mounted and not one.disk.is_full]
        if not disks:
            return False
        disk = disks[what.which % len(disks)]
        before = scenario.refusals_for_room()

        def refill() -> None:
            if disk.is_full:
                disk.fill()
                scenario.after(REFILL_S, refill)

        def free() -> None:
            disk.free()
            self._note(what.name, scenario.refusals_for_room() - before)

        disk.fill()
        scenario.after(REFILL_S, refill)
        scenario.after(2 * what.lasts_s, free)
        return True

    def _end_everything(self, what: Disturbance) -> bool:
        everybody: list[Uploader | Collector] = [*self._scenario.collectors, *self._scenario.uploaders]
        told = [one for one in everybody if _may_be_told(one)]
        for one in told:
            one.terminate()
        self._note(what.name, len(told))
        return bool(told)

    def _disturb_process(self, one: Uploader | Collector, what: Disturbance) -> bool:
        if what.name.endswith("clock set"):
            if not one.clock.can_be_turned:
                return False
            one.clock.turn(what.amount_s)
            return True
        if what.name.endswith(" killed"):
            return self._kill(one, what)
        # A process that was just started dies of SIGTERM like any other, having done nothing yet.
        if not _may_be_told(one):
            return False
        if what.name == VANISHED:
            assert isinstance(one, Collector)
            one.vanish()
            self._note(what.name)
            self._scenario.after(0.5, one.start_if_down)
        elif what.name == "collector killed while cut off":
            self._kill_cut_off(one, what)
        elif "SIGSTOP" in what.name:
            self._pause(one, what)
        else:
            one.terminate()
            self._note(what.name)
            if what.kill_after_s is not None:
                self._scenario.after(what.kill_after_s, lambda: self._kill_ending(one))
        return True

    def _kill(self, one: Uploader | Collector, what: Disturbance) -> bool:
        if one.process is None:
            return False
        self._kill_now(one)
        self._note(what.name)
        self._scenario.after(what.lasts_s, one.start_if_down)
        return True

    def _keep_away(self, what: Disturbance) -> bool:
        """Kill the uploader of a run that may move, and leave it away for so long that the run does."""
        scenario = self._scenario
        movers = [one for one in scenario.collectors if one.may_move and one.process is not None]
        uploader = scenario.uploader_at_hand(movers[what.which % len(movers)]) if movers else None
        if uploader is None or uploader.process is None:
            return False
        before = scenario.moves()
        self._kill_now(uploader)
        scenario.after(what.lasts_s, uploader.start_if_down)
        scenario.after(what.lasts_s + _MOVING_S, lambda: self._note(what.name, scenario.moves() - before))
        return True

    def _kill_cut_off(self, one: Uploader | Collector, what: Disturbance) -> None:
        """Hold back all answers until the collector has rows on disk, and kill it then."""
        for relay in self._scenario.relays:
            relay.hold()
        process = one.process

        def kill() -> None:
            if one.process is process and process is not None:
                one.kill()
                self._note(what.name)
                one.start_if_down()

        self._scenario.after(what.lasts_s, kill)
        for relay in self._scenario.relays:
            self._scenario.after(what.lasts_s + SPILLED_AFTER_S / 10, relay.release)

    def _pause(self, one: Uploader | Collector, what: Disturbance) -> None:
        process = one.process
        one.send(signal.SIGSTOP)
        self._note(what.name)
        self._scenario.after(what.lasts_s, lambda: one.send(signal.SIGCONT) if one.process is process else None)

    def _kill_ending(self, one: Uploader | Collector) -> None:
        if one.process is not None and one.told_to_end_at is not None:
            self._kill_now(one)
            self.planned["killed while it ends"] += 1
            self._note("killed while it ends")
            one.start_if_down()

    def _kill_now(self, one: Uploader | Collector) -> None:
        one.kill()
        if isinstance(one, Uploader):
            promised = dict(self._scenario.recorder.promised[one.port])
            self._scenario.problems += broken_promises(promised, one.disk.path(one.spool))

    def _note(self, name: str, times: int = 1) -> None:
        self._fired[name] += times


def _may_be_told(one: Uploader | Collector) -> bool:
    return one.is_up and not one.paused and one.has_begun
