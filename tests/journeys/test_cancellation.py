"""A client that leaves ends the work done for it at once, wherever its call stands, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S, LINGERS_S
from tests.journey import KEY, eventually, settings
from tests.journeys.test_timeouts import unanswered
from tests.raw_client import RawClient, chat, request
from tests.script import chunk, end, error, flood, head, play, raw, sse, stall, stream, word

USERS = {"alice": {"keys": [KEY], "route": "prefer_own"}}

Leave = Callable[[RawClient], None]
leaving = pytest.mark.parametrize("leave", [RawClient.leave, RawClient.reset], ids=["FIN", "RST"])


@asynccontextmanager
async def leaving_nothing(gateway: Gateway) -> AsyncIterator[None]:
    """Whatever happens inside, soon after it nothing is in flight and no task of it is left."""
    before = asyncio.all_tasks()
    yield

    def left() -> list[str]:
        names = [task.get_name() for task in asyncio.all_tasks() - before]
        return [name for name in names if not name.startswith("fake provider")]

    def in_flight() -> list[int]:
        return [provider.in_flight for provider in gateway.fleet.providers.values()]

    await eventually(lambda: not left(), LINGERS_S, saying=lambda: f"left behind: {left()}")
    await eventually(lambda: not any(in_flight()), LINGERS_S, saying=lambda: f"in flight: {in_flight()}")


async def serves(port: int) -> bool:
    """Tell whether a new client is served."""
    async with RawClient(port) as client:
        await client.send(chat())
        return (await client.response()).status == 200


# With one provider at work.

AT_WORK: dict[str, tuple[bool, Script, bytes]] = {  # whether it streams; the script; what the client has read
    "a stream before its head": (True, stall(), b""),
    "a stream in its head": (True, play(raw(b"HTTP/1.1 200 OK\r\nX-Pad: "), stall()), b""),
    "a stream before its first event": (True, play(sse(), stall()), b""),
    "a stream between events": (True, play(sse(), chunk(b"data: 1\n\n"), stall()), b"data: 1\n\n"),
    "a stream inside an event": (True, play(sse(), chunk(b"data: {"), stall()), b"data: {"),
    "a buffered call before its head": (False, stall(), b""),
    "a buffered call before its body": (False, play(head(200, {"Content-Length": "9"}), stall()), b""),
    "a buffered call in its body": (
        False,
        play(head(200, {"Content-Length": "9"}), raw(b"{"), stall()),
        b"{",
    ),
    "an answer until close": (False, play(head(200), raw(b"{"), stall()), b"{"),
    "an error being read for its message": (
        False,
        play(head(500, {"Content-Length": "9"}), raw(b"{"), stall()),
        b"",
    ),
}


@leaving
@pytest.mark.parametrize(("streams", "script", "read"), AT_WORK.values(), ids=AT_WORK.keys())
async def test_leaving_ends_the_exchange_with_the_provider(
    provider: FakeProvider, gateway_for: GatewayFor, streams: bool, script: Script, read: bytes, leave: Leave
) -> None:
    provider.once(script)
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat(stream=streams))
        exchange = await provider.next_call()
        assert gateway.fleet.providers["rig"].in_flight == 1
        if read:
            response = await client.head()
            while response.body != read:
                assert await client.piece(response)
        leave(client)
        await exchange.hung_up()
    assert await serves(gateway.port)


@leaving
async def test_leaving_one_of_many_streams_ends_only_that_one(
    provider: FakeProvider, gateway_for: GatewayFor, leave: Leave
) -> None:
    gate = asyncio.Event()

    async def begun(exchange: Exchange) -> None:
        await play(sse(), word("Hel"))(exchange)
        await gate.wait()
        await play(word("lo"), end())(exchange)

    provider.script = begun
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port) as stays, RawClient(gateway.port) as leaves:
        for client in (stays, leaves):
            await client.send(chat(stream=True))
        first, second = await provider.next_call(), await provider.next_call()
        response = await stays.head()
        await stays.events(response, 1)
        await leaves.events(await leaves.head(), 1)
        leave(leaves)
        await eventually(lambda: first.left_early or second.left_early)
        assert gateway.fleet.providers["rig"].in_flight == 1
        gate.set()
        assert len(await stays.events(response, 3)) == 2
    assert not (first.left_early and second.left_early)


@leaving
async def test_leaving_a_stream_that_one_does_not_read_ends_it_too(
    provider: FakeProvider, gateway_for: GatewayFor, leave: Leave
) -> None:
    provider.script = play(sse(), flood(200_000_000), end())
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port, receive_buffer=4096) as client:
        await client.send(chat(stream=True))
        exchange = await provider.next_call()
        await client.head()
        await eventually(lambda: exchange.written > 1_000_000)
        leave(client)
        await exchange.hung_up()


@leaving
async def test_leaving_the_second_call_on_a_connection_ends_it_too(
    provider: FakeProvider, gateway_for: GatewayFor, leave: Leave
) -> None:
    provider.once(stream("Hello"), stall())
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        await client.response()
        await (await provider.next_call()).over()
        await client.send(chat(stream=True))
        exchange = await provider.next_call()
        leave(client)
        await exchange.hung_up()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"])
async def test_it_is_so_on_every_endpoint(provider: FakeProvider, gateway_for: GatewayFor, path: str) -> None:
    provider.script = stall()
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(request("POST", path, body=b'{"model":"m"}'))
        exchange = await provider.next_call()
        client.leave()
        await exchange.hung_up()


@leaving
async def test_a_hundred_clients_that_leave_at_once_leave_nothing(
    provider: FakeProvider, program_for: ProgramFor, leave: Leave
) -> None:
    async def half_begun(exchange: Exchange) -> None:
        await (play(sse(), word("x"), stall()) if len(provider.calls) % 2 else stall())(exchange)

    provider.script = half_begun
    program = await program_for(provider)
    clients = [RawClient(program.port) for _ in range(100)]
    for client in clients:
        await client.__aenter__()
        await client.send(chat(stream=True))
    exchanges = [await provider.next_call() for _ in clients]
    for client in clients:
        leave(client)
    async with asyncio.timeout(HANG_S):
        for exchange in exchanges:
            await exchange.hung_up()
    await eventually(lambda: provider.connections <= 1)
    assert "Traceback" not in program.err


# While it fails over.


@leaving
async def test_leaving_while_the_second_candidate_works_ends_its_work(
    provider_for: ProviderFor, gateway_for: GatewayFor, leave: Leave
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    third = await provider_for("third")
    rig.script, other.script, third.script = error(500), stall(), stall()
    gateway = await gateway_for(rig, other, third, users=USERS)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat())
        await rig.next_call()
        await eventually(lambda: len(other.calls) + len(third.calls) == 1)
        exchange = (other.calls + third.calls)[0]
        leave(client)
        await exchange.hung_up()
    assert len(other.calls) + len(third.calls) == 1, "nobody else was asked for a client that had left"


@leaving
async def test_leaving_while_a_429_is_read_ends_it_and_asks_nobody_else(
    provider_for: ProviderFor, gateway_for: GatewayFor, leave: Leave
) -> None:
    rig, other = await provider_for("rig", owner="alice"), await provider_for("other")
    rig.script = play(head(429, {"Content-Length": "9"}), raw(b"{"), stall())
    gateway = await gateway_for(rig, other, users=USERS)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat())
        exchange = await rig.next_call()
        await eventually(lambda: exchange.written > 20)
        leave(client)
        await exchange.hung_up()
    assert not other.calls


@leaving
async def test_leaving_while_a_connection_is_being_made_gives_it_up(
    provider_for: ProviderFor, gateway_for: GatewayFor, leave: Leave
) -> None:
    provider = await provider_for(timeouts={"connect": "1h"})
    gateway = await gateway_for(provider)
    rig = gateway.fleet.providers["rig"]
    async with unanswered(provider), leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat())
        await eventually(lambda: rig.in_flight == 1)
        leave(client)
        await eventually(lambda: rig.in_flight == 0)


@leaving
async def test_leaving_after_the_retry_on_a_fresh_connection_ends_that(
    provider: FakeProvider, gateway_for: GatewayFor, leave: Leave
) -> None:
    async def closing(exchange: Exchange) -> None:
        if exchange.request.connection == 1:
            exchange.cut()

    provider.before_body, provider.script = closing, stall()
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat())
        await provider.next_call()
        second = await provider.next_call()
        leave(client)
        await second.hung_up()


# While the request is still on its way.


@leaving
async def test_leaving_while_the_request_is_being_sent_to_the_provider_ends_it(
    provider: FakeProvider, gateway_for: GatewayFor, leave: Leave
) -> None:
    async def reads_nothing(exchange: Exchange) -> None:
        exchange.stop_reading()
        await gate.wait()
        exchange.read_on()
        await asyncio.Event().wait()

    gate = asyncio.Event()
    provider.before_body = reads_nothing
    gateway = await gateway_for(provider)
    body = json.dumps({"model": "m", "prompt": "x" * 40_000_000}).encode()
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(chat(body))
        exchange = await provider.next_call()
        assert gateway.fleet.providers["rig"].in_flight == 1
        leave(client)
        await eventually(lambda: gateway.fleet.providers["rig"].in_flight == 0)
        gate.set()
        await exchange.hung_up()


@leaving
@pytest.mark.parametrize("framing", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
async def test_leaving_in_the_middle_of_ones_own_request_asks_nobody(
    provider: FakeProvider, gateway_for: GatewayFor, leave: Leave, framing: str
) -> None:
    gateway = await gateway_for(provider)
    async with leaving_nothing(gateway), RawClient(gateway.port) as client:
        await client.send(request("POST", "/v1/chat/completions", framing, "Expect: 100-continue"))
        await client.send(b'13\r\n{"model":"m","x":"\r\n')
        leave(client)
    assert not provider.calls


# Before the first look at the providers.


@leaving
async def test_leaving_before_the_providers_were_looked_at_asks_nobody(
    provider: FakeProvider, leave: Leave
) -> None:
    gate = asyncio.Event()

    async def looked_at(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.answer(200, b'{"data":[{"id":"m"}]}')

    provider.on["/v1/models"] = looked_at
    async with Gateway(build(settings(provider))) as gateway:
        await eventually(lambda: provider.probes)
        async with (
            leaving_nothing(gateway),
            RawClient(gateway.port) as client,
            RawClient(gateway.port) as witness,
        ):
            await client.send(chat())
            await witness.send(request("GET", "/readyz"))
            assert (await witness.response()).status == 503
            leave(client)
        gate.set()
        await eventually(gateway.ready.is_set)
        assert await serves(gateway.port)
    assert len(provider.calls) == 1
