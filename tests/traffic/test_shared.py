"""What is counted in Redis is counted as in memory, and what a Redis says of a limit holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from llmgateway.access.limits import Admission, Limits
from llmgateway.access.shared import ADMIT, answered
from llmgateway.config.addresses import redis as address
from llmgateway.config.users import LimitsConfig
from llmgateway.errors import GatewayError
from llmgateway.traffic.shared import Link
from tests.journey import eventually
from tests.redis_server import STEADY, RedisServer

USER: Final = LimitsConfig(requests_per_minute=60, tokens_per_minute=2_000, tokens_per_day=9_000, parallel=4)
KEY: Final = LimitsConfig(requests_per_minute=25, tokens_per_minute=900, parallel=2)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def link(redis: RedisServer, nothing_leaks: None) -> AsyncIterator[Link]:
    link = Link(address(redis.url), Limits(time.time), STEADY, asyncio.get_running_loop().time)
    link.open()
    await redis.knows(1)
    yield link
    await link.close()


def told(answer: Admission | GatewayError) -> list[tuple[str, str]] | None:
    """What is left for a client; None of a refusal. Which of two empty limits is named depends on times."""
    if isinstance(answer, GatewayError):
        return None
    return [(name, value) for name, value in answer.headers() if "remaining" in name]


@pytest.mark.parametrize("seed", range(4))
async def test_it_counts_as_is_counted_in_memory(link: Link, seed: int) -> None:
    chance = Random(seed)
    memory = Limits(time.time)
    held: list[tuple[Admission, Admission]] = []
    refused = 0
    for _ in range(150):
        if held and chance.random() < 0.5:
            for admission in (pair := held.pop(chance.randrange(len(held)))):
                admission.release()
            tokens = chance.randrange(120)
            for admission in pair:
                admission.charge(tokens)
        wish = memory.wish("alice", USER, chance.choice("ab"), KEY, costs=chance.random() < 0.9)
        try:
            here: Admission | GatewayError = memory.admit(wish)
        except GatewayError as refusal:
            here = refusal
        try:
            there: Admission | GatewayError = await link.admit(wish)
        except GatewayError as refusal:
            there = refusal
        assert told(here) == told(there)
        if isinstance(here, Admission) and isinstance(there, Admission):
            held.append((here, there))
        else:
            refused += 1
    assert refused > 20
    assert not link.alone


async def test_at_its_end_it_tells_what_is_left_to_be_told(redis: RedisServer, nothing_leaks: None) -> None:
    link = Link(address(redis.url), Limits(time.time), STEADY, asyncio.get_running_loop().time)
    link.open()
    wish = Limits(time.time).wish("alice", USER, "a", LimitsConfig())
    ended, goes_on = await link.admit(wish), await link.admit(wish)
    ended.charge(7)
    ended.release()
    await link.close()
    assert await redis.command("ZCARD", "llmgateway:parallel/user/alice") == 0
    assert await redis.command("GET", "llmgateway:tokens_per_day/user/alice") == "7"
    goes_on.release()


async def test_it_ends_whatever_it_is_about(redis: RedisServer, nothing_leaks: None) -> None:
    for steps in range(60):
        link = Link(address(redis.url), Limits(time.time), STEADY, asyncio.get_running_loop().time)
        link.open()
        for _ in range(steps):
            await asyncio.sleep(0)
        await link.close()


async def test_never_more_than_so_many_in_any_window(redis: RedisServer) -> None:
    admitted_between: list[tuple[float, float]] = []
    leases = count()

    async def is_let_in() -> bool:
        before = time.monotonic()
        told = await redis.command("EVAL", ADMIT, 1, "k", next(leases), 1000, "requests", 3, 400, 1, 1000)
        admitted, (reading,) = answered(told)
        if admitted:
            assert reading.used <= 3 and reading.whole_in_s == 0.4
            admitted_between.append((before, time.monotonic()))
        else:
            assert reading.used == 3 and 0 < reading.opens_in_s <= 0.4
        return len(admitted_between) == 9

    await eventually(is_let_in)
    in_threes = zip(admitted_between, admitted_between[3:], strict=False)
    assert all(later[1] - earlier[0] > 0.398 for earlier, later in in_threes), "it has milliseconds"


@pytest.mark.parametrize("rule", [("requests", 3, 300), ("parallel", 3, 0)])
async def test_what_has_run_out_leaves_nothing_behind(redis: RedisServer, rule: tuple[Any, ...]) -> None:
    admitted, (reading,) = answered(await redis.command("EVAL", ADMIT, 1, "k", "lease", 300, *rule, 1, 1000))
    assert admitted and reading.used == 1
    await eventually(lambda: _is_empty(redis))


async def _is_empty(redis: RedisServer) -> bool:
    return not await redis.command("DBSIZE")
