"""A known model whose servers are all away: who they are, since when, and when to come again."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.fleet.provider import State
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import BOB, ask, ask_for
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.journeys.test_errors import ANTHROPIC, OPENAI, asking, refusal
from tests.raw_client import RawClient, Response, chat, request
from tests.script import error, loading

USERS: dict[str, Any] = {"alice": {"keys": [KEY]}, "bob": {"keys": [BOB]}}
QUICK = {"interval": "100ms", "timeout": "10m", "fall": 1}
FIXED = "No online provider serving model 'm' for this user."


async def gone(gateway: Gateway, *providers: FakeProvider) -> None:
    """Let providers go away, and wait until that is known."""
    for provider in providers:
        await provider.refuse()
    known = [gateway.fleet.providers[provider.name] for provider in providers]
    await eventually(lambda: all(each.state is State.OFFLINE for each in known))


def more_than_the_fixed_words(response: Response, status: int = 404, path: str = OPENAI) -> str:
    """What the message goes on with."""
    message = refusal(response, status, "no_provider", path)
    assert message.startswith(f"{FIXED} ")
    assert int(response.header("retry-after") or 0) >= 1
    return message.removeprefix(f"{FIXED} ")


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_model_whose_server_went_away_is_told_with_who_served_it_and_since_when(
    provider: FakeProvider, gateway_for: GatewayFor, path: str
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    before = time.time()
    await gone(gateway, provider)
    words = more_than_the_fixed_words(await ask(gateway.port, asking(path)), path=path)
    found = re.fullmatch(r"It was last served by rig, which is offline since (\d\d:\d\d)\.", words)
    assert found
    moments = {time.strftime("%H:%M", time.localtime(at)) for at in (before, time.time())}
    assert found[1] in moments


async def test_a_day_later_the_day_is_told_too(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    await gone(gateway, provider)
    gateway.fleet.providers["rig"].since -= 100_000.0
    words = more_than_the_fixed_words(await ask(gateway.port))
    assert re.search(r"offline since \d{4}-\d\d-\d\d \d\d:\d\d\.$", words)


async def test_a_model_that_nobody_ever_heard_of_is_told_word_for_word_as_ever(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, health=QUICK, server={"unavailable_status": 503})
    for _ in range(2):
        response = await ask(gateway.port, ask_for("never"))
        message = refusal(response, 404, "no_provider")
        assert message == "No online provider serving model 'never' for this user."
        assert response.header("retry-after") is None
        await gone(gateway, provider)


async def test_who_may_not_know_of_the_provider_is_told_nothing_of_it(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice")
    gateway = await gateway_for(rig, users=USERS, health=QUICK, server={"unavailable_status": 503})
    await gone(gateway, rig)
    assert more_than_the_fixed_words(await ask(gateway.port), 503)
    response = await ask(gateway.port, ask_for("m", key=BOB))
    assert refusal(response, 404, "no_provider") == FIXED
    assert response.header("retry-after") is None


async def test_of_several_the_one_is_named_that_went_last(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    pair = await provider_for("rig"), await provider_for("desk")
    gateway = await gateway_for(*pair, health=QUICK)
    await gone(gateway, *pair)
    gateway.fleet.providers["rig"].since -= 60.0
    assert "by desk," in more_than_the_fixed_words(await ask(gateway.port))
    gateway.fleet.providers["desk"].since -= 120.0
    assert "by rig," in more_than_the_fixed_words(await ask(gateway.port))


async def test_a_refused_key_is_told_as_what_it_is(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.on["/v1/models"] = error(401)
    await eventually(lambda: gateway.fleet.providers["rig"].state is State.MISCONFIGURED)
    assert "by rig, which is misconfigured since" in more_than_the_fixed_words(await ask(gateway.port))


async def test_one_that_was_never_seen_is_not_said_to_have_served(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.settings["models"] = ["m"]
    await provider.refuse()
    gateway = await gateway_for(provider, health=QUICK)
    words = more_than_the_fixed_words(await ask(gateway.port))
    assert words.startswith("It is configured for rig, which is offline since")


async def test_it_becomes_a_503_for_those_who_want_their_sdks_to_try_again_also_while_it_runs(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    await gone(gateway, provider)
    for status in (503, 404):
        gateway.adopt(build(settings(provider, health=QUICK, server={"unavailable_status": status})))
        response = await ask(gateway.port)
        assert more_than_the_fixed_words(response, status)
        response = await ask(gateway.port, request("GET", "/v1/models/m"))
        assert more_than_the_fixed_words(response, status)
    await provider.come_back()
    await eventually(lambda: gateway.fleet.providers["rig"].online)
    assert (await ask(gateway.port)).status == 200


async def test_when_to_come_again_is_when_it_will_have_been_looked_at(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    await provider.refuse()
    provider.settings["models"] = ["m"]
    gateway = await gateway_for(provider, health={"interval": "200s", "timeout": "10m"})
    assert 100 < int((await ask(gateway.port)).header("retry-after") or 0) <= 200


async def test_who_waits_when_the_last_one_goes_is_told_so_too(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    provider.on["/v1/models"] = loading()
    known = gateway.fleet.providers["rig"]
    await eventually(lambda: known.state is State.WARMING)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await eventually(lambda: gateway.slots.line.depth("m") == 1)
        await provider.refuse()
        assert "by rig" in more_than_the_fixed_words(await client.response())


async def test_the_state_is_known_since_it_changed_and_not_since_it_was_seen_again(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, health=QUICK)
    known = gateway.fleet.providers["rig"]
    before = time.time()
    await gone(gateway, provider)
    since = known.since
    assert before <= since <= time.time()
    known.since -= 100.0
    await asyncio.sleep(0)
    reason = known.reason
    provider.on["/v1/models"] = error(500)
    await provider.come_back()
    await eventually(lambda: known.reason != reason)
    assert known.since == since - 100.0
