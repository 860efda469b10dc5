"""What is booked is what was used: by the server's own count where it tells one, else a marked estimate."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import Turns, ask, ask_for, crowd, waiting
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings
from tests.llamacpp.fixtures import LlamaServer
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import (
    answer,
    chunk,
    completion,
    cut,
    done,
    end,
    error,
    event,
    head,
    loading,
    play,
    polite,
    raw,
    sse,
    stall,
    stream,
    word,
    zipped,
)

OWN_FIRST = {"alice": {"keys": [KEY], "route": "prefer_own"}}
SOON = {"keepalive": "40ms"}
TELLS_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
TINY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello world"}]}

FORM_TYPE = "Content-Type: multipart/form-data; boundary=bound"
FORM = (
    b'--bound\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--bound--\r\n'
)

Line = dict[str, Any]
Cost = tuple[int | None, int | None, int | None, int | None, bool]

NOTHING: Cost = (None, None, None, None, False)


async def booked(gateway: Gateway, count: int = 1) -> Line:
    """Wait until so many requests have ended; give the line of the last one."""
    ledger = gateway.ledger
    await eventually(lambda: len(ledger.recent) == count, saying=f"{len(ledger.recent)} ended, not {count}")
    return ledger.recent[-1]


def cost(line: Line) -> Cost:
    """Prompt, completion, cached and reasoning tokens, and whether they are an estimate."""
    return (
        line["prompt_tokens"],
        line["completion_tokens"],
        line["cached_tokens"],
        line["reasoning_tokens"],
        line["estimated"],
    )


def ending(line: Line) -> tuple[int, str, str | None, int]:
    """Status, outcome, provider and attempts."""
    return line["status"], line["outcome"], line["provider"], line["attempts"]


def all_booked(gateway: Gateway, *, provider: str | None = None) -> tuple[int, int, int]:
    """Requests, prompt and completion tokens of all accounts, or of those with a provider."""
    accounts = gateway.ledger.totals.items()
    kept = [totals for account, totals in accounts if provider in (None, account.provider)]
    return (
        sum(totals.requests for totals in kept),
        sum(totals.prompt_tokens for totals in kept),
        sum(totals.completion_tokens for totals in kept),
    )


def posting(path: str, **body: Any) -> bytes:
    """A request for the model `m` to any endpoint."""
    return request("POST", path, body=json.dumps({"model": "m", **body}).encode())


def form(path: str) -> bytes:
    """A multipart request for the model `m`."""
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + b"\x00" * 4000
        + b"\r\n--b--\r\n"
    )
    return request("POST", path, "Content-Type: multipart/form-data; boundary=b", body=parts)


def squeezed(*blocks: bytes) -> Script:
    """A gzipped event stream, each block flushed in a chunk of its own."""
    squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    pieces = [squeeze.compress(block) + squeeze.flush(zlib.Z_SYNC_FLUSH) for block in blocks]
    return play(
        sse({"Content-Encoding": "gzip"}), *(chunk(piece) for piece in (*pieces, squeeze.flush())), end()
    )


def delta(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def silence(seconds: float = 0.15) -> Script:
    """Say nothing for so long: some keepalives."""
    return lambda exchange: asyncio.sleep(seconds)


# What a server tells is booked as it is.

USAGE = {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47}
RICH = {
    **USAGE,
    "prompt_tokens_details": {"cached_tokens": 32},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
RESPONSES = play(
    sse(),
    event({"type": "response.created", "response": {"id": "r", "usage": None}}),
    event({"type": "response.output_text.delta", "delta": "Hel"}),
    event({"type": "response.output_text.delta", "delta": "lo"}),
    event(
        {
            "type": "response.completed",
            "response": {
                "id": "r",
                "usage": {
                    "input_tokens": 40,
                    "input_tokens_details": {"cached_tokens": 32},
                    "output_tokens": 7,
                    "output_tokens_details": {"reasoning_tokens": 4},
                    "total_tokens": 47,
                },
            },
        }
    ),
    end(),
)
MESSAGES = play(
    sse(),
    event(
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 8, "cache_read_input_tokens": 32, "output_tokens": 1}},
        }
    ),
    event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
    event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}),
    event({"type": "message_stop"}),
    end(),
)
TIMINGS = {"cache_n": 32, "prompt_n": 8, "predicted_n": 7}
SPOKEN = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59}

TOLD: dict[str, tuple[bytes, Script, Cost]] = {
    "buffered": (chat(), answer(200, {"choices": [], "usage": RICH}), (40, 7, 32, 4, False)),
    "gzipped": (chat(), zipped(), (3, 2, 0, 0, False)),
    "gzipped stream": (
        chat(stream=True),
        squeezed(delta("Hel"), delta("lo"), b"data: " + json.dumps({"usage": RICH}).encode() + b"\n\n"),
        (40, 7, 32, 4, False),
    ),
    "stream that was asked for its usage": (
        ask_for(stream=True, **TELLS_USAGE),
        stream("Hel", "lo", " you"),
        (3, 3, 0, 0, False),
    ),
    "llama.cpp's timings": (
        chat(stream=True),
        play(sse(), word("Hello"), event({"choices": [{"delta": {}}], "timings": TIMINGS}), done()),
        (40, 7, 32, 0, False),
    ),
    "Responses": (posting("/v1/responses", input="hi", stream=True), RESPONSES, (40, 7, 32, 4, False)),
    "Anthropic's messages": (
        posting("/v1/messages", messages=ASK["messages"], stream=True, max_tokens=9),
        MESSAGES,
        (40, 7, 32, 0, False),
    ),
    "embeddings": (
        posting("/v1/embeddings", input="hi"),
        answer(
            200, {"data": [{"embedding": [0.5] * 4096}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        ),
        (8, 0, 0, 0, False),
    ),
    "a form": (
        form("/v1/audio/transcriptions"),
        answer(200, {"text": "hi", "usage": SPOKEN}),
        (14, 45, 0, 0, False),
    ),
}


@pytest.mark.parametrize(("message", "script", "expected"), TOLD.values(), ids=TOLD.keys())
async def test_what_the_server_tells_is_booked(
    gateway_for: GatewayFor, provider: FakeProvider, message: bytes, script: Script, expected: Cost
) -> None:
    provider.script = script
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, message)
    line = await booked(gateway)
    assert cost(line) == expected
    assert ending(line) == (200, "ok", "rig", 1)
    assert line["bytes_out"] == len(response.body)
    assert line["bytes_in"] == len(provider.requests[0].body)
    assert all_booked(gateway) == (1, expected[0], expected[1])


async def test_a_hundred_answers_at_once_add_up(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    provider.script = polite()
    gateway = await gateway_for(provider)
    messages = [ask_for(), ask_for(stream=True, **TELLS_USAGE)] * 50
    await asyncio.gather(*(ask(gateway.port, message) for message in messages))
    await booked(gateway, 100)
    assert all_booked(gateway) == (100, 300, 200)
    assert not gateway.ledger.in_flight


# What costs nothing.

WITH_USAGE = {"error": {"message": "no"}, "usage": USAGE}
FREE: dict[str, tuple[Script, int]] = {
    "a 400, whatever it says of usage": (answer(400, WITH_USAGE), 400),
    "a 404": (answer(404, WITH_USAGE), 404),
    "a 429": (answer(429, WITH_USAGE), 429),
    "a gzipped 422": (
        answer(422, gzip.compress(json.dumps(WITH_USAGE).encode()), {"Content-Encoding": "gzip"}),
        422,
    ),
}


@pytest.mark.parametrize(("script", "status"), FREE.values(), ids=FREE.keys())
async def test_an_answer_of_no_model_passes_and_costs_nothing(
    gateway_for: GatewayFor, provider: FakeProvider, script: Script, status: int
) -> None:
    provider.script = script
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port)).status == status
    line = await booked(gateway)
    assert ending(line) == (status, "ok", "rig", 1)
    assert cost(line) == NOTHING
    assert all_booked(gateway) == (1, 0, 0)


BEHIND_KEEPALIVE: dict[str, Script] = {
    "500": error(500),
    "401": error(401),
    "400": error(400),
    "429": error(429),
    "nothing": cut(),
}


@pytest.mark.parametrize("script", BEHIND_KEEPALIVE.values(), ids=BEHIND_KEEPALIVE.keys())
async def test_a_stream_that_fails_behind_its_keepalive_costs_nothing(
    gateway_for: GatewayFor, provider: FakeProvider, script: Script
) -> None:
    provider.script = play(silence(), script)
    gateway = await gateway_for(provider, streams=SOON)
    response = await ask(gateway.port, chat(stream=True))
    assert response.events[-1]["error"]["type"] == "upstream_error"
    line = await booked(gateway)
    assert ending(line) == (200, "upstream_error", "rig", line["attempts"])
    assert cost(line) == NOTHING


async def test_json_that_comes_behind_a_keepalive_is_booked_as_it_says(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    """The client asked for a stream and was told to wait; then the server sends JSON after all."""
    provider.script = play(silence(), answer(200, {"choices": [], "usage": RICH}))
    gateway = await gateway_for(provider, streams=SOON)
    response = await ask(gateway.port, chat(stream=True))
    assert response.events[-1]["error"]["type"] == "upstream_error"
    line = await booked(gateway)
    assert ending(line) == (200, "upstream_error", "rig", 1)
    assert cost(line) == (40, 7, 32, 4, False)


async def test_a_request_that_reaches_nobody_costs_nothing(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port, ask_for("unknown"))).status == 404
    line = await booked(gateway)
    assert ending(line) == (404, "no_provider", None, 0)
    assert cost(line) == NOTHING


async def test_leaving_while_a_refusal_is_read_costs_nothing(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = play(head(500, {"Content-Length": "9"}), raw(b"{"), stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        exchange = await provider.next_call()
        await eventually(lambda: exchange.written > 20)
        await exchange_is_read(gateway)
    assert cost(await booked(gateway)) == NOTHING


async def exchange_is_read(gateway: Gateway) -> None:
    """Wait until the one request in flight has seen a status that promises no answer."""
    (entry,) = gateway.ledger.in_flight
    await eventually(lambda: entry.attempts == 1 and entry.sent_at is None)


# Failover: only who answers is booked.


@pytest.mark.parametrize(
    "refusal", [error(500), error(404), error(429), cut()], ids=["500", "404", "429", "cut"]
)
async def test_only_the_provider_that_answers_is_booked(
    gateway_for: GatewayFor, provider_for: ProviderFor, refusal: Script
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = refusal
    gateway = await gateway_for(rig, other, users=OWN_FIRST)
    assert (await ask(gateway.port)).status == 200
    line = await booked(gateway)
    assert ending(line) == (200, "ok", "other", 2)
    assert cost(line) == (3, 2, 0, 0, False)
    assert all_booked(gateway, provider="other") == (1, 3, 2)
    assert all_booked(gateway, provider="rig") == (0, 0, 0)


async def test_a_held_refusal_that_passes_in_the_end_is_its_providers_and_free(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script, other.script = error(429), error(500)
    gateway = await gateway_for(rig, other, users=OWN_FIRST)
    response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-provider")) == (429, "rig")
    line = await booked(gateway)
    assert ending(line) == (429, "ok", "rig", 2)
    assert cost(line) == NOTHING
    assert line["first_byte_ms"] is not None


async def test_when_all_fail_nothing_is_booked_but_the_request(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = other.script = error(500)
    gateway = await gateway_for(rig, other, users=OWN_FIRST)
    assert (await ask(gateway.port)).status == 502
    line = await booked(gateway)
    assert ending(line) == (502, "upstream_error", "other", 2)
    assert cost(line) == NOTHING
    assert all_booked(gateway) == (1, 0, 0)


async def test_a_provider_that_was_loading_is_paid_once(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.once(loading())
    gateway = await gateway_for(provider, health={"interval": "50ms", "timeout": "10m"})
    assert (await ask(gateway.port)).status == 200
    assert cost(await booked(gateway)) == (3, 2, 0, 0, False)


# Answers that break, and clients that leave.


async def test_a_stream_that_breaks_is_truncated_and_its_tokens_are_estimated(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = play(sse(), *[word("hi")] * 5, cut())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert response.events[-1]["error"]["type"] == "upstream_error"
    line = await booked(gateway)
    assert ending(line) == (200, "truncated", "rig", 1)
    assert cost(line) == (line["prompt_tokens"], 5, 0, 0, True)
    assert line["prompt_tokens"] > 0


async def test_a_buffered_answer_that_breaks_is_truncated(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = play(head(200, {"Content-Length": "99"}), raw(b'{"choices":'), cut())
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port)).ending is not Ending.COMPLETE
    line = await booked(gateway)
    assert ending(line) == (200, "truncated", "rig", 1)
    assert line["estimated"]


async def test_a_stream_that_breaks_behind_its_keepalive_is_truncated(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = play(silence(), sse(), *[word("hi")] * 4, cut())
    gateway = await gateway_for(provider, streams=SOON)
    await ask(gateway.port, chat(stream=True))
    line = await booked(gateway)
    assert ending(line) == (200, "truncated", "rig", 1)
    assert cost(line) == (line["prompt_tokens"], 4, 0, 0, True)


async def test_a_client_that_leaves_a_stream_has_used_what_came(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = play(sse(), *[word("hi")] * 6, stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        await client.events(await client.head(), 6)
    line = await booked(gateway)
    assert ending(line) == (200, "client_gone", "rig", 1)
    assert cost(line) == (line["prompt_tokens"], 6, 0, 0, True)
    assert all_booked(gateway) == (1, line["prompt_tokens"], 6)


async def test_a_client_that_leaves_before_the_first_byte_has_used_its_prompt(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = stall()
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
    line = await booked(gateway)
    assert ending(line) == (499, "client_gone", "rig", 1)
    assert cost(line) == (line["prompt_tokens"], 0, 0, 0, True)
    assert line["prompt_tokens"] > 0
    assert line["first_byte_ms"] is None


async def test_a_client_that_leaves_what_is_not_streamed_pays_by_the_usual_speed_of_the_server(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.once(completion(completion_tokens=50_000), stall())
    gateway = await gateway_for(provider)
    assert (await ask(gateway.port)).status == 200
    await provider.next_call()
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
    line = await booked(gateway, 2)
    assert ending(line) == (499, "client_gone", "rig", 1)
    assert line["estimated"] and line["completion_tokens"] > 0


async def test_a_client_that_leaves_the_queue_has_used_nothing(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig = await provider_for(slots=1)
    turns = rig.script = Turns()
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        await send()
        await rig.next_call()
        impatient = await send()
        await waiting(gateway, 1)
        await asyncio.sleep(0.02)  # so that there is a time to be measured
        impatient.leave()
        line = await booked(gateway)
        turns.end()
    assert ending(line) == (499, "client_gone", None, 0)
    assert cost(line) == NOTHING
    assert line["queue_ms"] > 0


async def test_a_cut_at_the_end_of_the_gateway_is_no_departure(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = play(sse(), word("hi"), stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        await client.events(response, 1)
        await gateway.__aexit__(None, None, None)
        assert (await client.events(response, 2))[-1]["error"]["type"] == "draining"
    line = await booked(gateway)
    assert ending(line) == (200, "draining", "rig", 1)
    assert line["completion_tokens"] == 1


# Estimates of prompts.


async def test_the_prompt_of_what_was_cut_off_is_guessed_by_what_was_learnt(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    """This model has a token for every other byte, and ten more for its template."""
    gateway = await gateway_for(provider)
    texts = ["word " * count for count in (5, 200, 30, 90, 10, 400, 60, 120)]
    for text in texts:
        tokens = 10 + len(text) // 2
        provider.once(
            answer(
                200, {"usage": {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}}
            )
        )
        await ask(gateway.port, ask_for(messages=[{"role": "user", "content": text}]))
    for number, text in enumerate(("word " * 20, "word " * 150, "word " * 800), len(texts) + 1):
        provider.once(play(sse(), word("hi"), cut()))
        await ask(gateway.port, ask_for(messages=[{"role": "user", "content": text}], stream=True))
        line = await booked(gateway, number)
        assert line["estimated"]
        assert line["prompt_tokens"] == pytest.approx(10 + len(text) // 2, rel=0.15)


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"])
async def test_the_bytes_of_a_file_are_no_prompt(
    gateway_for: GatewayFor, provider: FakeProvider, path: str
) -> None:
    provider.script = answer(200, {"text": "hi"})
    gateway = await gateway_for(provider)
    await ask(gateway.port, form(path))
    assert cost(await booked(gateway)) == (0, 0, 0, 0, True)


async def test_counting_tokens_costs_none(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    provider.script = answer(200, {"input_tokens": 5000})
    gateway = await gateway_for(provider)
    await ask(gateway.port, posting("/v1/messages/count_tokens", messages=ASK["messages"]))
    assert cost(await booked(gateway))[:2] == (0, 0)


# With llama.cpp.


async def counters(server: LlamaServer) -> dict[str, int]:
    """llama.cpp's own counters: prompt tokens, those that were cached among them, and those predicted."""
    async with aiohttp.ClientSession() as http, http.get(server.origin + "/metrics") as told:
        lines = dict(line.split(" ") for line in (await told.text()).splitlines() if line[:1] != "#")
    computed, cached, predicted = (
        int(float(lines[f"llamacpp:{name}_total"]))
        for name in ("prompt_tokens", "prompt_tokens_cached", "tokens_predicted")
    )
    return {"prompt": computed + cached, "cached": cached, "completion": predicted}


