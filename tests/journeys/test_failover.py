"""A call goes to another candidate until the first byte of an answer came, and to each of them only once."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from llmgateway.fleet.provider import State
from tests.conftest import GatewayFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import answer, cut, done, error, head, play, polite, raw, reset, sse, stall, wait, word

USERS = {"alice": {"keys": [KEY], "route": "prefer_own"}}
Pair = tuple[FakeProvider, FakeProvider]


@pytest.fixture
async def pair(provider_for: ProviderFor) -> Pair:
    """Two providers of one model; with USERS, alice's own `rig` is always asked first."""
    return await provider_for("rig", owner="alice"), await provider_for("other")


async def ask(port: int, message: bytes | None = None) -> Response:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        await client.send(message or chat())
        return await client.response()


async def models(port: int) -> set[str]:
    """What is listed now."""
    listed = await ask(port, request("GET", "/v1/models"))
    return {entry["id"] for entry in listed.json["data"]}


def unpool(*providers: FakeProvider) -> None:
    """Let a probe leave no connection behind: a call that fails on one of those goes out once more."""
    for provider in providers:
        body = {"data": [{"id": model} for model in provider.models]}
        provider.on["/v1/models"] = answer(200, body, {"Connection": "close"})
        provider.on["/api/version"] = answer(404, {}, {"Connection": "close"})


def said(response: Response) -> str:
    """The message of a 502 of the gateway's own."""
    assert (response.status, response.header("x-gateway-error")) == (502, "upstream_error")
    assert response.header("x-gateway-provider") is None
    told = response.json["error"]
    message = told.pop("message")
    assert told == {"type": "upstream_error", "param": None, "code": "upstream_error"}
    assert isinstance(message, str)
    return message


# What is tried elsewhere.

