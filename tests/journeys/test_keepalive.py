"""A stream is never silent for long: comments before and between its events, and no other change."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal

import aiohttp
import openai
import pytest

from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.crowd import QUICK, Turns, ask, crowd, waiting
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import (
    answer,
    chunk,
    cut,
    end,
    error,
    head,
    loading,
    play,
    raw,
    sse,
    stall,
    stream,
    wait,
)

SOON = {"keepalive": "40ms"}
SILENCE_S = 0.25  # several of those
USERS = {"alice": {"keys": [KEY], "route": "prefer_own"}}
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
EVENTS = b'data: {"n": 1}\n\nevent: odd\r\ndata: \xff\r\n\r\ndata: [DONE]\n\n'

answers: Script = play(sse(), chunk(EVENTS), end())


def silence(seconds: float = SILENCE_S) -> Script:
    """Say nothing for so long."""
    return lambda exchange: asyncio.sleep(seconds)


def message(*, stream: bool = True) -> bytes:
    """A request in Anthropic's dialect."""
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": [], "stream": stream}).encode()
    return request("POST", "/v1/messages", body=body)


def without_comments(body: bytes) -> tuple[list[str], bytes]:
    """The comments that a body begins with, and what follows."""
    comments = []
    while body.startswith(b": "):
        line, _, body = body.partition(b"\n\n")
        comments.append(line[2:].decode())
    return comments, body


async def first_sign(client: RawClient) -> Response:
    """Read until the first keepalive has come."""
    response = await client.head()
    assert response.status == 200
    assert await client.piece(response)
    return response


async def rest(client: RawClient, response: Response) -> bytes:
    """Read to the end, which must be a proper one; give the whole body."""
    while await client.piece(response):
        pass
    assert response.ending in (Ending.COMPLETE, Ending.CLOSED)
    return bytes(response.body)


# Before the answer.

LATE: dict[str, tuple[Script, Script]] = {  # what the provider sends before it falls silent; and after that
    "before the head": (play(), answers),
    "in the head": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Enc"),
        play(raw(b"oding: chunked\r\n\r\n"), chunk(EVENTS), end()),
    ),
    "before the body": (sse(), play(chunk(EVENTS), end())),
}


@pytest.mark.parametrize(("begin", "go_on"), LATE.values(), ids=LATE.keys())
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_stream_whose_provider_is_silent_is_kept_alive_and_then_passes_unchanged(
    provider: FakeProvider, gateway_for: GatewayFor, begin: Script, go_on: Script, version: bytes
) -> None:
    gate = asyncio.Event()
    provider.script = play(begin, wait(gate), go_on)
    gateway = await gateway_for(provider, streams=SOON)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True).replace(b"HTTP/1.1", b"HTTP/" + version))
        response = await first_sign(client)
        assert response.header("content-type") == "text/event-stream"
        assert response.header("cache-control") == "no-cache"
        assert response.header("x-accel-buffering") == "no"
        assert response.header("x-request-id")
        while response.body.count(b"\n\n") < 3:
            assert await client.piece(response)
        gate.set()
        comments, body = without_comments(await rest(client, response))
    assert set(comments) == {"waiting for the model"}
    assert body == EVENTS


async def test_the_place_in_the_queue_is_told_and_told_again_when_it_changes(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=1)
    turns = Turns()
    rig.script = turns
    gateway = await gateway_for(rig, streams=SOON)
    async with crowd(gateway.port) as send:
        await send()
        await rig.next_call()
        await send()
        await waiting(gateway, 1)
        last = await send(chat(stream=True))
        response = await first_sign(last)
        for _ in range(2):
            turns.end()
            await rig.next_call()
            while b"position 1" not in response.body:
                await last.piece(response)
        turns.end()
        comments, body = without_comments(await rest(last, response))
    assert comments[0] == "waiting, position 2 in the queue"
    assert "waiting, position 1 in the queue" in comments
    assert body.startswith(b"data: ") and body.endswith(b"data: [DONE]\n\n")


