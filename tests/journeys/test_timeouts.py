"""Three waits, each named when it runs out: connect, first_byte, idle; none of them limits a whole answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.exchange import Exchange, Script
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.raw_client import Ending, RawClient, Response, chat
from tests.script import answer, done, drip, end, error, flood, head, interim, play, raw, sse, stall, word

SHORT = "400ms"
LONG = {"connect": "1h", "first_byte": "1h", "idle": "1h"}


def limits(**short: str) -> dict[str, str]:
    """Timeouts of which only those named here are short."""
    return {**LONG, **short}


async def ask(port: int, message: bytes | None = None) -> Response:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        await client.send(message or chat())
        return await client.response()


def said(response: Response) -> str:
    """The message of a 502 of the gateway's own."""
    assert (response.status, response.header("x-gateway-error")) == (502, "upstream_error")
    message = response.json["error"]["message"]
    assert isinstance(message, str)
    return message


@asynccontextmanager
async def unanswered(provider: FakeProvider) -> AsyncIterator[None]:
    """Leave new connections to it in the air: another socket on its port has a full queue (Linux)."""
    await provider.refuse()
    full = socket.socket()
    full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    full.bind(("127.0.0.1", provider.port))
    full.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield
    finally:
        for each in (*fillers, full):
            each.close()


# Connect.


async def test_a_connection_that_is_not_made_in_time_is_a_connect_timeout(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts=limits(connect=SHORT))
    gateway = await gateway_for(provider)
    async with unanswered(provider):
        message = said(await ask(gateway.port))
    assert "'rig'" in message and "connect timeout" in message and "0.4 s" in message


