"""What the gateway tells programs that take it for an Ollama, without asking a server."""

from __future__ import annotations

from typing import Any

import pytest

from llmgateway.servers import generic, ollama
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, FAMILY, QUICK, ask
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.journeys.test_ollama_api import ON, as_ollama, to
from tests.raw_client import RawClient, request
from tests.script import answer, listing

DETAILS = {
    "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
    "parameter_size": "8.0B", "quantization_level": "Q4_K_M",
}  # fmt: skip
TOLD: dict[str, Any] = {
    "modified_at": "2026-10-04T14:56:49.277302595-07:00",
    "size": 4_661_224_676,
    "digest": "365c0bd3c000a25d28ddbf732fe1c6add414de7275464c4e4d1c3b5fcb5d8ad1",
    "details": DETAILS,
}
IN_MEMORY = {
    "size_vram": 5_137_025_024,
    "expires_at": "2026-10-04T15:01:49.277302595-07:00",
    "size": 6_654_289_920,
}


def holding(provider: FakeProvider, *models: str, loaded: tuple[str, ...] = ()) -> FakeProvider:
    """Let a provider be an Ollama that tells all that Ollama does."""
    as_ollama(provider, *models)
    entries = [{"name": name, "model": name, **TOLD} for name in models]
    running = [{"name": name, "model": name, **TOLD, **IN_MEMORY} for name in loaded]
    provider.on["/api/tags"] = answer(200, {"models": entries})
    provider.on["/api/ps"] = answer(200, {"models": running})
    return provider


def get(path: str, method: str = "GET", *, key: str | None = KEY) -> bytes:
    return request(method, path, key=key)


async def status_of_head(port: int, message: bytes) -> int:
    async with RawClient(port) as client:
        await client.send(message)
        return (await client.response(to="HEAD")).status


async def names(port: int, path: str, *, key: str = KEY) -> list[str]:
    response = await ask(port, get(path, key=key))
    assert response.status == 200
    assert all(entry["name"] == entry["model"] for entry in response.json["models"])
    return [entry["name"] for entry in response.json["models"]]


