"""What a request's failure says: of the request, of a model, of a machine, or of the gateway's key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmgateway.fleet.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S, Breaker
from llmgateway.fleet.provider import State
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, ask, ask_for, crowd
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import RawClient, Response, chat, request
from tests.script import cut, error, play, polite, reset, sse, stall, word

USERS: dict[str, Any] = {"alice": {"keys": [KEY], "route": "prefer_own"}, "bob": {"keys": [BOB]}}
QUICK = {"interval": "100ms", "timeout": "10m", "fall": 1}
Pair = tuple[FakeProvider, FakeProvider]


@pytest.fixture
async def pair(provider_for: ProviderFor) -> Pair:
    """Two providers of the models m and n; alice's own `rig` is asked first as long as it is a candidate."""
    rig = await provider_for("rig", models=["m", "n"], owner="alice", share=["everyone"])
    return rig, await provider_for("other", models=["m", "n"])


def said(response: Response) -> str:
    """The message of a 502 of the gateway's own."""
    assert (response.status, response.header("x-gateway-error")) == (502, "upstream_error")
    return str(response.json["error"]["message"])


def by_model(**scripts: Script) -> Script:
    """Answer as the model that is asked for does; as a good server for any other."""

    async def answered(exchange: Exchange) -> None:
        await scripts.get(exchange.request.json["model"], polite())(exchange)

    return answered


def where_odd(script: Script) -> Script:
    """Answer so where the request is the odd one; all others well."""

    async def answered(exchange: Exchange) -> None:
        odd = "odd" in str(exchange.request.json)
        await (script if odd else polite())(exchange)

    return answered


def odd(model: str = "m", *, key: str = KEY, stream: bool = False) -> bytes:
    """A request that servers may not like."""
    return ask_for(model, key=key, stream=stream, user="odd")


async def served_by(gateway: Gateway, model: str = "m", key: str = KEY) -> str | None:
    """Who answers the next call."""
    response = await ask(gateway.port, ask_for(model, key=key))
    assert response.status == 200
    return response.header("x-gateway-provider")


async def shown(gateway: Gateway, name: str = "rig") -> dict[str, Any]:
    """What is shown of a provider."""
    snapshot = (await ask(gateway.port, request("GET", "/gateway/status"))).json
    found: dict[str, Any] = next(provider for provider in snapshot["providers"] if provider["name"] == name)
    return found


async def metric(gateway: Gateway, name: str) -> list[str]:
    """The series of a metric that are not 0."""
    page = bytes((await ask(gateway.port, request("GET", "/metrics", key=None))).body).decode()
    lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    return [line.rpartition(" ")[0] for line in lines if not line.endswith(" 0.0")]


async def probed_again(provider: FakeProvider) -> None:
    """Wait for a probe that begins from now on, and for its end."""
    seen = len(provider.probes)
    await eventually(lambda: len(provider.probes) > seen + 1)


# A refusal of one request.


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_one_request_is_that_requests_only(
    provider_for: ProviderFor, gateway_for: GatewayFor, status: int
) -> None:
    rig = await provider_for("rig", models=["m", "n"])
    rig.script = by_model(n=error(status, "you must be signed in to use cloud models"))
    gateway = await gateway_for(rig, users=USERS, health=QUICK)
    for _ in range(3):
        message = said(await ask(gateway.port, ask_for("n", key=BOB)))
        assert "'rig'" in message and f"{status}: you must be signed in to use cloud models" in message
        assert "credentials" not in message
        assert await served_by(gateway) == "rig"
    await probed_again(rig)
    assert gateway.fleet.providers["rig"].online
    rig.script = polite()
    assert await served_by(gateway, "n") == "rig", "nobody is kept from trying"
    assert (await shown(gateway))["state"] == "online"


async def test_a_prompt_that_a_filter_refuses_takes_nothing_from_others(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, other = pair
    rig.script = where_odd(error(403, "content policy"))
    gateway = await gateway_for(*pair, users=USERS, health=QUICK)
    assert (await ask(gateway.port, odd())).header("x-gateway-provider") == "other"
    assert [await served_by(gateway) for _ in range(3)] == ["rig"] * 3
    other.script = rig.script
    for _ in range(2 * FAILURES_IN_A_ROW):
        assert "content policy" in said(await ask(gateway.port, odd()))
    assert await served_by(gateway) == "rig"


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "no api_key"),
    "an api_key": ({"api_key": "key-of-the-rig"}, "it was sent the credentials"),
    "a header": ({"headers": {"Authorization": "Basic b2s6b2s="}}, "it was sent the credentials"),
}


