"""How a WebSocket through the gateway ends: whoever leaves, stalls or falls silent, the other one is told."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp
import pytest
from websockets.frames import Close, Frame, Opcode

from llmgateway.config.load import build
from llmgateway.http.body import Patience
from tests.conftest import GatewayFor, ProgramFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually, settings
from tests.journeys.test_accounting import booked
from tests.journeys.test_backpressure import BOUND, MEMORY, ROOM, memory_bounded, settled
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import Ending
from tests.web.test_ending import ending, one_in_flight
from tests.web.visit import HOUSE, cookie_of, snapshot
from tests.websocket import (
    PATH,
    Act,
    RawSocket,
    Said,
    Session,
    close,
    echo,
    handshake,
    raw,
    say,
    session,
    text,
)

LONG = text("x" * 1_000, mask=False)
LONG_UP = text("x" * 1_000)


class Provider:
    """A provider's side that a test leads by hand."""

    def __init__(self, *acts: Act) -> None:
        self.opened: asyncio.Queue[Session] = asyncio.Queue()
        self._acts = acts
        self._over = asyncio.Event()

    async def __call__(self, exchange: Any) -> None:
        async def stay(here: Session) -> None:
            self.opened.put_nowait(here)
            await self._over.wait()

        await session(*self._acts, stay)(exchange)

    async def next(self) -> Session:
        async with asyncio.timeout(HANG_S):
            return await self.opened.get()


async def opened(
    provider: FakeProvider, gateway_port: int, *, client: RawSocket, acts: tuple[Act, ...] = ()
) -> Session:
    led = Provider(*acts)
    provider.on[PATH] = led
    assert (await client.open()).status == 101
    return await led.next()


async def heard(there: Session) -> Said:
    async with asyncio.timeout(HANG_S):
        return await there.listen()


async def told(client: RawSocket) -> Said:
    async with asyncio.timeout(HANG_S):
        return await client.listen()