async def test_a_stream_that_waits_for_a_model_to_be_loaded_is_kept_alive(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = answers
    provider.once(loading())
    gateway = await gateway_for(provider, streams=SOON, health=QUICK)
    provider.on["/v1/models"] = loading()
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await first_sign(client)
        del provider.on["/v1/models"]
        comments, body = without_comments(await rest(client, response))
    assert "waiting, position 1 in the queue" in comments
    assert body == EVENTS


async def test_anthropics_dialect_has_pings_of_its_own(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), wait(gate), chunk(EVENTS), silence(), end())
    gateway = await gateway_for(provider, streams=SOON)
    async with RawClient(gateway.port) as client:
        await client.send(message())
        response = await first_sign(client)
        gate.set()
        body = await rest(client, response)
    before, _, after = body.partition(EVENTS)
    assert before == PING * before.count(b"event: ping") and before
    assert after == PING * after.count(b"event: ping") and after


async def test_failover_goes_on_behind_it_and_the_last_event_names_all_who_failed(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    gate = asyncio.Event()
    rig.script, other.script = play(wait(gate), error(500)), play(sse(), silence(), cut())
    gateway = await gateway_for(rig, other, streams=SOON, users=USERS)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await first_sign(client)
        gate.set()
        body = without_comments(await rest(client, response))[1]
        told = response.events[-1]["error"]
        assert "'rig'" in told["message"] and "'other'" in told["message"]
        assert body.startswith(b"data: ") and b"[DONE]" not in body

        other.script = rig.script = answers
        await client.send(chat(stream=True))  # the connection is as good as new
        assert (await client.response()).body == EVENTS


async def test_the_answer_of_the_second_follows_unchanged(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    gate = asyncio.Event()
    rig.script, other.script = play(sse(), wait(gate), cut()), answers
    gateway = await gateway_for(rig, other, streams=SOON, users=USERS)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await first_sign(client)
        gate.set()
        assert without_comments(await rest(client, response))[1] == EVENTS
    assert len(rig.calls) == len(other.calls) == 1


GZIP = {"Content-Encoding": "gzip"}
STREAM_IN_BR = {"Content-Encoding": "br", "Content-Type": "text/event-stream"}
BAD_ENDS: dict[str, tuple[Script, str]] = {  # what comes after a keepalive; what the last event quotes of it
    "a 500": (error(500, "CUDA out of memory"), "500: CUDA out of memory"),
    "a 400": (error(400, "context too long"), "400: context too long"),
    "a 404": (error(404, "no such model"), "404: no such model"),
    "a 429": (error(429, "slow down"), "429: slow down"),
    "a 400 in gzip": (
        answer(400, gzip.compress(b'{"error": "context too long"}'), GZIP),
        "400: context too long",
    ),
    "a 500 in gzip": (answer(500, gzip.compress(b'{"error": "out of memory"}'), GZIP), "500: out of memory"),
    "a 401": (error(401, "who are you"), "401: who are you"),
    "a 500 in something unknown": (answer(500, b"\xff\x00", {"Content-Encoding": "br"}), "500"),
    "a 500 that is no gzip": (answer(500, b"\xff\x00", GZIP), "500"),
    "a redirect": (answer(307, b"", {"Location": "/"}), "307"),
    "JSON": (answer(200, {"message": "no streams here"}), "200: no streams here"),
    "a stream in something unknown": (answer(200, b"\xff\x00", STREAM_IN_BR), "'br'"),
    "nothing": (answer(204), "204"),
    "a FIN": (cut(), "closed"),
    "nonsense": (raw(b"220 smtp.example ESMTP\r\n"), "not valid HTTP"),
    "silence": (stall(), "first_byte"),
}


@pytest.mark.parametrize(("script", "words"), BAD_ENDS.values(), ids=BAD_ENDS.keys())
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_an_error_after_it_is_the_last_event_in_the_words_of_the_server(
    provider_for: ProviderFor, gateway_for: GatewayFor, script: Script, words: str, dialect: str
) -> None:
    rig = await provider_for(timeouts={"first_byte": "500ms"} if words == "first_byte" else {})
    gate = asyncio.Event()
    rig.script = play(wait(gate), script)
    gateway = await gateway_for(rig, streams=SOON)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True) if dialect == "openai" else message())
        response = await first_sign(client)
        gate.set()
        body = await rest(client, response)
    last = body.split(b"\n\n")[-2]
    assert last.startswith(
        b'data: {"error":' if dialect == "openai" else b'event: error\ndata: {"type":"error"'
    )
    told = response.events[-1]
    error = told["error"]
    assert error["type"] == ("upstream_error" if dialect == "openai" else "api_error")
    assert "'rig'" in error["message"] and words in error["message"]
    assert error["message"].isprintable() and "\ufffd" not in error["message"]
    assert b"[DONE]" not in body


