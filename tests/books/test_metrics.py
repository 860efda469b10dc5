"""What Prometheus is told: the promised names, true counts, and no label that a stranger can choose."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llmgateway.books.metrics import Metrics
from llmgateway.config.load import build
from llmgateway.fleet.breaker import FAILURES_IN_A_ROW
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, QUICK, Turns, ask, ask_for, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.raw_client import RawClient, chat, request
from tests.script import answer, cut, error, play, raw, sse, stall, word

REQUEST = ("endpoint", "model", "provider", "user", "status", "outcome")
PLACE = ("model", "provider")
TOKENS = ("direction", "model", "provider", "user")

PROMISED: dict[str, tuple[str, tuple[str, ...]]] = {  # type and labels
    "gateway_requests_total": ("counter", REQUEST),
    "gateway_request_duration_seconds": ("histogram", PLACE),
    "gateway_time_to_first_byte_seconds": ("histogram", PLACE),
    "gateway_queue_wait_seconds": ("histogram", ("model",)),
    "gateway_overhead_seconds": ("histogram", ()),
    "gateway_tokens_total": ("counter", TOKENS),
    "gateway_tokens_estimated_total": ("counter", TOKENS),
    "gateway_requests_in_flight": ("gauge", ("provider",)),
    "gateway_slots": ("gauge", ("provider",)),
    "gateway_queue_depth": ("gauge", ("model",)),
    "gateway_provider_state": ("gauge", ("provider", "state")),
    "gateway_taken_out": ("gauge", ("provider", "model", "reason")),
    "gateway_failovers_total": ("counter", ("provider", "reason")),
    "gateway_affinity_total": ("counter", ("result",)),
    "gateway_client_disconnects_total": ("counter", ()),
    "gateway_request_log_dropped_total": ("counter", ()),
    "gateway_log_dropped_total": ("counter", ()),
    "gateway_connections_refused_total": ("counter", ()),
    "gateway_requests_shed_total": ("counter", ()),
    "gateway_loop_lag_seconds": ("gauge", ()),
    "gateway_config_valid": ("gauge", ()),
    "gateway_config_loaded_timestamp_seconds": ("gauge", ()),
    "gateway_config_reloads_total": ("counter", ("result",)),
    "gateway_build_info": ("gauge", ("version", "python")),  # in the text format an info is one
    "process_start_time_seconds": ("gauge", ()),
    "process_resident_memory_bytes": ("gauge", ()),
    "python_info": ("gauge", ("version", "implementation", "major", "minor", "patchlevel")),
    "python_gc_collections_total": ("counter", ("generation",)),
}
STATES = {"unknown", "online", "warming", "offline", "misconfigured", "taken_out"}
FAMILY = {"alice": {"keys": [KEY], "route": "prefer_own"}, "bob": {"keys": [BOB]}}


class Scrape:
    """What one scrape has brought."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            total = "_total" if family.type == "counter" else ""
            self.families[family.name + total] = family

    def sum(self, sample: str, **labels: str) -> float:
        """Add up the samples of that name that have these labels."""
        return sum(value for _, value in self.samples(sample, **labels))

    def samples(self, sample: str, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        return [
            (each.labels, each.value)
            for family in self.families.values()
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        ]

    def by(self, label: str, sample: str, **labels: str) -> dict[str, float]:
        """The values that are not 0, by one of the labels."""
        found: dict[str, float] = {}
        for each, value in self.samples(sample, **labels):
            if value:
                found[each[label]] = found.get(each[label], 0) + value
        return found


async def scrape(port: int) -> Scrape:
    response = await ask(port, request("GET", "/metrics", key=None))
    assert response.status == 200
    return Scrape(response.body.decode())


async def counted(port: int, count: int) -> Scrape:
    """Wait until so many requests have been counted."""

    async def all_of_them() -> Scrape | None:
        seen = await scrape(port)
        return seen if seen.sum("gateway_requests_total") == count else None

    seen = await eventually(all_of_them)
    assert seen is not None
    return seen


# Names, labels, and counts.


async def test_all_promised_metrics_are_there_with_their_types_and_labels_and_no_others(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig", owner="alice", slots=4), await provider_for("other")
    rig.once(error(500), play(sse(), word("x"), cut()))
    gateway = await gateway_for(rig, other, users=FAMILY)
    gateway.metrics.reloaded(good=True)
    await ask(gateway.port)
    await ask(gateway.port, chat(stream=True))
    for _ in range(FAILURES_IN_A_ROW):
        gateway.fleet.providers["rig"].fared_badly("m", "answered 500", now=asyncio.get_running_loop().time())
    seen = await counted(gateway.port, 2)
    for name, (type_, labels) in PROMISED.items():
        family = seen.families[name]
        assert family.type == type_, name
        assert family.documentation, name
        assert family.samples, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), sample
    ours = {name for name in seen.families if name.startswith("gateway_")}
    created = {name for name in ours if name.endswith("_created")}
    assert ours - created == {name for name in PROMISED if name.startswith("gateway_")}


async def test_counts_agree_with_what_was_sent(gateway_for: GatewayFor, provider_for: ProviderFor) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    gateway = await gateway_for(rig, other, users=FAMILY)
    broken = play(raw(b"HTTP/1.1 200 "), cut())
    rig.once(error(500), error(500), broken, error(404), error(400), play(sse(), word("a"), word("b"), cut()))
    for stream in (False, False, False, False, False, True, False):
        await ask(gateway.port, ask_for(stream=stream))
        await ask(gateway.port, ask_for("unknown"))
    await ask(gateway.port, chat(key=None))
    seen = await counted(gateway.port, 15)

    counts = {
        tuple(labels[name] for name in REQUEST[1:]): value
        for labels, value in seen.samples("gateway_requests_total")
    }
    assert {labels["endpoint"] for labels, _ in seen.samples("gateway_requests_total")} == {
        "/v1/chat/completions"
    }
    assert counts == {
        ("m", "other", "alice", "200", "ok"): 4,
        ("m", "rig", "alice", "400", "ok"): 1,
        ("m", "rig", "alice", "200", "truncated"): 1,
        ("m", "rig", "alice", "200", "ok"): 1,
        ("", "", "alice", "404", "no_provider"): 7,
        ("", "", "", "401", "invalid_api_key"): 1,
    }
    assert seen.by("reason", "gateway_failovers_total", provider="rig") == {
        "error_status": 2,
        "broken": 1,
        "status_404": 1,
    }
    assert seen.sum("gateway_request_duration_seconds_count") == 15
    assert seen.sum("gateway_time_to_first_byte_seconds_count") == 7
    assert seen.sum("gateway_queue_wait_seconds_count") == 7
    assert seen.sum("gateway_overhead_seconds_count") == 7
    assert seen.sum("gateway_tokens_total", direction="completion", provider="other") == 8
    assert seen.sum("gateway_tokens_total", direction="prompt", provider="other") == 12
    assert seen.sum("gateway_tokens_total", direction="completion", provider="rig") == 4
    assert seen.sum("gateway_tokens_estimated_total", direction="completion") == 2
    assert seen.sum("gateway_tokens_estimated_total", provider="other") == 0
    assert seen.sum("gateway_client_disconnects_total") == 0


async def test_all_directions_of_tokens_are_told_apart(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    usage = {
        "prompt_tokens": 40,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 32},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    provider.script = answer(200, {"usage": usage})
    gateway = await gateway_for(provider)
    await ask(gateway.port)
    seen = await counted(gateway.port, 1)
    assert seen.by("direction", "gateway_tokens_total", model="m", provider="rig", user="alice") == {
        "prompt": 40,
        "completion": 7,
        "cached": 32,
        "reasoning": 4,
    }


async def test_a_client_that_leaves_is_a_departure(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    provider.script = stall()
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
    seen = await counted(gateway.port, 1)
    assert seen.sum("gateway_client_disconnects_total") == 1
    assert seen.sum("gateway_requests_total", outcome="client_gone", status="499") == 1


async def test_times_are_told_finer_than_the_clock_of_the_loop(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    """That of uvloop has milliseconds, and stands still for as long as most requests take us."""
    gateway = await gateway_for(provider)
    for _ in range(20):
        await ask(gateway.port)
    seen = await counted(gateway.port, 20)
    assert seen.sum("gateway_overhead_seconds_sum") > 0
    assert all(0 < line["first_byte_ms"] <= line["total_ms"] for line in gateway.ledger.recent)


async def test_durations_fall_into_their_buckets(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gate = asyncio.Event()

    async def gated(exchange: Any) -> None:
        await gate.wait()
        await answer(200, {})(exchange)

    provider.script = gated
    gateway = await gateway_for(provider)
    began = time.monotonic()
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
        waited = time.monotonic()
        await eventually(lambda: time.monotonic() - waited > 0.06)
        gate.set()
        await client.response()
    seen = await counted(gateway.port, 1)
    took_s = time.monotonic() - began
    for name in ("gateway_request_duration_seconds", "gateway_time_to_first_byte_seconds"):
        assert 0.06 <= seen.sum(f"{name}_sum") <= took_s
        assert seen.sum(f"{name}_bucket", le="0.05") == 0
        assert seen.sum(f"{name}_bucket", le="+Inf") == 1
        bounds = [float(labels["le"]) for labels, _ in seen.samples(f"{name}_bucket")]
        assert (bounds[0], bounds[-2]) == (0.01, 900)
    bounds = [float(labels["le"]) for labels, _ in seen.samples("gateway_overhead_seconds_bucket")]
    assert (bounds[0], bounds[-2]) == (0.0001, 0.1)


# What a stranger can choose is no label.


async def test_a_model_that_nobody_has_is_no_label_and_no_account(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    await ask(gateway.port)
    await ask(gateway.port, ask_for("unknown-first"))
    series = (await counted(gateway.port, 2)).text.count("\n")
    accounts = len(gateway.ledger.totals)
    for number in range(200):
        await ask(gateway.port, ask_for(f"unknown-{number}"))
    seen = await counted(gateway.port, 202)
    assert "unknown-" not in seen.text
    assert (len(gateway.ledger.totals), seen.text.count("\n")) == (accounts, series)
    assert seen.sum("gateway_requests_total", model="", outcome="no_provider") == 201


async def test_neither_paths_nor_ids_nor_keys_of_a_client_are_labels(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    for number in range(10):  # more would have to wait
        name = f"stranger-{number}"
        await ask(gateway.port, request("POST", f"/v1/{name}", f"X-Request-Id: {name}", body=b"{}"))
        await ask(gateway.port, chat(None, f"X-Request-Id: {name}", key=name))
        await ask(gateway.port, request("POST", f"/v1/chat/completions?{name}", body=b'{"model":"m"}'))
    assert "stranger" not in (await counted(gateway.port, 20)).text


async def test_values_with_quotes_and_newlines_are_escaped(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    name = 'a "model"\\ {of="two"}\nlines'
    rig = await provider_for(models=[name])
    gateway = await gateway_for(rig)
    assert (await ask(gateway.port, ask_for(name))).status == 200
    seen = await counted(gateway.port, 1)
    assert seen.by("model", "gateway_requests_total") == {name: 1}
    assert all(re.match(r"(#|[a-z_]+[ {])", line) for line in seen.text.splitlines())


# The present.


async def test_what_is_in_flight_waits_and_could_be_taken_is_told(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, open_ended = await provider_for(slots=2), await provider_for("open", models=["n"])
    turns = rig.script = Turns()
    gateway = await gateway_for(rig, open_ended)
    async with crowd(gateway.port) as send:
        clients = [await send() for _ in range(5)]
        await waiting(gateway, 3)
        seen = await scrape(gateway.port)
        assert seen.by("provider", "gateway_requests_in_flight") == {"rig": 2}
        assert [value for _, value in seen.samples("gateway_requests_in_flight", provider="open")] == [0]
        assert seen.by("provider", "gateway_slots") == {"rig": 2}, "unknown ones are not told"
        depths = {labels["model"]: depth for labels, depth in seen.samples("gateway_queue_depth")}
        assert depths == {"m": 3, "n": 0}
        await asyncio.sleep(0.02)  # so that there is a time to be measured
        turns.end(5)
        for client in clients:
            await client.response()
    seen = await counted(gateway.port, 5)
    assert seen.by("model", "gateway_queue_depth") == {}
    assert seen.by("provider", "gateway_requests_in_flight") == {}
    assert seen.sum("gateway_queue_wait_seconds_count", model="m") == 5
    assert seen.sum("gateway_queue_wait_seconds_sum", model="m") > 0


async def test_each_provider_is_in_one_state(gateway_for: GatewayFor, provider_for: ProviderFor) -> None:
    rig, dead, locked = await provider_for("rig"), await provider_for("dead"), await provider_for("locked")
    await dead.refuse()
    locked.on["/v1/models"] = error(401)
    gateway = await gateway_for(rig, dead, locked, health={**QUICK, "fall": 1})

    async def states() -> dict[str, str]:
        seen = await scrape(gateway.port)
        samples = seen.samples("gateway_provider_state")
        assert {labels["state"] for labels, _ in samples} == STATES
        assert len(samples) == 3 * len(STATES)
        return {labels["provider"]: labels["state"] for labels, value in samples if value == 1}

    assert await states() == {"rig": "online", "dead": "offline", "locked": "misconfigured"}
    await rig.refuse()
    await dead.come_back()

    async def have_changed() -> bool:
        return await states() == {"rig": "offline", "dead": "online", "locked": "misconfigured"}

    await eventually(have_changed)


async def test_a_provider_that_was_removed_is_no_gauge_any_more(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other", models=["n"])
    gateway = await gateway_for(rig, other)
    gateway.adopt(build(settings(rig)))
    seen = await scrape(gateway.port)
    assert {labels["provider"] for labels, _ in seen.samples("gateway_provider_state")} == {"rig"}
    assert {labels["provider"] for labels, _ in seen.samples("gateway_requests_in_flight")} == {"rig"}
    assert {labels["model"] for labels, _ in seen.samples("gateway_queue_depth")} == {"m"}


async def test_conversations_that_stay_at_home_are_counted(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig"), await provider_for("other")
    gateway = await gateway_for(rig, other)
    turns = [{"role": "user", "content": "a question of some length"}]
    for _ in range(3):
        await ask(gateway.port, ask_for(messages=turns))
        turns += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}]
    results = (await counted(gateway.port, 3)).by("result", "gateway_affinity_total")
    assert results["hit"] == 2
    assert sum(results.values()) == 3


async def test_two_gateways_in_one_process_share_nothing(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    one, two = await gateway_for(provider), await gateway_for(provider)
    await ask(one.port)
    await counted(one.port, 1)
    await counted(two.port, 0)
    assert not (await scrape(two.port)).samples("gateway_tokens_total")


async def test_the_config_is_told_as_valid_until_it_has_problems(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    assert (await scrape(gateway.port)).sum("gateway_config_valid") == 1
    gateway.condition.problems = ["config.yaml:1:1: it is bad"]
    gateway.metrics.reloaded(good=False)
    gateway.condition.loaded_at = 1_790_000_000.0
    seen = await scrape(gateway.port)
    assert seen.sum("gateway_config_valid") == 0
    assert seen.by("result", "gateway_config_reloads_total") == {"bad": 1}
    assert seen.sum("gateway_config_loaded_timestamp_seconds") == 1_790_000_000


# The page itself.


async def test_the_format_is_what_the_scraper_prefers(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    await ask(gateway.port)
    plain = await ask(gateway.port, request("GET", "/metrics", key=None))
    assert (plain.header("content-type") or "").startswith("text/plain; version=")
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    modern = await ask(gateway.port, request("GET", "/metrics", accept, key=None))
    assert (modern.header("content-type") or "").startswith("application/openmetrics-text")
    text = modern.body.decode()
    families = openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"gateway_requests", "gateway_build", "gateway_provider_state"} <= names


async def test_a_scrape_in_the_middle_of_everything_is_whole(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    scrapes = asyncio.gather(*(scrape(gateway.port) for _ in range(10)))
    await asyncio.gather(*(ask(gateway.port) for _ in range(50)))
    await scrapes
    await counted(gateway.port, 50)


@pytest.mark.parametrize("users", [200])
def test_many_series_are_counted_all_the_same(users: int) -> None:
    """The time of a scrape is reported, not judged."""
    metrics = Metrics("1")
    for user in range(users):
        for model in range(10):
            labels = ("/v1/chat/completions", f"m{model}", f"p{model}", f"u{user}", "200", "ok")
            for _ in range(2):
                metrics.finished(
                    labels,
                    total_s=[1],
                    first_byte_s=[0.5],
                    queue_s=[0],
                    overhead_s=[0.001],
                    tokens=(3, 2, 1, 1),
                    estimated=True,
                )
    began = time.perf_counter()
    page, _ = metrics.render("")
    print(f"a scrape of {users * 10} kinds of request took {time.perf_counter() - began:.3f} s")
    seen = Scrape(page.decode())
    assert len(seen.samples("gateway_requests_total")) == 10 * users
    assert seen.sum("gateway_requests_total") == 20 * users
    assert seen.sum("gateway_tokens_total") == seen.sum("gateway_tokens_estimated_total") == 140 * users
