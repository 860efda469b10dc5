"""A gateway that is behind with its work turns new requests away, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack

import pytest

from llmgateway.errors import GatewayError
from llmgateway.service.gateway import Gateway
from llmgateway.web.intake import AT_A_TURN, MOST_WAITING, Intake
from llmgateway.web.pressure import (
    BEHIND_FOR_S,
    BEHIND_S,
    CALM_S,
    LEAST,
    LOOK_EVERY_S,
    LOOKS,
    MOST_ARRIVING,
    TARGET_S,
    Pressure,
)
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import RawClient, Response, chat, request


class Looked(Pressure):
    """Pressure that is looked at by hand, at times that are told."""

    def __init__(self, *late_s: float, every_s: float = BEHIND_FOR_S) -> None:
        self.now = 0.0
        super().__init__(Intake(asyncio.get_running_loop(), lambda: self.now), lambda: self.now)
        for number, each in enumerate(late_s):
            self.look(each, now=number * every_s)

    def begin(self) -> asyncio.Future[None] | None:
        """Have a request begin, or wait."""
        return None if self.intake.begins() else self.turn()

    def let_in(self) -> int:
        """Have more come than are let in; tells how many were."""
        return [self.lets_in() for _ in range(10_000)].count(True)


async def test_a_moment_is_nothing_however_long() -> None:
    assert not Looked(*[30.0] * (LOOKS - 1)).rush
    assert not Looked(*[30.0] * (LOOKS - 1), 0.0, *[30.0] * (LOOKS - 1)).rush


async def test_it_takes_time_as_well_as_looks() -> None:
    pressure = Looked(0.0, *[30.0] * LOOKS, every_s=0.01)
    assert not pressure.rush
    pressure.look(30.0, now=BEHIND_FOR_S)
    assert pressure.rush


async def test_a_machine_that_is_merely_slow_is_not_behind() -> None:
    assert not Looked(*[BEHIND_S * 0.9] * 1_000).rush


async def test_a_thousand_that_ask_at_once_and_again_are_all_let_in() -> None:
    pressure = Looked()
    for _ in range(3):
        turns = [pressure.begin() for _ in range(1_000)]
        assert not pressure.rush
        for turn in turns:
            if turn is not None:
                await turn


async def test_more_than_come_at_once_by_themselves_are_a_rush_at_once() -> None:
    pressure = Looked()
    for _ in range(AT_A_TURN + MOST_WAITING):
        pressure.begin()
    with pytest.raises(GatewayError):
        pressure.begin()
    assert pressure.rush and pressure.sheds and not pressure.let_in() and pressure.shed == 1


async def test_those_that_wait_on_connections_count_with_those_that_wait_for_a_turn() -> None:
    pressure = Looked()
    for _ in range(AT_A_TURN + 9):
        pressure.begin()
    for many, rush in ((MOST_ARRIVING - 10, False), (MOST_ARRIVING - 9, True)):
        for pressure.now in (0.0, LOOK_EVERY_S):
            assert not pressure.rush
            pressure.arriving(many, 0.0)
        assert pressure.rush == rush
    assert pressure.sheds and not pressure.shed


async def test_many_that_come_at_once_are_no_rush_while_they_become_fewer() -> None:
    pressure = Looked()
    for number in range(9):
        pressure.now = number * LOOK_EVERY_S
        pressure.arriving(9 * MOST_ARRIVING - number, 0.0)
    pressure.now += LOOK_EVERY_S - 0.001
    pressure.arriving(9 * MOST_ARRIVING, 0.0)  # it is too early to say
    assert not pressure.rush
    pressure.arriving(MOST_ARRIVING - 1, 0.0)
    pressure.now = 3600.0
    pressure.arriving(9 * MOST_ARRIVING, 0.0)  # others have come
    assert not pressure.rush
    pressure.now += LOOK_EVERY_S
    pressure.arriving(9 * MOST_ARRIVING, 0.0)
    assert pressure.rush


async def test_those_that_wait_to_be_begun_make_the_gateway_late() -> None:
    pressure = Looked()
    for _ in range(AT_A_TURN + 1):
        pressure.begin()
    pressure.look(0.0, now=1.0)
    assert pressure.lag_s > 0.0


async def test_those_that_wait_on_connections_make_the_gateway_late() -> None:
    pressure = Looked()
    for number in range(LOOKS + 1):
        pressure.arriving(1, BEHIND_S)
        pressure.look(0.0, now=number * BEHIND_FOR_S)
    assert pressure.rush
    pressure = Looked()
    pressure.arriving(1, 30.0)
    pressure.look(0.0, now=0.0)
    assert pressure.lag_s
    before = pressure.lag_s
    pressure.look(0.0, now=BEHIND_FOR_S)
    assert pressure.lag_s < before, "they wait no more"


async def test_in_a_rush_more_are_let_in_until_the_gateway_is_late_and_some_always() -> None:
    pressure = Looked(*[BEHIND_S] * LOOKS)
    many = [pressure.let_in()]
    for late_s in (*[0.0] * 12, *[TARGET_S * 2] * 12):
        pressure.look(late_s, now=LOOKS * BEHIND_FOR_S)
        many.append(pressure.let_in())
    assert many[0] == 0 and many[1:13] == sorted(set(many[1:13])) and many[12] > 4 * many[1]
    assert many[13:15] == [many[12] // 2, many[12] // 4]
    assert many[-1] == LEAST


async def test_where_fewer_come_than_may_no_more_than_that_may_come_then() -> None:
    pressure = Looked(*[BEHIND_S] * LOOKS)
    for _ in range(3):
        pressure.look(0.0, now=LOOKS * BEHIND_FOR_S)
        assert pressure.lets_in()
    pressure.look(0.0, now=LOOKS * BEHIND_FOR_S)
    assert pressure.let_in() <= 2 * LEAST


async def test_what_begins_is_counted_as_well_as_not_everything_is_seen_to_come() -> None:
    pressure = Looked(*[BEHIND_S] * LOOKS)
    pressure.look(0.0, now=LOOKS * BEHIND_FOR_S)
    begun = 0
    while not pressure.sheds:
        pressure.begin()
        begun += 1
    assert begun < 10 * LEAST
    pressure.look(0.0, now=LOOKS * BEHIND_FOR_S)
    assert not pressure.sheds


async def test_after_a_calm_while_it_takes_as_long_as_at_first() -> None:
    pressure = Looked(*[BEHIND_S] * LOOKS)
    began = LOOKS * BEHIND_FOR_S
    pressure.look(TARGET_S * 2, now=began)
    pressure.look(0.0, now=began + CALM_S)
    assert not pressure.rush
    for _ in range(LOOKS * 2):
        pressure.look(1.0, now=began + CALM_S)
        assert not pressure.rush
    pressure.look(1.0, now=began + CALM_S + BEHIND_FOR_S)
    assert pressure.rush


async def test_it_is_no_calm_while_it_is_late_again_and_again() -> None:
    pressure = Looked(*[BEHIND_S] * LOOKS)
    began = LOOKS * BEHIND_FOR_S
    for number in range(10):
        for late_s, part in ((0.0, 0.0), (0.0, 0.5), (TARGET_S * 2, 0.9)):
            pressure.look(late_s, now=began + (number + part) * CALM_S)
            assert pressure.rush


async def test_it_is_calm_although_some_are_turned_away_if_it_is_not_late() -> None:
    pressure = Looked(*[BEHIND_S] * LOOKS)
    began = LOOKS * BEHIND_FOR_S
    pressure.look(TARGET_S * 2, now=began)
    for part in (0.1, 0.5, 0.9, 1.0):
        assert pressure.rush
        pressure.let_in()
        pressure.look(0.0, now=began + part * CALM_S)
    assert not pressure.rush


async def test_the_lag_of_a_loop_is_measured() -> None:
    loop = asyncio.get_running_loop()
    pressure = Pressure(Intake(loop, loop.time), loop.time)
    with pressure.watching(loop):
        while not pressure.lag_s:
            loop.call_soon(time.sleep, 0.3)
            await asyncio.sleep(0.01)

    def is_rush() -> bool:
        pressure.arriving(MOST_ARRIVING, 0.0)
        return pressure.rush

    await eventually(is_rush)
    assert pressure._timer is None, "nobody looks any more"


async def answer(gateway: Gateway, message: bytes) -> Response:
    async with RawClient(gateway.port) as client:
        await client.send(message)
        return await client.response()


def in_a_rush(gateway: Gateway) -> Pressure:
    """Make it one that nobody looks at."""
    pressure = gateway._pressure
    assert pressure._timer is not None
    pressure._timer.cancel()
    pressure._timer = None
    for _ in range(LOOKS):
        pressure.look(1.0, now=asyncio.get_running_loop().time() + BEHIND_FOR_S)
    assert pressure.rush
    return pressure


@pytest.mark.parametrize("kept", [False, True], ids=["on a new connection", "on one that is kept"])
@pytest.mark.parametrize("special", [(), ("X-Request-Id: mine",)], ids=["plain", "special"])
async def test_new_requests_are_turned_away_and_everything_else_is_answered(
    gateway_for: GatewayFor, provider: FakeProvider, kept: bool, special: tuple[str, ...]
) -> None:
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        if kept:
            await client.send(request("GET", "/healthz"))
            assert (await client.response()).status == 200
        pressure = in_a_rush(gateway)
        for _ in range(2):
            await client.send(chat(None, *special))
            refused = await client.response()
            assert (refused.status, refused.header("x-gateway-error")) == (503, "overloaded")
            assert refused.header("retry-after") == "2" and not provider.calls
            assert refused.json["error"]["type"] == "overloaded"
            assert (refused.header("x-request-id") == "mine") == bool(special)
        for target in ("/healthz", "/readyz", "/v1/models", "/gateway/", "/gateway/status"):
            assert (await answer(gateway, request("GET", target))).status == 200, target
        metrics = (await answer(gateway, request("GET", "/metrics"))).body
        assert b"\ngateway_requests_shed_total 2.0\n" in metrics
        pressure._look_later()

        async def served() -> bool:
            await client.send(chat())
            return (await client.response()).status == 200

        await eventually(served)  # on a busy machine the loop is behind once more


@pytest.mark.parametrize("special", [(), ("X-Request-Id: mine",)], ids=["plain", "special"])
async def test_who_is_turned_away_is_told_so_in_the_dialect_that_was_spoken(
    gateway_for: GatewayFor, provider: FakeProvider, special: tuple[str, ...]
) -> None:
    gateway = await gateway_for(provider)
    in_a_rush(gateway)
    body = b'{"model": "m", "max_tokens": 1, "messages": []}'
    refused = await answer(gateway, request("POST", "/v1/messages", *special, body=body))
    assert (refused.status, refused.header("retry-after")) == (503, "2")
    assert refused.json["type"] == "error" and refused.json["error"]["type"] == "overloaded_error"
    assert refused.json["request_id"] == refused.header("x-request-id")


async def test_a_plain_request_is_turned_away_before_its_connection_is_taken_in(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, cluster={"name": "gw1"})
    in_a_rush(gateway)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        refused = await client.response()
        assert (refused.status, refused.header("x-gateway-instance")) == (503, "gw1")
        assert not gateway._server.connections


async def test_requests_wait_their_turn_and_are_all_answered(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    answers = await asyncio.gather(*(answer(gateway, chat()) for _ in range(10 * AT_A_TURN)))
    assert [each.status for each in answers] == [200] * 10 * AT_A_TURN


async def test_every_request_that_comes_at_once_in_a_rush_is_counted_once_and_some_are_let_in(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider)
    pressure = in_a_rush(gateway)
    pressure.look(0.0, now=asyncio.get_running_loop().time())
    before = pressure._left
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        address = ("127.0.0.1", gateway.port)
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(40)]
        for client in clients:
            client.sendall(chat())
            client.setblocking(False)
        told = [await loop.sock_recv(client, 12) for client in clients]
    assert set(told) == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert before - pressure._left == len(clients)
    assert pressure.shed == told.count(b"HTTP/1.1 503") and len(provider.calls) == told.count(b"HTTP/1.1 200")
