"""What a server was going to say reaches the client, also when a keepalive has begun the stream before."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import openai
import pytest

from tests.conftest import GatewayFor
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually
from tests.journeys.test_keepalive import SOON, silence, without_comments
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import answer, chunk, completion, cut, end, head, play, raw

EVENTS = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}\n\ndata: [DONE]\n\n'
CHUNKED = {"Transfer-Encoding": "chunked"}
SSE = {"Content-Type": "text/event-stream"}


def late(*steps: Script) -> Script:
    return play(silence(), *steps)


def streamed(body: bytes, headers: dict[str, str], status: int = 200) -> Script:
    return late(head(status, {**CHUNKED, **headers}), chunk(body[:3]), silence(0.02), chunk(body[3:]), end())


def deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


async def asked(gateway: Any, message: bytes | None = None) -> Response:
    async with RawClient(gateway.port) as client:
        await client.send(message or chat(None, "Accept-Encoding: gzip, br", stream=True))
        response = await client.head()
        while await client.piece(response):
            pass
        return response


STREAMS: dict[str, Script] = {
    "text/plain": streamed(EVENTS, {"Content-Type": "text/plain; charset=utf-8"}),
    "application/json": streamed(EVENTS, {"Content-Type": "application/json"}),
    "no type": streamed(EVENTS, {}),
    "a comment first": streamed(b": hi\n\n" + EVENTS, {"Content-Type": "text/plain"}),
    "201": streamed(EVENTS, SSE, 201),
    "202 without a type": streamed(EVENTS, {}, 202),
    "gzip": streamed(gzip.compress(EVENTS), {**SSE, "Content-Encoding": "gzip"}),
    "gzip, whole": late(answer(200, gzip.compress(EVENTS), {**SSE, "Content-Encoding": "gzip"})),
    "gzip, as text": streamed(
        gzip.compress(EVENTS), {"Content-Type": "text/plain", "Content-Encoding": "gzip"}
    ),
    "deflate": streamed(deflated(EVENTS), {**SSE, "Content-Encoding": "deflate"}),
    "until close": late(head(200, {"Content-Type": "text/plain"}), raw(EVENTS), cut()),
    "whole": late(answer(200, EVENTS)),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_late_stream_is_known_by_its_bytes_and_passes(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    provider.script = STREAMS[name]
    gateway = await gateway_for(provider, streams=SOON)
    response = await asked(gateway)
    assert (response.status, response.ending) == (200, Ending.COMPLETE)
    assert without_comments(bytes(response.body))[1].removeprefix(b": hi\n\n") == EVENTS
    await eventually(lambda: len(gateway.ledger.recent) == 1)
    line = gateway.ledger.recent[-1]
    assert (line["outcome"], line["completion_tokens"]) == ("ok", 1)


async def test_where_comments_may_be_sent_no_server_is_asked_to_compress(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, streams=SOON)
    await asked(gateway)
    await asked(gateway, chat(None, "Accept-Encoding: gzip"))
    stream, buffered = provider.requests
    assert stream.header("accept-encoding") == "identity"
    assert buffered.header("accept-encoding") == "gzip"


@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_a_late_whole_chat_becomes_events(
    provider: FakeProvider, gateway_for: GatewayFor, coding: str
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hello", "tool_calls": [call, call]}
    usage = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    packed = gzip.compress(body) if coding else body
    provider.script = late(answer(200, packed, {"Content-Encoding": coding} if coding else None))
    gateway = await gateway_for(provider, streams=SOON)
    response = await asked(gateway)
    piece, done = response.events
    assert done == "[DONE]" and response.ending is Ending.COMPLETE
    assert (piece["object"], piece["usage"]) == ("chat.completion.chunk", usage)
    (told,) = piece["choices"]
    assert told["finish_reason"] == "stop" and told["delta"]["content"] == "Hello"
    assert [each["index"] for each in told["delta"]["tool_calls"]] == [0, 1]
    await eventually(lambda: len(gateway.ledger.recent) == 1)
    assert gateway.ledger.recent[-1]["completion_tokens"] == 34


async def test_the_openai_client_reads_it(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = late(completion("Hello world"))
    gateway = await gateway_for(provider, streams=SOON)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        chunks = await client.chat.completions.create(**ASK, stream=True)
        text = [piece.choices[0].delta.content or "" async for piece in chunks]
    assert "".join(text) == "Hello world"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (late(answer(200, b"\x00", {**SSE, "Content-Encoding": "br"})), "'br'"),
        (
            streamed(gzip.compress(EVENTS)[:10] + b"no gzip at all", {**SSE, "Content-Encoding": "gzip"}),
            "gzip",
        ),
        (late(answer(200, b"no gzip at all", {**SSE, "Content-Encoding": "gzip"})), "gzip"),
        (late(answer(200, {"error": {"message": "out of memory"}})), "out of memory"),
        (late(answer(200, b"<html>login</html>", {"Content-Type": "text/html"})), "login"),
    ],
    ids=["br", "broken gzip", "no gzip", "an error", "a page"],
)
async def test_what_cannot_become_events_is_told(
    provider: FakeProvider, gateway_for: GatewayFor, script: Script, words: str
) -> None:
    provider.script = script
    gateway = await gateway_for(provider, streams=SOON)
    response = await asked(gateway)
    assert response.ending is Ending.COMPLETE
    assert words in response.events[-1]["error"]["message"]


async def test_a_whole_answer_of_another_dialect_is_told_as_an_error(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = late(answer(200, {"type": "message", "content": []}))
    gateway = await gateway_for(provider, streams=SOON)
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": [], "stream": True}).encode()
    response = await asked(gateway, request("POST", "/v1/messages", body=body))
    assert response.events[-1]["type"] == "error"
