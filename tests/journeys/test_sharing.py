"""Users share a busy provider by the tokens they are given, not by how many requests they send."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import (
    BOB,
    FAMILY,
    Turns,
    ask_for,
    crowd,
    waiting,
)
from tests.exchange import Exchange
from tests.journey import KEY, eventually
from tests.script import (
    completion,
)

if TYPE_CHECKING:
    pass

# Fair shares.


async def test_one_request_does_not_wait_behind_a_flood_of_somebody_elses(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for(slots=2)
    turns = Turns()
    rig.script = turns
    gateway = await gateway_for(rig, users=FAMILY)
    async with crowd(gateway.port) as send:
        for _ in range(100):
            await send()
        await waiting(gateway, 98)
        single = await send(ask_for(key=BOB, user="bob"))
        await waiting(gateway, 99)
        turns.end(2)  # the two that ran when it came
        await eventually(lambda: len(rig.calls) == 4)
        assert "bob" in [seen.json.get("user") for seen in rig.requests[2:]]
        turns.end(2)
        assert (await single.response()).status == 200


def shares(served: list[Mapping[str, Any]], first: int) -> dict[str, int]:
    """The output tokens that each user was given among the first calls."""
    given: dict[str, int] = {}
    for body in served[:first]:
        given[body["user"]] = given.get(body["user"], 0) + body["size"]
    return given


@pytest.mark.parametrize("weight", [1, 2])
async def test_users_get_tokens_by_their_weight_however_large_their_requests_are(
    provider_for: ProviderFor, gateway_for: GatewayFor, weight: int
) -> None:
    """alice asks for much at a time, bob for little; both always have requests waiting."""
    rig = await provider_for(slots=1)
    gate = asyncio.Event()

    async def sized(exchange: Exchange) -> None:
        await gate.wait()
        size = exchange.request.json["size"]
        await completion(prompt_tokens=10, completion_tokens=size)(exchange)

    rig.script = sized
    users = {"alice": {"keys": [KEY]}, "bob": {"keys": [BOB], "weight": weight}}
    gateway = await gateway_for(rig, users=users, queue={"size": 300})
    async with crowd(gateway.port) as send:
        await send(ask_for(user="alice", size=1000))
        await rig.next_call()
        for _ in range(25):
            await send(ask_for(user="alice", size=1000))
        for _ in range(200):
            await send(ask_for(user="bob", size=100, key=BOB))
        await waiting(gateway, 225)
        gate.set()
        await eventually(lambda: len(rig.calls) == 226)
    given = shares([seen.json for seen in rig.requests], 150)
    assert given["bob"] < 200 * 100 and given["alice"] < 26 * 1000, "somebody had nothing left to ask"
    assert 0.8 * weight <= given["bob"] / given["alice"] <= 1.25 * weight