async def test_the_lists_hold_what_all_servers_that_are_ollama_told(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = holding(await provider_for("rig"), "a:1b", "b:1b", loaded=("b:1b",))
    box = holding(await provider_for("box"), "c:1b", "a:1b", loaded=("a:1b",))
    other = await provider_for("other", models=["not-ollamas"])
    gateway = await gateway_for(rig, box, other, **ON, health=QUICK)
    tags = (await ask(gateway.port, get("/api/tags"))).json["models"]
    assert tags == [{"name": name, "model": name, **TOLD} for name in ("a:1b", "b:1b", "c:1b")]
    running = (await ask(gateway.port, get("/api/ps"))).json["models"]
    told = {name: value for name, value in TOLD.items() if name != "modified_at"}
    assert running == [{"name": name, "model": name, **told, **IN_MEMORY} for name in ("a:1b", "b:1b")]
    await box.refuse()
    await eventually(lambda: not gateway.fleet.providers["box"].online)
    assert await names(gateway.port, "/api/tags") == ["a:1b", "b:1b"]
    assert await names(gateway.port, "/api/ps") == ["b:1b"]


async def test_each_caller_is_told_what_they_may_use(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    mine = holding(await provider_for("mine", owner="alice"), "a:1b", loaded=("a:1b",))
    ours = holding(await provider_for("ours"), "b:1b", "c:1b", loaded=("b:1b", "c:1b"))
    limited = {"key": BOB, "models": ["b:*"]}
    gateway = await gateway_for(mine, ours, **ON, users={**FAMILY, "bob": {"keys": [limited]}})
    for path in ("/api/tags", "/api/ps"):
        assert await names(gateway.port, path) == ["a:1b", "b:1b", "c:1b"]
        assert await names(gateway.port, path, key=BOB) == ["b:1b"]


async def test_the_names_are_those_that_clients_can_ask_for(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = holding(await provider_for("rig", rename={"a:1b": "small"}), "a:1b", "b:1b", loaded=("a:1b",))
    other = await provider_for("other", models=["not-ollamas"])
    aliases = {"gpt": "small", "fast": ["not-ollamas", "b:1b"], "far": "not-ollamas"}
    gateway = await gateway_for(rig, other, **ON, aliases=aliases)
    assert await names(gateway.port, "/api/tags") == ["b:1b", "fast", "gpt", "small"]
    assert await names(gateway.port, "/api/ps") == ["small"]
    for name, told in (("small", "a:1b"), ("gpt", "a:1b"), ("fast", "b:1b")):
        for path in ("/api/chat", "/api/show"):
            response = await ask(gateway.port, to(path, {"model": name, "stream": False}))
            assert (response.status, response.header("x-gateway-model")) == (200, told)
            assert rig.requests[-1].json == {"model": told, "stream": False}
    assert (await ask(gateway.port, to("/api/chat", {"model": "far"}))).status == 404


async def test_what_a_server_does_not_tell_is_filled_in_as_a_schema_wants_it(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    as_ollama(provider, "m:latest")
    odd = {"model": "m:latest", "details": {"families": None, "family": "bert"}, "size": None}
    provider.on["/api/tags"] = answer(200, {"models": [odd]})
    provider.on["/api/ps"] = answer(200, {"models": [{"model": "m:latest", "details": "x"}]})
    gateway = await gateway_for(provider, **ON)
    for path in ("/api/tags", "/api/ps"):
        (entry,) = (await ask(gateway.port, get(path))).json["models"]
        assert entry["size"] == 0 and entry["digest"] == ""
    (entry,) = (await ask(gateway.port, get("/api/tags"))).json["models"]
    assert entry["details"] == {**dict.fromkeys(DETAILS, ""), "families": None, "family": "bert"}
    assert entry["modified_at"].endswith("Z")


async def test_models_of_a_server_whose_ollama_api_is_not_to_be_used_are_not_listed(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["endpoints"] = ["chat"]
    gateway = await gateway_for(holding(provider, "m:latest"), **ON)
    assert await names(gateway.port, "/api/tags") == []


async def test_a_server_that_the_config_says_is_ollama_counts_as_one(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["kind"] = "ollama"
    provider.on["/v1/models"] = listing("m")
    gateway = await gateway_for(provider, **ON)
    assert await names(gateway.port, "/api/tags") == ["m"]


@pytest.mark.parametrize("key", [KEY, None], ids=["with a key", "without"])
async def test_a_program_that_looks_for_an_ollama_finds_one(
    provider: FakeProvider, gateway_for: GatewayFor, key: str | None
) -> None:
    gateway = await gateway_for(provider, server={"ollama_api": True, "cors": ["https://chat.example.net"]})
    seen = len(provider.probes)
    here = await ask(gateway.port, get("/", key=key))
    assert (here.status, bytes(here.body)) == (200, b"Ollama is running")
    assert await status_of_head(gateway.port, get("/", "HEAD", key=key)) == 200
    message = request("GET", "/api/version", "Origin: https://chat.example.net", key=key)
    version = await ask(gateway.port, message)
    assert list(version.json) == ["version"]
    assert [part.isdigit() for part in version.json["version"].split(".")] == [True] * 3
    assert version.header("access-control-allow-origin") == "https://chat.example.net"
    assert len(provider.probes) == seen, "nobody is asked"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2"),
        ("PUT", "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2"),
        ("GET", "/api/pull?x=1"),
    ],
)
async def test_nobody_changes_a_server(
    provider: FakeProvider, gateway_for: GatewayFor, method: str, path: str
) -> None:
    gateway = await gateway_for(as_ollama(provider), users={"alice": {"admin": True, "keys": [KEY]}}, **ON)
    response = await ask(gateway.port, request(method, path, body=b'{"model":"m"}'))
    assert (response.status, response.header("x-gateway-error")) == (403, "forbidden")
    assert list(response.json) == ["error"] and isinstance(response.json["error"], str)
    assert provider.calls == []
    assert (await ask(gateway.port, request(method, path, key=None))).status == 401
    assert await status_of_head(gateway.port, request("HEAD", path)) == 403


@pytest.mark.parametrize(
    ("asked", "status", "type_"),
    [
        (to("/api/chat", key=None), 401, "invalid_api_key"),
        (to("/api/chat", key="sk-wrong"), 401, "invalid_api_key"),
        (get("/api/tags", key=None), 401, "invalid_api_key"),
        (to("/api/chat", {}), 400, "invalid_request"),
        (to("/api/chat", {"model": "nobody's"}), 404, "no_provider"),
        (to("/api/chats"), 404, "not_found"),
        (get("/api/web_search"), 404, "not_found"),
        (get("/api"), 404, "not_found"),
        (get("/api/chat"), 405, "method_not_allowed"),
        (to("/api/tags"), 405, "method_not_allowed"),
    ],
    ids=str,
)
async def test_an_error_is_a_sentence(
    provider: FakeProvider, gateway_for: GatewayFor, asked: bytes, status: int, type_: str
) -> None:
    gateway = await gateway_for(as_ollama(provider), **ON)
    response = await ask(gateway.port, asked)
    assert (response.status, response.header("x-gateway-error")) == (status, type_)
    assert list(response.json) == ["error"] and isinstance(response.json["error"], str)


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version", "/", "/api/blobs/x"])
async def test_without_the_setting_none_of_it_is_there(
    provider: FakeProvider, gateway_for: GatewayFor, path: str
) -> None:
    gateway = await gateway_for(as_ollama(provider))
    response = await ask(gateway.port, get(path))
    assert (response.status, response.json["error"]["type"]) == (404, "not_found")


async def test_below_a_base_path_it_is_below_that(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(as_ollama(provider), server={"ollama_api": True, "base_path": "/llm"})
    assert (await ask(gateway.port, get("/llm/api/version"))).status == 200
    assert (await ask(gateway.port, to("/llm/api/chat"))).status == 200
    assert provider.requests[0].target == "/api/chat"
    assert (await ask(gateway.port, get("/api/version"))).status == 404


async def test_a_gateway_that_shows_these_pages_is_not_taken_for_an_ollama(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    inner = await gateway_for(as_ollama(provider), **ON)
    entry = {"url": f"{inner.url}/v1", "api_key": KEY}
    outer = await gateway_for(providers={"inner": entry})
    assert outer.fleet.providers["inner"].kind is generic.KIND
    assert inner.fleet.providers["rig"].kind is ollama.KIND