async def test_an_answer_that_can_be_passed_on_no_more_has_cost_what_it_tells(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    usage = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    provider.script = play(wait(gate), answer(200, {"usage": usage}))
    gateway = await gateway_for(provider, streams=SOON)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await first_sign(client)
        gate.set()
        await rest(client, response)
    await eventually(lambda: not gateway.ledger.in_flight)
    gateway.ledger.book()
    (line,) = gateway.ledger.recent
    assert (line["prompt_tokens"], line["completion_tokens"], line["estimated"]) == (12, 34, False)


@pytest.mark.parametrize("case", ["overloaded", "no_provider", "draining"])
async def test_an_error_of_the_gateway_after_it_is_the_last_event(
    provider_for: ProviderFor, gateway_for: GatewayFor, program_for: ProgramFor, case: str
) -> None:
    rig = await provider_for(slots=1)
    rig.script = stall()
    sections = {"streams": SOON, "health": QUICK, "server": {"drain_timeout": "100ms"}}
    queue = {"timeout": "200ms" if case == "overloaded" else "1h"}
    program = await program_for(rig, **sections, queue=queue)
    async with crowd(program.port) as send:
        await send()
        await rig.next_call()
        waiter = await send(chat(stream=True))
        response = await first_sign(waiter)
        if case == "no_provider":
            rig.on["/v1/models"] = error(500)
        elif case == "draining":
            program.signal(signal.SIGTERM)
        await rest(waiter, response)
    assert response.events[-1]["error"]["type"] == case


# In the middle.


def middle(*steps: Script) -> Script:
    """A stream without chunks, so that steps may send raw bytes."""
    return play(head(200, {"Content-Type": "text/event-stream"}), *steps, cut())


@pytest.mark.parametrize("boundary", [b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r", b": hello\n\n"])
async def test_a_silent_stream_gets_comments_between_its_events(
    provider: FakeProvider, gateway_for: GatewayFor, boundary: bytes
) -> None:
    gate = asyncio.Event()
    provider.script = middle(raw(boundary), wait(gate), raw(b"data: 2\n\n"))
    gateway = await gateway_for(provider, streams=SOON)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        while response.body.removeprefix(boundary).count(b"\n\n") < 2:
            assert await client.piece(response)
        gate.set()
        whole = await rest(client, response)
    comments, body = without_comments(whole.removeprefix(boundary))
    assert len(comments) >= 2 and body == b"data: 2\n\n"


@pytest.mark.parametrize(
    "half", [b"d", b"data: 1", b"data: 1\n", b"data: 1\r\n", b"data: 1\r", b"event: x\ndata: 1\n"]
)
async def test_a_stream_that_is_silent_inside_an_event_gets_none(
    provider: FakeProvider, gateway_for: GatewayFor, half: bytes
) -> None:
    provider.script = middle(raw(half), silence(0.6), raw(b"\n\n"))
    gateway = await gateway_for(provider, streams={"keepalive": "250ms"})  # time for the head to come before
    response = await ask(gateway.port, chat(stream=True))
    assert response.body == half + b"\n\n"


GZIPPED = gzip.compress(b"data: 1\n\n") + b"\n\n"  # ends like an event; it is none
UNTOUCHED: dict[str, tuple[dict[str, str], bytes]] = {
    "a stream in gzip": ({"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}, GZIPPED),
    "JSON": ({"Content-Type": "application/json"}, b"{\n\n"),
    "lines of JSON": ({"Content-Type": "application/x-ndjson"}, b"{}\n\n"),
    "no type": ({}, b"data: 1\n\n"),
}


@pytest.mark.parametrize(("headers", "begin"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
async def test_what_is_not_a_plain_event_stream_gets_none(
    provider: FakeProvider, gateway_for: GatewayFor, headers: dict[str, str], begin: bytes
) -> None:
    provider.script = play(head(200, headers), raw(begin), silence(0.6), raw(b"}"), cut())
    gateway = await gateway_for(provider, streams={"keepalive": "250ms"})  # time for the head to come before
    assert (await ask(gateway.port, chat(stream=True))).body == begin + b"}"


async def test_a_busy_stream_gets_none(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    beat = play(raw(b"data: 1\n\n"), silence(0.03))
    provider.script = middle(*[beat] * 40)
    gateway = await gateway_for(provider, streams={"keepalive": "1s"})
    assert (await ask(gateway.port, chat(stream=True))).body == b"data: 1\n\n" * 40


async def test_a_client_that_does_not_read_gets_none_while_it_is_full(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """The stream is all empty lines: an event might begin after any of them.

    Once the client reads again there may be some, if the provider needs its time to go on.
    """

    def held() -> int:
        transports = [each.transport for each in gateway._server.connections]
        return sum(each.get_write_buffer_size() for each in transports if each is not None)

    blank = b"\n" * 65_536
    provider.script = play(sse(), *[chunk(blank)] * 256, end())
    gateway = await gateway_for(provider, streams=SOON)
    async with RawClient(gateway.port, receive_buffer=4096) as client:
        await client.send(chat(stream=True))
        call = await provider.next_call()
        response = await client.head()
        stuck_at = -1
        while call.written != stuck_at:  # until nothing more was taken for several keepalives
            stuck_at = call.written
            await asyncio.sleep(SILENCE_S)
        assert not call.complete
        before = held()
        await asyncio.sleep(SILENCE_S)
        assert 0 < held() <= before
        body = await rest(client, response)
    said = body.replace(b"\n", b"")
    assert body.count(b"\n") == 256 * 65_536 + 2 * said.count(b":")


# Where there must be none.


@pytest.mark.parametrize("queued", [False, True], ids=["at the provider", "queued"])
@pytest.mark.parametrize("case", ["turned off", "buffered", "an endpoint that streams no events"])
async def test_none_where_it_must_not_be(
    provider_for: ProviderFor, gateway_for: GatewayFor, case: str, queued: bool
) -> None:
    rig = await provider_for(slots=1)
    gate = asyncio.Event()
    rig.script = play(wait(gate), error(400, "no"))
    gateway = await gateway_for(rig, streams={"keepalive": 0} if case == "turned off" else SOON)
    asked = chat(stream=case == "turned off")
    if case == "an endpoint that streams no events":
        speech = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
        asked = request("POST", "/v1/audio/speech", body=speech)
    async with crowd(gateway.port) as send:
        if queued:
            await send()
            await rig.next_call()
        client = await send(asked)
        await (waiting(gateway, 1) if queued else rig.next_call())
        await asyncio.sleep(SILENCE_S)
        gate.set()
        response = await client.response()
    assert (response.status, response.json["error"]["message"]) == (400, "no")


# Those who have to live with it.


async def test_the_openai_client_reads_such_a_stream(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.script = play(silence(), stream("Hello", " world"))
    gateway = await gateway_for(provider, streams=SOON)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        chunks = await client.chat.completions.create(**ASK, stream=True)
        text = [piece.choices[0].delta.content or "" async for piece in chunks]
        assert "".join(text) == "Hello world"

        provider.script = play(silence(), error(500, "out of memory"))
        chunks = await client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIError, match="out of memory"):
            [piece async for piece in chunks]


async def test_a_model_that_loads_longer_than_a_proxy_has_patience_is_answered(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    """Scaled down from 40 s of loading, 30 s of patience and a keepalive every 15 s."""
    provider.script = play(silence(2.0), answers)
    program = await program_for(provider, streams={"keepalive": "300ms"})
    patience = aiohttp.ClientTimeout(total=None, sock_read=1.5)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=patience) as proxy,
        proxy.post(f"{await program.url()}/v1/chat/completions", json={**ASK, "stream": True}) as response,
    ):
        comments, body = without_comments(await response.read())
    assert len(comments) >= 3 and body == EVENTS
