"""What Prometheus sees: counters and histograms of finished requests, and gauges that are read when asked.

One registry per gateway, so that two can run in one process. prometheus-client renders. Counting happens at
every request and is done here, in plain numbers: the library's counters take a lock and a look-up each, 11 us
a request instead of 2. What describes the present (states, slots, queues) is not kept up to date at all but
collected at the scrape. Label values are bounded by the config and by what providers advertise.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# From a cached word to a cold load of a large model with a long prompt.
WAIT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 900)
OVERHEAD_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)
DIRECTIONS: Final = ("prompt", "completion", "cached", "reasoning")
_MOST_SERIES: Final = 10_000

Labels = tuple[str, ...]


class Distribution:
    """A histogram's numbers; `bounds` are the upper ends of its buckets, which count what is at most that."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Count values."""
        counts, bounds = self._counts, self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self._sum += sum(values)

    def add_to(self, family: HistogramMetricFamily, labels: Labels) -> None:
        """Tell Prometheus."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(labels, buckets, self._sum)


class _Tally:
    """What one kind of request moves."""

    __slots__ = ("count", "duration", "estimated", "first_byte", "queue_wait", "tokens")

    def __init__(self, metrics: "Metrics", model: str, provider: str) -> None:
        self.count = 0
        self.tokens = [0, 0, 0, 0]
        self.estimated = [0, 0, 0, 0]
        self.duration = _share(metrics.durations, (model, provider))
        self.first_byte = _share(metrics.first_bytes, (model, provider))
        self.queue_wait = _share(metrics.queue_waits, (model,))


def _share(distributions: dict[Labels, Distribution], labels: Labels) -> Distribution:
    found = distributions.get(labels)
    if found is None:
        found = distributions[labels] = Distribution(WAIT_BUCKETS_S)
    return found


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
    """All metrics of one gateway. Names and labels are in docs/operation.md."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.durations: dict[Labels, Distribution] = {}
        self.first_bytes: dict[Labels, Distribution] = {}
        self.queue_waits: dict[Labels, Distribution] = {}
        self._overhead = Distribution(OVERHEAD_BUCKETS_S)
        self._tallies: dict[Labels, _Tally] = {}
        self._failovers: dict[Labels, int] = {}
        self._reloads: dict[Labels, int] = {}
        self._departures = 0
        self.instance = ""
        """The label `instance` of everything, where there are several gateways."""
        self._prepare: Callable[[], None] = lambda: None
        Info("gateway_build", "What runs.", registry=self.registry).info(
            {"version": version, "python": platform.python_version()}
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.observe_now(self._counted)

    def before_scrape(self, prepare: Callable[[], None]) -> None:
        """Have a function called before every scrape, to bring in what is still on its way."""
        self._prepare = prepare

    def observe_now(self, gauges: Callable[[], Iterable[Metric]]) -> None:
        """Have a function asked for gauges at every scrape."""
        self.registry.register(Now(gauges))

    def observe_refused(self, count: Callable[[], int]) -> None:
        """Have a function asked how many connections of clients were refused, as there were too many."""
        words = "Connections of clients that were refused, as there were too many."
        self.observe_now(lambda: [CounterMetricFamily("gateway_connections_refused", words, count())])

    def observe_dropped(self, of_requests: Callable[[], int], of_the_log: Callable[[], int]) -> None:
        """Have functions asked how many lines of the request log, and of the log, were dropped."""
        self.observe_now(lambda: [_dropped("request_log", of_requests()), _dropped("log", of_the_log())])

    def finished(
        self,
        labels: tuple[str, str, str, str, str, str],
        *,
        total_s: Sequence[float],
        first_byte_s: Sequence[float] = (),
        queue_s: Sequence[float] = (),
        overhead_s: Sequence[float] = (),
        tokens: Sequence[int] = (),
        estimated: bool = False,
    ) -> None:
        """Count requests that ended in the same way, each with a `total_s`; of the rest, those that have it.

        `labels` are endpoint, model, provider, user, status and outcome; `tokens` are their sums as in
        DIRECTIONS, or none if no model has worked on them.
        """
        tally = self._tallies.get(labels) or self._begin(labels)
        tally.count += len(total_s)
        tally.duration.observe(total_s)
        tally.first_byte.observe(first_byte_s)
        tally.queue_wait.observe(queue_s)
        self._overhead.observe(overhead_s)
        for at, count in enumerate(tokens[: len(DIRECTIONS)]):
            tally.tokens[at] += count
            if estimated:
                tally.estimated[at] += count
        if labels[-1] == "client_gone":
            self._departures += len(total_s)

    def _begin(self, labels: Labels) -> _Tally:
        if len(self._tallies) >= _MOST_SERIES:  # years of changing configs: Prometheus takes it for a restart
            for each in (self._tallies, self.durations, self.first_bytes, self.queue_waits):
                each.clear()
        _, model, provider, *_ = labels
        tally = self._tallies[labels] = _Tally(self, model, provider)
        return tally

    def failed_over(self, provider: str, reason: str) -> None:
        """Count a failure of a provider that the client did not see."""
        labels = (provider, reason)
        self._failovers[labels] = self._failovers.get(labels, 0) + 1

    def reloaded(self, *, good: bool) -> None:
        """Count an attempt to take in a changed config."""
        labels = ("good" if good else "bad",)
        self._reloads[labels] = self._reloads.get(labels, 0) + 1

    def _counted(self) -> Iterator[Metric]:
        yield _counter(
            "gateway_requests",
            "Requests, by how they ended.",
            ("endpoint", "model", "provider", "user", "status", "outcome"),
            {labels: tally.count for labels, tally in self._tallies.items()},
        )
        yield _histogram(
            "gateway_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            ("model", "provider"),
            self.durations,
        )
        yield _histogram(
            "gateway_time_to_first_byte_seconds",
            "From a request's head to the first byte of its answer, the queue included.",
            ("model", "provider"),
            self.first_bytes,
        )
        yield _histogram("gateway_queue_wait_seconds", "Time in the queue.", ("model",), self.queue_waits)
        yield _histogram(
            "gateway_overhead_seconds",
            "The gateway's own time before a request was sent: without its body's arrival and the queue.",
            (),
            {(): self._overhead},
        )
        by_tokens = ("direction", "model", "provider", "user")
        what = "Tokens. cached is part of prompt, reasoning of completion."
        yield _counter("gateway_tokens", what, by_tokens, self._sum(lambda tally: tally.tokens))
        what = "The part of gateway_tokens that is an estimate."
        yield _counter("gateway_tokens_estimated", what, by_tokens, self._sum(lambda tally: tally.estimated))
        what = "Failures that sent a request on to look for another."
        yield _counter("gateway_failovers", what, ("provider", "reason"), self._failovers)
        what = "Requests whose client left before the end."
        yield _counter("gateway_client_disconnects", what, (), {(): self._departures})
        what = "Attempts to take in a changed config."
        yield _counter("gateway_config_reloads", what, ("result",), self._reloads)

    def _sum(self, counts: Callable[[_Tally], list[int]]) -> dict[Labels, int]:
        """Add up tokens over endpoints, statuses and outcomes."""
        sums: dict[Labels, int] = {}
        for (_, model, provider, user, *_), tally in self._tallies.items():
            for direction, count in zip(DIRECTIONS, counts(tally), strict=True):
                if count:
                    labels = (direction, model, provider, user)
                    sums[labels] = sums.get(labels, 0) + count
        return sums

    def render(self, accept: str) -> tuple[bytes, str]:
        """Give the page and its Content-Type, in the format that the scraper prefers."""
        self._prepare()
        encode, content_type = choose_encoder(accept)
        told = _Labelled(self.registry, self.instance) if self.instance else self.registry
        return encode(told), content_type


class _Labelled(CollectorRegistry):
    """What another registry has, with one more label."""

    def __init__(self, registry: CollectorRegistry, instance: str) -> None:
        super().__init__()
        self._registry = registry
        self._instance = {"instance": instance}

    def collect(self) -> Iterator[Metric]:
        """Collect what the other has; it makes its samples anew each time."""
        for family in self._registry.collect():
            family.samples = [one._replace(labels={**one.labels, **self._instance}) for one in family.samples]
            yield family


def _counter(name: str, what: str, labels: Labels, counts: dict[Labels, int]) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, what: str, labels: Labels, counts: dict[Labels, Distribution]) -> Metric:
    family = HistogramMetricFamily(name, what, labels=labels)
    for values, distribution in counts.items():
        distribution.add_to(family, values)
    return family


def _dropped(log: str, count: int) -> Metric:
    words = f"Lines of the {log.replace('_', ' ')} that could not be written."
    return CounterMetricFamily(f"gateway_{log}_dropped", words, count)
