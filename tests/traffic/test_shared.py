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

USER: Final = LimitsConfig(requests_per_minute=60, tokens_per_minute=2_000, tokens_per_day=90_000, parallel=4)
KEY: Final = LimitsConfig(requests_per_minute=25, tokens_per_day=900, parallel=2)
"""No two of which that are used up have windows of one length: which of these is told hangs on a moment."""


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


def told(answer: Admission | GatewayError) -> tuple[str, list[tuple[str, str]]]:
    """What a client learns but for times, which differ by a moment."""
    headers = answer.headers if isinstance(answer, GatewayError) else answer.headers()
    message = answer.message.partition(":")[0] if isinstance(answer, GatewayError) else ""
    return message, [(name, value) for name, value in headers if "-limit-" in name or "-remaining-" in name]


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


async def test_never_more_than_so_many_in_any_window(redis: RedisServer) -> None:
    moments_ms: list[int] = []
    leases = count()
    # In one, as on a busy machine the key may be gone before it is asked for.
    and_when = f"local function admit() {ADMIT} end return {{admit(), redis.call('LINDEX', KEYS[1], -1)}}"

    async def is_let_in() -> bool:
        command = ("EVAL", and_when, 1, "k", next(leases), 1000, "requests", 3, 400, 1, 1000)
        told, when = await redis.command(*command)
        admitted, (reading,) = answered(told)
        if admitted:
            assert reading.used <= 3 and 0.39 < reading.whole_in_s <= 0.4
            moments_ms.append(int(when))
        else:
            assert reading.used == 3 and 0 < reading.opens_in_s <= 0.4
        return len(moments_ms) == 9

    await eventually(is_let_in)
    assert all(later - earlier >= 400 for earlier, later in zip(moments_ms, moments_ms[3:], strict=False))


@pytest.mark.parametrize("rule", [("requests", 3, 300), ("parallel", 3, 0)])
async def test_what_has_run_out_leaves_nothing_behind(redis: RedisServer, rule: tuple[Any, ...]) -> None:
    admitted, (reading,) = answered(await redis.command("EVAL", ADMIT, 1, "k", "lease", 300, *rule, 1, 1000))
    assert admitted and reading.used == 1
    await eventually(lambda: _is_empty(redis))


async def _is_empty(redis: RedisServer) -> bool:
    return not await redis.command("DBSIZE")
