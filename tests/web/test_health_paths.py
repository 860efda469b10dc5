"""Where programs look whether the gateway is alive: no key, and the same words everywhere."""

from __future__ import annotations

import pytest

from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import request


@pytest.mark.parametrize("base", ["", "/llm"])
@pytest.mark.parametrize("key", [None, KEY, "sk-wrong"])
async def test_health_is_told_to_everybody_wherever_programs_ask_for_it(
    gateway_for: GatewayFor, provider: FakeProvider, base: str, key: str | None
) -> None:
    gateway = await gateway_for(provider, server={"base_path": base})
    for path in ("/healthz", "/health", "/v1/health"):
        response = await ask(gateway.port, request("GET", base + path, key=key))
        assert (response.status, response.json) == (200, {"status": "ok"})
        asked = await ask(gateway.port, request("HEAD", base + path, key=key), to="HEAD")
        assert (asked.status, asked.header("content-length")) == (200, str(len(response.body)))
        refusal(await ask(gateway.port, request("POST", base + path, key=key)), 405, "method_not_allowed")
    assert (await ask(gateway.port, request("HEAD", f"{base}/", key=key), to="HEAD")).status == 200
    assert not provider.calls


async def test_the_root_is_there_for_head_alone(gateway: Gateway) -> None:
    for method in ("GET", "POST", "PUT"):
        refusal(await ask(gateway.port, request(method, "/")), 404, "not_found")
