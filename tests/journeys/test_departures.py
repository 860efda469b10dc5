"""What is easily lost: the last bytes of an answer when the gateway stops, a client that left unheard."""

from __future__ import annotations

import asyncio
import signal

import pytest

from llmgateway.http.body import Patience
from tests.conftest import GatewayFor, ProgramFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import Ending, RawClient, chat, request
from tests.script import answer, stall

LARGE = b"x" * 12_000_000


async def test_the_end_of_an_answer_is_not_lost_when_the_gateway_stops(
    program_for: ProgramFor, provider: FakeProvider
) -> None:
    provider.script = answer(200, LARGE)
    program = await program_for(provider)
    async with RawClient(program.port, receive_buffer=4096) as client:
        await client.send(chat())
        exchange = await provider.next_call()
        response = await client.head()
        await eventually(lambda: exchange.written > 0)
        program.signal(signal.SIGTERM)
        while await client.piece(response):
            pass
        assert (response.ending, len(response.body)) == (Ending.COMPLETE, len(LARGE))
        client.leave()
    assert (await program.ended()).code == 0


@pytest.mark.parametrize("behind", [100, 1_000], ids=str)
async def test_a_client_that_leaves_is_noticed_behind_many_pipelined_requests(
    gateway_for: GatewayFor, provider: FakeProvider, behind: int
) -> None:
    provider.script = stall()
    gateway = await gateway_for(provider, patience=Patience(deaf_s=0.2))
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        exchange = await provider.next_call()
        await client.send(request("GET", "/healthz") * behind)
        client.leave()
        await exchange.hung_up()
    await eventually(lambda: gateway.fleet.providers["rig"].in_flight == 0)


async def test_many_pipelined_requests_that_are_answered_quickly_are_fine(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, patience=Patience(deaf_s=1))
    now = asyncio.get_running_loop().time
    end = now() + 1.5
    async with RawClient(gateway.port) as client:
        while now() < end:
            await client.send(request("GET", "/healthz") * 500)
            for _ in range(500):
                assert (await client.response()).status == 200
