"""A provider whose probes succeed and whose requests fail is left out for a while; the last one never is."""

from __future__ import annotations

import asyncio

import pytest

from llmgateway.fleet.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S, RETRY_RESERVE, RETRY_SHARE
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import ask, crowd, waiting
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import RawClient, chat, request
from tests.script import answer, completion, cut, error, play, polite, reset, sse, stall, wait, word

USERS = {"alice": {"keys": [KEY], "route": "prefer_own"}}
Pair = tuple[FakeProvider, FakeProvider]


@pytest.fixture
async def pair(provider_for: ProviderFor) -> Pair:
    """Two providers of one model; alice's own `rig` is asked first as long as it is a candidate."""
    return await provider_for("rig", owner="alice"), await provider_for("other")


async def served_by(port: int) -> str | None:
    """Who answers the next call."""
    return (await ask(port)).header("x-gateway-provider")


async def take_out(gateway: Gateway, rig: FakeProvider) -> None:
    """Let `rig` fail until it is left out."""
    rig.once(*[error(500)] * FAILURES_IN_A_ROW)
    for _ in range(FAILURES_IN_A_ROW):
        await ask(gateway.port)
    assert pause_s(gateway) > 0


def pause_s(gateway: Gateway) -> float:
    """For how long `rig` will still be left out."""
    return gateway.fleet.providers["rig"].conduct.models["m"].open_until - asyncio.get_running_loop().time()


def end_pause(gateway: Gateway) -> None:
    """Let the time of the pause have passed."""
    gateway.fleet.providers["rig"].conduct.models["m"].open_until = asyncio.get_running_loop().time()


# Out.

FAILURES: dict[str, tuple[Script, bool]] = {  # the script; whether the call streams
    "500": (error(500), False),
    "a FIN before the answer": (play(sse(), cut()), False),
    "a break in the stream": (play(sse(), word("Hel"), reset()), True),
    "silence": (stall(), False),
    "silence in the stream": (play(sse(), word("Hel"), stall()), True),
}


@pytest.mark.parametrize(("script", "stream"), FAILURES.values(), ids=FAILURES.keys())
async def test_five_failures_in_a_row_and_it_is_left_out(
    provider_for: ProviderFor, gateway_for: GatewayFor, script: Script, stream: bool
) -> None:
    falls_silent = script in (FAILURES["silence"][0], FAILURES["silence in the stream"][0])
    timeouts = {"first_byte": "200ms", "idle": "200ms"} if falls_silent else {}
    rig = await provider_for("rig", owner="alice", timeouts=timeouts)
    other = await provider_for("other")
    rig.script = script
    gateway = await gateway_for(rig, other, users=USERS)
    for number in range(FAILURES_IN_A_ROW):
        await ask(gateway.port, chat(stream=stream))
        assert len(rig.calls) == number + 1
    for _ in range(3):
        assert await served_by(gateway.port) == "other"
    assert len(rig.calls) == FAILURES_IN_A_ROW
    assert gateway.fleet.providers["rig"].online, "its probes succeed"


