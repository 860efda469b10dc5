"""Limits as clients meet them: a clear refusal, honest headers, and nothing taken that was not used."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from llmgateway.access.keys import Caller
from llmgateway.config.load import build
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, Turns, all_given_back, ask, ask_for, crowd, waiting
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import ASK, KEY, eventually, settings
from tests.raw_client import RawClient, Response, chat, request
from tests.script import answer, cut, error, head, play, polite, raw, sse, stall, stream, word

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

ADMIN = Caller("alice", admin=True)
PHONE = "sk-phone-0123456789abcdefghijklmnopqrstuvwxyz"
DURATION = r"(\d+h)?(\d+m)?\d+(ms|s)"
FOREIGN = {
    "x-ratelimit-limit-requests": "77",
    "x-ratelimit-remaining-requests": "76",
    "X-RateLimit-Reset-Tokens": "9s",
    "X-Other": "kept",
}


def users(*, phone: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    """alice, with limits of her own and of her phone; and bob, who has none."""
    keys = [{"name": "laptop", "key": KEY}, {"name": "phone", "key": PHONE, "limits": phone or {}}]
    return {"alice": {"keys": keys, "limits": limits}, "bob": {"keys": [BOB]}}


def using(tokens: int) -> Script:
    """An answer that costs so many tokens, one of them for the prompt."""
    usage = {"prompt_tokens": 1, "completion_tokens": tokens - 1, "total_tokens": tokens}
    return answer(200, {"choices": [], "usage": usage})


def limits_in(response: Response) -> dict[str, str]:
    """The `x-ratelimit-` headers; each stands once."""
    fields = [(name.lower(), value) for name, value in response.headers]
    found = [(name[12:], value) for name, value in fields if name.startswith("x-ratelimit-")]
    assert len(found) == len(dict(found))
    return dict(found)


def refused(response: Response, *words: str) -> int:
    """The seconds after which a 429 of ours says to try again; its message has these words."""
    assert (response.status, response.header("x-gateway-error")) == (429, "rate_limited")
    assert response.json["error"]["type"] == response.json["error"]["code"] == "rate_limited"
    for each in words:
        assert each in response.json["error"]["message"]
    assert response.header("x-gateway-provider") is None
    return int(response.header("retry-after") or 0)


def used(gateway: Gateway, name: str, key: str | None = None) -> int:
    """How much of a limit of alice is used, as the live page shows it."""
    snapshot = gateway.status.snapshot(ADMIN, wall=time.time())
    (count,) = [
        row["used"]
        for row in snapshot["limits"]
        if (row["user"], row["key"], row["name"]) == ("alice", key, name)
    ]
    return int(count)


async def idle(gateway: Gateway) -> None:
    """Wait until every request has ended and was booked."""
    await eventually(lambda: not gateway.ledger.in_flight)


# Requests.


async def test_the_request_over_the_limit_is_refused_and_no_provider_sees_it(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, users=users(requests_per_minute=3))
    for left in (2, 1, 0):
        response = await ask(gateway.port)
        assert response.status == 200
        told = limits_in(response)
        assert (told["limit-requests"], told["remaining-requests"]) == ("3", str(left))
    response = await ask(gateway.port)
    assert 55 <= refused(response, "3 requests per minute", "user 'alice'") <= 60
    told = limits_in(response)
    assert set(told) == {"limit-requests", "remaining-requests", "reset-requests"}
    assert (told["limit-requests"], told["remaining-requests"]) == ("3", "0")
    assert len(provider.calls) == 3


async def test_a_refused_request_takes_nothing(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(
        provider, users=users(requests_per_minute=2, phone={"requests_per_minute": 1})
    )
    assert (await ask(gateway.port, chat(key=PHONE))).status == 200
    for _ in range(5):
        refused(await ask(gateway.port, chat(key=PHONE)), "1 request per minute", "key 'phone'")
    assert (used(gateway, "requests_per_minute"), used(gateway, "requests_per_minute", "phone")) == (1, 1)
    assert (await ask(gateway.port)).status == 200, "what was refused to the phone was not taken from alice"
    refused(await ask(gateway.port), "2 requests per minute", "user 'alice'")


async def test_the_scarcer_of_two_limits_is_told(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(
        provider, users=users(requests_per_minute=100, phone={"requests_per_minute": 5})
    )
    told = limits_in(await ask(gateway.port, chat(key=PHONE)))
    assert (told["limit-requests"], told["remaining-requests"]) == ("5", "4")
    told = limits_in(await ask(gateway.port))
    assert (told["limit-requests"], told["remaining-requests"]) == ("100", "98")


async def test_a_request_that_could_not_be_forwarded_anyway_is_not_counted(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, users=users(requests_per_minute=5))
    await ask(gateway.port, chat(b"{"))
    await ask(gateway.port, chat(key="sk-wrong"))
    await ask(gateway.port, request("GET", "/v1/models"))
    assert used(gateway, "requests_per_minute") == 0


async def test_who_has_no_limits_is_told_none_and_sees_those_of_the_provider(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = answer(200, {}, FOREIGN)
    gateway = await gateway_for(provider, users=users(requests_per_minute=1))
    for _ in range(3):
        response = await ask(gateway.port, chat(key=BOB))
        assert response.status == 200
        assert limits_in(response) == {
            "limit-requests": "77",
            "remaining-requests": "76",
            "reset-tokens": "9s",
        }
        assert response.header("x-other") == "kept"
    provider.script = polite()
    assert limits_in(await ask(gateway.port, chat(key=BOB))) == {}


@pytest.mark.parametrize("streams", [False, True], ids=["buffered", "stream"])
async def test_who_has_limits_sees_their_own_and_not_those_of_the_provider(
    gateway_for: GatewayFor, provider: FakeProvider, streams: bool
) -> None:
    provider.script = (
        play(sse(FOREIGN), word("x"), lambda exchange: exchange.end())
        if streams
        else answer(200, {}, FOREIGN)
    )
    gateway = await gateway_for(provider, users=users(requests_per_minute=9, tokens_per_day=2000))
    response = await ask(gateway.port, chat(stream=streams))
    told = limits_in(response)
    assert {name: told[name] for name in told if not name.startswith("reset")} == {
        "limit-requests": "9",
        "remaining-requests": "8",
        "limit-tokens": "2000",
        "remaining-tokens": "2000",
    }
    assert response.header("x-other") == "kept"


async def test_errors_after_the_admission_tell_the_limits_too(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    provider.script = error(500)
    gateway = await gateway_for(provider, users=users(requests_per_minute=9))
    for message in (chat(), ask_for("unknown")):
        assert limits_in(await ask(gateway.port, message))["limit-requests"] == "9"


# Tokens.


@pytest.mark.parametrize(
    ("name", "words", "least_s", "most_s"),
    [
        ("tokens_per_minute", "100 tokens per minute", 55, 60),
        ("tokens_per_day", "100 tokens per day", 86_000, 86_400),
    ],
)
@pytest.mark.parametrize("holder", ["user", "key"])
async def test_tokens_are_charged_after_the_fact_and_block_the_next(
    gateway_for: GatewayFor,
    provider: FakeProvider,
    holder: str,
    name: str,
    words: str,
    least_s: int,
    most_s: int,
) -> None:
    limit: dict[str, Any] = {name: 100}
    by_user = users(**limit) if holder == "user" else users(phone=limit)
    gateway = await gateway_for(provider, users=by_user)
    for cost, left in ((60, "100"), (70, "40")):  # the second one goes over it, as nobody could know
        provider.once(using(cost))
        response = await ask(gateway.port, chat(key=PHONE))
        assert (response.status, limits_in(response)["remaining-tokens"]) == (200, left)
        await idle(gateway)
    response = await ask(gateway.port, chat(key=PHONE))
    assert least_s <= refused(response, words) <= most_s
    assert limits_in(response)["remaining-tokens"] == "0"
    assert used(gateway, name, None if holder == "user" else "phone") == 130
    laptop = await ask(gateway.port)
    assert laptop.status == (429 if holder == "user" else 200)


async def test_estimated_tokens_count_as_well(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    provider.script = play(sse(), *[word("hi")] * 20, stall())
    gateway = await gateway_for(provider, users=users(tokens_per_day=20))
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        await client.events(await client.head(), 20)
    await idle(gateway)
    gateway.ledger.book()
    line = gateway.ledger.recent[-1]
    assert used(gateway, "tokens_per_day") == line["prompt_tokens"] + line["completion_tokens"] > 20
    refused(await ask(gateway.port), "20 tokens per day")


NOT_SERVED: dict[str, tuple[bytes, Script]] = {
    "unknown model": (ask_for("unknown"), polite()),
    "a provider that fails": (chat(), error(500)),
    "a provider that hangs up": (chat(), cut()),
    "a 400": (chat(), answer(400, {"usage": {"prompt_tokens": 9, "completion_tokens": 9}})),
    "a 429 of the provider": (chat(), error(429)),
}


@pytest.mark.parametrize(("message", "script"), NOT_SERVED.values(), ids=NOT_SERVED.keys())
async def test_what_no_model_has_worked_on_is_charged_no_tokens(
    gateway_for: GatewayFor, provider: FakeProvider, message: bytes, script: Script
) -> None:
    provider.script = script
    gateway = await gateway_for(provider, users=users(requests_per_minute=9, tokens_per_day=1000))
    assert (await ask(gateway.port, message)).status != 200
    await idle(gateway)
    assert (used(gateway, "requests_per_minute"), used(gateway, "tokens_per_day")) == (1, 0)


async def test_who_leaves_the_queue_is_charged_no_tokens(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig = await provider_for(slots=1)
    turns = rig.script = Turns()
    gateway = await gateway_for(rig, users=users(tokens_per_day=1000))
    async with crowd(gateway.port) as send:
        first = await send()
        await rig.next_call()
        second = await send()
        await waiting(gateway, 1)
        second.leave()
        await waiting(gateway, 0)
        turns.end()
        await first.response()
    await idle(gateway)
    assert used(gateway, "tokens_per_day") == 5


async def test_a_provider_that_failed_before_another_answered_is_not_charged_for(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = error(500)
    alices = users(tokens_per_day=1000)
    alices["alice"]["route"] = "prefer_own"
    gateway = await gateway_for(rig, other, users=alices)
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    await idle(gateway)
    assert used(gateway, "tokens_per_day") == 5


# Parallel requests.


@pytest.mark.parametrize("holder", ["user", "key"])
async def test_only_so_many_at_the_same_time(
    gateway_for: GatewayFor, provider: FakeProvider, holder: str
) -> None:
    turns = provider.script = Turns()
    parallel: dict[str, Any] = {"parallel": 2}
    gateway = await gateway_for(
        provider, users=users(**parallel) if holder == "user" else users(phone=parallel)
    )
    async with crowd(gateway.port) as send:
        clients = [await send(chat(key=PHONE)) for _ in range(2)]
        for _ in clients:
            await provider.next_call()
        assert refused(await ask(gateway.port, chat(key=PHONE)), "2 parallel requests") >= 1
        turns.end()
        done, _ = await asyncio.wait(
            [asyncio.ensure_future(client.response()) for client in clients],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert len(done) == 1
        await eventually(lambda: len(gateway.ledger.in_flight) == 1)
        third = await send(chat(key=PHONE))
        await provider.next_call()
        turns.end(2)
        assert (await third.response()).status == 200
    await idle(gateway)


PHASES: dict[str, tuple[bool, Script, int]] = {  # stream; script; events to read before leaving
    "before the head": (False, stall(), 0),
    "in a buffered body": (False, play(head(200, {"Content-Length": "9"}), raw(b"{"), stall()), 0),
    "in a stream": (True, play(sse(), word("x"), stall()), 1),
    "while an error is read": (False, play(head(500, {"Content-Length": "9"}), raw(b"{"), stall()), 0),
}


@pytest.mark.parametrize(("streams", "script", "count"), PHASES.values(), ids=PHASES.keys())
async def test_whoever_leaves_gives_the_place_back(
    gateway_for: GatewayFor, provider: FakeProvider, streams: bool, script: Script, count: int
) -> None:
    provider.once(script)
    gateway = await gateway_for(provider, users=users(parallel=1))
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=streams))
        await provider.next_call()
        if count:
            await client.events(await client.head(), count)
        assert used(gateway, "parallel") == 1
        refused(await ask(gateway.port), "1 parallel request")
    await idle(gateway)
    assert used(gateway, "parallel") == 0
    assert (await ask(gateway.port)).status == 200


async def test_whoever_leaves_the_queue_gives_the_place_back(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    rig = await provider_for(slots=1)
    turns = rig.script = Turns()
    gateway = await gateway_for(rig, users=users(parallel=2))
    async with crowd(gateway.port) as send:
        await send()
        await rig.next_call()
        second = await send()
        await waiting(gateway, 1)
        assert used(gateway, "parallel") == 2
        second.leave()
        await eventually(lambda: used(gateway, "parallel") == 1)
        turns.end()
    await idle(gateway)
    assert used(gateway, "parallel") == 0


ENDS: dict[str, tuple[bytes, Script]] = {
    **NOT_SERVED,
    "good": (chat(), polite()),
    "a stream that breaks": (chat(stream=True), play(sse(), word("x"), cut())),
    "an answer that breaks": (chat(), play(head(200, {"Content-Length": "9"}), raw(b"{"), cut())),
}


@pytest.mark.parametrize(("message", "script"), ENDS.values(), ids=ENDS.keys())
async def test_the_place_comes_back_however_a_request_ends(
    gateway_for: GatewayFor, provider: FakeProvider, message: bytes, script: Script
) -> None:
    provider.script = script
    gateway = await gateway_for(provider, users=users(parallel=1, phone={"parallel": 1}))
    for _ in range(3):
        response = await ask(gateway.port, message.replace(KEY.encode(), PHONE.encode()))
        assert response.header("x-gateway-error") != "rate_limited"
        await idle(gateway)
    assert (used(gateway, "parallel"), used(gateway, "parallel", "phone")) == (0, 0)
    await all_given_back(gateway)


# Streams, other dialects, other configs.


async def test_a_stream_behind_a_keepalive_tells_the_limits(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gate = asyncio.Event()

    async def late(exchange: Any) -> None:
        await gate.wait()
        await stream("x")(exchange)

    provider.script = late
    gateway = await gateway_for(provider, users=users(requests_per_minute=9), streams={"keepalive": "40ms"})
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        assert limits_in(response)["remaining-requests"] == "8"
        gate.set()
        while await client.piece(response):
            pass
    assert response.events[-1] == "[DONE]"


@pytest.mark.parametrize("streams", [False, True], ids=["buffered", "stream"])
async def test_on_messages_the_refusal_has_anthropics_shape(
    gateway_for: GatewayFor, provider: FakeProvider, streams: bool
) -> None:
    gateway = await gateway_for(provider, users=users(requests_per_minute=1))
    body = json.dumps({**ASK, "max_tokens": 5, "stream": streams}).encode()
    message = request("POST", "/v1/messages", body=body)
    assert (await ask(gateway.port, message)).status == 200
    response = await ask(gateway.port, message)
    assert (response.status, response.header("x-gateway-error")) == (429, "rate_limited")
    assert response.json["type"] == "error"
    assert response.json["error"]["type"] == "rate_limit_error"
    assert response.json["request_id"] == response.header("x-request-id")
    assert int(response.header("retry-after") or 0) > 0
    assert limits_in(response)["remaining-requests"] == "0"


async def test_times_are_told_as_openai_writes_them(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider, users=users(requests_per_minute=9, tokens_per_day=1000))
    provider.script = using(10)
    await ask(gateway.port)
    await idle(gateway)
    told = limits_in(await ask(gateway.port))
    for name in ("reset-requests", "reset-tokens"):
        assert re.fullmatch(DURATION, told[name]), told[name]
    assert told["reset-tokens"].startswith(("23h59m", "24h0m"))


async def test_what_was_used_outlives_another_config(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    provider.script = using(10)
    gateway = await gateway_for(provider, users=users(requests_per_minute=2, tokens_per_day=1000))
    for _ in range(2):
        assert (await ask(gateway.port)).status == 200
    refused(await ask(gateway.port))
    await idle(gateway)

    def adopt(**limits: Any) -> None:
        gateway.adopt(build(settings(provider, users=users(**limits))))

    adopt(requests_per_minute=2, tokens_per_day=1000)
    refused(await ask(gateway.port), "2 requests per minute")
    adopt(requests_per_minute=3, tokens_per_day=1000)
    assert (await ask(gateway.port)).status == 200, "a raised limit helps at once"
    await idle(gateway)
    assert used(gateway, "tokens_per_day") == 30
    adopt(tokens_per_day=25)
    refused(await ask(gateway.port), "25 tokens per day")
    adopt()
    response = await ask(gateway.port)
    assert (response.status, limits_in(response)) == (200, {})


async def test_a_request_that_another_config_overtakes_gives_its_place_back(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    turns = provider.script = Turns()
    gateway = await gateway_for(provider, users=users(parallel=1))
    async with crowd(gateway.port) as send:
        first = await send()
        await provider.next_call()
        gateway.adopt(build(settings(provider, users=users())))
        second = await send()
        await provider.next_call()
        gateway.adopt(build(settings(provider, users=users(parallel=1))))
        assert used(gateway, "parallel") == 1
        turns.end(2)
        for client in (first, second):
            assert (await client.response()).status == 200
    await idle(gateway)
    assert used(gateway, "parallel") == 0


async def test_everybody_has_limits_of_their_own(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    both = users(requests_per_minute=1)
    both["bob"]["limits"] = {"requests_per_minute": 1}
    gateway = await gateway_for(provider, users=both)
    assert [(await ask(gateway.port, chat(key=key))).status for key in (KEY, BOB, KEY, PHONE, BOB)] == [
        200,
        200,
        429,
        429,
        429,
    ]


async def test_at_once_no_more_get_in_than_may(gateway_for: GatewayFor, provider: FakeProvider) -> None:
    gateway = await gateway_for(provider, users=users(requests_per_minute=10, parallel=40))
    answers = await asyncio.gather(*(ask(gateway.port) for _ in range(40)))
    assert sorted(answer.status for answer in answers) == [200] * 10 + [429] * 30
    assert len(provider.calls) == 10
    assert used(gateway, "requests_per_minute") == 10
