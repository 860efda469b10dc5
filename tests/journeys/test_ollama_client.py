"""The official `ollama` client, unmodified, through the gateway to a scripted Ollama."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import ollama
import pytest

from tests.conftest import GatewayFor
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY
from tests.journeys.test_ollama_api import COUNTS, LINES, ON, as_ollama, line, word
from tests.script import answer, chunk, cut, error, head, play
from tests.web.test_ollama_pages import IN_MEMORY, TOLD

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

MODEL = "llama3.2"
HI = [{"role": "user", "content": "hi"}]
WEATHER: dict[str, Any] = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}
SHOWN: dict[str, Any] = {
    "modelfile": "FROM /models/blobs/sha256-x", "template": "{{ .Prompt }}", "details": TOLD["details"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 131_072},
    "capabilities": ["completion", "tools"], "modified_at": TOLD["modified_at"],
}  # fmt: skip


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **more}}


CHATTED = [said("Hello"), said(" world"), said("")]
GENERATED: list[dict[str, Any]] = [{"response": "Hello"}, {"response": " world"}, {"response": ""}]


async def real_enough(exchange: Exchange) -> None:
    """Answer as Ollama does, streamed unless it is told not to."""
    asked: dict[str, Any] = exchange.request.json
    told = {
        "/api/show": SHOWN,
        "/api/embed": {"embeddings": [[0.5, 0.25]] * len(asked.get("input", ())), **COUNTS},
        "/api/embeddings": {"embedding": [0.5, 0.25]},
    }
    if exchange.request.target in told:
        await exchange.answer(200, json.dumps(told[exchange.request.target]).encode())
        return
    *pieces, last = GENERATED if exchange.request.target == "/api/generate" else CHATTED
    called: dict[str, Any] = {"tool_calls": [WEATHER]} if asked.get("tools") else {}
    done = {"done": True, "done_reason": "stop", **COUNTS}
    if asked.get("stream") is False:
        whole = said("Hello", **called) if called else pieces[0]
        await exchange.answer(200, line(**whole, **done))
        return
    if called:
        pieces.append(said("", **called))
    await exchange.head(200, LINES)
    for piece in pieces:
        await exchange.chunk(line(**piece, done=False))
    await exchange.chunk(line(**last, **done))
    await exchange.end()


@pytest.fixture
async def gateway(gateway_for: GatewayFor, provider: FakeProvider) -> Gateway:
    name = f"{MODEL}:latest"
    as_ollama(provider, name).script = real_enough
    provider.on["/api/tags"] = answer(200, {"models": [{"name": name, "model": name, **TOLD}]})
    provider.on["/api/ps"] = answer(200, {"models": [{"name": name, "model": name, **TOLD, **IN_MEMORY}]})
    return await gateway_for(provider, **ON)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[ollama.AsyncClient]:
    async with client_of(gateway) as made:
        yield made


def client_of(gateway: Gateway, key: str = KEY) -> ollama.AsyncClient:
    return ollama.AsyncClient(gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=HANG_S)


async def test_it_lists_what_there_is(client: ollama.AsyncClient) -> None:
    (listed,) = (await client.list()).models
    assert (listed.model, listed.size, listed.digest) == (f"{MODEL}:latest", TOLD["size"], TOLD["digest"])
    assert listed.details is not None and listed.details.quantization_level == "Q4_K_M"
    assert listed.modified_at is not None and listed.modified_at.year == 2026
    (running,) = (await client.ps()).models
    assert (running.model, running.size_vram) == (f"{MODEL}:latest", IN_MEMORY["size_vram"])
    assert running.expires_at is not None and running.expires_at.year == 2026


async def test_it_shows_a_model(client: ollama.AsyncClient) -> None:
    shown = await client.show(MODEL)
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo == SHOWN["model_info"]


@pytest.mark.parametrize(
    "tools", [[], [{"type": "function", "function": {"name": "weather"}}]], ids=["", "tools"]
)
async def test_it_chats(client: ollama.AsyncClient, tools: list[Any]) -> None:
    whole = await client.chat(MODEL, HI, tools=tools)
    assert (whole.message.content, whole.done, whole.eval_count) == ("Hello", True, 298)
    parts = [part async for part in await client.chat(MODEL, HI, tools=tools, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == "Hello world"
    assert (parts[-1].done, parts[-1].prompt_eval_count) == (True, 26)
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [call.function.arguments for call in calls] == [{"city": "Oslo"}] * bool(tools)


async def test_it_generates(client: ollama.AsyncClient) -> None:
    whole = await client.generate(
        MODEL, "hi", options={"num_predict": 5}, keep_alive="5m", images=[b"\x89PNG"]
    )
    assert (whole.response, whole.done_reason) == ("Hello", "stop")
    parts = [part async for part in await client.generate(MODEL, "hi", stream=True)]
    assert "".join(part.response or "" for part in parts) == "Hello world"


async def test_it_embeds(client: ollama.AsyncClient) -> None:
    assert (await client.embed(MODEL, ["a", "b"])).embeddings == [[0.5, 0.25]] * 2
    assert (await client.embeddings(MODEL, "a")).embedding == [0.5, 0.25]


async def test_it_knows_our_errors(gateway: Gateway, client: ollama.AsyncClient) -> None:
    async with client_of(gateway, "sk-wrong") as stranger:
        with pytest.raises(ollama.ResponseError, match="Invalid API key") as refused:
            await stranger.list()
    assert refused.value.status_code == 401
    with pytest.raises(ollama.ResponseError, match="No online provider serving model 'gpt'") as unknown:
        await client.chat("gpt", HI)
    assert unknown.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="changes nothing on a server") as forbidden:
        await client.pull(MODEL)
    assert forbidden.value.status_code == 403


async def test_it_knows_the_servers_errors(client: ollama.AsyncClient, provider: FakeProvider) -> None:
    provider.script = answer(400, {"error": f'"{MODEL}" does not support tools'})
    with pytest.raises(ollama.ResponseError, match="does not support tools") as refused:
        await client.chat(MODEL, HI)
    assert refused.value.status_code == 400
    provider.script = error(500)
    with pytest.raises(ollama.ResponseError, match="Provider 'rig' answered 500"):
        [part async for part in await client.chat(MODEL, HI, stream=True)]


async def test_it_raises_what_breaks_a_stream(client: ollama.AsyncClient, provider: FakeProvider) -> None:
    provider.script = play(head(200, LINES), chunk(word("Hello")), cut())
    parts = await client.chat(MODEL, HI, stream=True)
    assert (await anext(parts)).message.content == "Hello"
    with pytest.raises(ollama.ResponseError, match="Provider 'rig'"):
        await anext(parts)


async def test_it_needs_no_key_where_a_network_is_a_users(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    as_ollama(provider, f"{MODEL}:latest").script = real_enough
    gateway = await gateway_for(provider, **ON, users={"box": {"from": ["127.0.0.1"]}})
    async with ollama.AsyncClient(gateway.url, timeout=HANG_S) as client:
        assert (await client.chat(MODEL, HI)).message.content == "Hello"
