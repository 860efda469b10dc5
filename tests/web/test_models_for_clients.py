"""What else the list of models tells: in the words of LM Studio and Ollama, and to Codex what it can read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import GatewayFor
from tests.crowd import ask
from tests.fake_provider import FakeProvider
from tests.raw_client import request
from tests.script import answer, listing
from tests.servers.samples import LMSTUDIO, OLLAMA, Sample


def as_sample(provider: FakeProvider, sample: Sample) -> FakeProvider:
    """Let a provider say what a server of one kind says."""
    for path, told in {"/v1/models": sample.listing, **sample.pages}.items():
        provider.on[path] = answer(200, told)
    return provider


async def entries(port: int, target: str = "/v1/models") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await ask(port, request("GET", target))).json["data"]
    return found


async def test_lm_studios_fields_are_told(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(as_sample(provider, LMSTUDIO))
    first, second = await entries(gateway.port)
    assert first.pop("created") == second.pop("created")
    assert first.pop("endpoints") == ["chat", "completions", "embeddings", "responses", "messages"]
    assert first == {
        "id": "qwen3-8b",
        "object": "model",
        "owned_by": "rig",
        "providers": ["rig"],
        "context_length": 4096,
        "state": "loaded",
        "type": "llm",
        "publisher": "lmstudio-community",
        "arch": "qwen3",
        "compatibility_type": "gguf",
        "quantization": "Q4_K_M",
        "max_context_length": 40_960,
        "capabilities": ["tool_use"],
    }
    assert (second["type"], second["state"]) == ("embeddings", "not-loaded")
    assert second["endpoints"] == ["embeddings"], "it writes nothing"


async def test_ollamas_fields_are_told(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(as_sample(provider, OLLAMA))
    second, first = await entries(gateway.port)
    assert (first["id"], first["size"], first["capabilities"]) == (
        "qwen3:8b",
        5_225_388_164,
        ["completion", "tools"],
    )
    assert first["details"]["family"] == "qwen3"
    assert (first["state"], second["state"]) == ("loaded", "not-loaded")


@pytest.mark.parametrize(
    "odd",
    [None, 1.5, "x" * 1_001, [], {}, {"a": {"b": {"c": 1}}}, [[1]], ["x"] * 33, {"id": "evil"}],
)
async def test_odd_fields_are_left_out_and_ours_stay_ours(
    provider: FakeProvider, gateway_for: GatewayFor, odd: Any
) -> None:
    provider.on["/v1/models"] = listing({"id": "m", "owned_by": "library"})
    said = {"model": "m", "id": "evil", "owned_by": "evil", "object": odd, "size": 1, "digest": odd}
    provider.on["/api/tags"] = answer(200, {"models": [said]})
    gateway = await gateway_for(provider)
    (entry,) = await entries(gateway.port)
    assert (entry["id"], entry["owned_by"], entry["object"], entry["size"]) == ("m", "rig", "model", 1)
    assert entry.get("digest") in (None, {"id": "evil"})


async def test_codex_gets_the_list_that_it_reads_and_keeps_its_own_instructions(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    plain = (await ask(gateway.port, request("GET", "/v1/models"))).json
    assert "models" not in plain
    for query in ("?client_version=0.99.0", "?x=1&client_version=0.130.0"):
        told = (await ask(gateway.port, request("GET", f"/v1/models{query}"))).json
        assert told == {**plain, "models": []}
