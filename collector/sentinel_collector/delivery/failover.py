"""Several uploaders: which one a run goes to, and where it goes on when that one is away for too long."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentinel_collector.delivery.zmq_client import Dealer
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.wire.messages import Hello, Ping, encode

if TYPE_CHECKING:
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_TAG = "continues"
PROBE_S = 10.0
"""How long another uploader has to answer before the one after it is asked."""


def continuing(metadata: dict[str, Any], part: str) -> dict[str, Any]:
    """Return a run's metadata with the tag that names the part before it, by its id at the backend or its key."""
    return metadata | {"tags": {**metadata.get("tags", {}), _TAG: part}} if part else metadata


def continued_part(hello: Hello) -> str:
    """Return the part that a run was said to continue, empty where it is no continuation."""
    tags = hello.metadata.get("tags")
    return tags.get(_TAG, "") if isinstance(tags, dict) else ""


class Failover:
    """Knows the uploaders in the order of a run's preference and asks the others when the one at hand is silent.

    Not thread-safe; times are monotonic seconds. Where none of the others answers it is the network that is away,
    and the run stays where it is.
    """

    def __init__(self, addresses: Sequence[Address], keys: "Mapping[str, ClientCurveKeys]", *, after_s: float) -> None:
        self.address = addresses[0]
        """The uploader at hand."""
        self._addresses = list(addresses)
        self._keys = keys
        self._after_s = after_s
        self._asked = self.address
        self._asked_at = 0.0
        self._dealer: Dealer | None = None
        self._is_said = False

    def keep_to(self, url: str) -> None:
        """Stay with the uploader that an earlier collector of the run had moved to, if it is still one of them."""
        for address in self._addresses:
            if address.url == url:
                self.address = self._asked = address

    def connect(self) -> Dealer:
        """Connect to the uploader at hand."""
        return Dealer(self.address, keys=self._keys.get(self.address.url))

    def move_to(self, there: Address) -> None:
        """Make one of the uploaders the one at hand."""
        self.address = there

    def look(self, now: float, silent_s: float) -> tuple[Address, Dealer] | None:
        """Return another uploader and a connection to it, once the one at hand was silent for too long and it answers.

        Nothing has moved then: `move_to` does that, and the connection is the caller's to close.
        """
        if len(self._addresses) < 2 or silent_s < self._after_s:
            self.close()
            return None
        if self._dealer is None:
            self._ask_next(now)
        dealer = self._dealer
        assert dealer is not None
        dealer.refusal(now)
        if dealer.receive() is not None:
            self._dealer = None
            return self._asked, dealer
        if not self._is_said:
            # Whatever the answer is: there is one.
            self._is_said = dealer.send(encode(Ping()))
        if now - self._asked_at >= PROBE_S:
            self.close()
        return None

    def close(self) -> None:
        """Ask nobody any more."""
        if self._dealer is not None:
            self._dealer.close()
            self._dealer = None

    def _ask_next(self, now: float) -> None:
        following = self._addresses.index(self._asked) + 1
        rest = self._addresses[following:] + self._addresses[:following]
        self._asked = next(address for address in rest if address != self.address)
        self._asked_at = now
        self._is_said = False
        self._dealer = Dealer(self._asked, keys=self._keys.get(self._asked.url))