def told_by(response: Response) -> tuple[int, int]:
    """What llama.cpp says in an answer: prompt and completion tokens, by its usage or its timings."""
    answers = [response.json] if response.body.startswith(b"{") else response.events
    for each in reversed([each for each in answers if isinstance(each, dict)]):
        if usage := each.get("usage") or each.get("response", {}).get("usage"):
            completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            if prompt is not None:
                return prompt, completion
        if timings := each.get("timings"):
            return timings["prompt_n"] + timings["cache_n"], timings["predicted_n"]
    raise AssertionError("it told nothing")


def hello(number: int, model: str = "tiny", **more: Any) -> bytes:
    """A chat request to llama.cpp, of some length."""
    text = f"{number} hello " + "world " * (7 * number % 60)
    body = {"model": model, "max_tokens": 24, "messages": [{"role": "user", "content": text}], **more}
    return request("POST", "/v1/chat/completions", body=json.dumps(body).encode())


def endless(number: int, **more: Any) -> bytes:
    """A streamed chat that does not end by itself."""
    return hello(number, "endless", max_tokens=8000, stream=True, **more)


def sums(lines: Iterable[Line]) -> dict[str, int]:
    return {
        name: sum(line[f"{name}_tokens"] or 0 for line in lines)
        for name in ("prompt", "completion", "cached")
    }