async def test_what_only_it_serves_is_listed_all_the_same(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice", models=["m", "n"]), await provider_for("other")
    gateway = await gateway_for(rig, other, users=USERS)
    await take_out(gateway, rig)
    listed = await ask(gateway.port, request("GET", "/v1/models"))
    assert {model["id"] for model in listed.json["data"]} == {"m", "n"}
    only = chat(b'{"model": "n", "messages": []}')
    assert (await ask(gateway.port, only)).header("x-gateway-provider") == "rig"


HARMLESS: dict[str, Script] = {
    "a success in between": polite(),
    "a 400": error(400),
    "a 404": error(404),
    "a 429": error(429),
    "a 501": error(501),
}


@pytest.mark.parametrize("script", HARMLESS.values(), ids=HARMLESS.keys())
async def test_what_does_not_count_as_a_failure_in_a_row(
    pair: Pair, gateway_for: GatewayFor, script: Script
) -> None:
    rig, _ = pair
    gateway = await gateway_for(*pair, users=USERS)
    if script is HARMLESS["a success in between"]:
        failures = [error(500)] * (FAILURES_IN_A_ROW - 1)
        rig.once(*failures, script, *failures)
    else:
        rig.once(*[script] * 9)
    for _ in range(9):
        await ask(gateway.port)
    assert len(rig.calls) == 9
    assert await served_by(gateway.port) == "rig"


async def test_clients_that_leave_say_nothing_about_a_provider(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, _ = pair
    rig.once(*[stall()] * 8)
    gateway = await gateway_for(*pair, users=USERS)
    for _ in range(8):
        async with RawClient(gateway.port) as client:
            await client.send(chat())
            call = await rig.next_call()
        await call.hung_up()
    await eventually(lambda: gateway.fleet.providers["rig"].in_flight == 0)
    assert await served_by(gateway.port) == "rig"


async def test_the_last_candidate_is_never_left_out(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    provider.once(*[error(500, "out of memory")] * 20)
    gateway = await gateway_for(provider)
    for number in range(20):
        response = await ask(gateway.port)
        assert response.status == 502 and "out of memory" in response.json["error"]["message"]
        assert len(provider.calls) == number + 1
    assert (await ask(gateway.port)).status == 200


async def test_it_is_asked_when_the_others_fail_too(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, other = pair
    gateway = await gateway_for(*pair, users=USERS)
    await take_out(gateway, rig)
    other.once(error(500))
    assert await served_by(gateway.port) == "rig"


# And back.


async def test_after_its_pause_one_request_tries_it_and_the_others_do_not(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, other = pair
    gateway = await gateway_for(*pair, users=USERS)
    await take_out(gateway, rig)
    end_pause(gateway)
    gate = asyncio.Event()
    rig.once(play(wait(gate), completion()))
    async with crowd(gateway.port) as send:
        trial = await send()
        await eventually(lambda: len(rig.calls) == FAILURES_IN_A_ROW + 1)
        asked_before = len(other.calls)
        for _ in range(3):
            assert await served_by(gateway.port) == "other"
        assert len(other.calls) == asked_before + 3
        gate.set()
        assert (await trial.response()).header("x-gateway-provider") == "rig"
    for _ in range(3):
        assert await served_by(gateway.port) == "rig"


async def test_a_trial_that_fails_makes_the_pause_longer_and_its_client_is_served(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, _ = pair
    gateway = await gateway_for(*pair, users=USERS)
    await take_out(gateway, rig)
    for longer in (2, 4, 8):
        end_pause(gateway)
        rig.once(error(500))
        assert await served_by(gateway.port) == "other"
        assert pause_s(gateway) == pytest.approx(longer * FIRST_PAUSE_S, rel=0.4)
        calls = len(rig.calls)
        assert await served_by(gateway.port) == "other"
        assert len(rig.calls) == calls


async def test_a_trial_whose_client_leaves_is_no_verdict(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, _ = pair
    gateway = await gateway_for(*pair, users=USERS)
    await take_out(gateway, rig)
    end_pause(gateway)
    rig.once(stall())
    async with crowd(gateway.port) as send:
        await send()
        await eventually(lambda: len(rig.calls) == FAILURES_IN_A_ROW + 1)
    await eventually(lambda: gateway.fleet.providers["rig"].in_flight == 0)
    assert await served_by(gateway.port) == "rig"


async def test_a_pause_that_ends_serves_who_waits_for_the_other(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other", slots=1)
    gateway = await gateway_for(rig, other, users=USERS)
    await take_out(gateway, rig)
    other.script = stall()
    async with crowd(gateway.port) as send:
        await send()
        waiter = await send()
        await waiting(gateway, 1)
        end_pause(gateway)
        assert (await waiter.response()).header("x-gateway-provider") == "rig"


# The retry budget.


@pytest.mark.parametrize("status", [500, 429])
async def test_a_dying_fleet_is_not_finished_off_by_retries(
    pair: Pair, gateway_for: GatewayFor, status: int
) -> None:
    """One request may be tried everywhere; many together only as often as their budget allows."""
    rig, other = pair
    rig.script = other.script = error(status)
    gateway = await gateway_for(*pair, users=USERS)
    requests = 600
    since = asyncio.get_running_loop().time()
    async with RawClient(gateway.port) as client:
        for _ in range(requests):
            await client.send(chat())
            assert (await client.response()).status == (429 if status == 429 else 502)
    elapsed_s = asyncio.get_running_loop().time() - since
    failovers = len(rig.calls) + len(other.calls) - requests
    allowed = RETRY_RESERVE + RETRY_SHARE * requests
    assert allowed - 1 <= failovers <= allowed + elapsed_s * RETRY_RESERVE / 60 + 1
    assert failovers < requests

    rig.script = other.script = answer(200, {"fine": True})
    assert (await ask(gateway.port)).status == 200
