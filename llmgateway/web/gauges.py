"""The gauges: what the gateway is doing now, for Prometheus.

They are read when somebody scrapes, from state that is kept anyway. A label is a provider, a model that one
advertises, or a word of ours, so there are few.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from llmgateway.fleet.appearance import STATES, shown_state, taken_out
from llmgateway.fleet.fleet import Fleet
from llmgateway.traffic.admission import Gate
from llmgateway.traffic.slots import Slots
from llmgateway.web.pressure import Pressure
from llmgateway.web.status import Condition


def gauges(condition: Condition, fleet: Fleet, slots: Slots) -> Iterator[Metric]:
    """Give what describes the present."""
    yield from _of_providers(fleet)
    yield _queue_depth(fleet, slots)
    yield _affinity(slots)
    yield from _of_config(condition)


def under_pressure(pressure: Pressure) -> Iterator[Metric]:
    """Give how far the gateway is behind, and how many requests it turned away for that."""
    words = "How late the event loop is with what is due, or with requests to be begun, smoothed."
    yield GaugeMetricFamily("gateway_loop_lag_seconds", words, pressure.lag_s)
    words = "Requests that were turned away as the gateway was behind with its work."
    yield CounterMetricFamily("gateway_requests_shed", words, pressure.shed)


def of_shared_limits(gate: Gate) -> Iterator[Metric]:
    """Give whether limits are counted in Redis, where the config wants that, and how often they were not."""
    if (link := gate.link) is not None:
        words = "1 while limits are counted in Redis, 0 while this gateway counts alone."
        yield GaugeMetricFamily("gateway_limits_shared", words, not link.away)
        words = "Requests whose limits this gateway decided alone, as Redis was slow or away."
        yield CounterMetricFamily("gateway_limits_decided_alone", words, link.alone)


def _of_providers(fleet: Fleet) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily(
        "gateway_requests_in_flight", "Requests that a provider works on.", labels=["provider"]
    )
    capacity = GaugeMetricFamily(
        "gateway_slots", "Requests that a provider takes at once, where that is known.", labels=["provider"]
    )
    state = GaugeMetricFamily(
        "gateway_provider_state", "1 for the state a provider is in.", labels=["provider", "state"]
    )
    out = GaugeMetricFamily(
        "gateway_taken_out",
        "1 while a provider is not trusted with a model, or with any (no name), as it fails requests.",
        labels=["provider", "model", "reason"],
    )
    for provider in fleet.providers.values():
        in_flight.add_metric([provider.name], provider.in_flight)
        if provider.slots is not None:
            capacity.add_metric([provider.name], provider.slots)
        shown = shown_state(provider)
        for each in STATES:
            state.add_metric([provider.name, each], each == shown)
        for model, breaker in taken_out(provider).items():
            out.add_metric([provider.name, model, breaker.why], 1)
    yield from (in_flight, capacity, state, out)


def _queue_depth(fleet: Fleet, slots: Slots) -> Metric:
    queue = GaugeMetricFamily("gateway_queue_depth", "Requests that wait for a slot.", labels=["model"])
    depths = Counter({model: depth for model, depth in slots.line.depths.items() if fleet.advertises(model)})
    listed = {model for provider in fleet.providers.values() for model in provider.models}
    for model in listed | depths.keys():
        queue.add_metric([model], depths[model])
    return queue


def _affinity(slots: Slots) -> Metric:
    affinity = CounterMetricFamily(
        "gateway_affinity", "Placements of requests of a conversation.", labels=["result"]
    )
    for result, count in slots.affinity_results.items():
        affinity.add_metric([result or "none"], count)
    return affinity


def _of_config(condition: Condition) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "gateway_config_valid", "1 if the config file is good and in force.", not condition.problems
    )
    yield GaugeMetricFamily(
        "gateway_config_loaded_timestamp_seconds", "When the config in force was read.", condition.loaded_at
    )
