"""What Prometheus sees: counters and histograms of finished requests, and gauges that are read when asked.

One registry per gateway, so that two can run in one process. The children of a request's labels are looked up
once and kept together; what describes the present (states, slots, queues) is not kept up to date at all but
collected at the scrape. Label values are bounded by the config and by what providers advertise.
"""

import platform
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, Info, PlatformCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

# From a cached word to a cold load of a large model with a long prompt.
WAIT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 900)
OVERHEAD_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)
_MOST_SERIES: Final = 10_000


class _Series:
    """The children that one kind of request moves."""

    __slots__ = ("count", "duration", "first_byte", "queue_wait")

    def __init__(self, count: Counter, duration: Histogram, first_byte: Histogram, queue: Histogram) -> None:
        self.count = count.inc
        self.duration = duration.observe
        self.first_byte = first_byte.observe
        self.queue_wait = queue.observe


class Now(Collector):
    """Asks for the gauges at the scrape."""

    def __init__(self, gauges: Callable[[], Iterable[Metric]]) -> None:
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        """Promise nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Give the gauges as they are now."""
        return self._gauges()


class Metrics:
    """All metrics of one gateway. Names and labels are in the README."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        by_request = ("endpoint", "model", "provider", "user", "status", "outcome")
        by_model = ("model", "provider")
        by_tokens = ("direction", "model", "provider", "user")
        self._requests = Counter(
            "gateway_requests", "Requests, by how they ended.", by_request, registry=registry
        )
        self._duration = Histogram(
            "gateway_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            by_model,
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._first_byte = Histogram(
            "gateway_time_to_first_byte_seconds",
            "From a request's head to the first byte of its answer, the queue included.",
            by_model,
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "gateway_queue_wait_seconds",
            "Time in the queue.",
            ("model",),
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._overhead = Histogram(
            "gateway_overhead_seconds",
            "The gateway's own time before a request was sent: without its body's arrival and the queue.",
            buckets=OVERHEAD_BUCKETS_S,
            registry=registry,
        )
        self._tokens = Counter(
            "gateway_tokens",
            "Tokens. cached is part of prompt, reasoning of completion.",
            by_tokens,
            registry=registry,
        )
        self._estimated = Counter(
            "gateway_tokens_estimated",
            "The part of gateway_tokens that is an estimate.",
            by_tokens,
            registry=registry,
        )
        self._failovers = Counter(
            "gateway_failovers",
            "Failures that sent a request on to look for another.",
            ("provider", "reason"),
            registry=registry,
        )
        self._departures = Counter(
            "gateway_client_disconnects", "Requests whose client left before the end.", registry=registry
        )
        self._reloads = Counter(
            "gateway_config_reloads", "Attempts to take in a changed config.", ("result",), registry=registry
        )
        Info("gateway_build", "What runs.", registry=registry).info(
            {"version": version, "python": platform.python_version()}
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._series: dict[tuple[str, ...], _Series] = {}

    def observe_now(self, gauges: Callable[[], Iterable[Metric]]) -> None:
        """Have a function asked for gauges at every scrape."""
        self.registry.register(Now(gauges))

    def observe_dropped(self, count: Callable[[], int]) -> None:
        """Have a function asked how many lines of the request log were dropped."""
        self.observe_now(lambda: [_dropped(count())])

    def finished(
        self,
        labels: tuple[str, str, str, str, str, str],
        *,
        total_s: float,
        first_byte_s: float | None,
        queue_s: float,
        overhead_s: float | None,
    ) -> None:
        """Count a request; `labels` are endpoint, model, provider, user, status and outcome."""
        series = self._series.get(labels) or self._look_up(labels)
        series.count()
        series.duration(total_s)
        if first_byte_s is not None:
            series.first_byte(first_byte_s)
        if overhead_s is not None:
            self._overhead.observe(overhead_s)
            series.queue_wait(queue_s)
        if labels[-1] == "client_gone":
            self._departures.inc()

    def _look_up(self, labels: tuple[str, ...]) -> _Series:
        if len(self._series) >= _MOST_SERIES:
            self._series.clear()
        _, model, provider, *_ = labels
        series = self._series[labels] = _Series(
            self._requests.labels(*labels),
            self._duration.labels(model, provider),
            self._first_byte.labels(model, provider),
            self._queue_wait.labels(model),
        )
        return series

    def tokens(self, model: str, provider: str, user: str, *, estimated: bool, **counts: int) -> None:
        """Count tokens, by direction: prompt, completion, cached, reasoning."""
        for direction, count in counts.items():
            if count:
                self._tokens.labels(direction, model, provider, user).inc(count)
                if estimated:
                    self._estimated.labels(direction, model, provider, user).inc(count)

    def failed_over(self, provider: str, reason: str) -> None:
        """Count a failure of a provider that the client did not see."""
        self._failovers.labels(provider, reason).inc()

    def reloaded(self, *, good: bool) -> None:
        """Count an attempt to take in a changed config."""
        self._reloads.labels("good" if good else "bad").inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """Give the page and its Content-Type, in the format that the scraper prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _dropped(count: int) -> Metric:
    name = "gateway_request_log_dropped"
    return CounterMetricFamily(name, "Lines of the request log that could not be written.", count)