async def idle(server: LlamaServer) -> dict[str, int]:
    """Wait until llama.cpp works on nothing; give its counters."""

    async def is_idle() -> bool:
        return await server.busy_slots() == 0

    await eventually(is_idle)
    return await counters(server)


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in before}


async def test_with_llama_cpp_every_answer_is_booked_as_it_says(
    gateway_for: GatewayFor, llama_server: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_server.entry})
    before = await counters(llama_server)
    answers = 0
    for number in range(6):
        for more in ({}, {"stream": True}, {"stream": True, **TELLS_USAGE}):
            response = await ask(gateway.port, hello(number, **more))
            answers += 1
            line = await booked(gateway, answers)
            assert (response.status, line["outcome"], line["estimated"]) == (200, "ok", False)
            assert (line["prompt_tokens"], line["completion_tokens"]) == told_by(response), more
    refused = await ask(gateway.port, hello(1, messages="nonsense"))
    assert refused.status == 400
    assert cost(await booked(gateway, answers + 1)) == NOTHING
    assert sums(gateway.ledger.recent) == since(before, await idle(llama_server))


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_with_llama_cpp_two_choices_are_booked_as_it_says_or_as_they_were_seen(
    gateway_for: GatewayFor, llama_server: LlamaServer, stream: bool
) -> None:
    gateway = await gateway_for(providers={"llama": llama_server.entry})
    before = await idle(llama_server)
    response = await ask(gateway.port, hello(1, n=2, stream=stream))
    line = await booked(gateway)
    assert (response.status, line["outcome"]) == (200, "ok")
    predicted = since(before, await idle(llama_server))["completion"]
    if line["estimated"]:
        assert line["completion_tokens"] == pytest.approx(predicted, rel=0.1)
    else:
        assert (line["prompt_tokens"], line["completion_tokens"]) == told_by(response)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello world", "max_tokens": 9}),
        ("/v1/completions", {"prompt": "hello world", "max_tokens": 9, "stream": True}),
        ("/v1/responses", {"input": "hello world", "max_output_tokens": 9}),
        ("/v1/responses", {"input": "hello world", "max_output_tokens": 9, "stream": True}),
        ("/v1/messages", {"messages": TINY["messages"], "max_tokens": 9}),
        ("/v1/messages", {"messages": TINY["messages"], "max_tokens": 9, "stream": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "stream" if value.get("stream") else "buffered",
)
async def test_with_llama_cpp_its_other_apis_are_booked_as_it_counts(
    gateway_for: GatewayFor, llama_server: LlamaServer, path: str, body: dict[str, Any]
) -> None:
    gateway = await gateway_for(providers={"llama": llama_server.entry})
    before = await idle(llama_server)
    message = request("POST", path, body=json.dumps({"model": "tiny", **body}).encode())
    assert (await ask(gateway.port, message)).status == 200
    line = await booked(gateway)
    assert not line["estimated"]
    assert sums([line]) == since(before, await idle(llama_server))


async def test_with_llama_cpp_embeddings_are_booked_as_it_says(
    gateway_for: GatewayFor, llama_embeddings: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_embeddings.entry})
    body = json.dumps({"model": "tiny-embeddings", "input": ["hello world", "hello"]}).encode()
    response = await ask(gateway.port, request("POST", "/v1/embeddings", body=body))
    line = await booked(gateway)
    assert cost(line) == (response.json["usage"]["prompt_tokens"], 0, 0, 0, False)


