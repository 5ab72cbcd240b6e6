"""Several uploaders: the choice of a run's uploader, and of another one when it does not answer for too long."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.hashing import sha256
from sentinel_protocol.wire.messages import Hello, Ping, encode

if TYPE_CHECKING:
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_TAG = "continues"
PROBE_TIMEOUT_S = 10.0
"""How long another uploader has to answer before the next one is probed."""


def rank_uploaders(addresses: Sequence[Address], run_key: str) -> list[Address]:
    """Order the uploaders by a run's preference: rendezvous hashing, deterministic, even over many runs.

    Adding or removing an uploader moves only the runs that prefer it.
    """
    return sorted(
        dict.fromkeys(addresses),
        key=lambda address: sha256(f"{address.url}\0{run_key}".encode("utf-8", "surrogateescape")),
        reverse=True,
    )


def with_continuation_tag(metadata: dict[str, Any], part: str) -> dict[str, Any]:
    """Return a run's metadata with a tag that names the preceding run by id or key; unchanged for an empty `part`."""
    return metadata | {"tags": {**metadata.get("tags", {}), _TAG: part}} if part else metadata


def continuation_of(hello: Hello) -> str:
    """Return the preceding run that the tag names, empty without a tag."""
    tags = hello.metadata.get("tags")
    return tags.get(_TAG, "") if isinstance(tags, dict) else ""


class Failover:
    """Has the uploaders in the order of a run's preference and probes the others while the current one is silent.

    Not thread-safe; times are monotonic seconds. If none of the others answers, the network is down, and the run stays
    with the current uploader.
    """

    def __init__(self, addresses: Sequence[Address], keys: "Mapping[str, ClientCurveKeys]", *, after_s: float) -> None:
        self.current = addresses[0]
        """The run's uploader: one of the list."""
        self._addresses = list(addresses)
        self._keys = keys
        self._after_s = after_s
        self._probed = self.current
        self._probed_at = 0.0
        self._probe: ZmqClient | None = None
        self._ping_sent = False

    def pin(self, url: str) -> None:
        """Select the uploader of an earlier collector of the run, if it is still in the list."""
        for address in self._addresses:
            if address.url == url:
                self.current = self._probed = address

    def connect(self) -> ZmqClient:
        """Connect to the current uploader."""
        return ZmqClient(self.current, keys=self._keys.get(self.current.url))

    def poll_alternative(self, now: float, silent_s: float) -> tuple[Address, ZmqClient] | None:
        """Return another uploader that answers, with its connection, once the current one is silent for too long.

        The caller makes it the current one, and has to close the connection.
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
            # Any answer shows that the uploader is there.
            self._ping_sent = transport.send(encode(Ping()))
        if now - self._probed_at >= PROBE_TIMEOUT_S:
            self.close()
        return None

    def close(self) -> None:
        """End the probe that is under way, if there is one."""
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