async def test_after_a_connect_timeout_the_other_is_asked(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice", timeouts=limits(connect=SHORT))
    other = await provider_for("other")
    gateway = await gateway_for(rig, other, users={"alice": {"keys": [KEY], "route": "prefer_own"}})
    async with unanswered(rig):
        response = await ask(gateway.port)
    assert (response.status, response.header("x-gateway-provider")) == (200, "other")


# First byte.

SLOW_STARTS: dict[str, Script] = {
    "nothing": stall(),
    "half a head": play(raw(b"HTTP/1.1 200 OK\r\nContent-Le"), stall()),
    "a head that trickles": drip(b"HTTP/1.1 200 OK\r\nX-Pad: " + b"x" * 1_000_000, pause_s=0.01),
    "a head without a body": play(sse(), stall()),
    "half a chunk size": play(sse(), raw(b"1"), stall()),
    "a 103": play(interim(103), stall()),
    "a chunk extension that trickles": play(sse(), drip(b"1;" + b"x" * 1_000_000, pause_s=0.01)),
}


@pytest.mark.parametrize("script", SLOW_STARTS.values(), ids=SLOW_STARTS.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_an_answer_that_does_not_begin_in_time_is_a_first_byte_timeout(
    provider_for: ProviderFor, gateway_for: GatewayFor, script: Script, stream: bool
) -> None:
    provider = await provider_for(timeouts=limits(first_byte=SHORT))
    provider.script = script
    gateway = await gateway_for(provider)
    message = said(await ask(gateway.port, chat(stream=stream)))
    assert "'rig'" in message and "first_byte timeout" in message and "0.4 s" in message
    await (await provider.next_call()).hung_up()
    assert len(provider.calls) == 1, "it was not sent twice: the machine may be at work on it"


async def test_after_a_first_byte_timeout_the_other_is_asked(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig = await provider_for("rig", owner="alice", timeouts=limits(first_byte=SHORT))
    rig.script = stall()
    other = await provider_for("other")
    gateway = await gateway_for(rig, other, users={"alice": {"keys": [KEY], "route": "prefer_own"}})
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"
    other.script = error(500, "it broke")
    message = said(await ask(gateway.port))
    assert "'rig' timed out: first_byte" in message and "'other' answered 500" in message


async def test_an_error_whose_body_hangs_does_not_hang_the_call(
    pair_of: tuple[FakeProvider, FakeProvider], gateway_for: GatewayFor
) -> None:
    rig, _ = pair_of
    rig.script = play(head(500, {"Content-Length": "99"}), raw(b"half"), stall())
    gateway = await gateway_for(*pair_of, users={"alice": {"keys": [KEY], "route": "prefer_own"}})
    assert (await ask(gateway.port)).header("x-gateway-provider") == "other"


@pytest.fixture
async def pair_of(provider_for: ProviderFor) -> tuple[FakeProvider, FakeProvider]:
    """alice's own `rig`, asked first, and `other`."""
    return await provider_for("rig", owner="alice"), await provider_for("other")


# Idle.


async def test_a_stream_that_falls_silent_is_an_idle_timeout(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts=limits(idle=SHORT))
    provider.script = play(sse(), word("Hel"), stall())
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert (response.status, response.ending) == (200, Ending.COMPLETE)
    message = response.events[-1]["error"]["message"]
    assert "'rig'" in message and "idle timeout" in message and "0.4 s" in message
    await (await provider.next_call()).hung_up()


async def test_a_buffered_answer_that_falls_silent_is_cut(
    provider_for: ProviderFor, program_for: ProgramFor
) -> None:
    provider = await provider_for(timeouts=limits(idle=SHORT))
    provider.script = play(head(200, {"Content-Length": "99"}), raw(b"{"), stall())
    program = await program_for(provider)
    await eventually(lambda: len(provider.probes) > 0)
    response = await ask(program.port)
    assert (response.status, bytes(response.body), response.ending) == (200, b"{", Ending.CUT)
    await (await provider.next_call()).hung_up()
    await program.says("idle timeout")


async def test_bytes_that_bring_no_content_do_not_keep_an_answer_alive(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts=limits(idle=SHORT))
    provider.script = play(sse(), word("Hel"), drip(b"1;" + b"x" * 1_000_000, pause_s=0.01))
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, chat(stream=True))
    assert "idle" in response.events[-1]["error"]["message"]


async def test_a_client_that_reads_slowly_is_not_an_idle_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    """While it reads nothing, the idle timeout of another stream runs out three times."""
    provider = await provider_for(timeouts=limits(idle=SHORT))
    total = 30_000_000
    provider.once(play(sse(), flood(total), end()))
    provider.script = play(sse(), word("Hel"), stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port, receive_buffer=65_536) as slow:
        await slow.send(chat(stream=True))
        exchange = await provider.next_call()
        response = await slow.head()
        for _ in range(3):
            timed_out = await ask(gateway.port, chat(stream=True))
            assert "idle" in timed_out.events[-1]["error"]["message"]
        assert 0 < exchange.written < total, "the provider is held back"
        while await slow.piece(response):
            pass
    assert response.ending is Ending.COMPLETE
    assert response.body == b"x" * total


async def test_behind_a_slow_client_a_silent_provider_is_still_noticed(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts=limits(idle=SHORT))
    provider.script = play(sse(), flood(30_000_000), stall())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port, receive_buffer=65_536) as slow:
        await slow.send(chat(stream=True))
        response = await slow.response()
    assert response.ending is Ending.COMPLETE
    assert b"idle timeout" in response.body[-500:]


# No total timeout.


async def test_an_answer_may_take_longer_than_all_limits_together(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    limit_s = 0.8  # many pauses, as the machine may be busy
    provider = await provider_for(timeouts=dict.fromkeys(LONG, f"{limit_s}s"))
    words = 50
    lasted: list[float] = []

    async def slowly(exchange: Exchange) -> None:
        for _ in range(words):
            await word("x")(exchange)
            await asyncio.sleep(0.05)
        lasted.append(asyncio.get_running_loop().time() - started)

    provider.script = play(sse(), slowly, done())
    gateway = await gateway_for(provider, health={"interval": "200ms", "timeout": f"{limit_s}s"})
    started = asyncio.get_running_loop().time()
    response = await ask(gateway.port, chat(stream=True))
    assert (len(response.events), response.events[-1]) == (words + 1, "[DONE]")
    assert lasted[0] > 3 * limit_s


async def test_a_first_byte_may_take_longer_than_idle(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    """The first call waits while the idle timeouts of others run out."""
    gate = asyncio.Event()

    async def cold(exchange: Exchange) -> None:
        await gate.wait()
        await answer(200, {"object": "chat.completion"})(exchange)

    provider = await provider_for(timeouts=limits(idle=SHORT))
    provider.once(cold)
    provider.script = play(sse(), word("Hel"), stall())
    gateway = await gateway_for(provider)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ask(gateway.port))
        await provider.next_call()
        for _ in range(2):
            assert "idle" in str((await ask(gateway.port, chat(stream=True))).events[-1])
        gate.set()
    assert first.result().status == 200
