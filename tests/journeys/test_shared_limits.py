"""Limits that several gateways count in one Redis: exact over all of them; without it each is on its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from llmgateway.config.load import build
from tests.conftest import GatewayFor
from tests.crowd import BOB, Turns, all_given_back, ask, ask_for, crowd
from tests.exchange import Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually, settings
from tests.program import running
from tests.raw_client import Response
from tests.redis_server import PASSWORD, STEADY, RedisServer
from tests.script import answer, stall

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

PHONE = "sk-phone-0123456789abcdefghijklmnopqrstuvwxyz"
ROOT: Final = Path(__file__).resolve().parent.parent.parent
DOOMED: Final = (sys.executable, "-m", "tests.instance")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as server:
        yield server


def users(*, phone: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    """alice, with limits of her own and of her phone; and bob, who has none."""
    keys = [{"name": "laptop", "key": KEY}, {"name": "phone", "key": PHONE, "limits": phone or {}}]
    return {"alice": {"keys": keys, "limits": limits}, "bob": {"keys": [BOB]}}


def using(tokens: int) -> Script:
    """An answer that costs so many tokens."""
    return answer(200, {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": tokens - 1}})


class Instances:
    """Some gateways with one config."""

    def __init__(self, start: GatewayFor, redis: RedisServer, provider: FakeProvider) -> None:
        self._start = start
        self._redis = redis
        self._provider = provider
        self.all: list[Gateway] = []

    async def start(self, count: int, *, away: bool = False, **limits: Any) -> None:
        for _ in range(count):
            cluster = {"name": f"gw{len(self.all) + 1}", "limits": self._redis.url}
            gateway = await self._start(self._provider, users=users(**limits), cluster=cluster, pace=STEADY)
            self.all.append(gateway)
        await self.share(away=away)

    async def share(self, *, away: bool = False) -> None:
        """Wait until all of them count in Redis, or know that it is away."""
        if not away:
            await self._redis.knows(len(self.all))
        await eventually(lambda: all(each.gate.link and each.gate.link.away is away for each in self.all))

    async def ask(self, at: int, key: str = KEY) -> Response:
        return await ask(self.all[at].port, ask_for(key=key))


@pytest.fixture
def instances(gateway_for: GatewayFor, redis: RedisServer, provider: FakeProvider) -> Instances:
    return Instances(gateway_for, redis, provider)


def rate(response: Response, name: str) -> str | None:
    return response.header(f"x-ratelimit-{name}")


# --- Exact over all of them -----------------------------------------------------------------------


async def test_thirty_requests_a_minute_over_three_gateways_are_thirty(instances: Instances) -> None:
    await instances.start(3, requests_per_minute=30)
    answers = await asyncio.gather(*(instances.ask(n % 3) for n in range(60)))
    assert Counter(each.status for each in answers) == {200: 30, 429: 30}
    remaining = [int(rate(each, "remaining-requests") or -1) for each in answers if each.status == 200]
    assert sorted(remaining) == list(range(30))
    for each in answers:
        if each.status == 429:
            assert 0 < int(each.header("retry-after") or 0) <= 60
            assert "30 requests per minute for user 'alice'" in each.json["error"]["message"]
    assert sum(each.gate.link.alone for each in instances.all if each.gate.link) == 0


async def test_four_in_parallel_are_four_and_a_place_that_is_given_back_is_anybodys(
    instances: Instances, provider: FakeProvider
) -> None:
    turns = Turns()
    provider.script = turns
    await instances.start(2, parallel=4)
    async with crowd(instances.all[0].port) as one, crowd(instances.all[1].port) as two:
        for _ in range(2):
            await one()
            await two()
        await eventually(lambda: len(provider.calls) == 4)
        for at in (0, 1):
            refused = await instances.ask(at)
            assert (refused.status, refused.header("retry-after")) == (429, "1")
        turns.end(5)
        await eventually(lambda: _serves(instances, 0))
    for gateway in instances.all:
        await all_given_back(gateway)


async def _serves(instances: Instances, at: int) -> bool:
    return (await instances.ask(at)).status == 200


async def test_the_places_of_a_gateway_that_was_killed_are_free_again_after_a_while(
    instances: Instances, provider: FakeProvider, redis: RedisServer, tmp_path: Path
) -> None:
    provider.script = stall()
    await instances.start(1, parallel=4)
    file = tmp_path / "config.yaml"
    config = settings(provider, users=users(parallel=4), cluster={"limits": redis.url})
    file.write_text(yaml.safe_dump(config))
    async with AsyncExitStack() as stack:
        program = await stack.enter_async_context(running(str(file), cwd=ROOT, python=DOOMED))
        await program.url()
        doomed = await stack.enter_async_context(crowd(program.port))
        other = await stack.enter_async_context(crowd(instances.all[0].port))
        for _ in range(2):
            await doomed()
            await other()
        await eventually(lambda: len(provider.calls) == 4)
        assert (await instances.ask(0)).status == 429
        program.signal(signal.SIGKILL)
        await eventually(lambda: not program.running)
        await eventually(lambda: _is_let_in(other, provider, 5))
        await eventually(lambda: _is_let_in(other, provider, 6))
        assert (await instances.ask(0)).status == 429


async def _is_let_in(send: Any, provider: FakeProvider, calls: int) -> bool:
    """Try once more; tells whether so many calls have reached the provider by then."""
    client = await send()
    serving = asyncio.ensure_future(client.response())
    while not serving.done() and len(provider.calls) < calls:
        await asyncio.sleep(0.01)
    serving.cancel()
    return len(provider.calls) == calls


@pytest.mark.parametrize("window", ["minute", "day"])
async def test_tokens_that_were_used_at_one_gateway_are_gone_at_the_other(
    instances: Instances, provider: FakeProvider, window: str
) -> None:
    provider.script = using(60)
    limits: dict[str, Any] = {f"tokens_per_{window}": 100}
    await instances.start(2, **limits)
    assert rate(await instances.ask(0), "remaining-tokens") == "100"
    await eventually(lambda: _remains(instances, 1, "40"))  # and this one takes it past the end
    await eventually(lambda: _is_refused(instances, 0))
    refused = await instances.ask(1)
    assert (refused.status, rate(refused, "remaining-tokens")) == (429, "0")
    assert f"100 tokens per {window}" in refused.json["error"]["message"]


async def _remains(instances: Instances, at: int, tokens: str) -> bool:
    return rate(await instances.ask(at), "remaining-tokens") == tokens


async def _is_refused(instances: Instances, at: int) -> bool:
    return (await instances.ask(at)).status == 429


async def test_what_one_limit_refuses_has_taken_nothing_of_another(instances: Instances) -> None:
    await instances.start(2, requests_per_minute=5, phone={"requests_per_minute": 1})
    assert [(await instances.ask(at, PHONE)).status for at in (0, 1, 0, 1)] == [200, 429, 429, 429]
    assert [(await instances.ask(at)).status for at in (0, 1, 0, 1, 0)] == [200] * 4 + [429]


async def test_callers_without_limits_do_not_ask_redis_and_others_ask_once(
    instances: Instances, redis: RedisServer
) -> None:
    await instances.start(1, requests_per_minute=30)
    before = await asked(redis)
    assert [(await instances.ask(0, BOB)).status for _ in range(5)] == [200] * 5
    assert await asked(redis) == before
    assert [(await instances.ask(0)).status for _ in range(5)] == [200] * 5
    assert await asked(redis) == before + 5


async def asked(redis: RedisServer) -> int:
    """How many scripts it has run."""
    told = await redis.command("INFO", "commandstats")
    return int(told.get("cmdstat_eval", {"calls": 0})["calls"])


# --- Without Redis --------------------------------------------------------------------------------


async def test_while_redis_is_away_each_decides_alone_and_then_they_count_together_again(
    instances: Instances, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await instances.start(2, requests_per_minute=3)
    with caplog.at_level(logging.INFO, "llmgateway.limits"):
        assert [(await instances.ask(at)).status for at in (0, 1)] == [200, 200]
        await redis.kill()
        # The first knows of one request of its own, and not of the other's.
        assert [(await instances.ask(0)).status for _ in range(3)] == [200, 200, 429]
        assert [(await instances.ask(1)).status for _ in range(3)] == [200, 200, 429]
        await instances.share(away=True)
        assert metrics(instances) == [(0.0, 3.0)] * 2
        await redis.start()
        await instances.share()
        answers = [(await instances.ask(at)).status for at in (0, 1, 0, 1)]
        assert answers == [200, 200, 200, 429], "it was started anew, and has forgotten"
        assert metrics(instances) == [(1.0, 3.0)] * 2
    told = Counter(each.getMessage() for each in caplog.records if each.name == "llmgateway.limits")
    assert told == {"limits are counted by this gateway alone": 2, "limits are counted in Redis again": 2}


def metrics(instances: Instances) -> list[tuple[float, float]]:
    """Of each gateway: whether limits are shared, and how many requests it has decided alone."""
    found = []
    for gateway in instances.all:
        samples = {s.name: s.value for family in gateway.metrics.registry.collect() for s in family.samples}
        found.append((samples["gateway_limits_shared"], samples["gateway_limits_decided_alone_total"]))
    return found


async def test_a_gateway_that_starts_without_redis_serves_and_finds_it_later(
    instances: Instances, redis: RedisServer
) -> None:
    await redis.kill()
    await instances.start(1, away=True, requests_per_minute=1)
    assert [(await instances.ask(0)).status for _ in range(2)] == [200, 429]
    await redis.start()
    await instances.share()


async def test_places_that_are_taken_are_known_to_a_redis_that_was_started_anew(
    instances: Instances, provider: FakeProvider, redis: RedisServer
) -> None:
    provider.script = stall()
    await instances.start(2, parallel=2)
    async with crowd(instances.all[0].port) as one, crowd(instances.all[1].port) as two:
        await one()
        await eventually(lambda: len(provider.calls) == 1)
        await redis.kill()
        await two()  # decided alone
        await eventually(lambda: len(provider.calls) == 2)
        await redis.start()
        await instances.share()
        await eventually(lambda: _holds(redis, 2))
        assert (await instances.ask(0)).status == (await instances.ask(1)).status == 429


async def _holds(redis: RedisServer, places: int) -> bool:
    return int(await redis.command("ZCARD", "llmgateway:parallel/user/alice")) == places


async def test_a_redis_that_does_not_answer_holds_nobody_up(
    gateway_for: GatewayFor, provider: FakeProvider, redis: RedisServer
) -> None:
    gateway = await gateway_for(provider, users=users(requests_per_minute=2), cluster={"limits": redis.url})
    assert gateway.gate.link is not None
    await redis.knows(1)
    redis.stop()
    try:
        assert [(await ask(gateway.port)).status for _ in range(3)] == [200, 200, 429]
        assert gateway.gate.link.away
    finally:
        redis.go_on()
    await eventually(lambda: gateway.gate.link and not gateway.gate.link.away)


async def test_a_client_that_leaves_while_redis_is_asked_keeps_no_place(
    instances: Instances, redis: RedisServer
) -> None:
    await instances.start(1, parallel=1)
    async with crowd(instances.all[0].port) as send:
        redis.stop()
        client = await send()
        await eventually(lambda: instances.all[0].ledger.in_flight)
        client.leave()
        await eventually(lambda: not instances.all[0].ledger.in_flight)
        redis.go_on()
    await instances.share()
    assert (await instances.ask(0)).status == 200


# --- Its password, and other configs ---------------------------------------------------------------


async def test_the_password_of_redis_is_told_to_nobody(
    gateway_for: GatewayFor, provider: FakeProvider, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = redis.url.replace("sesame", "pepper")
    gateway = await gateway_for(
        provider, users=users(requests_per_minute=2), cluster={"name": "gw1", "limits": wrong}
    )
    await eventually(lambda: gateway.gate.link and gateway.gate.link.away)
    assert [(await ask(gateway.port)).status for _ in range(3)] == [200, 200, 429]
    (record,) = [each for each in caplog.records if each.name == "llmgateway.limits"]
    told = str(vars(record))
    assert f"redis://127.0.0.1:{redis.port}/0" in told and "invalid username-password pair" in told
    assert PASSWORD.partition("@")[2] not in told and "pepper" not in told


async def test_another_config_begins_and_ends_to_count_in_redis(
    gateway_for: GatewayFor, provider: FakeProvider, redis: RedisServer
) -> None:
    limits = users(requests_per_minute=3)
    shared = build(settings(provider, users=limits, cluster={"limits": redis.url}))
    one, two = [await gateway_for(provider, users=limits, pace=STEADY) for _ in range(2)]
    assert (await ask(one.port)).status == 200
    for gateway in (one, two):
        gateway.adopt(shared)
    assert [(await ask(gateway.port)).status for gateway in (one, two, one, two)] == [200, 200, 200, 429]
    two.adopt(build(settings(provider, users=limits)))
    assert two.gate.link is None
    assert [(await ask(two.port)).status for _ in range(3)] == [200, 200, 429]
    assert b"gateway_limits" in one.metrics.render("")[0]
    assert b"gateway_limits" not in two.metrics.render("")[0]