@pytest.fixture(autouse=True)
def closing_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is cut for not having answered a close, unless a test says so."""
    monkeypatch.setattr("llmgateway.http.tunnel.CLOSING_S", 3_600.0)


# --- the gateway ends it ------------------------------------------------------------------------------------


async def test_draining_says_going_away_to_both_and_is_over_when_the_client_answers(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        draining = asyncio.ensure_future(gateway.drain())
        said, passed = await told(client), await heard(there)
        assert (said.opcode, said.code, said.masked) == (Opcode.CLOSE, 1001, False)
        assert b"shutting down" in said.data
        assert (passed.opcode, passed.code, passed.masked) == (Opcode.CLOSE, 1001, True)
        assert not draining.done()
        await client.send(close(1001))
        async with asyncio.timeout(HANG_S):
            assert await draining
        assert await client.closed() is Ending.CUT
    line = await booked(gateway)
    assert (line["status"], line["outcome"]) == (101, "draining")


async def test_a_close_waits_for_the_end_of_a_frame_and_nothing_follows_it(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await there.send(LONG[:500])
        await client.send(LONG_UP[:3])
        assert await client.exactly(500) == LONG[:500]
        assert await there.exchange.receive(3) == LONG_UP[:3]
        draining = asyncio.ensure_future(gateway.drain())
        await eventually(lambda: gateway.condition.draining)
        await there.send(LONG[500:] + text("too late", mask=False))
        assert await client.exactly(len(LONG) - 500) == LONG[500:]
        assert (await told(client)).code == 1001
        await client.send(LONG_UP[3:] + text("too late"))
        assert await there.exchange.receive(len(LONG_UP) - 3) == LONG_UP[3:]
        assert (await heard(there)).code == 1001
        await client.send(close(1001))
        assert await draining
        assert await client.closed() is Ending.CUT


async def test_a_client_that_does_not_answer_a_close_is_cut_after_a_while(
    provider: FakeProvider, gateway_for: GatewayFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmgateway.http.tunnel.CLOSING_S", 0.05)
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await there.send(LONG[:500])
        assert await client.exactly(500)
        assert await gateway.drain()
        assert await client.closed() is Ending.CUT


async def test_who_waits_for_a_slot_is_refused_when_draining_begins(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(slots=1)
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client, RawSocket(gateway.port) as other:
        await opened(provider, gateway.port, client=client)
        await other.send(handshake())
        await eventually(lambda: gateway.slots.line.depth("m") == 1)
        draining = asyncio.ensure_future(gateway.drain())
        refusal(await other.response(to="GET"), 503, "draining", PATH)
        assert (await told(client)).code == 1001
        client.leave()
        await draining


async def test_the_program_that_gets_a_signal_says_goodbye_and_ends(
    provider: FakeProvider, program_for: ProgramFor
) -> None:
    provider.on[PATH] = session(say("hello"), echo())
    program = await program_for(provider)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(
            f"http://127.0.0.1:{program.port}{PATH}?model=m", headers={"Authorization": f"Bearer {KEY}"}
        ) as socket,
    ):
        assert await socket.receive_str(timeout=HANG_S) == "hello"
        program.signal(signal.SIGTERM)
        message = await socket.receive(timeout=HANG_S)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    finished = await program.ended()
    assert finished.code == 0
    assert "Traceback" not in finished.err


async def test_what_a_gateway_behind_another_says_reaches_the_client(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    inner = await gateway_for(provider)
    outer = await gateway_for(providers={"inner": {"url": f"{inner.url}/v1", "api_key": KEY}})
    async with RawSocket(outer.port) as client:
        there = await opened(provider, outer.port, client=client)
        await client.send(text("hello"))
        assert (await heard(there)).data == b"hello"
        draining = asyncio.ensure_future(inner.drain())
        assert Close.parse((await told(client)).data) == Close(1001, "The gateway is shutting down.")
        await client.send(close(1001))
        assert await draining
        assert await client.closed() is Ending.CUT
    assert (await booked(outer))["outcome"] == "ok"


async def test_an_admin_ends_a_session_which_is_told_so(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, users=HOUSE)
    cookie = await cookie_of(gateway)
    async with RawSocket(gateway.port) as client:
        await opened(provider, gateway.port, client=client)
        assert (await ask(gateway.port, ending(await one_in_flight(gateway), cookie))).status == 204
        said = await told(client)
        assert Close.parse(said.data) == Close(1008, "The request was ended by alice on the gateway's page.")
        await client.send(close(1008))
        assert await client.closed() is Ending.CUT
    line = await booked(gateway)
    assert (line["status"], line["outcome"]) == (101, "cancelled")


async def test_a_gateway_that_stops_at_once_still_says_going_away(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        await opened(provider, gateway.port, client=client)
        stopping = asyncio.ensure_future(gateway.__aexit__())
        assert (await told(client)).code == 1001
        await stopping


# --- the provider ends it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_of_a_provider_that_vanishes_the_client_is_told(
    provider: FakeProvider, gateway_for: GatewayFor, how: str
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client, acts=(say("hello"),))
        assert (await told(client)).data == b"hello"
        getattr(there.exchange, how)()
        said = await told(client)
        assert (said.opcode, said.code) == (Opcode.CLOSE, 1011)
        assert b"'rig' closed the connection" in said.data
        await client.send(close(1011))
        assert await client.closed() is Ending.CUT
    line = await booked(gateway)
    assert (line["status"], line["outcome"]) == (101, "truncated")
    assert gateway.fleet.providers["rig"].in_flight == 0


async def test_a_provider_that_never_says_close_is_not_taken_for_a_broken_one(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    provider.on[PATH] = session(say("hello"))
    gateway = await gateway_for(provider)
    for _ in range(8):
        async with RawSocket(gateway.port) as client:
            assert (await client.open()).status == 101
            assert (await told(client)).data == b"hello"
            assert (await told(client)).code == 1011
    assert (await booked(gateway, 8))["outcome"] == "truncated"
    assert gateway.fleet.providers["rig"].conduct.spotless


async def test_in_the_middle_of_a_frame_nothing_can_be_told_and_it_is_cut(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await there.send(LONG[:-1])
        assert await client.exactly(len(LONG) - 1) == LONG[:-1]
        there.exchange.cut()
        with pytest.raises(EOFError):
            await told(client)
    assert (await booked(gateway))["outcome"] == "truncated"


async def test_a_provider_that_closes_properly_has_ended_it_well(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    """It may hang up behind its Close: the client's answer goes nowhere then, but is waited for."""
    provider.on[PATH] = session(raw(close(1000, "done", mask=False)))
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        assert (await client.open()).status == 101
        assert Close.parse((await told(client)).data) == Close(1000, "done")
        await client.send(text("one more word"), close(1000))
        assert await client.closed() is Ending.CUT
    assert (await booked(gateway))["outcome"] == "ok"


