"""Several uploaders: which one a run goes to, and where it goes on when that one is away for too long."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.wire.messages import Hello, Ping, encode

if TYPE_CHECKING:
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_TAG = "continues"
PROBE_TIMEOUT_S = 10.0
"""How long another uploader has to answer before the one after it is asked."""


def with_continuation_tag(metadata: dict[str, Any], part: str) -> dict[str, Any]:
    """Return a run's metadata with the tag that names the part before it, by its id at the backend or its key."""
    return metadata | {"tags": {**metadata.get("tags", {}), _TAG: part}} if part else metadata


def continuation_of(hello: Hello) -> str:
    """Return the part that a run was said to continue, empty where it is no continuation."""
    tags = hello.metadata.get("tags")
    return tags.get(_TAG, "") if isinstance(tags, dict) else ""


class Failover:
    """Knows the uploaders in the order of a run's preference and asks the others when the one at hand is silent.

    Not thread-safe; times are monotonic seconds. Where none of the others answers it is the network that is away,
    and the run stays where it is.
    """

    def __init__(self, addresses: Sequence[Address], keys: "Mapping[str, ClientCurveKeys]", *, after_s: float) -> None:
        self.current = addresses[0]
        """The uploader at hand."""
        self._addresses = list(addresses)
        self._keys = keys
        self._after_s = after_s
        self._probed = self.current
        self._probed_at = 0.0
        self._probe: ZmqClient | None = None
        self._ping_sent = False

    def pin(self, url: str) -> None:
        """Stay with the uploader that an earlier collector of the run had moved to, if it is still one of them."""
        for address in self._addresses:
            if address.url == url:
                self.current = self._probed = address

    def connect(self) -> ZmqClient:
        """Connect to the uploader at hand."""
        return ZmqClient(self.current, keys=self._keys.get(self.current.url))

    def switch_to(self, uploader: Address) -> None:
        """Make one of the uploaders the one at hand."""
        self.current = uploader

    def poll_alternative(self, now: float, silent_s: float) -> tuple[Address, ZmqClient] | None:
        """Return another uploader and a connection to it, once the one at hand was silent for too long and it answers.

        Nothing has moved then: `switch_to` does that, and the connection is the caller's to close.
        """
        if len(self._addresses) < 2 or silent_s < self._after_s:
            self.close()
            return None
        if self._probe is None:
            self._probe_next(now)
        transport = self._probe
        assert transport is not None
        transport.poll_handshake_error(now)
        if transport.receive() is not None:
            self._probe = None
            return self._probed, transport
        if not self._ping_sent:
            # Whatever the answer is: there is one.
            self._ping_sent = transport.send(encode(Ping()))
        if now - self._probed_at >= PROBE_TIMEOUT_S:
            self.close()
        return None

    def close(self) -> None:
        """Ask nobody any more."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _probe_next(self, now: float) -> None:
        following = self._addresses.index(self._probed) + 1
        rest = self._addresses[following:] + self._addresses[:following]
        self._probed = next(address for address in rest if address != self.current)
        self._probed_at = now
        self._ping_sent = False
        self._probe = ZmqClient(self._probed, keys=self._keys.get(self._probed.url))