FAILURES: dict[str, tuple[Script, str]] = {  # the script; a word of the message
    "500": (error(500, "CUDA out of memory"), "500: CUDA out of memory"),
    "502 in HTML": (answer(502, b"<h1>Bad\nGateway</h1>"), "502: <h1>Bad Gateway</h1>"),
    "503": (error(503, "busy", "overloaded_error"), "503: busy"),
    "599 without a body": (answer(599), "599"),
    "500 that hangs in its body": (play(head(500, {"Content-Length": "9"}), raw(b"no"), cut()), "500: no"),
    "a FIN before the head": (cut(), "closed"),
    "a RST before the head": (reset(), "closed"),
    "a FIN in the head": (play(raw(b"HTTP/1.1 200 OK\r\nContent-Le"), cut()), "closed"),
    "a RST in the head": (play(raw(b"HTTP/1.1 200 OK\r\n"), reset()), "closed"),
    "a FIN before the body": (play(head(200, {"Content-Length": "9"}), cut()), "closed"),
    "a RST before the first chunk": (play(sse(), reset()), "closed"),
    "a bad first chunk": (play(sse(), raw(b"zz\r\n"), stall()), "not valid HTTP"),
    "not HTTP": (play(raw(b"220 smtp.example ESMTP\r\n"), stall()), "not valid HTTP"),
    "HTTP/2": (play(raw(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"), stall()), "not valid HTTP"),
    "an unknown status": (play(head(999, {"Content-Length": "2"}), raw(b"ok"), stall()), "not valid HTTP"),
    "an unasked 101": (play(head(101, {"Upgrade": "x", "Connection": "upgrade"}), stall()), "not valid HTTP"),
    "a bad length": (play(head(200, {"Content-Length": "-1"}), stall()), "not valid HTTP"),
    "two lengths": (
        play(head(200, {"Content-Length": "1", "content-length": "2"}), raw(b"ok"), stall()),
        "not valid HTTP",
    ),
    "an unknown coding": (
        play(head(200, {"Transfer-Encoding": "gzip"}), raw(b"x"), stall()),
        "not valid HTTP",
    ),
    "control bytes in a header": (
        play(head(200, {"X-Odd": "a\x00b", "Content-Length": "2"}), raw(b"ok"), stall()),
        "not valid HTTP",
    ),
    "a head without end": (
        raw(b"HTTP/1.1 200 OK\r\n", *[b"X-Pad: " + b"x" * 8000 + b"\r\n"] * 40),
        "not valid HTTP",
    ),
    "1xx without end": (raw(*[b"HTTP/1.1 103 Early\r\n\r\n"] * 20_000), "not valid HTTP"),
}


@pytest.mark.parametrize(("script", "words"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_what_fails_before_its_first_byte_is_answered_by_the_other(
    pair: Pair, gateway_for: GatewayFor, script: Script, words: str, stream: bool
) -> None:
    rig, other = pair
    rig.script = script
    unpool(*pair)
    gateway = await gateway_for(*pair, users=USERS)
    response = await ask(gateway.port, chat(stream=stream))
    assert (response.status, response.ending) == (200, Ending.COMPLETE)
    assert response.header("x-gateway-provider") == "other"
    assert (len(rig.calls), len(other.calls)) == (1, 1)
    assert rig.requests[0].body == other.requests[0].body

    other.script = error(500, "the other one too")
    message = said(await ask(gateway.port, chat(stream=stream)))
    assert "'rig'" in message and words in message
    assert "'other'" in message and "500: the other one too" in message
    assert (len(rig.calls), len(other.calls)) == (2, 2)


async def test_a_refused_connection_goes_to_the_other(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, other = pair
    gateway = await gateway_for(*pair, users=USERS)
    await rig.refuse()
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    await other.refuse()
    message = said(await ask(gateway.port))
    assert "'rig'" in message and "'other'" in message and message.count("refused") == 2


async def test_every_candidate_is_asked_once_and_all_are_named(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    names = [f"box{number}" for number in range(6)]
    providers = [await provider_for(name) for name in names]
    for provider in providers:
        provider.script = error(500, f"{provider.name} is out of memory")
    gateway = await gateway_for(*providers)
    message = said(await ask(gateway.port))
    assert all(f"{name} is out of memory" in message for name in names)
    assert [len(provider.calls) for provider in providers] == [1] * 6


async def test_a_stream_that_has_begun_is_not_tried_elsewhere(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, other = pair
    rig.script = play(sse(), word("Hel"), cut())
    gateway = await gateway_for(*pair, users=USERS)
    response = await ask(gateway.port, chat(stream=True))
    assert "error" in response.events[-1]
    assert len(rig.calls) == 1 and not other.calls


async def test_a_server_that_loads_its_model_is_warming_not_broken(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, _ = pair
    rig.script = error(503, "Loading model", "unavailable_error")
    gateway = await gateway_for(*pair, users=USERS)
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    assert gateway.fleet.providers["rig"].state is State.WARMING


async def test_a_long_complaint_is_quoted_in_part_and_in_one_line(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = answer(500, b"Traceback\r\n" + b"  at line x\n" * 100_000)
    gateway = await gateway_for(provider)
    message = said(await ask(gateway.port))
    assert "500: Traceback at line x" in message
    assert len(message) < 500 and message.isprintable()


# 404, 429 and 501.


@pytest.mark.parametrize("status", [404, 429, 501])
async def test_404_429_and_501_are_tried_elsewhere(pair: Pair, gateway_for: GatewayFor, status: int) -> None:
    rig, other = pair
    rig.script = error(status, "not now")
    gateway = await gateway_for(*pair, users=USERS)
    response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-provider")) == (200, "other")
    assert (len(rig.calls), len(other.calls)) == (1, 1)
    assert gateway.fleet.providers["rig"].online


UNUSUAL = gzip.compress(b'{"error":{"message":"busy"}}', mtime=0)
FIELDS = {"Content-Encoding": "gzip", "Retry-After": "7", "X-RateLimit-Reset": "3s", "Content-Type": "a/b"}
LAST_WORDS: dict[str, tuple[Script, Script, int, str]] = {  # rig, other; what passes, of whom
    "429, 429": (error(429), answer(429, UNUSUAL, FIELDS), 429, "other"),
    "404, 404": (error(404), answer(404, UNUSUAL, FIELDS), 404, "other"),
    "404, 429": (error(404), answer(429, UNUSUAL, FIELDS), 429, "other"),
    "500, 404": (error(500), answer(404, UNUSUAL, FIELDS), 404, "other"),
    "429, 500": (answer(429, UNUSUAL, FIELDS), error(500), 429, "rig"),
    "404, half a head": (answer(404, UNUSUAL, FIELDS), play(raw(b"HTTP"), reset()), 404, "rig"),
    "429, 401": (answer(429, UNUSUAL, FIELDS), error(401), 429, "rig"),
    "501, 501": (error(501), answer(501, UNUSUAL, FIELDS), 501, "other"),
    "404, 501": (answer(404, UNUSUAL, FIELDS), error(501), 404, "rig"),
    "429, 501": (answer(429, UNUSUAL, FIELDS), error(501), 429, "rig"),
    "501, 500": (answer(501, UNUSUAL, FIELDS), error(500), 501, "rig"),
    "501, 404": (error(501), answer(404, UNUSUAL, FIELDS), 404, "other"),
}


@pytest.mark.parametrize(("first", "second", "status", "by"), LAST_WORDS.values(), ids=LAST_WORDS.keys())
async def test_the_last_404_or_429_else_a_501_passes_through_unchanged(
    pair: Pair, gateway_for: GatewayFor, first: Script, second: Script, status: int, by: str
) -> None:
    pair[0].script, pair[1].script = first, second
    gateway = await gateway_for(*pair, users=USERS)
    response = await ask(gateway.port)
    assert (response.status, bytes(response.body), response.ending) == (status, UNUSUAL, Ending.COMPLETE)
    assert {name: response.header(name) for name in FIELDS} == FIELDS
    assert response.header("x-gateway-provider") == by
    assert response.header("x-gateway-error") is None
    assert [len(provider.calls) for provider in pair] == [1, 1]


@pytest.mark.parametrize("status", [404, 429, 501])
async def test_such_an_answer_of_the_only_provider_passes_through(
    provider: FakeProvider, gateway_for: GatewayFor, status: int
) -> None:
    provider.script = answer(status, UNUSUAL, FIELDS)
    gateway = await gateway_for(provider)
    response = await ask(gateway.port)
    assert (response.status, bytes(response.body)) == (status, UNUSUAL)
    assert response.header("x-gateway-error") is None


async def test_a_404_that_breaks_in_its_body_is_tried_elsewhere(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, _ = pair
    rig.script = play(head(404, {"Content-Length": "99"}), raw(b'{"error"'), cut())
    gateway = await gateway_for(*pair, users=USERS)
    response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-provider")) == (200, "other")


# What a server says is quoted, but for what nobody may read.


async def test_a_key_that_a_server_repeats_is_blotted_out(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(key="sk-of-the-rig")
    rig.script = error(500, "no such key: Bearer sk-of-the-rig")
    gateway = await gateway_for(rig)
    message = said(await ask(gateway.port))
    assert "no such key: Bearer" in message and "sk-of-the-rig" not in message


async def test_so_is_what_the_config_puts_into_other_headers(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(headers={"X-Secret": "very-secret"})
    rig.script = error(500, "not allowed: X-Secret: very-secret")
    gateway = await gateway_for(rig)
    message = said(await ask(gateway.port))
    assert "not allowed: X-Secret" in message and "very-secret" not in message


# What passes.


@pytest.mark.parametrize("status", [201, 204, 300, 304, 400, 402, 405, 409, 410, 413, 418, 422, 451, 499])
async def test_other_answers_pass_through_and_are_not_tried_elsewhere(
    pair: Pair, gateway_for: GatewayFor, status: int
) -> None:
    rig, other = pair
    body = b"" if status in (204, 304) else b'{ "odd":1 }'
    fields = {"X-Odd": "1", "Content-Type": "x/y"}
    rig.script = play(
        head(status, {**fields, **({"Content-Length": str(len(body))} if body else {})}), raw(body)
    )
    gateway = await gateway_for(*pair, users=USERS)
    response = await ask(gateway.port)
    assert (response.status, bytes(response.body), response.ending) == (status, body, Ending.COMPLETE)
    assert {name: response.header(name) for name in fields} == fields
    assert response.header("x-gateway-provider") == "rig"
    assert response.header("x-gateway-error") is None
    assert not other.calls


# A connection that the provider had just closed.

PARTINGS: dict[str, Script] = {"FIN": cut(), "RST": reset()}


def on_old_connections(script: Script, old: int = 1) -> Script:
    """Do this when a request comes on one of the first connections; on later ones do nothing."""

    async def performed(exchange: Exchange) -> None:
        if exchange.request.connection <= old:
            await script(exchange)

    return performed


@pytest.mark.parametrize("part", PARTINGS.values(), ids=PARTINGS.keys())
async def test_a_request_that_met_a_closing_connection_goes_out_once_more(
    pair: Pair, gateway_for: GatewayFor, part: Script
) -> None:
    rig, other = pair
    gateway = await gateway_for(*pair, users=USERS)
    rig.before_body = on_old_connections(part)
    response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-provider")) == (200, "rig")
    assert [call.request.connection for call in rig.calls] == [1, 2]
    assert rig.requests[1].body == chat().partition(b"\r\n\r\n")[2]
    assert not other.calls
    assert gateway.fleet.providers["rig"].online


async def test_connections_that_were_closed_while_idle_are_not_noticed_by_anybody(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    for _ in range(10):
        provider.drop_idle()
        assert (await ask(gateway.port)).status == 200


async def test_it_goes_out_on_a_fresh_connection_not_on_one_as_old(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    provider.script = play(wait(gate), polite())
    gateway = await gateway_for(provider)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask(gateway.port))
        await eventually(lambda: len(provider.calls) == 5)
        gate.set()
    provider.before_body = on_old_connections(reset(), old=5)
    assert (await ask(gateway.port)).status == 200
    assert provider.calls[-1].request.connection == 6
    assert len(provider.calls) == 7


async def test_it_goes_out_once_more_and_not_twice(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    provider.before_body = reset()
    assert "'rig' closed" in said(await ask(gateway.port))
    assert [call.request.connection for call in provider.calls] == [1, 2]


async def test_a_408_on_an_old_connection_is_of_its_idleness_and_not_of_the_request(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    provider.before_body = on_old_connections(answer(408))
    assert (await ask(gateway.port)).status == 200
    assert [call.request.connection for call in provider.calls] == [1, 2]


async def test_a_408_on_a_fresh_connection_passes_as_it_came(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    provider.before_body = answer(408)
    response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-error")) == (408, None)
    assert [call.request.connection for call in provider.calls] == [1, 2]


@pytest.mark.parametrize(
    "first", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], ids=["byte", "head"]
)
@pytest.mark.parametrize("part", PARTINGS.values(), ids=PARTINGS.keys())
async def test_once_a_byte_of_the_answer_came_it_does_not_go_out_again(
    provider: FakeProvider, gateway_for: GatewayFor, first: bytes, part: Script
) -> None:
    gateway = await gateway_for(provider)
    provider.script = play(raw(first), part)
    assert "'rig' closed" in said(await ask(gateway.port))
    assert [call.request.connection for call in provider.calls] == [1]


# Under load.


def conversation(number: int, *, stream: bool) -> bytes:
    """A chat request that is no turn of any other conversation."""
    said = [{"role": "user", "content": f"hi for the {number}th time"}]
    return chat(json.dumps({"model": "m", "messages": said, "stream": stream}).encode())


async def test_killing_one_of_two_loses_nothing_that_had_no_byte_yet(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", models=["m", "only-rig"]), await provider_for("other")
    gate = asyncio.Event()
    waits, begun = list[Exchange](), list[Exchange]()

    async def busy(exchange: Exchange) -> None:
        """Buffered calls wait; of the streams, every second one has begun."""
        if exchange.request.json.get("stream") and len(rig.calls) % 2:
            await play(sse(), word("Hel"))(exchange)
            begun.append(exchange)
            await play(wait(gate), word("lo"), done())(exchange)
        else:
            waits.append(exchange)
            await play(wait(gate), polite())(exchange)

    rig.script = other.script = busy
    health = {"interval": "200ms", "timeout": "10m", "fall": 2, "rise": 1}
    gateway = await gateway_for(rig, other, health=health)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(ask(gateway.port, conversation(n, stream=n % 3 > 0))) for n in range(50)]
        await eventually(lambda: len(waits) + len(begun) == 50)
        assert len(rig.calls) >= 20, "the load is shared"
        lost = [exchange for exchange in begun if exchange in rig.calls]
        assert lost and len(lost) < len(rig.calls)
        await rig.refuse()
        gate.set()
    responses = [call.result() for call in calls]
    assert {response.status for response in responses} == {200}
    assert {response.ending for response in responses} == {Ending.COMPLETE}
    broken = [response for response in responses if "upstream_error" in str(response.body)]
    assert len(broken) == len(lost)
    assert {response.header("x-gateway-provider") for response in broken} == {"rig"}

    async def listed() -> bool:
        return await models(gateway.port) == {"m", "only-rig"}

    async def unlisted() -> bool:
        return await models(gateway.port) == {"m"}

    await eventually(unlisted)
    assert not gateway.fleet.providers["rig"].online
    await rig.come_back()
    await eventually(listed)
    assert all(provider.in_flight == 0 for provider in gateway.fleet.providers.values())
