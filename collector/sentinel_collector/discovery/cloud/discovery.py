"""Finds the cloud of this machine: all providers' metadata services are asked at once, in the background.

One daemon thread drives all conversations. Each provider has one second, all together have two. Where the firmware
names a provider, only that one is asked.
"""

import signal
import threading
from collections.abc import Mapping

from sentinel_collector.discovery.cloud.dmi import DMI_DIR, vendor_from_dmi
from sentinel_collector.discovery.cloud.http import Address
from sentinel_collector.discovery.cloud.probing import ConcurrentProbe, ProbeTarget
from sentinel_collector.discovery.cloud.providers import PROVIDERS, Context
from sentinel_collector.discovery.cloud.responses import ACCOUNT_FIELD, Fields
from sentinel_protocol.common.clock import Clock

PROVIDER_LIMIT_S = 1.0
TOTAL_LIMIT_S = 2.0


class CloudDiscovery:
    """Finds the contract's `cloud_*` fields. It sends nothing before `start`, and never raises after it.

    `addresses` (vendor id → address) replaces those of the table of providers: only these are asked, and only there.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        share_identity: bool,
        addresses: Mapping[str, Address] | None = None,
        dmi_dir: str = DMI_DIR,
        provider_limit_s: float = PROVIDER_LIMIT_S,
        total_limit_s: float = TOTAL_LIMIT_S,
    ) -> None:
        self._clock = clock
        self._share_identity = share_identity
        self._targets = _probe_targets(addresses)
        self._dmi_dir = dmi_dir
        self._provider_limit_s = provider_limit_s
        self._total_limit_s = total_limit_s
        self._started = False
        self._stopped = False
        self._ended = threading.Event()
        self._result: Fields = {}

    def start(self) -> None:
        """Begin in the background; returns at once. Does nothing a second time or after `stop`."""
        if self._started or self._stopped:
            return
        self._started = True
        try:
            threading.Thread(target=self._run, name="cloud-discovery", daemon=True).start()
        except RuntimeError:
            # No further thread can be made (a pids limit): go on without the cloud.
            self._ended.set()

    def stop(self) -> None:
        """Request the end and return at once. The thread ends within its time limits; findings are kept."""
        self._stopped = True
        if not self._started:
            self._ended.set()

    def done(self) -> bool:
        """Return whether `result` is final: False before `start`, True after `stop` without `start`."""
        return self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until `done`, for at most `timeout_s` seconds; returns `done()`."""
        return self._clock.wait_for(self._ended, timeout_s)

    def result(self) -> Fields:
        """Return the fields: none, or at least `cloud_vendor_id`. `cloud_account_id` only with `share_identity`."""
        return dict(self._result)

    def _run(self) -> None:
        try:
            # Signals are for the main thread: one that this thread takes does not interrupt a wait there.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            self._discover()
        finally:
            self._ended.set()

    def _discover(self) -> None:
        hint = vendor_from_dmi(self._dmi_dir)
        hinted = [target for target in self._targets if target.vendor_id == hint]
        context = Context(hint, self._share_identity)
        now = self._clock.monotonic()
        probe = ConcurrentProbe(self._clock, self._provider_limit_s)
        try:
            for target in hinted or self._targets:
                probe.begin(target, PROVIDERS[target.rank].steps(context), now)
            while not self._stopped and probe.result() is None and probe.wait(now + self._total_limit_s):
                pass
        finally:
            probe.close()
        fields = probe.result() or {}
        if not self._share_identity:
            fields.pop(ACCOUNT_FIELD, None)
        self._result = fields


def _probe_targets(addresses: Mapping[str, Address] | None) -> list[ProbeTarget]:
    return [
        ProbeTarget(rank, provider.vendor_id, address)
        for rank, provider in enumerate(PROVIDERS)
        if (address := provider.address if addresses is None else addresses.get(provider.vendor_id)) is not None
    ]
