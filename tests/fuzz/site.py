"""One uploader without its socket and threads: real intake, real spool, real steps; only the far ends are made up."""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import open_spool_at

from fuzz.wire import Wire
from sentinel_protocol.common.time_text import utc_text
from sentinel_uploader.backends.sentinel.payload import registration
from sentinel_uploader.delivery.csv_batch import decompress_rows
from sentinel_uploader.delivery.executor import StepExecutor, quarantine_run
from sentinel_uploader.intake.loop import Intake
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.lifecycle import Event, RunState
from sentinel_uploader.runs.ports import Backend, StoreProbe, object_uri
from sentinel_uploader.runs.schedule import Policy, Step, next_step
from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.telemetry.counters import Counters

if TYPE_CHECKING:
    from sentinel_uploader.server.zmq_server import ZmqServer

SPOOL_BYTES = 64 << 20
STALE_AFTER_S = 900.0
_MOST_STEPS = 10_000


class FarEnd:
    """API and store at once: takes everything that JSON and CSV can carry, and keeps what it was told of each run."""

    backoff_key = "https://api.test"
    inline_limit_bytes = 0

    def __init__(self) -> None:
        self.endings: dict[str, FinishRequest] = {}
        self.bodies: dict[str, list[bytes]] = defaultdict(list)

    def forget(self) -> None:
        self.endings.clear()
        self.bodies.clear()

    def register(self, run: RunDescription) -> Registration:
        json.dumps(registration(run.metadata, run.host, run.cloud), allow_nan=False).encode()
        return Registration(run_id=run.uid, uri_prefix=f"s3://bucket/{run.uid}", credentials=None)

    def refresh(self, run_id: str) -> Credentials | None:
        raise AssertionError(f"nothing here needs credentials: {run_id}")

    def finish(self, request: FinishRequest) -> FinishResult:
        assert request.run_id not in self.endings, "finished twice"
        utc_text(request.finished_at)
        json.dumps([request.exit_code, request.summary, request.data_uris], allow_nan=False, default=str)
        self.endings[request.run_id] = request
        return FinishResult({})

    def credentials_changed(self) -> bool:
        return False

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:  # noqa: ARG002 -- the port's
        self.bodies[uri].append(body)

    def close(self) -> None:
        pass


class _Store:
    """The far end as an object store."""

    def __init__(self, far_end: FarEnd) -> None:
        self._far_end = far_end
        self.put, self.close = far_end.put, far_end.close

    def backoff_key(self, uri: str) -> str:
        return "/".join(uri.split("/")[:3])

    def probe(self, uri_prefix: str | None, region: str | None) -> list[StoreProbe]:
        raise NotImplementedError


class Site:
    """Lives through many plays, as an uploader does; `restart` is a SIGKILL and a new start."""

    def __init__(self, directory: Path, names: dict[bytes, str]) -> None:
        self.wire = Wire()
        self.clock = SteppedClock()
        self.far_end = FarEnd()
        self.counters = Counters()
        self._policy = Policy(max_batch_rows=64, stale_after_s=STALE_AFTER_S, upload_interval_s=60.0)
        self._directory = directory
        self._names = names
        self.plays = 0
        self._open()

    def _open(self) -> None:
        self.spool = open_spool_at(self._directory, self.clock, max_bytes=SPOOL_BYTES)
        self.intake = Intake(
            server=cast("ZmqServer", self.wire),
            spool=self.spool,
            clock=self.clock,
            wake_run=lambda _: None,
            policy=self._policy,
            counters=self.counters,
            name_of=self._names.get,
        )
        target = Backend(api=self.far_end, store=_Store(self.far_end), needs_credentials=False)
        self._steps = StepExecutor(
            spool=self.spool, backend=target, policy=self._policy, clock=self.clock, counters=self.counters
        )

    def restart(self) -> None:
        """Be killed and begin anew: what was not committed is gone."""
        self.wire.lose_everything()
        self.spool.close()
        self._open()

    def begin_anew(self) -> None:
        """Forget everything."""
        self.spool.close()
        for file in self._directory.iterdir():
            file.unlink()
        self.wire.lose_everything()
        self.far_end.forget()
        self._open()

    def close(self) -> None:
        self.spool.close()

    def serve(self) -> None:
        """Take what has come; every exception is a finding."""
        self.intake.poll_once(0.0)

    def work(self, run: OpenRun) -> None:
        """Do all that is due for a run now."""
        for _ in range(_MOST_STEPS):
            step = self._due(run)
            if step is None:
                break
            try:
                self._steps.execute(run, step)
            except DeliveryError as error:
                if error.retry_action is not RetryAction.FAIL:
                    raise
                quarantine_run(self.spool, run, error)
        else:
            raise AssertionError(f"the steps of {run.record.key!r} do not end")
        if run.record.is_over:
            self.intake.notify(run)

    def _due(self, run: OpenRun) -> Step | None:
        facts = run.scheduling_facts(receiving_since=self.intake.receiving_since)
        return next_step(facts, self._policy, self.clock.monotonic())[0]

    def discard(self, run: OpenRun) -> None:
        """A person gives a run up."""
        self.spool.close_run(run, Event.DISCARDED)
        self.intake.notify(run)

    def end_all(self) -> list[OpenRun]:
        """Let everything come to its end: whoever has not finished has gone silent."""
        self.serve()
        runs = list(self.spool._runs.values())
        self.clock.advance(STALE_AFTER_S)
        # The intake has looped all that time.
        self.intake.last_loop_at = self.clock.monotonic()
        for run in runs:
            heard_at = run.last_seen_at
            run.last_seen_at = min(heard_at, self.clock.monotonic() - max(STALE_AFTER_S, 3 * run.record.interval_s) - 1)
            self.work(run)
        self.serve()
        assert not self.spool._runs, "a run does not end"
        assert not self.intake.has_sessions(), "a session outlives its run"
        return runs

    def delivered(self, run: OpenRun) -> bytes:
        """Return a run's rows as CSV lines, from the objects that `finish` named; each is there once."""
        record = run.record
        assert record.state in {RunState.FINISHED, RunState.STALE_CLOSED}
        ending = self.far_end.endings[record.run_id]
        assert ending.data_uris == [object_uri(record.uri_prefix, number) for number in range(1, record.batches + 1)]
        bodies = [self.far_end.bodies[uri] for uri in ending.data_uris]
        assert all(len(body) == 1 for body in bodies), "an object was put more than once"
        return b"".join(decompress_rows(body) for (body,) in bodies)
