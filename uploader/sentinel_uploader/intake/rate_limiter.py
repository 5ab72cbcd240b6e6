"""What one client may ask for, and who has asked for more than that."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from sentinel_protocol.wire.messages import Hello, Reject, RejectCode, Samples
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.server.zmq_server import Arrival
from sentinel_uploader.telemetry.counters import Counters

HELLO_ROWS = 20
"""A greeting costs as much as so many rows: it may write to the spool."""
_MAX_REMEMBERED = 10_000
_TELL_S = 1.0


class Verdict(NamedTuple):
    """What is to be done with a message: whether it is taken, what is answered otherwise, and whether to cut."""

    is_taken: bool
    reply: Reject | None = None
    cut: bool = False


_TAKEN = Verdict(is_taken=True)
_DROPPED = Verdict(is_taken=False)
_CUT = Verdict(is_taken=False, cut=True)


class _Account:
    """What one client may still send at a moment (monotonic seconds), in rows."""

    __slots__ = ("at", "dropped", "left", "told_at")

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at
        self.dropped = 0
        self.told_at: float | None = None


class Admission:
    """Looks at each message before anything is done with it. Clients without a name are told apart by connection.

    `name_of` says which client a public key belongs to, `None` when to none (any more).
    """

    def __init__(self, *, name_of: Callable[[bytes], str | None], limits: ClientLimits, counters: Counters) -> None:
        self._name_of = name_of
        self._limits = limits
        self._counters = counters
        self._accounts: OrderedDict[str | bytes, _Account] = OrderedDict()

    def owner_of(self, arrival: Arrival) -> str | None:
        """Return whose message this is: a client's name, empty on links without keys, `None` for one without access."""
        return self._name_of(arrival.key) if arrival.key else ""

    def look(self, arrival: Arrival, owner: str, now: float) -> Verdict:
        """Say whether the message is to be read at all; `now` is monotonic seconds."""
        if len(arrival.frame) > self._limits.max_message:
            self._counters.turn_down(owner, "message-size")
            text = f"a message has at most {self._limits.max_message} bytes"
            return Verdict(is_taken=False, reply=Reject(RejectCode.TOO_BIG, text, retry=True))
        account = self._account(owner or arrival.identity, now)
        if account.left > 0:
            account.dropped = 0
            return _TAKEN
        self._counters.turn_down(owner, "rate")
        account.dropped += 1
        if account.dropped % self._limits.max_surplus_messages == 0:
            self._counters.turn_down(owner, "flood")
            return _CUT
        if account.told_at is not None and now - account.told_at < _TELL_S:
            return _DROPPED
        account.told_at = now
        text = f"more than {self._limits.max_client_rows} samples a second"
        return Verdict(is_taken=False, reply=Reject(RejectCode.BUSY, text, retry=True))

    def charge(self, arrival: Arrival, owner: str, message: object) -> None:
        """Count what was read towards what its client may send."""
        rows = 1
        if isinstance(message, Samples):
            rows = max(1, len(message.samples))
        elif isinstance(message, Hello):
            rows = HELLO_ROWS
        account = self._accounts.get(owner or arrival.identity)
        if account is not None:
            account.left -= rows

    def _account(self, client: str | bytes, now: float) -> _Account:
        most = self._limits.max_client_rows * self._limits.client_burst
        account = self._accounts.get(client)
        if account is None:
            account = self._accounts[client] = _Account(most, now)
            if len(self._accounts) > _MAX_REMEMBERED:
                # Whoever was silent for longest is likely to have all of it again.
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(client)
        account.left = min(most, account.left + (now - account.at) * self._limits.max_client_rows)
        account.at = now
        return account
