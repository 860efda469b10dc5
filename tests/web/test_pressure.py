"""A gateway that is behind with its work turns new requests away, and nothing else."""

from __future__ import annotations

import asyncio
import time

from llmgateway.service.gateway import Gateway
from llmgateway.web.pressure import (
    BEHIND_FOR_S,
    BEHIND_S,
    CALM_S,
    LOOKS,
    TARGET_S,
    Pressure,
)
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import RawClient, Response, chat, request


def looked(*late_s: float, every_s: float = BEHIND_FOR_S) -> Pressure:
    pressure = Pressure(lambda: 0.0)
    for number, each in enumerate(late_s):
        pressure.look(each, now=number * every_s)
    return pressure


def test_a_moment_is_nothing_however_long() -> None:
    assert not looked(*[30.0] * (LOOKS - 1)).sheds
    assert not looked(*[30.0] * (LOOKS - 1), 0.0, *[30.0] * (LOOKS - 1)).sheds


def test_it_takes_time_as_well_as_looks() -> None:
    pressure = looked(0.0, *[30.0] * LOOKS, every_s=0.01)
    assert not pressure.sheds
    pressure.look(30.0, now=BEHIND_FOR_S)
    assert pressure.sheds


def test_a_machine_that_is_merely_slow_is_not_behind() -> None:
    assert not looked(*[BEHIND_S * 0.9] * 1_000).sheds


def test_who_is_behind_again_and_again_sheds_until_it_is_not() -> None:
    pressure = looked(*[BEHIND_S] * LOOKS)
    assert pressure.sheds
    for late_s in (0.0, TARGET_S * 2, 0.0):
        pressure.look(late_s, now=LOOKS * BEHIND_FOR_S)
        assert pressure.sheds is (late_s > TARGET_S)


def test_after_a_calm_while_it_takes_as_long_as_at_first() -> None:
    pressure = looked(*[BEHIND_S] * LOOKS)
    began = LOOKS * BEHIND_FOR_S
    pressure.look(TARGET_S * 2, now=began)
    pressure.look(0.0, now=began + CALM_S)
    for _ in range(LOOKS * 2):
        pressure.look(1.0, now=began + CALM_S)
        assert not pressure.sheds
    pressure.look(1.0, now=began + CALM_S + BEHIND_FOR_S)
    assert pressure.sheds


async def test_the_lag_of_a_loop_is_measured() -> None:
    loop = asyncio.get_running_loop()
    pressure = Pressure(loop.time)
    with pressure.watching(loop):
        while not pressure.lag_s:
            loop.call_soon(time.sleep, 0.3)
            await asyncio.sleep(0.01)
    assert pressure._timer is not None and pressure._timer.cancelled()


async def answer(gateway: Gateway, message: bytes) -> Response:
    async with RawClient(gateway.port) as client:
        await client.send(message)
        return await client.response()


async def test_new_requests_are_turned_away_and_everything_else_is_answered(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    pressure = gateway._pressure
    assert pressure._timer is not None
    pressure._timer.cancel()
    for _ in range(LOOKS):
        pressure.look(1.0, now=0.0)
    refused = await answer(gateway, chat())
    assert (refused.status, refused.header("x-gateway-error")) == (503, "overloaded")
    assert refused.header("retry-after") == "2" and not provider.calls
    for target in ("/healthz", "/v1/models", "/gateway/", "/gateway/status"):
        assert (await answer(gateway, request("GET", target))).status == 200, target
    assert b"\ngateway_requests_shed_total 1.0\n" in (await answer(gateway, request("GET", "/metrics"))).body
    pressure._look_later(asyncio.get_running_loop())

    async def served() -> bool:
        return (await answer(gateway, chat())).status == 200

    await eventually(served)  # on a busy machine the loop is behind once more
