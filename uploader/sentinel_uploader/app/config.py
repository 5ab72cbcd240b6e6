"""What a running uploader is configured with, after all settings were read and checked."""

from collections.abc import Sequence

import msgspec

from sentinel_protocol.common.endpoints import Address
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.key_store import KeyStore
from sentinel_uploader.telemetry.listen_address import HttpAddress


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How one uploader runs."""

    addresses: Sequence[Address]
    keys: KeyStore | None = None
    """The allow list of TCP addresses; `None`: they have no keys."""
    limits: ClientLimits = ClientLimits()
    spool_dir: str
    spool_max_bytes: int
    policy: Policy
    exit_when_idle_s: float | None = None
    http: HttpAddress | None = None
    unhealthy_after_s: float = 600.0
