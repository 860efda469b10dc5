"""A provider gets as many requests as it has slots; the others wait, and no slot is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from llmgateway.config.load import build
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.crowd import (
    LLAMA,
    QUICK,
    Turns,
    all_given_back,
    ask,
    ask_for,
    crowd,
    overloaded,
    props,
    waiting,
)
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually, settings
from tests.raw_client import chat
from tests.script import (
    answer,
    cut,
    error,
    play,
    polite,
    raw,
    reset,
    sse,
    stall,
    wait,
    word,
    zipped,
)

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway


async def in_flight(gateway: Gateway, count: int) -> None:
    """Wait until `rig` works on so many."""
    await eventually(lambda: gateway.fleet.providers["rig"].in_flight == count, every=0.001)


async def at_once(gateway: Gateway, news: Callable[[], bool], *, left: int = 0) -> None:
    """Wait for the news; whom they concern must not wait any more in that very moment."""
    await eventually(news, every=0.001)
    assert gateway.slots.line.depth("m") == left


# How many at once.


async def test_no_more_requests_than_slots_reach_a_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=2)
    turns = Turns()
    rig.script = turns
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        clients = [await send() for _ in range(6)]
        await waiting(gateway, 4)
        for ended in range(4):
            assert len(rig.calls) <= 2 + ended
            turns.end()
            await waiting(gateway, 3 - ended)
        turns.end(2)
        assert [(await client.response()).status for client in clients] == [200] * 6
    assert len(rig.calls) == 6
    await all_given_back(gateway)


@pytest.mark.parametrize("configured", [False, True], ids=["models asked", "models configured"])
async def test_slots_that_are_not_configured_are_asked_from_llamacpp_and_follow_it_at_once(
    provider_for: ProviderFor, gateway_for: GatewayFor, configured: bool
) -> None:
    rig = await provider_for(models=LLAMA)
    turns = Turns()
    rig.script, rig.on["/props"] = turns, props(1)
    entry = rig.entry | ({"models": ["m"]} if configured else {})
    gateway = await gateway_for(rig, health=QUICK, providers={"rig": entry})
    async with crowd(gateway.port) as send:
        clients = [await send() for _ in range(4)]
        await waiting(gateway, 3)

        rig.on["/props"] = props(3)  # up: two more go at once, though nothing has ended
        await at_once(gateway, lambda: gateway.fleet.providers["rig"].capacity == 3, left=1)
        assert gateway.fleet.providers["rig"].in_flight == 3

        rig.on["/props"] = props(1)  # down: none goes until two of the three have ended, and none is broken
        await eventually(lambda: gateway.fleet.providers["rig"].capacity == 1)
        for left in (2, 1):
            turns.end()
            await in_flight(gateway, left)
            assert gateway.slots.line.depth("m") == 1
        turns.end(2)
        assert [(await client.response()).status for client in clients] == [200] * 4
    await all_given_back(gateway)


async def test_the_config_knows_better_than_the_server(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(models=LLAMA, slots=2)
    rig.script, rig.on["/props"] = stall(), props(1)
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        for _ in range(3):
            await send()
        await waiting(gateway, 1)
        assert gateway.fleet.providers["rig"].in_flight == 2


async def test_where_nobody_knows_a_limit_there_is_none(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = stall()
    gateway = await gateway_for(provider)
    async with crowd(gateway.port) as send:
        for _ in range(30):
            await send()
        for _ in range(30):
            await provider.next_call()


async def test_two_models_of_one_provider_share_its_slots(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(models=["m", "n"], slots=1)
    gate = asyncio.Event()
    rig.script = play(wait(gate), polite())
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        first = await send(ask_for("n"))
        await rig.next_call()
        second = await send(ask_for("m"))
        await waiting(gateway, 1)
        gate.set()
        assert (await first.response()).status == (await second.response()).status == 200


# Every way out gives the slot back.

Way = tuple[Script, bool, str]
WAYS: dict[str, Way] = {  # the script of the first call; whether it streams; when its client leaves
    "an answer": (polite(), False, ""),
    "a stream": (polite(), True, ""),
    "an answer in gzip": (zipped(), False, ""),
    "a 400": (error(400), False, ""),
    "a 404": (error(404), False, ""),
    "a 500": (error(500), False, ""),
    "a redirect": (answer(307, b"", {"Location": "http://127.0.0.1:9/"}), False, ""),
    "a FIN before the head": (play(raw(b"HTTP/1.1 2"), cut()), False, ""),
    "a RST in the stream": (play(sse(), word("Hel"), reset()), True, ""),
    "nonsense": (play(raw(b"220 smtp.example ESMTP\r\n"), stall()), False, ""),
    "silence": (stall(), False, ""),
    "silence in the stream": (play(sse(), word("Hel"), stall()), True, ""),
    "a client that leaves a buffered call": (stall(), False, "before"),
    "a client that leaves before the head": (stall(), True, "before"),
    "a client that leaves before the body": (play(sse(), stall()), True, "before"),
    "a client that leaves in the middle": (play(sse(), word("Hel"), stall()), True, "middle"),
}


@pytest.mark.parametrize(("script", "stream", "leaves"), WAYS.values(), ids=WAYS.keys())
async def test_a_slot_is_given_back_on_every_way_out(
    provider_for: ProviderFor, gateway_for: GatewayFor, script: Script, stream: bool, leaves: str
) -> None:
    falls_silent = script in (WAYS["silence"][0], WAYS["silence in the stream"][0])
    timeouts = {"first_byte": "300ms", "idle": "300ms"} if falls_silent else {}
    rig = await provider_for(slots=1, timeouts=timeouts)
    gate = asyncio.Event()
    rig.once(play(wait(gate), script))
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        first = await send(chat(stream=stream))
        await rig.next_call()
        second = await send()
        await waiting(gateway, 1)
        gate.set()
        if leaves == "middle":
            await first.piece(await first.head())
        if leaves:
            first.leave()
        else:
            await first.response()
        assert (await second.response()).status == 200
    await all_given_back(gateway)


async def test_a_failover_gives_the_first_slot_back_before_it_takes_the_second(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice", slots=1), await provider_for("other", slots=1)
    rig.once(error(500))
    other.script = stall()
    gateway = await gateway_for(rig, other, users={"alice": {"keys": [KEY], "route": "prefer_own"}})
    async with crowd(gateway.port) as send:
        await send()
        await other.next_call()
        assert gateway.fleet.providers["rig"].in_flight == 0
        assert (await (await send()).response()).header("x-gateway-provider") == "rig"


async def test_a_client_that_leaves_while_it_waits_leaves_nothing(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=1)
    turns = Turns()
    rig.script = turns
    gateway = await gateway_for(rig)
    async with crowd(gateway.port) as send:
        first, *waiters = [await send(ask_for(seed=number)) for number in range(4)]
        await waiting(gateway, 3)
        waiters[1].leave()
        await waiting(gateway, 2)
        turns.end(3)
        for client in (first, waiters[0], waiters[2]):
            assert (await client.response()).status == 200
    assert sorted(seen.json["seed"] for seen in rig.requests) == [0, 1, 3]
    await all_given_back(gateway)


async def test_no_slot_is_lost_to_clients_that_leave_just_when_it_is_their_turn(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=1)
    turns = Turns()
    rig.script = turns
    gateway = await gateway_for(rig)
    for number in range(30):
        async with crowd(gateway.port) as send:
            first = await send()
            await in_flight(gateway, 1)
            second = await send()
            await waiting(gateway, 1)
            turns.end()
            if number % 2:
                await first.head()
            second.reset()
        await all_given_back(gateway)
        turns = Turns()
        rig.script = turns


# The queue has its bounds.


async def test_a_full_queue_says_so_at_once_and_for_its_own_model_only(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(models=["m", "n"], slots=1)
    gate = asyncio.Event()
    rig.script = play(wait(gate), polite())
    gateway = await gateway_for(rig, queue={"size": 2, "timeout": "1h"})
    async with crowd(gateway.port) as send:
        served = [await send() for _ in range(3)]
        await waiting(gateway, 2)
        refused = await ask(gateway.port)
        assert 1 <= overloaded(refused) <= 600
        assert "full" in refused.json["error"]["message"]
        served.append(await send(ask_for("n")))
        await waiting(gateway, 1, "n")
        gate.set()
        assert [(await client.response()).status for client in served] == [200] * 4
    assert len(rig.calls) == 4


async def test_who_waits_too_long_is_told_and_the_slot_goes_to_the_next(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=1)
    gate = asyncio.Event()
    rig.script = play(wait(gate), polite())
    gateway = await gateway_for(rig, queue={"timeout": "150ms"})
    async with crowd(gateway.port) as send:
        first = await send()
        await rig.next_call()
        response = await ask(gateway.port)
        assert overloaded(response) >= 1
        assert "in time" in response.json["error"]["message"]
        gate.set()
        assert (await first.response()).status == 200
        assert (await ask(gateway.port)).status == 200
    assert len(rig.calls) == 2
    await all_given_back(gateway)


async def test_how_long_it_waited_is_told(provider_for: ProviderFor, gateway_for: GatewayFor) -> None:
    rig = await provider_for(slots=1)
    gate = asyncio.Event()
    rig.script = play(wait(gate), polite())
    gateway = await gateway_for(rig)
    loop = asyncio.get_running_loop()
    async with crowd(gateway.port) as send:
        first = await send()
        await rig.next_call()
        second = await send()
        await waiting(gateway, 1)
        since = loop.time()
        await eventually(lambda: loop.time() > since + 0.1)
        gate.set()
        assert (await first.response()).header("x-gateway-queue-wait") == "0.000"
        assert 0.1 <= float((await second.response()).header("x-gateway-queue-wait") or 0) < 5


# Whoever can serve a waiter does.


async def test_a_waiter_is_served_by_whichever_provider_is_free_first(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", slots=1), await provider_for("other", slots=1)
    gate = asyncio.Event()
    rig.script, other.script = stall(), play(wait(gate), polite())
    gateway = await gateway_for(rig, other)
    async with crowd(gateway.port) as send:
        for _ in range(2):
            await send()
        await rig.next_call()
        await other.next_call()
        third = await send()
        await waiting(gateway, 1)
        gate.set()
        assert (await third.response()).header("x-gateway-provider") == "other"


async def test_who_waits_for_one_machine_does_not_hold_up_who_waits_for_another(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", slots=1), await provider_for("other", models=["n"], slots=1)
    gate = asyncio.Event()
    rig.script, other.script = stall(), play(wait(gate), polite())
    gateway = await gateway_for(rig, other)
    async with crowd(gateway.port) as send:
        await send(ask_for("m"))
        await send(ask_for("n"))
        await rig.next_call()
        await other.next_call()
        await send(ask_for("m"))
        await waiting(gateway, 1)
        behind = await send(ask_for("n"))
        await waiting(gateway, 1, "n")
        gate.set()
        assert (await behind.response()).status == 200


async def test_a_provider_that_comes_online_serves_waiters_at_once(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", slots=1), await provider_for("other", slots=1)
    rig.script = stall()
    await other.refuse()
    gateway = await gateway_for(rig, other, health=QUICK)
    async with crowd(gateway.port) as send:
        await send()
        await rig.next_call()
        second = await send()
        await waiting(gateway, 1)
        await other.come_back()
        await at_once(gateway, lambda: gateway.fleet.providers["other"].online)
        assert (await second.response()).header("x-gateway-provider") == "other"


@pytest.mark.parametrize("probe", [error(500), answer(401), answer(200, b"<html>")])
async def test_a_waiter_whose_last_candidate_goes_is_told_at_once(
    provider_for: ProviderFor, gateway_for: GatewayFor, probe: Script
) -> None:
    rig = await provider_for(slots=1)
    rig.script = stall()
    gateway = await gateway_for(rig, health=QUICK)
    async with crowd(gateway.port) as send:
        await send()
        await rig.next_call()
        second = await send()
        await waiting(gateway, 1)
        rig.on["/v1/models"] = probe
        await at_once(gateway, lambda: not gateway.fleet.providers["rig"].online)
        response = await second.response()
        assert (response.status, response.json["error"]["type"]) == (404, "no_provider")


async def test_a_waiter_that_was_tried_elsewhere_before_is_told_what_happened_there(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other", slots=1)
    users = {"alice": {"keys": [KEY], "route": "prefer_own"}}
    rig.script, other.script = error(500, "out of memory"), stall()
    gateway = await gateway_for(rig, other, health=QUICK, users=users)
    async with crowd(gateway.port) as send:
        await send()
        await other.next_call()
        second = await send()
        await waiting(gateway, 1)
        other.on["/v1/models"] = error(500)
        response = await second.response()
        assert response.status == 502
        assert "out of memory" in response.json["error"]["message"]


# The end.


async def test_waiters_are_served_while_the_gateway_drains(
    provider_for: ProviderFor, program_for: ProgramFor
) -> None:
    rig = await provider_for(slots=1)
    turns = Turns()
    rig.script = turns
    program = await program_for(rig, streams={"keepalive": "20ms"})
    async with crowd(program.port) as send:
        clients = [await send(chat(stream=True)) for _ in range(3)]
        answers = [await client.head() for client in clients]  # the first keepalive: all of them wait
        program.signal(signal.SIGTERM)
        await program.says("draining")
        assert (await ask(program.port)).header("x-gateway-error") == "draining"
        turns.end(3)
        for client, response in zip(clients, answers, strict=True):
            while await client.piece(response):
                pass
            assert response.events[-1] == "[DONE]"
    assert (await program.ended()).code == 0


async def test_waiters_that_are_left_when_it_ends_are_told(provider_for: ProviderFor) -> None:
    from llmgateway.service.gateway import Gateway

    rig = await provider_for(slots=1)
    rig.script = stall()
    config = build(settings(rig, server={"drain_timeout": "50ms"}))
    async with Gateway(config) as gateway:
        await asyncio.wait_for(gateway.ready.wait(), HANG_S)
        async with crowd(gateway.port) as send:
            clients = [await send() for _ in range(3)]
            await waiting(gateway, 2)
            await gateway.drain()
            await gateway.__aexit__()
            for client in clients:
                response = await client.response()
                assert (response.status, response.header("x-gateway-error")) == (503, "draining")
    assert len(rig.calls) == 1
    await all_given_back(gateway)
