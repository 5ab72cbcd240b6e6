"""An uploader's sockets with keys, and keys of clients: real sockets, real key files, no process."""

from pathlib import Path

from fakes.intake_thread import IntakeThread
from fakes.process_harness import wait_until
from fakes.uploader_harness import SPOOL_BYTES
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.curve_keys import ClientCurveKeys, read_key_pair
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.server.allow_list import AllowList
from sentinel_uploader.server.connections import ConnectionLimits
from sentinel_uploader.server.fd_limits import connection_limits
from sentinel_uploader.server.key_store import KeyStore
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.telemetry.counters import Counters

ANY_PORT = "tcp://127.0.0.1:*"


class CurveUploader(IntakeThread):
    """Listens with keys; `key_of` makes a client and returns what it needs. `asked` are limits of each client."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: ConnectionLimits | None = None,
        url: str = ANY_PORT,
        asked: ClientLimits | None = None,
        max_bytes: int = SPOOL_BYTES,
    ) -> None:
        self.store = KeyStore(str(directory / "keys"))
        self.store.init()
        self.allow_list = AllowList(self.store, clock=SystemClock())
        counters = Counters()
        router = ZmqServer(
            [parse_address(url, bind=True)],
            allow_list=self.allow_list,
            limits=limits or connection_limits(asked or ClientLimits()),
            rejections=RejectionLog(counters, SystemClock()),
        )
        super().__init__(
            directory / "spool",
            router,
            max_bytes=max_bytes,
            counters=counters,
            name_of=self.allow_list.name_of,
            limits=asked,
            known_clients=lambda: len(self.allow_list),
        )

    def key_of(self, name: str, *, replace: bool = False) -> ClientCurveKeys:
        pair = read_key_pair(self.store.add(name, replace=replace))
        # A hand-written client knocks once.
        wait_until(lambda: self.allow_list.is_allowed(pair.public), "the list has it")
        return ClientCurveKeys(pair, self.store.server_pair().public)

    def rejected(self, reason: str) -> float:
        return self.counters.rejected.value(reason)

    def runs(self) -> dict[tuple[str, str], OpenRun]:
        """Return the open runs by client and run key."""
        with self.spool._lock:
            return {(run.record.owner, run.record.key): run for run in self.spool._runs.values()}
