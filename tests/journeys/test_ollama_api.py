"""Ollama's own API: forwarded to servers that are Ollama, line by line, and nobody else's business."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from llmgateway.config.load import build
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import QUICK, ask, waiting
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.raw_client import Ending, RawClient, Response, request
from tests.script import answer, chunk, cut, end, error, head, listing, play, reset, stall, wait

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

ON: dict[str, Any] = {"server": {"ollama_api": True}}
LINES = {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"}
CHAT = {"model": "m:latest", "messages": [{"role": "user", "content": "hi"}]}
COUNTS = {
    "total_duration": 4_883_583_458, "load_duration": 1_334_875, "prompt_eval_count": 26,
    "prompt_eval_duration": 342_546_000, "eval_count": 298, "eval_duration": 4_535_599_000,
}  # fmt: skip


def line(**more: Any) -> bytes:
    """A line of a stream."""
    said = {"model": "m:latest", "created_at": "2026-11-22T10:00:00.123456Z", **more}
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def word(text: str, **more: Any) -> bytes:
    return line(message={"role": "assistant", "content": text, **more}, done=False)


LAST = line(message={"role": "assistant", "content": ""}, done_reason="stop", done=True, **COUNTS)
STREAM = word("Hello") + word(" world") + LAST


def spoken(body: bytes, *last: Script) -> Script:
    """A stream of lines."""
    return play(head(200, LINES), chunk(body), *(last or (end(),)))


def as_ollama(provider: FakeProvider, *models: str) -> FakeProvider:
    """Let a provider be an Ollama, which streams unless it is told not to."""
    names = models or ("m:latest",)
    provider.on["/v1/models"] = listing(*({"id": name, "owned_by": "library"} for name in names))
    provider.on["/api/tags"] = answer(200, {"models": [{"model": name, "name": name} for name in names]})
    provider.on["/api/ps"] = answer(200, {"models": []})
    provider.script = spoken(STREAM)
    return provider


def to(path: str, body: Any = None, method: str = "POST", *, key: str | None = KEY) -> bytes:
    sent = json.dumps(CHAT if body is None else body).encode() if method == "POST" else b""
    return request(method, path, body=sent, key=key)


async def line_of(gateway: Gateway, count: int = 1) -> dict[str, Any]:
    """What was written down of the last of so many requests."""
    await eventually(lambda: len(gateway.ledger.recent) == count)
    return gateway.ledger.recent[-1]


async def answer_of(gateway: Gateway, asked: bytes) -> Response:
    """An answer, whichever way it ends."""
    async with RawClient(gateway.port) as client:
        await client.send(asked)
        response = await client.head()
        while await client.piece(response):
            pass
    return response


# --- what passes --------------------------------------------------------------------------------------


async def test_a_stream_passes_line_by_line_and_its_counts_are_booked(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    as_ollama(provider)
    gateway = await gateway_for(provider, **ON)
    body = b'{"messages":[{"role":"user","content":"hi"}],  "model":"m","options":{"num_predict":5}}'
    response = await ask(gateway.port, request("POST", "/api/chat", body=body, key=KEY))
    assert (response.status, bytes(response.body)) == (200, STREAM)
    assert response.header("content-type") == "application/x-ndjson"
    assert response.header("x-accel-buffering") == "no"
    assert response.header("x-gateway-model") == "m:latest"
    sent = provider.requests[0]
    assert (sent.method, sent.target, sent.body) == ("POST", "/api/chat", body)
    told = await line_of(gateway)
    assert (told["outcome"], told["stream"], told["endpoint"]) == ("ok", True, "/api/chat")
    assert (told["prompt_tokens"], told["completion_tokens"]) == (26, 298)
    assert not told["estimated"]


@pytest.mark.parametrize(
    ("said", "streams"), [({}, True), ({"stream": None}, True), ({"stream": False}, False)]
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_who_does_not_say_otherwise_gets_a_stream(
    provider: FakeProvider, gateway_for: GatewayFor, path: str, said: dict[str, Any], streams: bool
) -> None:
    as_ollama(provider)
    whole = {"model": "m:latest", "response": "Hello", "done": True, "context": [1, 2], **COUNTS}
    provider.script = spoken(STREAM) if streams else answer(200, whole)
    gateway = await gateway_for(provider, **ON)
    await ask(gateway.port, to(path, {"model": "m", "prompt": "hi", **said}))
    told = await line_of(gateway)
    assert (told["stream"], told["completion_tokens"], told["estimated"]) == (streams, 298, False)


@pytest.mark.parametrize(
    ("path", "asked", "answered", "tokens"),
    [
        ("/api/embed", {"input": ["a", "b"]}, {"embeddings": [[0.1], [0.2]], "prompt_eval_count": 8}, (8, 0)),
        ("/api/chat", {"stream": False}, {"message": {"content": "hi"}, "done": True, **COUNTS}, (26, 298)),
        ("/api/chat", {"stream": False}, {"message": {"content": "x" * 90_000}, **COUNTS}, (26, 298)),
        ("/api/chat", {"stream": False}, {**COUNTS, "logprobs": [{"bytes": [1]}]}, (26, 298)),
    ],
)
async def test_a_whole_answer_passes_and_its_counts_are_booked(
    provider: FakeProvider,
    gateway_for: GatewayFor,
    path: str,
    asked: dict[str, Any],
    answered: dict[str, Any],
    tokens: tuple[int, int],
) -> None:
    as_ollama(provider).script = answer(200, {"model": "m:latest", **answered})
    gateway = await gateway_for(provider, **ON)
    response = await ask(gateway.port, to(path, {"model": "m:latest", **asked}))
    assert (response.status, response.json) == (200, {"model": "m:latest", **answered})
    told = await line_of(gateway)
    assert (told["prompt_tokens"], told["completion_tokens"], told["estimated"]) == (*tokens, False)


async def test_what_an_old_embedding_cost_is_an_estimate(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    as_ollama(provider).script = answer(200, {"embedding": [0.1, 0.2]})
    gateway = await gateway_for(provider, **ON)
    await ask(gateway.port, to("/api/embeddings", {"model": "m", "prompt": "hi " * 100}))
    told = await line_of(gateway)
    assert told["estimated"] and told["prompt_tokens"] > 0 and not told["completion_tokens"]


async def test_show_goes_to_the_one_who_has_the_model_and_costs_no_tokens(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, box = as_ollama(await provider_for("rig")), as_ollama(await provider_for("box"), "other:1b")
    box.script = answer(200, {"capabilities": ["completion"], "model_info": {}})
    gateway = await gateway_for(rig, box, **ON)
    response = await ask(gateway.port, to("/api/show", {"model": "other:1b"}))
    assert response.json["capabilities"] == ["completion"]
    assert (box.requests[0].target, rig.calls) == ("/api/show", [])
    assert not (await line_of(gateway))["prompt_tokens"]


@pytest.mark.parametrize("default", [{}, {"default_model": "other:1b"}], ids=["", "with a default model"])
async def test_an_old_client_may_name_the_model_by_name_where_it_is_shown(
    provider: FakeProvider, gateway_for: GatewayFor, default: dict[str, Any]
) -> None:
    as_ollama(provider, "m:latest", "other:1b").script = answer(200, {"model_info": {}})
    provider.settings["rename"] = {"m:latest": "mine"}
    gateway = await gateway_for(provider, server={"ollama_api": True, **default})
    for said, told in (({"name": "mine"}, "m:latest"), ({"model": "other:1b", "name": "mine"}, "other:1b")):
        response = await ask(gateway.port, to("/api/show", said))
        assert response.status == 200
        assert provider.requests[-1].json == {**said, "model": told}
    for odd in ({"name": 3}, {"name": ""}, {}):
        response = await ask(gateway.port, to("/api/show", odd))
        assert response.status == (200 if default else 400)
    assert (await ask(gateway.port, to("/api/chat", {"name": "mine"}))).status == (200 if default else 400)


async def test_a_request_with_a_large_image_is_a_stream_like_any_other(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    as_ollama(provider)
    gateway = await gateway_for(provider, **ON)
    message = {"role": "user", "content": "what is it?", "images": ["iVBORw0K" * 400_000]}
    body = {"model": "m", "messages": [message], "options": {"num_predict": 5}}
    response = await ask(gateway.port, to("/api/chat", body))
    assert bytes(response.body) == STREAM
    assert provider.requests[0].body == json.dumps(body).encode()
    assert (await line_of(gateway))["stream"]


async def test_a_compressed_stream_is_read(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    packed = gzip.compress(STREAM, mtime=0)
    as_ollama(provider).script = play(
        head(200, {**LINES, "Content-Encoding": "gzip"}), chunk(packed[:40]), chunk(packed[40:]), end()
    )
    gateway = await gateway_for(provider, **ON)
    response = await ask(gateway.port, to("/api/chat"))
    assert bytes(response.body) == packed
    told = await line_of(gateway)
    assert (told["completion_tokens"], told["estimated"], told["outcome"]) == (298, False, "ok")


# --- how streams end ----------------------------------------------------------------------------------

PARTS = [{"token": "word", "logprob": -0.25}] * 20_000
ENDS = {
    "the last line": STREAM,
    "the last line without its end": STREAM.rstrip(),
    "a last line with blanks": word("Hello") + b'{ "done" : true , "eval_count" : 3 } \r\n',
    "a huge line": line(response="Hello", done=False) + line(response="", done=True, parts=PARTS, **COUNTS),
    "a model that was only loaded": line(response="", done=True, done_reason="load"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("last", [cut(), reset()], ids=["closed", "reset"])
async def test_a_stream_that_has_shown_its_last_line_is_whole(
    provider: FakeProvider, gateway_for: GatewayFor, name: str, last: Script
) -> None:
    body, gate = ENDS[name], asyncio.Event()
    as_ollama(provider).script = spoken(body, wait(gate), last)
    gateway = await gateway_for(provider, **ON)
    async with RawClient(gateway.port) as client:
        await client.send(to("/api/generate"))
        response = await client.head()
        while len(response.body) < len(body):
            assert await client.piece(response)
        gate.set()
        while await client.piece(response):
            pass
    missing = b"" if body.endswith(b"\n") else b"\n"
    assert (response.ending, bytes(response.body)) == (Ending.COMPLETE, body + missing)
    told = await line_of(gateway)
    assert told["outcome"] == "ok"
    if name == "a huge line":
        assert (told["completion_tokens"], told["estimated"]) == (298, False)


CALL = {"function": {"name": "f", "arguments": {"done": True, "error": "x", "eval_count": 77}}}
UNENDED = {
    "nothing": word("Hello") + word(" world"),
    "words of a model": word('{"done":true}') + word('\n{"done":true}\n'),
    "the arguments of a tool": word("", tool_calls=[CALL]),
    "half a last line": word("Hello") + LAST[:-30],
    "more behind it": STREAM + word("and")[:-9],
}


@pytest.mark.parametrize("name", UNENDED)
async def test_a_stream_that_breaks_ends_with_a_line_that_says_so(
    provider: FakeProvider, gateway_for: GatewayFor, name: str
) -> None:
    body = UNENDED[name]
    as_ollama(provider).script = spoken(body, cut())
    gateway = await gateway_for(provider, **ON)
    response = await answer_of(gateway, to("/api/chat"))
    assert response.ending is Ending.COMPLETE
    gap = b"" if body.endswith(b"\n") else b"\n"
    assert response.body.startswith(body + gap)
    (last,) = response.body.removeprefix(body + gap).splitlines()
    assert list(json.loads(last)) == ["error"] and "rig" in json.loads(last)["error"]
    told = await line_of(gateway)
    assert told["outcome"] == "truncated"
    if name in ("nothing", "the arguments of a tool"):
        assert told["estimated"] and told["completion_tokens"] == (2 if name == "nothing" else 1)


@pytest.mark.parametrize("last", [end(), cut(), stall()], ids=["the end", "a close", "the client leaves"])
async def test_an_error_in_a_stream_passes_and_is_booked_as_one(
    provider: FakeProvider, gateway_for: GatewayFor, last: Script
) -> None:
    body = word("Hello") + b'{"error":"an error was encountered while running the model"}\n'
    as_ollama(provider).script = spoken(body, last)
    gateway = await gateway_for(provider, **ON)
    async with RawClient(gateway.port) as client:
        await client.send(to("/api/chat"))
        response = await client.head()
        while len(response.body) < len(body):
            assert await client.piece(response)
    assert bytes(response.body) == body
    assert (await line_of(gateway))["outcome"] == "upstream_error"


async def test_a_client_that_leaves_pays_for_what_came(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    as_ollama(provider).script = spoken(word("Hello", thinking="Hm") + line(thinking="so"), stall())
    gateway = await gateway_for(provider, **ON)
    async with RawClient(gateway.port) as client:
        await client.send(to("/api/chat"))
        response = await client.head()
        await client.piece(response)
    await (await provider.next_call()).hung_up()
    told = await line_of(gateway)
    assert (told["outcome"], told["completion_tokens"], told["estimated"]) == ("client_gone", 3, True)


async def test_a_silent_stream_hears_nothing_of_the_gateways(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    as_ollama(provider).script = play(wait(gate), spoken(STREAM))
    gateway = await gateway_for(provider, **ON, streams={"keepalive": "1ms"})
    async with RawClient(gateway.port) as client:
        await client.send(to("/api/chat"))
        await provider.next_call()
        provider.script = spoken(STREAM)
        for _ in range(3):  # time passes by what others are told meanwhile
            assert (await ask(gateway.port, to("/api/chat"))).status == 200
        gate.set()
        response = await client.response()
    assert (response.status, bytes(response.body)) == (200, STREAM)


# --- who takes them -----------------------------------------------------------------------------------


async def test_only_servers_that_are_ollama_are_asked(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, box = await provider_for("rig", models=["m:latest"]), as_ollama(await provider_for("box"))
    gateway = await gateway_for(rig, box, **ON)
    for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show") * 3:
        response = await ask(gateway.port, to(path))
        assert (response.status, response.header("x-gateway-provider")) == (200, "box")
    assert rig.calls == []


async def test_a_model_that_no_ollama_has_is_not_found_in_words_that_say_so(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(await provider_for("rig", models=["other"]), **ON)
    response = await ask(gateway.port, to("/api/chat", {**CHAT, "model": "other"}))
    assert (response.status, response.header("x-gateway-error")) == (404, "no_provider")
    assert response.json == {"error": "No online provider serving model 'other' has /api/chat for this user."}
    response = await ask(gateway.port, to("/api/chat", {**CHAT, "model": "nobody's"}))
    assert response.json == {"error": "No online provider serving model 'nobody's' for this user."}


@pytest.mark.parametrize(
    ("missing", "asked_again"),
    [
        (answer(404, b"404 page not found", {"Content-Type": "text/plain"}), False),
        (answer(404, {"error": "model 'm:latest' not found"}), True),
        (answer(404, {"error": "model 'm:latest' not found, try pulling it first"}), True),
        (answer(400, {"error": "this model does not support embeddings"}), True),
    ],
    ids=["the path", "the model", "the model, as of old", "the ability"],
)
async def test_an_old_ollama_is_not_asked_again_for_a_path_that_it_has_not(
    provider: FakeProvider, gateway_for: GatewayFor, missing: Script, asked_again: bool
) -> None:
    as_ollama(provider).script = missing
    gateway = await gateway_for(provider, **ON)
    for _ in range(2):
        response = await ask(gateway.port, to("/api/embed", {"model": "m", "input": "a"}))
        assert response.status in (400, 404)
    assert len(provider.calls) == 1 + asked_again
    provider.script = spoken(STREAM)
    assert (await ask(gateway.port, to("/api/chat"))).status == 200


async def test_another_ollama_takes_over_before_the_first_line(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, box = as_ollama(await provider_for("rig")), as_ollama(await provider_for("box"))
    rig.script = box.script = error(500)
    rig.once(play(head(200, LINES), reset()))
    gateway = await gateway_for(rig, box, **ON)
    response = await ask(gateway.port, to("/api/chat"))
    assert response.status == 502
    assert len(rig.calls) == len(box.calls) == 1
    box.script = spoken(STREAM)
    assert (await ask(gateway.port, to("/api/chat"))).header("x-gateway-provider") == "box"


async def test_turns_of_a_conversation_stay_with_one_ollama(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(
        as_ollama(await provider_for("rig")), as_ollama(await provider_for("box")), **ON
    )
    said = [{"role": "user", "content": "hi"}]
    first = await ask(gateway.port, to("/api/chat", {"model": "m", "messages": said}))
    said += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "and?"}]
    second = await ask(gateway.port, to("/api/chat", {"model": "m", "messages": said}))
    assert second.header("x-gateway-provider") == first.header("x-gateway-provider")
    assert (first.header("x-gateway-affinity"), second.header("x-gateway-affinity")) == ("miss", "hit")


async def test_an_ollama_that_sleeps_is_waited_for_if_the_config_says_that_it_is_one(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    wake = {"mac": "02:00:00:00:00:01", "broadcast": "127.0.0.1"}
    provider.settings.update(kind="ollama", models=["m:latest"], wake=wake)
    await as_ollama(provider).refuse()
    gateway = await gateway_for(provider, **ON, health=QUICK)
    async with RawClient(gateway.port) as client:
        await client.send(to("/api/chat", {**CHAT, "model": "m"}))
        await waiting(gateway, 1)
        await provider.come_back()
        assert bytes((await client.response()).body) == STREAM


async def test_what_is_refused_is_refused_in_a_sentence(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    users = {"alice": {"keys": [KEY], "limits": {"requests_per_minute": 1}}}
    gateway = await gateway_for(
        as_ollama(provider), server={"ollama_api": True, "max_body": 1_000}, users=users
    )
    large = await ask(gateway.port, to("/api/chat", {**CHAT, "images": ["x" * 2_000]}))
    assert (large.status, list(large.json)) == (413, ["error"])
    assert (await ask(gateway.port, to("/api/chat"))).status == 200
    limited = await ask(gateway.port, to("/api/chat"))
    assert (limited.status, list(limited.json)) == (429, ["error"])
    assert limited.header("retry-after")


# --- off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/api/chat", "/api/generate", "/api/show", "/api/tags", "/api/pull", "/api"]
)
async def test_without_the_setting_there_is_no_such_path(
    provider: FakeProvider, gateway_for: GatewayFor, path: str
) -> None:
    gateway = await gateway_for(as_ollama(provider))
    response = await ask(gateway.port, to(path))
    assert response.status == 404
    assert response.json["error"]["type"] == "not_found"
    assert provider.calls == []


async def test_the_setting_is_taken_in_while_it_runs(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(as_ollama(provider))
    assert (await ask(gateway.port, to("/api/chat"))).status == 404
    gateway.adopt(build(settings(provider, **ON)))
    assert (await ask(gateway.port, to("/api/chat"))).status == 200
    gateway.adopt(build(settings(provider)))
    assert (await ask(gateway.port, to("/api/chat"))).status == 404
