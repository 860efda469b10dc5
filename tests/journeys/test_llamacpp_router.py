"""What a llama.cpp router has not loaded is waited for; each model has slots of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import QUICK, all_given_back, ask, ask_for, crowd, overloaded, waiting
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import request
from tests.script import answer, error, listing, stall

NOT_LOADED = error(400, "model is not loaded", "invalid_request_error")


def as_router(
    provider: FakeProvider, states: Mapping[str, str], *, loads: bool, slots: int = 2
) -> FakeProvider:
    """Let a provider answer as a llama.cpp router does, with these models in these states."""
    entries = [
        {"id": name, "owned_by": "llamacpp", "status": {"value": state}} for name, state in states.items()
    ]
    provider.on["/v1/models"] = listing(*entries)

    async def props(exchange: Exchange) -> None:
        _, _, query = exchange.request.target.partition("?")
        assert not query or query.endswith("&autoload=false"), "no look loads a model"
        name = query.removeprefix("model=").removesuffix("&autoload=false")
        router = {"role": "router", "models_autoload": loads, "default_generation_settings": {"n_ctx": 0}}
        own = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": slots, "is_sleeping": False}
        of_model = answer(200, own) if states.get(name) == "loaded" else NOT_LOADED
        await (of_model if name else answer(200, router))(exchange)

    provider.on["/props"] = props
    return provider


@pytest.mark.parametrize("state", ["unloaded", "loading", "downloading"])
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_request_for_a_model_that_is_not_loaded_waits_until_it_is(
    provider: FakeProvider, gateway_for: GatewayFor, state: str, stream: bool
) -> None:
    gateway = await gateway_for(as_router(provider, {"m": state, "n": "loaded"}, loads=False), health=QUICK)
    listed = await ask(gateway.port, request("GET", "/v1/models"))
    assert [entry["id"] for entry in listed.json["data"]] == ["m", "n"], "it stays listed"
    async with crowd(gateway.port) as send:
        client = await send(ask_for("m", stream=stream))
        await waiting(gateway, 1)
        assert (await ask(gateway.port, ask_for("n"))).status == 200
        assert len(provider.calls) == 1, "it would be refused"
        as_router(provider, {"m": "loaded", "n": "loaded"}, loads=False)
        assert (await client.response()).status == 200
    await all_given_back(gateway)


@pytest.mark.parametrize(
    ("state", "loads"), [("unloaded", True), ("loading", True), ("sleeping", True), ("sleeping", False)]
)
async def test_a_router_gets_what_it_loads_or_wakes_by_itself(
    provider: FakeProvider, gateway_for: GatewayFor, state: str, loads: bool
) -> None:
    gateway = await gateway_for(as_router(provider, {"m": state}, loads=loads))
    assert (await ask(gateway.port)).status == 200


async def test_a_request_goes_to_the_router_that_has_the_model_loaded(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    cold = as_router(await provider_for("cold"), {"m": "unloaded"}, loads=False)
    warm = as_router(await provider_for("warm"), {"m": "loaded"}, loads=False)
    gateway = await gateway_for(cold, warm)
    for _ in range(4):
        assert (await ask(gateway.port)).header("x-gateway-provider") == "warm"
    assert not cold.calls


async def test_one_that_sleeps_is_taken_after_one_that_has_the_model_in_memory(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    asleep = await provider_for("asleep", models=[{"id": "m", "owned_by": "llamacpp"}])
    settings = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "is_sleeping": True}
    asleep.on["/props"] = answer(200, settings)
    awake = await provider_for("awake", slots=1)
    gateway = await gateway_for(asleep, awake)
    assert gateway.fleet.providers["asleep"].models["m"].loaded is False
    for _ in range(4):
        assert (await ask(gateway.port, ask_for("m"))).header("x-gateway-provider") == "awake"


async def test_who_waits_for_a_model_that_nobody_loads_is_told(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = NOT_LOADED
    as_router(provider, {"m": "unloaded"}, loads=False)
    gateway = await gateway_for(provider, health=QUICK, queue={"timeout": "300ms"})
    response = await ask(gateway.port)
    assert overloaded(response) >= 1
    assert "No provider had model 'm' ready in time." in response.json["error"]["message"]
    assert not provider.calls
    await all_given_back(gateway)


async def test_a_machine_that_is_awake_is_not_sent_for_while_its_model_is_not_loaded(
    provider: FakeProvider, gateway_for: GatewayFor, caplog: pytest.LogCaptureFixture
) -> None:
    provider.settings["wake"] = {"mac": "aa:bb:cc:dd:ee:ff", "broadcast": "127.0.0.1"}
    as_router(provider, {"m": "unloaded"}, loads=False)
    gateway = await gateway_for(provider, health=QUICK, queue={"timeout": "300ms"})
    assert (await ask(gateway.port)).status == 503
    assert "sent for a machine" not in caplog.text


async def test_a_model_that_goes_out_of_memory_while_requests_wait_is_waited_for(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    as_router(provider, {"m": "loaded"}, loads=False, slots=1)
    provider.once(stall())
    gateway = await gateway_for(provider, health=QUICK)
    async with crowd(gateway.port) as send:
        first = await send(ask_for("m"))
        await provider.next_call()
        second = await send(ask_for("m"))
        await waiting(gateway, 1)
        as_router(provider, {"m": "unloaded"}, loads=False)
        await eventually(lambda: not gateway.fleet.providers["rig"].serves("m"))
        first.leave()
        await eventually(lambda: gateway.fleet.providers["rig"].in_flight == 0)
        assert len(provider.calls) == 1
        as_router(provider, {"m": "loaded"}, loads=False)
        assert (await second.response()).status == 200


# --- slots of each model -------------------------------------------------------------------------------


def as_lm_studio(provider: FakeProvider, parallel: Mapping[str, int]) -> FakeProvider:
    """Let a provider answer as LM Studio does, with these models in memory."""
    provider.on["/v1/models"] = listing(*({"id": n, "owned_by": "organization_owner"} for n in parallel))
    entries = [
        {"key": n, "loaded_instances": [{"id": n, "config": {"context_length": 4096, "parallel": count}}]}
        for n, count in parallel.items()
    ]
    provider.on["/api/v1/models"] = answer(200, {"models": entries})
    return provider


async def gets_of_each(gateway: Any, provider: FakeProvider, slots: Mapping[str, int]) -> None:
    """Check that so many requests for each model are sent at once, and that one more of each waits."""
    provider.script = stall()
    async with crowd(gateway.port) as send:
        for model, count in slots.items():
            clients = [await send(ask_for(model)) for _ in range(count + 1)]
            for _ in range(count):
                assert (await provider.next_call()).request.json["model"] == model
            await waiting(gateway, 1, model)
            clients[0].leave()
            assert (await provider.next_call()).request.json["model"] == model
            await waiting(gateway, 0, model)
        status = await ask(gateway.port, request("GET", "/gateway/status"))
        (row,) = status.json["providers"]
        assert (row["in_flight"], row["slots"]) == (sum(slots.values()), sum(slots.values()))
    await all_given_back(gateway)


async def test_lm_studio_gets_as_many_requests_at_once_as_each_model_takes(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(as_lm_studio(provider, {"m": 2, "n": 1}))
    await gets_of_each(gateway, provider, {"m": 2, "n": 1})


async def test_a_router_gets_as_many_requests_at_once_as_each_model_takes(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(as_router(provider, {"m": "loaded", "n": "loaded"}, loads=True, slots=2))
    await gets_of_each(gateway, provider, {"m": 2, "n": 2})


async def test_slots_of_the_config_are_for_all_models_together(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["slots"] = 3
    gateway = await gateway_for(as_lm_studio(provider, {"m": 1, "n": 1}))
    provider.script = stall()
    async with crowd(gateway.port) as send:
        for model in ("m", "m", "n"):
            await send(ask_for(model))
            await provider.next_call()
        await send(ask_for("n"))
        await waiting(gateway, 1, "n")


async def test_lm_studio_lists_the_context_that_a_model_was_loaded_with(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(as_lm_studio(provider, {"m": 2}))
    listed = await ask(gateway.port, request("GET", "/v1/models/m"))
    assert listed.json["context_length"] == 4096
