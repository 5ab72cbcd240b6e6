"""Exports the metrics to Prometheus. Only this module imports `prometheus_client`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client import metrics_core as families
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from sentinel_protocol import __version__
from sentinel_uploader.runs.lifecycle import OPEN_STATES, RunState
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import UNNAMED, Counters
from sentinel_uploader.telemetry.health import BacklogStats

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "sentinel_uploader_"
_SHOWN_STATES = [*sorted(OPEN_STATES), RunState.QUARANTINED]


@dataclass(kw_only=True, eq=False)
class Metrics:
    """Renders the counters, and gauges of the present state. Implements `prometheus_client.registry.Collector`."""

    counters: Counters
    spool: Spool
    backlog: Callable[[], BacklogStats]
    failing_destinations: Callable[[], int]
    connections: Callable[[], int]

    def __post_init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(cast("Collector", self))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Describe nothing."""
        # Without this, registering would call `collect`.
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of the uploader."""
        yield families.InfoMetricFamily(f"{PREFIX}build", "What is running", {"version": __version__})
        yield from self._event_metrics()
        yield from self._backlog_gauges()
        yield from self._spool_gauges()
        yield from self._client_gauges()

    def _event_metrics(self) -> Iterator[Metric]:
        for count in self.counters.counters():
            family = families.CounterMetricFamily(PREFIX + count.name, count.help, labels=count.labels)
            for values, number in sorted(count.all().items()):
                family.add_metric(values, number)
            yield family
        for times in self.counters.histograms():
            counts, total_s = times.all()
            bounds = [*(repr(bound) for bound in times.bounds_s), "+Inf"]
            yield families.HistogramMetricFamily(
                PREFIX + times.name, times.help, buckets=list(zip(bounds, counts, strict=True)), sum_value=total_s
            )

    def _backlog_gauges(self) -> Iterator[Metric]:
        yield _gauge("connections", "Connections of collectors", self.connections())
        backlog = self.backlog()
        runs = _gauge("runs", "Runs that are not over", labels=["state"])
        for state in _SHOWN_STATES:
            runs.add_metric([state], backlog.runs[state])
        yield runs
        yield _gauge("runs_stale", "Runs closed as stale whose end is not accepted yet", backlog.stale_runs)
        yield _gauge("rows_waiting", "Rows that are not delivered", backlog.rows)
        yield _gauge("rows_waiting_parked", "Those of them that belong to parked runs", backlog.parked_rows)
        yield _gauge("objects_waiting", "Objects that are not delivered", backlog.objects)
        text = "Age of the oldest row that is not delivered, parked runs apart; 0: none waits"
        yield _gauge("oldest_waiting_seconds", text, backlog.oldest_s)
        text = "APIs and buckets that fail and are waited for"
        yield _gauge("destinations_failing", text, self.failing_destinations())

    def _spool_gauges(self) -> Iterator[Metric]:
        try:
            used, limit, largest = self.spool.size()
        except SpoolError:
            # The other metrics are still valid.
            return
        yield _gauge("spool_bytes", "Bytes of the spool in use, tombstones of ended runs apart", used)
        yield _gauge("spool_rows_limit_bytes", "Where rows are not taken any more", limit)
        yield _gauge("spool_limit_bytes", "The spool's largest size", largest)

    def _client_gauges(self) -> Iterator[Metric]:
        by_client = ["client"]
        seen = _gauge("client_last_seen_timestamp_seconds", "When a client was heard last", labels=by_client)
        offset = _gauge("client_clock_offset_seconds", "How far a client's clock is ahead of ours", labels=by_client)
        held = _gauge("client_spool_bytes", "About what a client's open runs take of the spool", labels=by_client)
        for client in self.counters.clients.all():
            owner = "" if client.name == UNNAMED else client.name
            held.add_metric([client.name], self.spool.usage.spool_bytes(owner))
            seen.add_metric([client.name], client.seen_at)
            if client.clock_offset_s is not None:
                offset.add_metric([client.name], client.clock_offset_s)
        yield from (held, seen, offset)


def _gauge(name: str, text: str, value: float | None = None, labels: Sequence[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value, labels)
