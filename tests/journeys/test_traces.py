"""A collector of OpenTelemetry is told of each request: what it cost, and nothing of what was said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings
from tests.script import answer, error, stream
from tests.secrecy import PROMPT

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
async def collector(provider_for: ProviderFor) -> FakeProvider:
    """A collector that takes whatever it is told."""
    taking = await provider_for("collector")
    taking.script = answer(200)
    return taking


def told_to(collector: FakeProvider) -> dict[str, Any]:
    return {"telemetry": {"otlp": f"http://127.0.0.1:{collector.port}"}}


async def told(gateway: Gateway, collector: FakeProvider) -> ExportTraceServiceRequest:
    """What the collector has been told, once the gateway has said all."""
    await eventually(lambda: not gateway.ledger.in_flight)
    await gateway._traces.close()
    call = await collector.next_call()
    assert (call.request.method, call.request.target) == ("POST", "/v1/traces")
    for secret in (KEY, PROMPT):
        assert secret.encode() not in call.request.body
    request = ExportTraceServiceRequest()
    request.ParseFromString(call.request.body)
    return request


async def span_of(gateway: Gateway, collector: FakeProvider) -> Span:
    span: Span
    [resource] = (await told(gateway, collector)).resource_spans
    [scope] = resource.scope_spans
    [span] = scope.spans
    return span


def facts_of(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def ask(http: aiohttp.ClientSession, gateway: Gateway, body: object = ASK, **headers: str) -> int:
    async with http.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_span_tells_what_a_request_was_and_what_it_cost(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(provider, aliases={"gpt": ["m"]}, **told_to(collector))
    assert await ask(http, gateway, {**ASK, "model": "gpt"}) == 200
    span = await span_of(gateway, collector)
    facts = facts_of(span)
    assert (
        facts.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "gpt",
            "gen_ai.response.model": "m",
            "gen_ai.provider.name": "rig",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 2,
            "gen_ai.request.stream": False,
            "http.response.status_code": 200,
            "llmgateway.outcome": "ok",
            "user.name": "alice",
        }.items()
    )
    assert "error.type" not in facts
    assert (span.name, span.kind) == ("chat gpt", Span.SPAN_KIND_SERVER)
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano


async def test_the_trace_of_a_client_goes_on_at_the_provider(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(provider, **told_to(collector))
    before = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "other=1"}
    assert await ask(http, gateway, **before) == 200
    span = await span_of(gateway, collector)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    [call] = provider.calls
    fields = [each for each in call.request.headers if each[0].lower().startswith("trace")]
    assert fields == [("traceparent", f"00-{TRACE}-{span.span_id.hex()}-01"), ("tracestate", "other=1")]


@pytest.mark.parametrize("parent", [None, "00-1-2-3", "x" * 3_000])
async def test_a_trace_begins_here_where_the_client_names_none(
    gateway_for: GatewayFor,
    provider: FakeProvider,
    collector: FakeProvider,
    http: aiohttp.ClientSession,
    parent: str | None,
) -> None:
    gateway = await gateway_for(provider, **told_to(collector))
    assert await ask(http, gateway, **({} if parent is None else {"traceparent": parent})) == 200
    span = await span_of(gateway, collector)
    assert not span.parent_span_id
    [call] = provider.calls
    passed = call.request.header("traceparent") or ""
    assert passed.startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-0")


async def test_what_the_client_does_not_sample_nobody_is_told_of(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(provider, **told_to(collector))
    assert await ask(http, gateway, traceparent=f"00-{TRACE}-{PARENT}-00") == 200
    assert await ask(http, gateway) == 200
    span = await span_of(gateway, collector)
    assert span.trace_id.hex() != TRACE
    passed = provider.calls[0].request.header("traceparent") or ""
    assert passed.startswith(f"00-{TRACE}-") and passed.endswith("-00")


async def test_a_stream_has_its_time_to_the_first_byte(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    provider.script = stream("Hello", " world")
    gateway = await gateway_for(provider, **told_to(collector))
    assert await ask(http, gateway, {**ASK, "stream": True}) == 200
    facts = facts_of(await span_of(gateway, collector))
    assert facts["gen_ai.request.stream"] is True
    assert facts["gen_ai.response.time_to_first_chunk"] > 0


async def test_what_failed_says_why(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    provider.script = error(500)
    gateway = await gateway_for(provider, **told_to(collector))
    assert await ask(http, gateway) == 502
    span = await span_of(gateway, collector)
    facts = facts_of(span)
    assert (facts["error.type"], facts["http.response.status_code"]) == ("upstream_error", 502)
    assert span.status.code == Status.STATUS_CODE_ERROR


async def test_who_has_no_key_is_not_told_of(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(provider, **told_to(collector))
    assert await ask(http, gateway, Authorization="Bearer sk-wrong-0123456789") == 401
    await gateway._traces.close()
    assert not collector.calls


async def test_another_collector_is_told_after_a_reload_and_the_old_one_what_was_before(
    gateway_for: GatewayFor, provider_for: ProviderFor, provider: FakeProvider, http: aiohttp.ClientSession
) -> None:
    first, second = await provider_for("first"), await provider_for("second")
    first.script = second.script = answer(200)
    gateway = await gateway_for(provider, **told_to(first))
    assert await ask(http, gateway) == 200
    gateway.adopt(build(settings(provider, **told_to(second))))
    await first.next_call()
    assert await ask(http, gateway) == 200
    await span_of(gateway, second)


async def test_a_collector_that_is_away_hinders_nobody(
    gateway_for: GatewayFor, provider: FakeProvider, collector: FakeProvider, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(provider, **told_to(collector))
    await collector.refuse()
    assert await ask(http, gateway) == 200


async def test_without_a_collector_a_trace_passes_as_it_came(
    gateway_for: GatewayFor, provider: FakeProvider, http: aiohttp.ClientSession
) -> None:
    gateway = await gateway_for(provider)
    assert await ask(http, gateway, traceparent="whatever") == 200
    assert provider.calls[0].request.header("traceparent") == "whatever"


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    code = "import sys, gateway, llmgateway.service.serve; sys.exit('opentelemetry' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
