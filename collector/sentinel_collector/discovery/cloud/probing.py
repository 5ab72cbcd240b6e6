"""The conversations with all providers at once, over non-blocking sockets on one thread, and which finding counts.

Where two providers recognise the same service, the one of the lower rank wins. Only the server behind one address can
imitate another's, so a finding waits for the better-ranked conversations with its address and for no others.
"""

import contextlib
import select
from collections.abc import Generator
from typing import NamedTuple

from sentinel_collector.discovery.cloud.http import Address, MetadataResponse, SocketWait, exchange
from sentinel_collector.discovery.cloud.providers import Steps
from sentinel_collector.discovery.cloud.responses import Fields
from sentinel_protocol.common.clock import Clock

_Conversation = Generator[SocketWait, None, Fields | None]


class ProbeTarget(NamedTuple):
    """A provider to ask. A lower rank wins where two recognise the same service."""

    rank: int
    vendor_id: str
    address: Address


class ConcurrentProbe:
    """The conversations under way, and the findings of those that ended. A provider has `limit_s` seconds."""

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._open: dict[ProbeTarget, tuple[_Conversation, SocketWait]] = {}
        self._found: dict[ProbeTarget, Fields] = {}

    def begin(self, target: ProbeTarget, steps: Steps, now: float) -> None:
        """Start to connect for the provider's first request."""
        self._advance(target, self._converse(target.address, steps, now))

    def result(self) -> Fields | None:
        """Return the best-ranked finding that no open conversation with its address can overrule."""
        for target in sorted(self._found):
            if not any(other.rank < target.rank and other.address == target.address for other in self._open):
                return self._found[target]
        return None

    def wait(self, deadline: float) -> bool:
        """Wait for the next event and handle it; False when all conversations are over or the deadline has passed."""
        now = self._clock.monotonic()
        if not self._open or now >= deadline:
            return False
        poll = select.poll()
        targets: dict[int, ProbeTarget] = {}
        for target, (_, waits_for) in self._open.items():
            poll.register(waits_for.fd, waits_for.events)
            targets[waits_for.fd] = target
        nearest = min(deadline, *(waits_for.deadline for _, waits_for in self._open.values()))
        for fd, _events in poll.poll(max(0.0, nearest - now) * 1000):
            self._advance(targets[fd], self._open[targets[fd]][0])
        now = self._clock.monotonic()
        for target, (conversation, waits_for) in list(self._open.items()):
            if waits_for.deadline <= now:
                self._advance(target, conversation, TimeoutError())
        return True

    def close(self) -> None:
        """End all conversations and close their connections."""
        for conversation, _ in self._open.values():
            conversation.close()
        self._open.clear()

    def _advance(self, target: ProbeTarget, conversation: _Conversation, error: TimeoutError | None = None) -> None:
        try:
            self._open[target] = conversation, next(conversation) if error is None else conversation.throw(error)
        except StopIteration as finished:
            self._open.pop(target, None)
            if finished.value is not None:
                self._found[target] = finished.value

    def _converse(self, address: Address, steps: Steps, now: float) -> _Conversation:
        deadline = now + self._limit_s
        response: MetadataResponse | None = None
        with contextlib.closing(steps):
            while True:
                try:
                    request = steps.send(response)
                except StopIteration as finished:
                    fields: Fields | None = finished.value
                    return fields
                request_deadline = min(deadline, now + self._limit_s * request.limit_share)
                try:
                    response = yield from exchange(address, request, request_deadline)
                except OSError:
                    # Where no connection is made, the provider's other requests would fail too.
                    return None
                now = self._clock.monotonic()
                if response is None and now >= deadline:
                    return None
