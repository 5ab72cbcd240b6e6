"""All providers' conversations at once, over non-blocking sockets and one selector; decides whose answer counts.

Of two providers that recognise the same service the one of the lower rank wins: only the server behind one's own
address can imitate one, so a finding waits for the better-ranked conversations with that address, and for no others.
"""

import selectors
from typing import NamedTuple

from sentinel_collector.discovery.cloud.http import Exchange, ExchangeError, HttpResponse
from sentinel_collector.discovery.cloud.providers import Steps
from sentinel_collector.discovery.cloud.responses import Fields
from sentinel_protocol.common.clock import Clock


class ProbeTarget(NamedTuple):
    """A provider to be asked; a lower rank goes first where two recognise the same service."""

    rank: int
    vendor_id: str
    address: tuple[str, int]


class _Probe:
    """One provider's conversation under way."""

    __slots__ = ("deadline", "exchange", "request_deadline", "steps", "target")

    def __init__(self, target: ProbeTarget, steps: Steps, deadline: float) -> None:
        self.target = target
        self.steps = steps
        self.deadline = deadline
        self.request_deadline = deadline
        self.exchange: Exchange | None = None


class ConcurrentProbe:
    """All conversations: those that go on, and what the finished ones have found."""

    def __init__(self, selector: selectors.BaseSelector, clock: Clock, limit_s: float) -> None:
        self._selector = selector
        self._clock = clock
        self._limit_s = limit_s
        self._probes: set[_Probe] = set()
        self._found: list[tuple[ProbeTarget, Fields]] = []

    def begin(self, target: ProbeTarget, steps: Steps, now: float) -> None:
        """Send the provider's first request."""
        probe = _Probe(target, steps, now + self._limit_s)
        self._probes.add(probe)
        self._step(probe, None, now)

    def result(self) -> Fields | None:
        """The first finding that no better-ranked conversation with the same address can still overrule."""
        for target, fields in sorted(self._found, key=lambda found: found[0].rank):
            if not any(
                probe.target.rank < target.rank and probe.target.address == target.address for probe in self._probes
            ):
                return fields
        return None

    def wait(self, deadline: float) -> bool:
        """Wait for the next event and handle it; false when all conversations are over or the deadline has passed."""
        now = self._clock.monotonic()
        if not self._probes or now >= deadline:
            return False
        nearest = min(deadline, *(probe.request_deadline for probe in self._probes))
        ready = self._selector.select(max(0.0, nearest - now))
        now = self._clock.monotonic()
        for key, _ in ready:
            self._advance(key.data, now)
        for probe in [probe for probe in self._probes if probe.request_deadline <= now]:
            self._fail(probe, now)
        return True

    def close(self) -> None:
        """End every conversation."""
        for probe in list(self._probes):
            self._end(probe)

    def _advance(self, probe: _Probe, now: float) -> None:
        exchange = probe.exchange
        assert exchange is not None
        events = exchange.events
        try:
            answer = exchange.advance()
        except ExchangeError:
            self._fail(probe, now)
            return
        if answer is not None:
            self._step(probe, answer, now)
        elif exchange.events != events:
            self._selector.modify(exchange.socket, exchange.events, probe)

    def _fail(self, probe: _Probe, now: float) -> None:
        """The request had no usable answer; where nobody even took the connection there is nothing else to ask."""
        if probe.exchange is not None and probe.exchange.connected and now < probe.deadline:
            self._step(probe, None, now)
        else:
            self._end(probe)

    def _step(self, probe: _Probe, answer: HttpResponse | None, now: float) -> None:
        """Hand the answer to the provider and send its next request, or take down what it found."""
        first = probe.exchange is None
        self._close_exchange(probe)
        try:
            request = next(probe.steps) if first else probe.steps.send(answer)
            probe.exchange = Exchange(probe.target.address, request)
        except StopIteration as finished:
            if finished.value is not None:
                self._found.append((probe.target, finished.value))
            self._end(probe)
        except ExchangeError:
            self._end(probe)
        else:
            probe.request_deadline = min(probe.deadline, now + self._limit_s * request.limit_share)
            self._selector.register(probe.exchange.socket, probe.exchange.events, probe)

    def _close_exchange(self, probe: _Probe) -> None:
        if probe.exchange is not None and probe.exchange.socket.fileno() >= 0:
            self._selector.unregister(probe.exchange.socket)
            probe.exchange.close()

    def _end(self, probe: _Probe) -> None:
        self._close_exchange(probe)
        probe.steps.close()
        self._probes.discard(probe)
