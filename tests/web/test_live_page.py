"""The live page's server side: what viewers see, when they are told, and when they are sent away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from llmgateway.service.gateway import Gateway
from llmgateway.web.live import MOST_VIEWERS_OF_A_USER, PERIOD_S
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import Turns, ask_for, crowd, waiting
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import ASK, KEY, eventually
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import Ending, RawClient, chat, request
from tests.script import answer, done, drip, head, play, sse, stall, wait, word
from tests.web.visit import (
    BOB,
    FROM_PAGE,
    HOUSE,
    cookie_of,
    snapshot,
    watching,
    with_cookie,
)

SOME_PERIODS_S = 2.4 * PERIOD_S

# Snapshots.

NUMBER = (int, float)
TEXT_OR_NOT = (str, type(None))
COUNT_OR_NOT = (int, type(None))
LINE: dict[str, Any] = {
    "time": str, "id": str, "user": TEXT_OR_NOT, "key": TEXT_OR_NOT, "model": TEXT_OR_NOT,
    "provider": TEXT_OR_NOT, "endpoint": str, "status": int, "outcome": str,
    "queue_ms": NUMBER, "first_byte_ms": (*NUMBER, type(None)), "total_ms": NUMBER,
    "prompt_tokens": COUNT_OR_NOT, "completion_tokens": COUNT_OR_NOT,
    "cached_tokens": COUNT_OR_NOT, "reasoning_tokens": COUNT_OR_NOT, "estimated": bool,
    "bytes_in": int, "bytes_out": int, "attempts": int, "stream": bool, "affinity": str,
}  # fmt: skip
"""Of a request that went well; what did not has a `why` as well."""
SNAPSHOT: dict[str, Any] = {
    "gateway": {
        "version": str, "state": str, "now": NUMBER, "started_at": NUMBER,
        "config": {"loaded_at": NUMBER, "problems": [str], "restart_needed": [str]},
    },
    "viewer": {"user": str, "admin": bool},
    "providers": [{
        "name": str, "state": str, "reason": str, "owner": TEXT_OR_NOT,
        "models": [{"id": str, "loaded": (bool, type(None)), "context_length": COUNT_OR_NOT}],
        "in_flight": int, "slots": COUNT_OR_NOT, "waiting": int, "tokens_per_s": NUMBER, "hour": [NUMBER],
    }],
    "requests": [{
        "id": str, "user": str, "person": TEXT_OR_NOT, "model": str, "provider": str,
        "endpoint": str, "phase": str, "position": int, "age_s": NUMBER, "tokens": int,
    }],
    "in_flight": int,
    "usage": {"day": str, "rows": [{
        "user": str, "person": TEXT_OR_NOT, "model": str, "requests": int,
        "prompt_tokens": int, "completion_tokens": int,
        "cached_tokens": int, "reasoning_tokens": int, "estimated": int,
    }]},
    "recent": [LINE],
    "limits": [{
        "user": str, "person": TEXT_OR_NOT, "key": TEXT_OR_NOT,
        "name": str, "limit": int, "used": int, "resets_in_s": NUMBER,
    }],
}  # fmt: skip
"""What a snapshot is made of: types, lists of one shape, and objects with exactly these keys."""


def misfits(value: Any, shape: Any, at: str = "snapshot") -> Iterator[str]:
    """Say where a value is not as its shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict) or value.keys() - {"why"} != shape.keys():
            yield f"{at}: {sorted(value)} instead of {sorted(shape)}"
            return
        for key, inner in shape.items():
            yield from misfits(value[key], inner, f"{at}.{key}")
    elif isinstance(shape, list):
        for number, each in enumerate(value):
            yield from misfits(each, shape[0], f"{at}[{number}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds:
            yield f"{at}: {value!r} is no {kinds}"


@asynccontextmanager
async def busy_house(provider_for: ProviderFor, gateway_for: GatewayFor) -> AsyncIterator[Gateway]:
    """Alice and bob have each had an answer and are being served; alice has a provider of her own."""
    gate = asyncio.Event()
    rig = await provider_for("rig", models=["m"])
    den = await provider_for("den", models=["secret"], owner="alice")
    users = {
        "alice": {**HOUSE["alice"], "limits": {"requests_per_minute": 60}},
        "bob": {
            "keys": [{"name": "phone", "key": BOB, "limits": {"parallel": 3}}],
            "limits": {"tokens_per_day": 900},
        },
    }
    gateway = await gateway_for(rig, den, users=users)
    for model, key in (("m", KEY), ("secret", KEY), ("m", BOB)):
        assert (await ask(gateway.port, ask_for(model, key=key))).status == 200
    await ask(gateway.port, chat(key="sk-nobody"))
    for provider in (rig, den):
        provider.script = play(sse(), word("Hel"), wait(gate), done())
    async with crowd(gateway.port) as send:
        streams = [
            await send(ask_for(model, key=key, stream=True))
            for model, key in (("m", KEY), ("secret", KEY), ("m", BOB))
        ]
        heads = [await client.head() for client in streams]
        for client, response in zip(streams, heads, strict=True):
            await client.events(response, 1)
        yield gateway
        gate.set()
        for client, response in zip(streams, heads, strict=True):
            assert (await client.events(response, 2))[-1] == "[DONE]"


async def test_a_snapshot_is_as_agreed_and_admins_see_all(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    async with busy_house(provider_for, gateway_for) as gateway:
        gateway.condition.problems = ["config.yaml:1:1: wrong"]
        gateway.condition.restart_needed = ["server.port"]
        seen = await snapshot(gateway)
    assert not list(misfits(seen, SNAPSHOT))
    assert seen["viewer"] == {"user": "alice", "admin": True}
    assert seen["gateway"]["state"] == "ready"
    assert seen["gateway"]["config"]["problems"] == ["config.yaml:1:1: wrong"]
    assert seen["gateway"]["config"]["restart_needed"] == ["server.port"]
    providers = {each["name"]: each for each in seen["providers"]}
    assert {name: each["in_flight"] for name, each in providers.items()} == {"rig": 2, "den": 1}
    assert all(len(each["hour"]) == 60 for each in providers.values())
    assert [(row["user"], row["model"], row["phase"]) for row in seen["requests"]] == [
        ("bob", "m", "streaming"),
        ("alice", "secret", "streaming"),
        ("alice", "m", "streaming"),
    ]
    assert seen["in_flight"] == 3
    assert sorted((row["user"], row["model"]) for row in seen["usage"]["rows"]) == [
        ("alice", "m"),
        ("alice", "secret"),
        ("bob", "m"),
    ]
    assert [line["user"] for line in seen["recent"]] == [None, "bob", "alice", "alice"]
    assert [(row["user"], row["key"], row["name"], row["used"]) for row in seen["limits"]] == [
        ("alice", None, "requests_per_minute", 4),
        ("bob", None, "tokens_per_day", 5),
        ("bob", "phone", "parallel", 1),
    ]


async def test_others_see_only_what_is_theirs(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    async with busy_house(provider_for, gateway_for) as gateway:
        gateway.condition.problems = ["config.yaml:1:1: wrong"]
        gateway.condition.restart_needed = ["server.port"]
        by_key = await snapshot(gateway, BOB)
        cookie = await cookie_of(gateway, BOB)
        by_cookie = (await ask(gateway.port, with_cookie("GET", "/gateway/status", cookie))).json
        async with watching(gateway, cookie) as (client, events):
            by_event = (await client.events(events, 1))[0]
    for seen in (by_key, by_cookie, by_event):
        assert not list(misfits(seen, SNAPSHOT))
        assert seen["viewer"] == {"user": "bob", "admin": False}
        assert seen["gateway"]["config"]["problems"] == seen["gateway"]["config"]["restart_needed"] == []
        assert [each["name"] for each in seen["providers"]] == ["rig"]
        assert [row["user"] for row in seen["requests"]] == ["bob"]
        assert seen["in_flight"] == 1
        assert [(row["user"], row["requests"]) for row in seen["usage"]["rows"]] == [("bob", 1)]
        assert [line["user"] for line in seen["recent"]] == ["bob"]
        assert {row["user"] for row in seen["limits"]} == {"bob"}
        told = json.dumps(seen)
        assert not [each for each in ("alice", "secret", "den", "wrong", "laptop", KEY, BOB) if each in told]


async def test_requests_that_wait_have_their_place_and_beyond_a_hundred_are_only_counted(
    gateway_for: GatewayFor, provider_for: ProviderFor
) -> None:
    turns = Turns()
    rig = await provider_for("rig", slots=1)
    rig.script = turns
    gateway = await gateway_for(rig, users=HOUSE, queue={"size": 200})
    async with crowd(gateway.port) as send:
        clients = [await send(ask_for()) for _ in range(105)]
        await waiting(gateway, 104)
        seen = await snapshot(gateway)
        assert (len(seen["requests"]), seen["in_flight"]) == (100, 105)
        assert {row["phase"] for row in seen["requests"]} == {"waiting"}
        assert sorted(row["position"] for row in seen["requests"]) == list(range(5, 105))
        assert seen["providers"][0]["waiting"] == 104
        turns.end(105)
        for client in clients:
            assert (await client.response()).status == 200
    seen = await snapshot(gateway)
    assert (seen["requests"], seen["in_flight"], len(seen["recent"])) == ([], 0, 50)


# Events.


async def test_events_are_whole_snapshots_and_tell_of_every_change(
    gateway: Gateway, provider: FakeProvider
) -> None:
    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        first = (await client.events(events, 1))[0]
        assert events.body.startswith(b"event: snapshot\r\ndata: {")
        assert first["recent"] == []
        await ask(gateway.port, chat())
        second = (await client.events(events, 2))[1]
        assert [line["outcome"] for line in second["recent"]] == ["ok"]
        gateway.condition.problems = ["oops"]
        third = (await client.events(events, 3))[2]
        assert third["gateway"]["config"]["problems"] == ["oops"]
    for seen in (first, second, third):
        assert not list(misfits(seen, SNAPSHOT))
    assert events.header("cache-control") == "no-cache"
    assert events.header("x-accel-buffering") == "no"
    assert events.header("x-request-id")


async def test_there_are_two_snapshots_a_second_at_most_however_busy_it_is(
    gateway: Gateway, provider: FakeProvider
) -> None:
    slowly = drip(b"2\r\n{}\r\n0\r\n\r\n", pause_s=0.01)
    provider.script = play(head(200, {"Transfer-Encoding": "chunked"}), slowly)
    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        for _ in range(10):
            answers = await asyncio.gather(*(ask(gateway.port, chat()) for _ in range(5)))
            assert all(response.status == 200 for response in answers)
        while len(events.events[-1]["recent"] if events.events else ()) < 50:
            assert await client.piece(events)
    times = [each["gateway"]["now"] for each in events.events]
    assert len(times) >= 3, "it was over too soon to tell"
    assert len(times) <= 2 * (times[-1] - times[0]) + 1.3  # of rounded times
    assert all(later - earlier > 0.39 for earlier, later in pairwise(times))  # they are rounded to 0.1 s


async def nothing_happens(gateway: Gateway, provider: FakeProvider) -> None:
    pass


async def a_limit_is_used(gateway: Gateway, provider: FakeProvider) -> None:
    provider.script = answer(400, {"error": "no tokens here"})
    assert (await ask(gateway.port, chat(key=BOB))).status == 400


@pytest.mark.parametrize("before", [nothing_happens, a_limit_is_used])
async def test_nothing_is_sent_while_nothing_changes(
    gateway: Gateway, provider: FakeProvider, before: Any
) -> None:
    await before(gateway, provider)
    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        await client.events(events, 1)
        with pytest.raises(TimeoutError):
            await client.piece(events, SOME_PERIODS_S)
        assert len(events.events) == 1


async def test_nothing_is_sent_while_a_request_is_silent(gateway: Gateway, provider: FakeProvider) -> None:
    provider.script = stall()
    async with RawClient(gateway.port) as silent:
        await silent.send(chat())
        await provider.next_call()
        async with watching(gateway, await cookie_of(gateway)) as (client, events):
            assert (await client.events(events, 1))[0]["in_flight"] == 1
            with pytest.raises(TimeoutError):
                await client.piece(events, SOME_PERIODS_S)


async def test_viewers_that_leave_are_forgotten(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    before = len(asyncio.all_tasks())
    async with AsyncExitStack() as stack:
        for number in range(6):
            client, response = await stack.enter_async_context(watching(gateway, cookie))
            await client.events(response, 1)
            if number % 2:
                client.reset()
    await eventually(lambda: len(asyncio.all_tasks()) <= before)


async def test_there_is_room_for_so_many_viewers_and_for_the_next_when_one_leaves(gateway: Gateway) -> None:
    cookie = await cookie_of(gateway)
    one_more = with_cookie("GET", "/gateway/events", cookie)
    async with AsyncExitStack() as stack:
        viewers = [
            await stack.enter_async_context(watching(gateway, cookie)) for _ in range(MOST_VIEWERS_OF_A_USER)
        ]
        response = await ask(gateway.port, one_more)
        refusal(response, 503, "overloaded")
        assert int(response.header("retry-after") or 0) > 0
        viewers[7][0].leave()

        async def let_in() -> bool:
            async with RawClient(gateway.port) as client:
                await client.send(one_more)
                return (await client.head()).status == 200

        await eventually(let_in)


async def test_events_that_fail_half_way_are_cut_and_hold_no_other_answer(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("nobody thought of this")

    async with watching(gateway, await cookie_of(gateway)) as (client, events):
        await client.events(events, 1)
        monkeypatch.setattr(gateway.status, "snapshot", broken)
        while await client.piece(events):
            pass
        assert events.ending is Ending.CUT
        assert b"HTTP/1.1" not in events.body
    monkeypatch.undo()
    assert (await snapshot(gateway))["viewer"]["user"] == "alice"


async def test_events_need_http_1_1_and_get(gateway: Gateway) -> None:
    old = f"GET /gateway/events HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    refusal(await ask(gateway.port, old), 400, "invalid_request")
    for method in ("HEAD", "POST", "OPTIONS"):
        assert (await ask(gateway.port, request(method, "/gateway/events"), to=method)).status == 405


async def test_when_it_drains_viewers_are_sent_away_at_once_and_the_page_says_why(
    gateway: Gateway, provider: FakeProvider
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), done())
    cookie = await cookie_of(gateway)
    async with watching(gateway, cookie) as (client, events), RawClient(gateway.port) as busy:
        await client.events(events, 1)
        await busy.send(chat(stream=True))
        await busy.head()
        draining = asyncio.ensure_future(gateway.drain())
        while await client.piece(events):
            pass
        assert events.ending is Ending.COMPLETE
        assert not draining.done()  # for the stream's sake
        refusal(await ask(gateway.port, with_cookie("GET", "/gateway/events", cookie)), 503, "draining")
        assert (await snapshot(gateway))["gateway"]["state"] == "draining"
        assert (await ask(gateway.port, request("GET", "/gateway/", key=None))).status == 200
        asked = with_cookie("POST", "/gateway/chat", cookie, *FROM_PAGE, body=json.dumps(ASK).encode())
        refusal(await ask(gateway.port, asked), 503, "draining")
        gate.set()
        async with asyncio.timeout(HANG_S):
            assert await draining


async def test_a_viewer_that_does_not_read_does_not_hold_the_drain_up(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    many = [f"{number:03d}-" + "x" * 180 for number in range(200)]
    rigs = [await provider_for(f"rig{number}", models=many) for number in range(20)]
    gateway = await gateway_for(*rigs, users=HOUSE)
    async with RawClient(gateway.port, receive_buffer=4096) as deaf:
        await deaf.send(with_cookie("GET", "/gateway/events", await cookie_of(gateway)))
        await deaf.head()

        def stuck() -> bool:
            gateway.condition.problems = [f"{time.monotonic()}"]
            transports = [each.transport for each in gateway._server.connections]
            return any(each is not None and each.get_write_buffer_size() for each in transports)

        await eventually(stuck)
        async with asyncio.timeout(HANG_S):
            assert await gateway.drain()
        assert await deaf.closed() in (Ending.CUT, Ending.RESET)