async def test_a_provider_that_hangs_up_on_a_close_has_ended_it_well(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await client.send(close(1000))
        assert (await heard(there)).code == 1000
        there.exchange.cut()
        with pytest.raises(EOFError):
            await told(client)
    assert (await booked(gateway))["outcome"] == "ok"


async def test_where_a_frame_can_have_no_end_any_more_nobody_waits_for_it(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await there.send(LONG[:500])
        assert await client.exactly(500)
        draining = asyncio.ensure_future(gateway.drain())
        await eventually(lambda: gateway.condition.draining)
        there.exchange.cut()
        async with asyncio.timeout(HANG_S):
            assert await draining
            assert await client.closed() is Ending.CUT


async def test_a_provider_that_stays_behind_both_closes_is_left(
    provider: FakeProvider, gateway_for: GatewayFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmgateway.http.tunnel.CLOSING_S", 0.05)
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await client.send(close(1000))
        assert (await heard(there)).code == 1000
        await there.send(close(1000, mask=False))
        assert (await told(client)).code == 1000
        assert await client.closed() is Ending.CUT
    assert (await booked(gateway))["outcome"] == "ok"


# --- the client ends it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [RawSocket.leave, RawSocket.reset], ids=["FIN", "RST"])
async def test_a_client_that_vanishes_ends_the_work_at_once(
    provider: FakeProvider, gateway_for: GatewayFor, how: Any
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        await opened(provider, gateway.port, client=client)
        how(client)
        await eventually(lambda: gateway.fleet.providers["rig"].in_flight == 0)
        await eventually(lambda: provider.connections <= 1)
    line = await booked(gateway)
    assert (line["status"], line["outcome"]) == (101, "client_gone")


async def test_a_client_that_says_close_and_goes_has_ended_it_well(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await client.send(close(1000))
        assert (await heard(there)).code == 1000
        client.leave()
        assert (await booked(gateway))["outcome"] == "ok"


async def test_who_leaves_while_the_handshake_is_under_way_leaves_nothing(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    asked = asyncio.Event()

    async def never(exchange: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    provider.on[PATH] = never
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        await client.send(handshake())
        await asked.wait()
    line = await booked(gateway)
    assert (line["status"], line["outcome"]) == (499, "client_gone")
    assert gateway.fleet.providers["rig"].in_flight == 0


# --- who does not read --------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_holds_the_provider_back_and_then_gets_all(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    count, block = 1_500, bytes(65_536)
    frame = Frame(Opcode.BINARY, block).serialize(mask=False)
    sent = 0

    async def flood(here: Session) -> None:
        nonlocal sent
        for _ in range(count):
            await here.send(frame)
            sent += len(frame)

    provider.on[PATH] = session(flood, raw(close(1000, mask=False)), echo())
    gateway = await gateway_for(provider)
    with memory_bounded(MEMORY):
        async with RawSocket(gateway.port, receive_buffer=ROOM) as client:
            assert (await client.open()).status == 101
            await eventually(lambda: sent > 0)
            assert await settled(lambda: sent) < BOUND
            for _ in range(count):
                assert (await told(client)).data == block
            assert (await told(client)).code == 1000
            await client.send(close(1000))
            assert await client.closed() is Ending.CUT


async def test_a_provider_that_does_not_read_holds_the_client_back_and_then_gets_all(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    count, block = 1_000, bytes(65_536)
    frame = Frame(Opcode.BINARY, block).serialize(mask=True)
    gateway = await gateway_for(provider)
    sent = 0

    async def flood(client: RawSocket) -> None:
        nonlocal sent
        for _ in range(count):
            await client.send(frame)
            sent += len(frame)

    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        there.exchange.stop_reading()
        with memory_bounded(MEMORY):
            flooding = asyncio.ensure_future(flood(client))
            await eventually(lambda: sent > 0)
            assert await settled(lambda: sent) < BOUND
        there.exchange.read_on()
        for _ in range(count):
            assert len(await there.exchange.receive(len(frame))) == len(frame)
        await flooding


async def test_a_client_that_never_reads_again_is_cut(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    async def flood(here: Session) -> None:
        while True:
            await here.send(LONG * 100)

    provider.on[PATH] = session(flood)
    gateway = await gateway_for(provider, patience=Patience(stall_s=0.2))
    async with RawSocket(gateway.port, receive_buffer=ROOM) as client:
        assert (await client.open()).status == 101
        assert (await booked(gateway))["outcome"] == "client_gone"


async def test_a_provider_that_never_reads_again_is_given_up(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts={"idle": "300ms"})
    gateway = await gateway_for(provider)

    async def flood(client: RawSocket) -> None:
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                await client.send(LONG_UP * 100)

    async def chatter(here: Session) -> None:
        while True:
            await here.send(text("x", mask=False))
            await asyncio.sleep(0.02)

    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        there.exchange.stop_reading()
        talking = asyncio.ensure_future(chatter(there))
        flooding = asyncio.ensure_future(flood(client))
        while (said := await told(client)).opcode is not Opcode.CLOSE:
            pass
        assert said.code == 1011
        assert b"idle timeout" in said.data
        talking.cancel()
        client.leave()
        flooding.cancel()
    async with asyncio.timeout(HANG_S):  # it is heard that the client has left
        assert (await booked(gateway))["outcome"] == "truncated"
    there.exchange.read_on()


# --- silence ------------------------------------------------------------------------------------------------


async def test_in_silence_both_are_asked_and_who_answers_may_stay_silent(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, streams={"keepalive": "50ms"})
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        for _ in range(3):
            asked, also = await told(client), await heard(there)
            assert (asked.opcode, asked.data, asked.masked) == (Opcode.PING, b"", False)
            assert (also.opcode, also.data, also.masked) == (Opcode.PING, b"", True)
        await client.send(Frame(Opcode.PONG, b"").serialize(mask=True))
        while (passed := await heard(there)).opcode is Opcode.PING:
            pass
        assert passed.opcode is Opcode.PONG


async def test_a_ping_never_stands_inside_a_frame(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider, streams={"keepalive": "20ms"})
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        await there.send(LONG[:10])
        while (await heard(there)).opcode is not Opcode.PING:
            pass
        assert (await heard(there)).opcode is Opcode.PING  # the client would have been asked as well by now
        await there.send(LONG[10:])
        while (said := await told(client)).opcode is Opcode.PING:
            pass
        assert said.data == b"x" * 1_000


async def test_a_client_that_answers_nothing_is_gone(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts={"idle": "1s"})
    gateway = await gateway_for(provider)

    async def pongs(there: Session) -> None:
        while True:
            if (await there.listen()).opcode is Opcode.PING:
                await there.send(Frame(Opcode.PONG, b"").serialize(mask=False))

    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        answering = asyncio.ensure_future(pongs(there))
        assert (await booked(gateway))["outcome"] == "client_gone"
        answering.cancel()


async def test_a_provider_that_answers_nothing_has_failed(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider = await provider_for(timeouts={"idle": "1s"})
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        await opened(provider, gateway.port, client=client)
        while (said := await told(client)).opcode is Opcode.PING:
            await client.send(Frame(Opcode.PONG, b"").serialize(mask=True))
        assert said.code == 1011
        assert b"idle timeout" in said.data
        client.leave()
    assert (await booked(gateway))["outcome"] == "truncated"
    assert not gateway.fleet.providers["rig"].conduct.spotless


# --- another config -----------------------------------------------------------------------------------------


async def test_a_session_does_not_outlive_its_key(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    keys = {name: f"sk-{name}-{'k' * 40}" for name in ("alice", "bob")}
    users = {name: {"keys": [key]} for name, key in keys.items()}
    gateway = await gateway_for(provider, users=users, streams={"keepalive": "50ms"})
    provider.on[PATH] = Provider()
    async with RawSocket(gateway.port) as gone, RawSocket(gateway.port) as stays:
        shown = f"Sec-WebSocket-Protocol: openai-insecure-api-key.{keys['alice']}"
        await gone.send(handshake(shown, key=None))
        await stays.send(handshake(f"Authorization: Bearer {keys['bob']}", key=None))
        for client in (gone, stays):
            assert (await client.head(to="GET")).status == 101
        assert (await told(gone)).opcode is Opcode.PING
        gateway.adopt(build(settings(provider, users={"bob": users["bob"]}, streams={"keepalive": "50ms"})))
        async with asyncio.timeout(HANG_S):
            while (said := await told(gone)).opcode is Opcode.PING:
                pass
        assert Close.parse(said.data) == Close(1008, "Invalid API key.")
        gone.leave()
        assert (await booked(gateway))["outcome"] == "invalid_api_key"
        for _ in range(10):
            assert (await told(stays)).opcode is Opcode.PING


async def test_a_session_outlives_a_config_that_has_no_place_for_its_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    provider, other = await provider_for(), await provider_for("other")
    gateway = await gateway_for(provider)
    async with RawSocket(gateway.port) as client:
        there = await opened(provider, gateway.port, client=client)
        gateway.adopt(build(settings(other)))
        await there.send(text("still here", mask=False))
        assert (await told(client)).data == b"still here"
        await client.send(text("me too"))
        assert (await heard(there)).data == b"me too"
        client.leave()
    assert (await booked(gateway))["provider"] == "rig"
    await eventually(lambda: provider.connections == 0)
    assert (await snapshot(gateway))["providers"][0]["name"] == "other"