@pytest.mark.parametrize(("entry", "words"), KEYS.values(), ids=KEYS.keys())
async def test_a_401_says_whether_a_key_was_sent_and_quotes_the_server_without_it(
    provider_for: ProviderFor, gateway_for: GatewayFor, entry: dict[str, Any], words: str
) -> None:
    rig = await provider_for("rig", **entry)
    rig.script = error(401, "not for key-of-the-rig.")
    gateway = await gateway_for(rig)
    message = said(await ask(gateway.port))
    assert words in message and "401: not for" in message
    assert ("key-of-the-rig" in message) is ("api_key" not in entry)
    assert KEY not in message


async def test_a_refusal_that_the_probe_sees_too_makes_it_misconfigured_at_once(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, _ = pair
    gateway = await gateway_for(*pair, users=USERS, health={"interval": "1h", "timeout": "10m", "fall": 9})
    rig.script = rig.on["/v1/models"] = error(401, "the key was changed")
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    provider = gateway.fleet.providers["rig"]
    await eventually(lambda: provider.state is State.MISCONFIGURED)
    assert "401" in provider.reason
    assert (await shown(gateway))["state"] == "misconfigured"


async def test_one_that_lists_its_models_and_refuses_all_work_is_left_alone_while_another_works(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, _ = pair
    rig.script = error(401, "Invalid API Key")
    gateway = await gateway_for(*pair, users=USERS)
    for _ in range(FAILURES_IN_A_ROW + 3):
        assert await served_by(gateway) == "other"
    assert len(rig.calls) == FAILURES_IN_A_ROW
    assert gateway.fleet.providers["rig"].online
    assert "answered 401" in (await shown(gateway))["reason"]


# A broken model, and a broken machine.

OF_THE_MODEL: dict[str, Script] = {
    "500": error(500),
    "503": error(503, "busy"),
    "401": error(401),
    "silence": stall(),
}
OF_THE_MACHINE: dict[str, Script] = {
    "a reset": reset(),
    "a FIN": cut(),
    "a break in the stream": play(sse(), word("Hel"), reset()),
}


async def fail(gateway: Gateway, model: str, *, stream: bool = False) -> None:
    """Let alice's rig fail often enough."""
    for _ in range(FAILURES_IN_A_ROW):
        await ask(gateway.port, ask_for(model, stream=stream))


@pytest.mark.parametrize("script", OF_THE_MODEL.values(), ids=OF_THE_MODEL.keys())
async def test_a_broken_model_is_taken_out_and_the_other_models_of_the_server_are_not(
    pair: Pair, gateway_for: GatewayFor, script: Script
) -> None:
    rig, _ = pair
    rig.settings["timeouts"] = {"first_byte": "100ms"}
    rig.script = by_model(n=script)
    gateway = await gateway_for(*pair, users=USERS)
    await fail(gateway, "n")
    for _ in range(3):
        assert await served_by(gateway, "n") == "other"
        assert await served_by(gateway, "m") == "rig"
    assert len([call for call in rig.calls if call.request.json["model"] == "n"]) == FAILURES_IN_A_ROW

    seen = await shown(gateway)
    assert seen["state"] == "online" and "model 'n' is taken out" in seen["reason"]
    assert 'gateway_provider_state{provider="rig",state="online"}' in await metric(
        gateway, "gateway_provider_state"
    )
    (out,) = await metric(gateway, "gateway_taken_out")
    assert 'model="n"' in out and 'provider="rig"' in out


@pytest.mark.parametrize("script", OF_THE_MACHINE.values(), ids=OF_THE_MACHINE.keys())
async def test_a_broken_machine_is_taken_out_with_all_its_models(
    pair: Pair, gateway_for: GatewayFor, script: Script
) -> None:
    rig, _ = pair
    rig.script = script
    gateway = await gateway_for(*pair, users=USERS)
    await fail(gateway, "n", stream=script is OF_THE_MACHINE["a break in the stream"])
    rig.script = polite()
    assert [await served_by(gateway, model) for model in ("n", "m", "n")] == ["other"] * 3
    seen = await shown(gateway)
    assert seen["state"] == "taken_out" and "closed the connection" in seen["reason"]
    (out,) = await metric(gateway, "gateway_taken_out")
    assert 'model=""' in out and "closed the connection" in out


async def test_a_machine_to_which_no_connection_comes_about_is_taken_out_with_all_its_models(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, _ = pair
    gateway = await gateway_for(*pair, users=USERS, health={"interval": "1h", "timeout": "10m", "fall": 99})
    await rig.refuse()
    await fail(gateway, "n")
    provider = gateway.fleet.providers["rig"]
    assert provider.online and provider.conduct.machine.out and not provider.conduct.models
    await rig.come_back()
    assert await served_by(gateway, "m") == "other"


async def test_a_server_whose_only_model_is_broken_is_shown_as_taken_out(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = error(500, "the prompt was: my secret diary")
    gateway = await gateway_for(rig, other, users=USERS)
    await fail(gateway, "m")
    seen = await shown(gateway)
    assert seen["state"] == "taken_out" and "answered 500" in seen["reason"]
    assert "diary" not in str(seen), "what was said to a request is for nobody else"
    states = await metric(gateway, "gateway_provider_state")
    assert 'gateway_provider_state{provider="rig",state="taken_out"}' in states
    assert 'gateway_provider_state{provider="rig",state="online"}' not in states

    breaker = gateway.fleet.providers["rig"].conduct.models["m"]
    breaker.open_until = asyncio.get_running_loop().time()
    seen = await shown(gateway)
    assert seen["state"] == "taken_out" and "until a request to it succeeds" in seen["reason"]
    rig.script = polite()
    assert await served_by(gateway) == "rig"
    seen = await shown(gateway)
    assert (seen["state"], seen["reason"]) == ("online", "")
    assert not await metric(gateway, "gateway_taken_out")
    assert gateway.fleet.providers["rig"].conduct.spotless


# A fault of the request.

SAME: dict[str, Script] = {
    "500": error(500, "image input is not supported"),
    "503": error(503, "no"),
    "403": error(403, "no"),
    "a crash": cut(),
}


@pytest.mark.parametrize("script", SAME.values(), ids=SAME.keys())
async def test_what_every_server_fails_at_counts_against_none_of_them(
    pair: Pair, gateway_for: GatewayFor, script: Script
) -> None:
    rig, other = pair
    rig.script = other.script = where_odd(script)
    gateway = await gateway_for(*pair, users=USERS)
    for _ in range(3 * FAILURES_IN_A_ROW):
        said(await ask(gateway.port, odd()))
    assert min(len(rig.calls), len(other.calls)) >= 3 * FAILURES_IN_A_ROW
    assert await served_by(gateway) == "rig"
    for name in ("rig", "other"):
        assert gateway.fleet.providers[name].conduct.spotless
        assert (await shown(gateway, name))["state"] == "online"


async def test_a_server_that_crashes_at_what_another_finds_wrong_is_not_held_to_blame(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, other = pair
    rig.script, other.script = where_odd(error(500)), where_odd(error(400, "messages must be a list"))
    gateway = await gateway_for(*pair, users=USERS)
    for _ in range(2 * FAILURES_IN_A_ROW):
        assert (await ask(gateway.port, odd())).status == 400
    assert await served_by(gateway) == "rig"


async def test_the_only_server_is_never_shown_as_taken_out(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.script = where_odd(error(500))
    gateway = await gateway_for(provider, users=USERS)
    for _ in range(2 * FAILURES_IN_A_ROW):
        said(await ask(gateway.port, odd()))
    assert (await shown(gateway))["state"] == "online"
    assert await served_by(gateway) == "rig"


async def out(gateway: Gateway, rig: FakeProvider) -> Breaker:
    """Take the model out, and let its pause have passed."""
    rig.once(*[error(500)] * FAILURES_IN_A_ROW)
    await fail(gateway, "m")
    breaker = gateway.fleet.providers["rig"].conduct.models["m"]
    assert breaker.out
    breaker.open_until = asyncio.get_running_loop().time()
    return breaker


async def test_a_trial_at_which_all_fail_is_no_verdict_and_frees_the_way_for_the_next(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, other = pair
    gateway = await gateway_for(*pair, users=USERS)
    breaker = await out(gateway, rig)
    rig.once(error(500))
    other.once(error(500))
    said(await ask(gateway.port))
    assert breaker.pause_s == FIRST_PAUSE_S
    assert await served_by(gateway) == "rig"


async def test_while_another_is_asked_whether_the_trial_failed_nobody_else_tries(
    pair: Pair, gateway_for: GatewayFor
) -> None:
    rig, other = pair
    gateway = await gateway_for(*pair, users=USERS)
    breaker = await out(gateway, rig)
    rig.once(error(500))
    other.once(stall())
    asked = len(rig.calls)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await eventually(lambda: len(other.calls) == FAILURES_IN_A_ROW + 1)
        assert await served_by(gateway) == "other"
        assert len(rig.calls) == asked + 1
    await eventually(lambda: breaker.lets_through(asyncio.get_running_loop().time()))
    assert await served_by(gateway) == "rig", "the client left, and nothing was found out"


async def test_many_at_once_that_fail_everywhere_take_nobody_out(pair: Pair, gateway_for: GatewayFor) -> None:
    rig, other = pair
    rig.script = other.script = where_odd(error(500))
    gateway = await gateway_for(*pair, users=USERS)
    async with crowd(gateway.port) as send:
        clients = [await send(odd(key=key)) for key in (KEY, BOB) * 10]
        for client in clients:
            assert (await client.response()).status == 502
    assert all(provider.conduct.spotless for provider in gateway.fleet.providers.values())
