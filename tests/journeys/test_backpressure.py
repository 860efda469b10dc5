"""A client that reads slowly slows its own answer, costs little memory, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import psutil
import pytest

from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import eventually
from tests.raw_client import Ending, RawClient, Response, chat, request
from tests.script import answer, done, end, head, play, sse, word

FLOOD = 200_000_000
BLOCK = 65_536
# What the kernel's buffers may hold on the way: the provider's send buffer can grow to 4 MB, and so on.
BOUND = 20_000_000
MEMORY = 5_000_000
ROOM = 8_192  # of the client's receive buffer


def block(number: int) -> bytes:
    """One block of a flood; no two are the same."""
    return (b"%015d\n" % number) * (BLOCK // 16)


def numbered(total: int) -> Script:
    """A flood of which every byte can be checked."""

    async def flooded(exchange: Exchange) -> None:
        for number in range(total // BLOCK):
            await exchange.chunk(block(number))

    return flooded


def expected(total: int) -> str:
    """The digest of such a flood."""
    digest = hashlib.sha256()
    for number in range(total // BLOCK):
        digest.update(block(number))
    return digest.hexdigest()


async def read_all(client: RawClient, response: Response) -> str:
    """Read the rest of a body, keeping nothing but its digest."""
    digest = hashlib.sha256()
    while piece := await client.piece(response):
        digest.update(piece)
        response.body.clear()
    return digest.hexdigest()


async def settled(measure: Callable[[], int]) -> int:
    """Wait until a figure stays as it is, and give it."""
    last, since = -1, 0
    async with asyncio.timeout(HANG_S):
        while since < 30:
            await asyncio.sleep(0.01)
            since = since + 1 if measure() == last else 0
            last = measure()
    return last


async def held_back(exchange: Exchange) -> int:
    """Wait until the provider can't write any more; gives how much was taken from it."""
    return await settled(lambda: exchange.written)


def allocated_mb() -> int:
    """What is allocated now, up to what would be far too much."""
    return min(tracemalloc.get_traced_memory()[0], 10 * MEMORY) // 1_000_000


@contextmanager
def memory_bounded(limit: int) -> Iterator[None]:
    """Fail when more than this is allocated at any time inside, by the gateway and the test together."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit, f"{(peak - before) / 1e6:.1f} MB"


@asynccontextmanager
async def stalled(port: int, provider: FakeProvider) -> AsyncIterator[tuple[RawClient, Exchange]]:
    """A client that has asked for a stream and reads nothing, once its provider is held back."""
    async with RawClient(port, receive_buffer=ROOM) as client:
        await client.send(chat(stream=True))
        exchange = await provider.next_call()
        assert 0 < await held_back(exchange) < BOUND
        yield client, exchange


FRAMED: dict[str, tuple[Script, Script]] = {
    "a stream": (sse(), end()),
    "chunks": (head(200, {"Transfer-Encoding": "chunked"}), end()),
}


@pytest.mark.parametrize(("start", "finish"), FRAMED.values(), ids=FRAMED.keys())
async def test_a_client_that_reads_nothing_holds_its_provider_back_and_then_gets_all(
    provider: FakeProvider, gateway_for: GatewayFor, start: Script, finish: Script
) -> None:
    provider.script = play(start, numbered(FLOOD), finish)
    gateway = await gateway_for(provider)
    with memory_bounded(MEMORY):
        async with stalled(gateway.port, provider) as (client, exchange):
            assert not exchange.complete
            response = await client.head()
            assert await read_all(client, response) == expected(FLOOD)
    assert response.ending is Ending.COMPLETE


async def test_the_program_itself_stays_small(provider: FakeProvider, program_for: ProgramFor) -> None:
    provider.once(play(sse(), word("warm"), done()))
    provider.script = play(sse(), numbered(FLOOD), end())
    program = await program_for(provider)
    async with RawClient(program.port) as client:
        await client.send(chat(stream=True))
        await client.response()
        await provider.next_call()
    process = psutil.Process(program.pid)
    before = process.memory_info().rss
    async with (
        stalled(program.port, provider) as (client, _),
        stalled(program.port, provider),
        stalled(program.port, provider),
    ):
        assert process.memory_info().rss - before < 3 * MEMORY
        assert await read_all(client, await client.head()) == expected(FLOOD)
        assert process.memory_info().rss - before < 3 * MEMORY


async def test_many_small_events_are_held_back_as_well(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    async def chatter(exchange: Exchange) -> None:
        await sse()(exchange)
        said = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'
        while True:
            await exchange.send(b"%x\r\n%b\r\n" % (len(said), said) * 20)

    provider.script = chatter
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port, receive_buffer=ROOM) as client:
        await client.send(chat(stream=True))
        exchange = await provider.next_call()
        with memory_bounded(MEMORY):
            assert await held_back(exchange) < BOUND


async def test_a_reader_that_stops_and_goes_gets_all_in_order(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    total = 30_000_000
    provider.script = play(sse(), numbered(total), end())
    gateway = await gateway_for(provider)
    digest = hashlib.sha256()
    async with RawClient(gateway.port, receive_buffer=ROOM) as client:
        await client.send(chat(stream=True))
        exchange = await provider.next_call()
        response = await client.head()
        for _ in range(4):
            await held_back(exchange)
            read = 0
            while read < total // 6:
                piece = await client.piece(response)
                digest.update(piece)
                read += len(piece)
        while piece := await client.piece(response):
            digest.update(piece)
    assert digest.hexdigest() == expected(total)
    assert response.ending is Ending.COMPLETE


async def test_one_stalled_client_does_not_slow_another(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """The other one's pieces still come one by one, each before the next is sent."""
    steps = [asyncio.Event() for _ in range(5)]

    async def stepwise(exchange: Exchange) -> None:
        await sse()(exchange)
        for step in steps:
            await word("x")(exchange)
            await step.wait()
        await done()(exchange)

    provider.once(play(sse(), numbered(FLOOD), end()), play(sse(), numbered(20_000_000), end()))
    provider.script = stepwise
    gateway = await gateway_for(provider)
    async with stalled(gateway.port, provider) as (slow, flooding):
        async with RawClient(gateway.port) as quick:
            await quick.send(chat(stream=True))
            assert await read_all(quick, await quick.head()) == expected(20_000_000)
            await quick.send(chat(stream=True))
            response = await quick.head()
            for number, step in enumerate(steps, 1):
                assert len(await quick.events(response, number)) == number
                step.set()
            assert (await quick.events(response, 6))[-1] == "[DONE]"
        assert not flooding.complete and flooding.written < BOUND
        assert await read_all(slow, await slow.head()) == expected(FLOOD)