async def test_with_llama_cpp_what_is_cut_off_is_estimated_within_a_tenth(
    gateway_for: GatewayFor, llama_endless: LlamaServer
) -> None:
    gateway = await gateway_for(providers={"llama": llama_endless.entry})
    count = 0
    for number in range(8):  # from whose answers the size of prompts is learnt
        await ask(gateway.port, hello(number, "endless", max_tokens=2))
        count += 1
    await booked(gateway, count)
    for number, words in ((3, 150), (11, 250), (20, 400)):
        before = await idle(llama_endless)
        async with RawClient(gateway.port) as client:
            await client.send(endless(number))
            await client.events(await client.head(), words)
        count += 1
        line = await booked(gateway, count)
        worked = since(before, await idle(llama_endless))
        assert (line["outcome"], line["estimated"]) == ("client_gone", True)
        assert line["prompt_tokens"] == pytest.approx(worked["prompt"], rel=0.1)
        # What was generated while it was not yet known that the client had left is not told.
        assert words - 2 <= line["completion_tokens"] <= 1.1 * worked["completion"]


async def test_with_llama_cpp_a_mixed_run_adds_up(
    gateway_for: GatewayFor, llama_server: LlamaServer, llama_endless: LlamaServer
) -> None:
    """Buffered, streamed, refused and cancelled requests at the same time, in every phase."""
    words = 600
    gateway = await gateway_for(
        providers={"tiny": llama_server.entry, "endless": llama_endless.entry}, log={"requests": "none"}
    )
    for number in range(6):
        await ask(gateway.port, hello(number, "endless", max_tokens=2))
    before, before_endless = await idle(llama_server), await idle(llama_endless)
    async with crowd(gateway.port) as send:
        talkers = [await send(endless(number)) for number in range(2)]  # on all of its slots
        heads = [await talker.head() for talker in talkers]
        queued = [await send(endless(number)) for number in range(2, 5)]
        await waiting(gateway, 3, "endless")
        answers = await asyncio.gather(
            *(ask(gateway.port, hello(number, stream=number % 2 == 0)) for number in range(24)),
            *(ask(gateway.port, hello(number, messages="nonsense")) for number in range(4)),
            *(ask(gateway.port, hello(number, "unknown")) for number in range(4)),
        )
        for client in queued:
            client.leave()
        await waiting(gateway, 0, "endless")
        for talker, response in zip(talkers, heads, strict=True):
            await talker.events(response, words)
            talker.leave()
    await booked(gateway, 6 + 2 + 3 + 32)
    assert [answer.status for answer in answers] == [200] * 24 + [400] * 4 + [404] * 4
    lines = list(gateway.ledger.recent)[6:]

    finished = [line for line in lines if line["provider"] == "tiny"]
    assert not any(line["estimated"] for line in finished)
    assert sums(finished) == since(before, await idle(llama_server))
    told = [told_by(answer) for answer in answers[:24]]
    assert sums(finished)["prompt"] == sum(prompt for prompt, _ in told)
    assert sums(finished)["completion"] == sum(completion for _, completion in told)

    cut_off = [line for line in lines if line["provider"] == "endless"]
    worked = since(before_endless, await idle(llama_endless))
    assert len(cut_off) == 2 and all(line["estimated"] for line in cut_off)
    assert sums(cut_off)["prompt"] == pytest.approx(worked["prompt"], rel=0.1)
    assert 0.9 * len(talkers) * words <= sums(cut_off)["completion"] <= 1.1 * worked["completion"]

    gone = [line for line in lines if line["outcome"] == "client_gone"]
    assert sorted(cost(line) == NOTHING for line in gone) == [False, False, True, True, True]
    assert all_booked(gateway) == (
        len(lines) + 6,
        *(sums(gateway.ledger.recent)[name] for name in ("prompt", "completion")),
    )


