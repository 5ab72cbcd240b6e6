"""Executes the steps of a run: calls to the backend, and what is committed before and after them.

A new state, and the fact that a call is about to be attempted, are committed before the call. Repeating any step after
a crash has the same effect.
"""

import hashlib
import logging
from dataclasses import dataclass

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import CSV_HEADER, Sample, csv_rows
from sentinel_uploader.delivery.csv_batch import decompress_rows, gzip_csv, to_csv
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.lifecycle import Event, RunState
from sentinel_uploader.runs.ports import Backend, object_uri
from sentinel_uploader.runs.schedule import Policy, Step, should_inline
from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import Batch, UnbatchedFrames, decode_frames
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.json_safe import to_json_safe

log = logging.getLogger(__name__)

_MAX_KEPT_RESPONSE_BYTES = 16 << 10
_TOO_LARGE = 413


@dataclass(slots=True)
class _BackendSession:
    """What the backend has given for a run: kept in memory only."""

    credentials: Credentials | None = None
    rejections: int = 0
    """Credentials that storage has rejected since the last upload."""
    registration: Registration | None = None
    """A response that could not be committed yet: to register again would make another run at the server."""
    finish_result: FinishResult | None = None
    """The same for `finish`."""


@dataclass(kw_only=True)
class StepExecutor:
    """Executes single steps. The scheduler serialises the steps of one run."""

    spool: Spool
    backend: Backend
    policy: Policy
    clock: Clock
    counters: Counters

    def __post_init__(self) -> None:
        self._sessions: dict[int, _BackendSession] = {}
        """By run: single, atomic operations. A session is changed by its run's step, of which there is one at most."""

    def backoff_key(self, run: OpenRun, step: Step) -> str | None:
        """Return the destination of the step; `None` for a step that calls nothing.

        Raises `DeliveryError` when the run's address is malformed.
        """
        if step in {Step.SEAL_BATCH, Step.CLOSE_STALE}:
            return None
        if step is Step.PUT:
            return self.backend.store.backoff_key(object_uri(run.record.uri_prefix, 1))
        return self.backend.api.backoff_key

    def needs_credentials(self, run: OpenRun) -> bool:
        """Whether credentials must be requested before anything can be uploaded."""
        if not self.backend.needs_credentials:
            return False
        credentials = self._session(run).credentials
        return credentials is None or credentials.has_expired(self.clock.now())

    def wants_refresh(self, run: OpenRun) -> bool:
        """Whether the credentials are still good, but not for long."""
        credentials = self._session(run).credentials
        return credentials is not None and credentials.is_refresh_due(self.clock.now())

    def reject_credentials(self, run: OpenRun) -> int:
        """Drop credentials that storage has rejected; return how many were rejected since the last upload."""
        session = self._session(run)
        session.credentials = None
        session.rejections += 1
        return session.rejections

    def forget(self, run: OpenRun) -> None:
        """The run is closed."""
        self._sessions.pop(run.id, None)

    def execute(self, run: OpenRun, step: Step) -> None:
        """Execute one step; after `DeliveryError` or `SpoolError`, the same step is due again."""
        match step:
            case Step.REGISTER:
                self._register(run)
            case Step.SEAL_BATCH:
                self._seal_batch(run)
            case Step.PUT:
                self._upload(run)
            case Step.REFRESH:
                self._session(run).credentials = self.backend.api.refresh(run.record.run_id)
                self.counters.refreshes.add()
            case Step.FINISH:
                self._finish(run)
            case Step.CLOSE_STALE:
                self._close_stale(run)

    def _session(self, run: OpenRun) -> "_BackendSession":
        return self._sessions.setdefault(run.id, _BackendSession())

    def _register(self, run: OpenRun) -> None:
        if run.record.run_id:
            self.spool.register_run(run)
            return
        session = self._session(run)
        if session.registration is None:
            session.registration = self.backend.api.register(run.record.describe())
        registration = session.registration
        session.credentials = registration.credentials
        # A crash between here and the commit leaves an empty run at the server: it cannot be undone.
        self.spool.register_run(run, run_id=registration.run_id, uri_prefix=registration.uri_prefix)
        session.registration = None
        self.counters.registered.add()
        log.info("run registered run=%s key=%s", registration.run_id, run.record.key, extra=run.record.log_fields)

    def _seal_batch(self, run: OpenRun) -> None:
        frames = self.spool.read_unbatched(run, max_rows=self.policy.max_batch_rows)
        if frames is None:
            return
        samples = _decode_rows(frames)
        csv = to_csv(samples)
        body = gzip_csv(csv)
        record = run.record
        statistics = record.statistics.copy()
        statistics.add(samples)
        batch = Batch(
            number=record.batches + 1,
            first_seq=frames.first_seq,
            last_seq=frames.last_seq,
            rows=len(samples),
            body=body,
            sha256=hashlib.sha256(body).digest(),
        )
        self.spool.seal_batch(
            run,
            frames,
            batch,
            batches=batch.number,
            rows=record.rows + batch.rows,
            csv_bytes=record.csv_bytes + len(csv),
            statistics=statistics,
            sealed_at=self.clock.now(),
        )

    def _upload(self, run: OpenRun) -> None:
        batch = self.spool.next_batch(run)
        if batch is None:
            return
        body = _verified_body(batch)
        if not run.record.put_attempted:
            self.spool.update(run, put_attempted=True)
        session = self._session(run)
        began_at = self.clock.monotonic()
        self.backend.store.put(object_uri(run.record.uri_prefix, batch.number), body, session.credentials)
        self.counters.put_s.add(self.clock.monotonic() - began_at)
        session.rejections = 0
        self.spool.confirm_batch(run, batch)
        self.counters.objects_delivered.add()
        self.counters.object_bytes_delivered.add(len(batch.body))
        self.counters.rows_delivered.add(batch.rows)
        name, fields = run.record.run_id, run.record.log_fields
        log.debug("object stored run=%s number=%d rows=%d", name, batch.number, batch.rows, extra=fields)

    def _close_stale(self, run: OpenRun) -> None:
        # The decision is some time old: the collector may have been heard, or have ended the run, since.
        if not self.spool.end_if_stale(run, self.policy):
            return
        self.counters.closed_as_stale.add()
        name, fields = run.record.run_id, run.record.log_fields
        log.warning("run closed, its collector is silent run=%s key=%s", name, run.record.key, extra=fields)

    def _finish(self, run: OpenRun) -> None:
        record = run.record
        finish = record.finish
        assert finish is not None
        (facts,) = self.spool.view(OpenRun.scheduling_facts, [run.id])
        inline = should_inline(facts, self.policy)
        csv, rows, statistics = self._inline_data(run) if inline else (None, record.rows, record.statistics)
        uris = None if inline else [object_uri(record.uri_prefix, n) for n in range(1, record.batches + 1)]
        again = record.finish_attempted
        if not again:
            self.spool.update(run, finish_attempted=True)
        request = FinishRequest(
            run=record.describe(),
            run_id=record.run_id,
            exit_code=finish.exit_code,
            status=finish.status,
            finished_at=finish.time,
            data_uris=uris,
            data_csv=csv,
            rows=rows,
            summary=_run_summary(msgspec.structs.replace(record, rows=rows, statistics=statistics)),
        )
        session = self._session(run)
        if session.finish_result is None:
            try:
                session.finish_result = self.backend.api.finish(request)
            except DeliveryError as error:
                self._on_finish_error(run, error, inline=inline and rows > 0, again=again)
                return
        response, complaint = session.finish_result
        if complaint is not None:
            text = "the server reports trouble with the run's data run=%s complaint=%s"
            log.warning(text, record.run_id, complaint, extra=record.log_fields)
        self.spool.close_run(
            run,
            Event.CLOSED_STALE if record.closed_as_stale else Event.ACCEPTED,
            response=_truncate_response(to_json_safe(response)),
            rows=rows,
            delivered_rows=rows,
            statistics=statistics,
        )
        self.counters.rows_delivered.add(rows - record.delivered_rows)
        log.info(
            "run finished run=%s status=%s rows=%d objects=%d",
            record.run_id,
            finish.status,
            rows,
            record.batches,
            extra=record.log_fields,
        )

    def _on_finish_error(self, run: OpenRun, error: DeliveryError, *, inline: bool, again: bool) -> None:
        if inline and error.status_code == _TOO_LARGE:
            # The server accepts less inline than the contract says: the rows are uploaded instead.
            self.spool.update(run, put_attempted=True, finish_attempted=False)
            return
        if again and error.retry_action is RetryAction.FAIL:
            raise DeliveryError(
                f"an earlier finish got no answer and may have been accepted; the repetition got: {error}",
                retry_action=RetryAction.FAIL,
                status_code=error.status_code,
            ) from error
        raise error

    def _inline_data(self, run: OpenRun) -> tuple[bytes, int, RunStatistics]:
        """Return the CSV with all rows, their number, and their statistics."""
        parts = [CSV_HEADER, *(decompress_rows(_verified_body(batch)) for batch in self.spool.pending_batches(run))]
        frames = self.spool.read_unbatched(run, max_rows=2**62)
        samples = _decode_rows(frames) if frames is not None else []
        statistics = run.record.statistics.copy()
        statistics.add(samples)
        return b"".join([*parts, csv_rows(samples)]), run.record.rows + len(samples), statistics


