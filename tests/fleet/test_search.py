"""Where LLM servers are looked for on this machine, and what is made of those that are found."""

from __future__ import annotations

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer

from llmgateway.config.load import build
from llmgateway.fleet import search
from llmgateway.fleet.search import WELL_KNOWN, find_servers, first_model
from tests.fake_provider import FakeProvider
from tests.servers.samples import LMSTUDIO


def test_the_well_known_ports_are_those_of_the_kinds_under_names_that_a_config_takes() -> None:
    assert list(WELL_KNOWN.items()) == [
        ("ollama", 11434),
        ("llama-cpp", 8080),
        ("llama-cpp-9931", 9931),
        ("lm-studio", 1234),
        ("vllm", 8000),
    ]
    urls = {name: {"url": f"http://127.0.0.1:{port}/v1"} for name, port in WELL_KNOWN.items()}
    assert list(build({"providers": urls}).providers) == list(WELL_KNOWN)


async def test_what_is_found_is_ready_for_a_config_with_a_model_to_try(
    aiohttp_server: AiohttpServer, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listed(_: web.Request) -> web.Response:
        return web.json_response(LMSTUDIO.listing)

    app = web.Application()
    app.router.add_get("/v1/models", listed)
    server = await aiohttp_server(app)
    await provider.refuse()
    monkeypatch.setattr(search, "WELL_KNOWN", {"nobody": provider.port, "lm-studio": server.port})
    servers = await find_servers()
    assert [(name, found.url) for name, found in servers.items()] == [
        ("lm-studio", f"http://127.0.0.1:{server.port}/v1")
    ]
    assert first_model(servers) == "qwen3-8b"
    await server.close()
    assert await find_servers() == {} and first_model({}) is None