@pytest.mark.parametrize("turns", range(5))
async def test_a_client_that_leaves_once_it_was_sent_all_has_not_left_early(
    gateway_for: GatewayFor, provider: FakeProvider, turns: int
) -> None:
    """Its upload is still being ended then, some turns of the loop after the answer."""
    body = {"text": "hello"}
    gateway = await gateway_for(provider)
    client = RawClient(gateway.port)

    async def answered(exchange: Exchange) -> None:
        await answer(200, body)(exchange)
        for _ in range(turns):
            await asyncio.sleep(0)
        client.leave()

    provider.script = answered
    form = FORM % (b"x" * 300_000)
    async with client:
        head = request("POST", "/v1/audio/transcriptions", FORM_TYPE, f"Content-Length: {len(form)}")
        await client.send(head + form)
        line = await booked(gateway)
    if line["bytes_out"] == len(json.dumps(body)):
        assert (line["status"], line["outcome"]) == (200, "ok")
    else:
        assert (line["bytes_out"], line["outcome"]) == (0, "client_gone")


@pytest.mark.parametrize("turns", range(4))
async def test_what_was_sent_all_is_not_cut_off_by_the_end_of_the_gateway(
    provider: FakeProvider, turns: int
) -> None:
    body = {"text": "hello"}
    stop = asyncio.Event()

    async def answered(exchange: Exchange) -> None:
        await answer(200, body)(exchange)
        for _ in range(turns):
            await asyncio.sleep(0)
        stop.set()

    provider.script = answered
    form = FORM % (b"x" * 300_000)
    head = request("POST", "/v1/audio/transcriptions", FORM_TYPE, f"Content-Length: {len(form)}")
    async with AsyncExitStack() as stack:
        async with Gateway(build(settings(provider))) as gateway:
            await gateway.ready.wait()
            client = await stack.enter_async_context(RawClient(gateway.port))
            await client.send(head + form)
            await stop.wait()
        response = await client.response()
    line = gateway.ledger.recent[-1]
    if response.status == 200:
        assert (line["status"], line["outcome"]) == (200, "ok")
    else:
        assert (line["status"], line["outcome"]) == (503, "draining")