def quarantine_run(spool: Spool, run: OpenRun, error: Exception) -> None:
    """Stop delivering a run until a person decides. Its data is kept."""
    spool.update(run, Event.PERMANENT_FAILURE, last_error=to_json_safe(str(error)), next_try_at=0.0)
    name, fields = run.record.run_id, run.record.log_fields
    log.error("run parked, see `sentinel-uploader status` run=%s error=%s", name, error, extra=fields)


def _decode_rows(frames: UnbatchedFrames) -> list[Sample]:
    """Decode rows; raises `DeliveryError` (`FAIL`) when the disk has damaged them."""
    try:
        return decode_frames(frames.payloads)
    except InvalidMessageError as error:
        text = f"rows {frames.first_seq} to {frames.last_seq} are damaged in the spool: {error}"
        raise DeliveryError(text, retry_action=RetryAction.FAIL) from error


def _verified_body(batch: Batch) -> bytes:
    """Return an object's bytes as they were sealed; raises `DeliveryError` (`FAIL`) when the disk has damaged them."""
    if hashlib.sha256(batch.body).digest() != batch.sha256:
        raise DeliveryError(f"object {batch.number:04d} is damaged in the spool", retry_action=RetryAction.FAIL)
    return batch.body


def _run_summary(record: RunRecord) -> dict[str, object]:
    finish = record.finish
    return {
        "rows": record.rows,
        "missing_rows": record.missing_rows,
        "closed_as_stale": record.closed_as_stale,
        "peak_memory_mib": None if finish is None else finish.peak_memory_mib,
        "accounting": "" if finish is None else finish.accounting,
        "scope": "" if finish is None else finish.scope,
        "statistics": to_json_safe(record.statistics.summary()),
        "state": str(RunState.STALE_CLOSED if record.closed_as_stale else RunState.FINISHED),
    }


def _truncate_response(response: dict[str, object]) -> dict[str, object]:
    size = len(msgspec.json.encode(response))
    if size <= _MAX_KEPT_RESPONSE_BYTES:
        return response
    return {"note": f"the answer had {size} bytes and was not kept"}