async def test_a_stalled_client_gets_its_error_and_the_end_when_it_reads(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    async def breaks(exchange: Exchange) -> None:
        await numbered(30_000_000)(exchange)
        exchange.cut()

    provider.script = play(sse(), breaks)
    gateway = await gateway_for(provider)
    async with stalled(gateway.port, provider) as (client, _):
        response = await client.response()
    flooded = 30_000_000 // BLOCK * BLOCK
    assert hashlib.sha256(response.body[:flooded]).hexdigest() == expected(30_000_000)
    assert b'"upstream_error"' in response.body[flooded:]
    assert response.ending is Ending.COMPLETE


ANSWERS: dict[str, Callable[[], Script]] = {
    "answers of a provider": lambda: answer(200, b'"' + b"x" * 150_000 + b'"'),
    "short streams": lambda: play(sse(), numbered(2 * BLOCK), end()),
}


@pytest.mark.parametrize("make", ANSWERS.values(), ids=ANSWERS.keys())
async def test_the_next_call_of_a_connection_that_is_not_read_is_held_back_too(
    provider: FakeProvider, gateway_for: GatewayFor, make: Callable[[], Script]
) -> None:
    """Answers that fit between the gateway's buffers fill them; what comes behind must not be let through."""
    calls = 40
    provider.once(*[make() for _ in range(calls)])
    provider.script = play(sse(), numbered(FLOOD), end())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port, receive_buffer=ROOM) as client:
        with memory_bounded(3 * MEMORY):
            await client.send(*[chat(stream=True)] * (calls + 1))
            first = await provider.next_call()
            await held_back(first)
            taken, last = 0, -1
            while taken != last:
                last = taken
                await held_back(provider.calls[-1])
                taken = sum(call.written for call in provider.calls)
            assert taken < BOUND
    await eventually(lambda: all(p.in_flight == 0 for p in gateway.fleet.providers.values()))


async def test_questions_without_end_whose_answers_are_not_read_cost_little(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(models=[f"model-{number}" for number in range(500)])
    gateway = await gateway_for(provider)
    question = request("GET", "/v1/models")
    with memory_bounded(2 * MEMORY):
        async with RawClient(gateway.port, receive_buffer=ROOM) as rude:
            await rude.send(question * 5_000)
            async with RawClient(gateway.port) as other:
                await other.send(question)
                assert (await other.response()).status == 200
            await settled(allocated_mb)
