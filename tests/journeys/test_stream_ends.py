"""What the API calls the end of a stream is its end, whatever the connection does; an error in it is one."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import GatewayFor, ProviderFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import chunk, cut, done, end, head, play, polite, raw, reset, sse, stall, wait

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

DONE = b"data: [DONE]\n\n"
GZIP = {"Content-Encoding": "gzip"}


def data(value: Any, name: str = "") -> bytes:
    """An event."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: str, index: int = 0, reason: str | None = None) -> bytes:
    """A piece of a chat completion."""
    return data({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]})


def typed(name: str, **more: Any) -> bytes:
    """An event of Anthropic's or of Responses."""
    return data({"type": name, **more}, name)


async def line_of(gateway: Gateway, count: int = 1) -> dict[str, Any]:
    """What was written down of the last of so many requests."""
    await eventually(lambda: len(gateway.ledger.recent) == count)
    return gateway.ledger.recent[-1]


async def answer_of(client: RawClient, asked: bytes) -> Response:
    await client.send(asked)
    response = await client.head()
    while await client.piece(response):
        pass
    return response


WORDS = piece("Hello") + piece(" world")
HUGE = {"output": [{"text": "x" * 100_000}]}
ENDS: dict[str, bytes] = {
    "[DONE]": WORDS + DONE,
    "[DONE] without a blank": WORDS + b"data:[DONE]\r\n\r\n",
    "[DONE] in a line without end": WORDS + b"data: [DONE]",
    "[DONE] far behind the reason": WORDS + piece("", 0, "stop") + b": x\n\n" * 2_000 + DONE,
    "message_stop": typed("content_block_delta", delta={"text": "Hello"}) + typed("message_stop"),
    "message_stop without a name": data({"type": "message_stop"}),
    "response.completed": typed("response.completed", response={"status": "completed"}),
    "a huge response.completed": typed("response.completed", response=HUGE),
    "a huge response.completed, its type last": data(
        {"response": HUGE, "type": "response.completed"}, "response.completed"
    ),
    "response.incomplete": typed("response.incomplete", response={}),
    "the reason": WORDS + piece("", 0, "stop"),
    "the reason, then usage": WORDS + piece("", 0, "length") + data({"choices": [], "usage": {}}),
    "the reasons of two": piece("a") + piece("b", 1) + piece("", 1, "stop") + piece("", 0, "stop"),
    "the reasons of two, far apart": (
        piece("a") + piece("b", 1) + piece("", 0, "stop") + piece("b", 1) * 500 + piece("", 1, "stop")
    ),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the client has it"])
async def test_a_stream_that_has_shown_its_end_is_whole_though_the_last_chunk_is_missing(
    provider: FakeProvider, gateway_for: GatewayFor, name: str, late: bool
) -> None:
    body, gate = ENDS[name], asyncio.Event()
    provider.script = play(sse(), chunk(body), *([wait(gate)] if late else []), cut())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        while len(response.body) < len(body):
            assert await client.piece(response)
        gate.set()
        while await client.piece(response):
            pass
        missing = b"" if body.endswith(b"\n") else b"\n\n"
        assert (response.ending, bytes(response.body)) == (Ending.COMPLETE, body + missing)
        provider.script = polite()
        assert (await answer_of(client, chat())).status == 200  # the connection is as good as new
    await line_of(gateway, 2)
    assert gateway.ledger.recent[0]["outcome"] == "ok"


async def test_servers_that_end_their_streams_so_are_not_taken_out(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(sse(), chunk(WORDS + DONE), reset())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        for _ in range(8):
            response = await answer_of(client, chat(stream=True))
            assert (response.status, response.ending) == (200, Ending.COMPLETE)
    assert gateway.fleet.providers["rig"].conduct.spotless


UNENDED: dict[str, bytes] = {
    "nothing": WORDS,
    "the words of a model": piece("\ndata: [DONE]\n\n") + piece('{"type": "message_stop"}'),
    "a reason in the words of a model": piece('"finish_reason": "stop"'),
    "the reason of one of two": piece("a") + piece("b", 1) + piece("", 0, "stop"),
    "half an end": WORDS + b'data: {"type": "response.completed", "response": {"out',
    "half a reason": WORDS + piece("", 0, "stop")[:-8],
    "a name alone": WORDS + b"event: message_stop\n",
}


@pytest.mark.parametrize("name", UNENDED)
async def test_what_has_shown_no_end_is_truncated(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    provider.script = play(sse(), chunk(UNENDED[name]), cut())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        response = await answer_of(client, chat(stream=True))
    assert response.events[-1]["error"]["type"] == "upstream_error"
    assert (await line_of(gateway))["outcome"] == "truncated"


async def test_a_reason_and_then_a_reset_is_truncated(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = play(sse(), chunk(WORDS + piece("", 0, "stop")), reset())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
    assert (await line_of(gateway))["outcome"] in ("truncated", "client_gone", "upstream_error")


async def test_a_compressed_stream_has_its_end_too(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = play(sse(GZIP), chunk(gzip.compress(WORDS + DONE)), cut())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        response = await answer_of(client, chat(stream=True))
    assert (response.ending, gzip.decompress(response.body)) == (Ending.COMPLETE, WORDS + DONE)
    assert (await line_of(gateway))["outcome"] == "ok"


@pytest.mark.parametrize("name", ENDS)
async def test_a_client_that_leaves_at_the_end_had_the_whole_answer(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    provider.script = play(sse(), chunk(ENDS[name]), stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        while len(response.body) < len(ENDS[name]):
            assert await client.piece(response)
    assert (await line_of(gateway))["outcome"] == "ok"


@pytest.mark.parametrize("name", UNENDED)
async def test_a_client_that_leaves_before_has_gone(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    provider.script = play(sse(), chunk(UNENDED[name]), stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        while len(response.body) < len(UNENDED[name]):
            assert await client.piece(response)
    assert (await line_of(gateway))["outcome"] == "client_gone"


# Errors.

BROKE = {"message": "the engine is dead", "type": "server_error"}
ERRORS: dict[str, bytes] = {
    "OpenAI's": data({"error": BROKE}),
    "in words": data({"error": "the engine is dead"}),
    "vLLM's": data({"object": "error", "message": "EngineCore is dead", "code": 500}),
    "llama.cpp's of old": b'error: {"code":500,"message":"no slot"}\n\n',
    "with a name": data({"error": BROKE}, "error"),
    "a name and words": b"event: error\ndata: out of memory\n\n",
    "Anthropic's": data({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, "error"),
    "Responses'": data({"type": "error", "code": "server_error", "message": "x"}, "error"),
    "a response that failed": typed("response.failed", response={"error": {"message": "x"}}),
    "beside choices": data({"choices": [{"delta": {}, "finish_reason": "error"}], "error": BROKE}),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize(
    "last",
    [play(chunk(DONE), end()), play(end()), play(cut()), play(stall())],
    ids=["[DONE]", "the end", "a close", "the client leaves"],
)
async def test_an_error_in_a_stream_passes_on_and_is_booked_as_one(
    provider: FakeProvider, gateway_for: GatewayFor, name: str, last: Script
) -> None:
    body = WORDS + ERRORS[name]
    provider.script = play(sse(), chunk(body), last)
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        while len(response.body) < len(body):
            assert await client.piece(response)
        if provider.calls[0].complete:
            while await client.piece(response):
                pass
    assert response.body.removesuffix(DONE) == body
    assert (await line_of(gateway))["outcome"] == "upstream_error"


@pytest.mark.parametrize(
    "harmless",
    [
        piece('data: {"error": {"message": "x"}}'),
        data({"choices": [], "error": None}),
        typed("response.completed", response={"error": None, "output": [{"error": {"message": "x"}}]}),
        data({"choices": [{"delta": {"content": "x"}, "extra": {"error": {"message": "x"}}}]}),
    ],
    ids=["words of a model", "null", "of a tool", "of something inside"],
)
async def test_what_only_speaks_of_errors_is_none(
    provider: FakeProvider, gateway_for: GatewayFor, harmless: bytes
) -> None:
    provider.script = play(sse(), chunk(WORDS + harmless), done())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await answer_of(client, chat(stream=True))
    assert (await line_of(gateway))["outcome"] == "ok"


async def test_a_server_whose_streams_end_in_errors_is_taken_out(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice")
    rig.script = play(sse(), chunk(ERRORS["vLLM's"]), done())
    gateway = await gateway_for(rig)
    async with RawClient(gateway.port) as client:
        for _ in range(5):
            await answer_of(client, chat(stream=True))
    assert not gateway.fleet.providers["rig"].conduct.spotless


async def test_an_end_of_old_http_is_an_end(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = play(
        head(200, {"Content-Type": "text/event-stream", "Content-Length": "500"}), raw(WORDS + DONE), cut()
    )
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        response = await answer_of(client, request_of_old())
    assert (response.ending, bytes(response.body)) == (Ending.CLOSED, WORDS + DONE)
    assert (await line_of(gateway))["outcome"] == "ok"


def request_of_old() -> bytes:
    body = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
    return request("POST", "/v1/chat/completions", body=body).replace(b"HTTP/1.1", b"HTTP/1.0")
