"""A provider that loads its model is not broken: its requests wait for it, or go elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from llmgateway.fleet.provider import State
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import QUICK, all_given_back, ask, ask_for, crowd, overloaded, waiting
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import RawClient, chat, request
from tests.script import error, listing, loading, play, polite, stall, wait

USERS = {"alice": {"keys": [KEY], "route": "prefer_own"}}


async def models(port: int) -> list[str]:
    """What is listed now."""
    listed = await ask(port, request("GET", "/v1/models"))
    return [entry["id"] for entry in listed.json["data"]]


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_request_waits_while_a_probe_says_loading_and_then_goes_through(
    provider: FakeProvider, gateway_for: GatewayFor, stream: bool
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.on["/v1/models"] = loading()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
    assert await models(gateway.port) == ["m"], "a model that is being loaded stays listed"
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=stream))
        await waiting(gateway, 1)
        assert not provider.calls
        del provider.on["/v1/models"]
        response = await client.response()
    assert response.status == 200
    assert float(response.header("x-gateway-queue-wait") or 0) > 0
    assert len(provider.calls) == 1


async def test_a_model_from_the_config_is_waited_for_from_the_start(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on["/v1/models"] = loading()
    rig = {**provider.entry, "models": ["m"]}
    gateway = await gateway_for(provider, health=QUICK, providers={"rig": rig})
    assert await models(gateway.port) == ["m"]
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await waiting(gateway, 1)
        del provider.on["/v1/models"]
        assert (await client.response()).status == 200


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_request_that_meets_loading_waits_until_it_is_over(
    provider: FakeProvider, gateway_for: GatewayFor, stream: bool
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.once(loading())
    provider.on["/v1/models"] = loading()
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=stream))
        await waiting(gateway, 1)
        assert gateway.fleet.providers["rig"].state is State.WARMING
        assert gateway.fleet.providers["rig"].in_flight == 0, "who waits holds no slot"
        del provider.on["/v1/models"]
        assert (await client.response()).status == 200
    assert len(provider.calls) == 2
    assert provider.requests[0].body == provider.requests[1].body
    await all_given_back(gateway)


async def test_it_is_tried_again_as_long_as_its_probes_are_too_optimistic(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """llama.cpp may list its models while it says 503 to every request."""
    provider.once(*[loading()] * 8)
    gateway = await gateway_for(provider, health=QUICK)
    assert (await ask(gateway.port)).status == 200
    assert len(provider.calls) == 9


async def test_many_wait_for_one_model_and_all_are_served(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=2)
    gateway = await gateway_for(rig, health=QUICK)
    rig.on["/v1/models"] = loading()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
    async with crowd(gateway.port) as send:
        clients = [await send() for _ in range(10)]
        await waiting(gateway, 10)
        del rig.on["/v1/models"]
        assert [(await client.response()).status for client in clients] == [200] * 10
    await all_given_back(gateway)


async def test_a_request_goes_elsewhere_rather_than_wait(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = loading()
    gateway = await gateway_for(rig, other, users=USERS)
    for _ in range(3):
        assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    assert len(rig.calls) == 1, "who is warming is left alone"


async def test_it_waits_for_the_one_that_warms_when_the_other_is_full(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other", slots=1)
    other.script = stall()
    gateway = await gateway_for(rig, other, users=USERS, health=QUICK)
    rig.on["/v1/models"] = loading()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
    async with crowd(gateway.port) as send:
        await send()
        await other.next_call()
        second = await send()
        await waiting(gateway, 1)
        del rig.on["/v1/models"]
        assert (await second.response()).header("x-gateway-provider") == "rig"


async def test_loading_says_nothing_bad_about_a_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    """Ten times 503 of any other kind would have it left out for a while."""
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    gateway = await gateway_for(rig, other, users=USERS, health=QUICK)
    for number in range(10):
        rig.once(loading())
        assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
        assert len(rig.calls) == number + 1
        await eventually(lambda: gateway.fleet.providers["rig"].online)
    assert (await ask(gateway.port)).header("x-gateway-provider") == "rig"


async def test_waiting_for_a_model_costs_nothing_of_the_retry_budget(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """Each of 60 requests meets the 503 three times, which is more than the budget has for failovers."""
    met: Counter[int] = Counter()

    async def loads_for_each(exchange: Exchange) -> None:
        number = exchange.request.json["seed"]
        met[number] += 1
        await (loading() if met[number] <= 3 else polite())(exchange)

    provider.script = loads_for_each
    gateway = await gateway_for(provider, health=QUICK)
    async with crowd(gateway.port) as send:
        clients = [await send(ask_for(seed=number)) for number in range(60)]
        assert {(await client.response()).status for client in clients} == {200}


# It may not end well.


async def test_who_waits_too_long_for_a_model_is_told(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = loading()
    gateway = await gateway_for(provider, health=QUICK, queue={"timeout": "300ms"})
    provider.on["/v1/models"] = loading()
    assert overloaded(await ask(gateway.port)) >= 1
    await all_given_back(gateway)


async def test_a_model_that_never_comes_though_probes_say_so_is_not_waited_for_for_ever(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = loading()
    gateway = await gateway_for(provider, health=QUICK, queue={"timeout": "400ms"})
    response = await ask(gateway.port)
    assert response.status in (502, 503)
    await all_given_back(gateway)


@pytest.mark.parametrize("tries", [0, 1, 4])
async def test_a_provider_that_dies_while_it_loads_is_not_waited_for(
    provider: FakeProvider, gateway_for: GatewayFor, tries: int
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.once(*[loading()] * tries)
    if not tries:
        provider.on["/v1/models"] = loading()
        await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await eventually(lambda: len(provider.calls) >= tries - 1)
        provider.on["/v1/models"] = loading()
        await waiting(gateway, 1)
        provider.on["/v1/models"] = error(500)
        response = await client.response()
    if tries:
        message = response.json["error"]["message"]
        assert response.status == 502
        assert message.count("Loading model") == 1, "it is said once, however often it was met"
    else:
        assert (response.status, response.json["error"]["type"]) == (404, "no_provider")


async def test_a_provider_that_comes_up_without_the_model_is_not_waited_for(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.on["/v1/models"] = loading()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await waiting(gateway, 1)
        provider.on["/v1/models"] = listing("another")
        assert (await client.response()).status == 404


async def test_a_client_that_leaves_while_a_model_is_loaded_leaves_nothing(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.on["/v1/models"] = loading()
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
    async with crowd(gateway.port) as send:
        client = await send()
        await waiting(gateway, 1)
        client.leave()
        await waiting(gateway, 0)
        del provider.on["/v1/models"]
        assert (await ask(gateway.port)).status == 200
    assert len(provider.calls) == 1


async def test_a_call_that_is_under_way_is_not_disturbed_by_a_probe_that_says_loading(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    provider.script = play(wait(gate), polite())
    gateway = await gateway_for(provider, health=QUICK)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
        provider.on["/v1/models"] = loading()
        await eventually(lambda: gateway.fleet.providers["rig"].state is State.WARMING)
        gate.set()
        assert (await client.response()).status == 200
