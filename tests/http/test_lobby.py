"""Requests that come at once wait unread, and are begun in an order; what cannot wait is not behind them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from llmgateway.config.load import build
from llmgateway.http.body import Patience
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd
from llmgateway.http.doorstep import Doorstep
from llmgateway.http.downstream import ClientConnection
from llmgateway.http.lobby import BEGUN_AT_ONCE, BEGUN_IN_A_RUSH, MOST_HELD, REFUSED_AT_ONCE
from llmgateway.http.server import ClientServer
from llmgateway.service.gateway import Gateway
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings
from tests.raw_client import chat, request

CHAT = "/v1/chat/completions"
LOOKING = request("GET", "/healthz")
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def asking(name: int, size: int = 4) -> bytes:
    """Ask for a chat, with that name as the beginning of the body."""
    return request("POST", CHAT, f"Content-Length: {size}") + b"%04d" % name + b"x" * (size - 4)


class Room:
    """A server with a lobby; `heard` are the targets and names of what came through it, in order."""

    def __init__(self) -> None:
        self.rush = False
        self.most_arriving = 0
        self.refused = 0
        self.heard: list[str] = []
        crowd = Crowd(10_000, lambda: 0.0)
        self.doorstep = Doorstep(self, CHAT.__eq__, self._shed, crowd)
        self.server = ClientServer(self._answer, Patience(), crowd, doorstep=self.doorstep)
        self.clients: list[socket.socket] = []

    def arriving(self, many: int, late_s: float) -> None:
        self.most_arriving = max(many, self.most_arriving)

    def _shed(self, target: str) -> bytes:
        self.refused += 1
        return REFUSED

    async def _answer(self, client: Client) -> None:
        body = await client.body.read(1_000_000)
        self.heard.append(body[:4].decode() or client.raw_path)
        client.request_id = "id-1"
        client.respond(200, b"{}")

    @asynccontextmanager
    async def open(self, clients: int) -> AsyncIterator[Room]:
        """Have so many clients that are connected, and have asked for nothing yet."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.server, "127.0.0.1", 0, backlog=1_024)
        try:
            with ExitStack() as stack:
                for _ in range(clients):
                    address = listener.sockets[0].getsockname()
                    self.clients.append(stack.enter_context(socket.create_connection(address)))
                await eventually(lambda: len(self.idle) == clients)
                yield self
        finally:
            listener.close()
            self.doorstep.clear()
            await self.server.shutdown(1)

    @property
    def idle(self) -> list[ClientConnection]:
        connections = self.server.connections
        return [each for each in connections if isinstance(each, ClientConnection) and each._is_idle]


@pytest.fixture
async def room(nothing_leaks: None) -> Room:
    return Room()


async def somebody_waits(doorstep: Doorstep) -> None:
    """Look in every turn, as nobody waits for long."""
    await eventually(lambda: doorstep.lobby, every=0)


async def test_of_many_that_ask_at_once_each_waits_for_those_before_it_and_a_page_for_nobody(
    room: Room,
) -> None:
    many = 5 * BEGUN_AT_ONCE
    async with room.open(many + 1) as here:
        *asking_ones, looking_one = here.idle
        for name, connection in enumerate(asking_ones):
            connection.data_received(asking(name))
        looking_one.data_received(LOOKING)
        await eventually(lambda: len(here.heard) == many + 1)
        names = [f"{name:04}" for name in range(many)]
        assert here.heard == [*names[:BEGUN_AT_ONCE], "/healthz", *names[BEGUN_AT_ONCE:]]
        assert here.most_arriving == many - BEGUN_AT_ONCE


async def test_however_many_ask_at_once_all_are_answered(room: Room) -> None:
    many = 20 * BEGUN_AT_ONCE
    async with room.open(many) as here:
        for _ in range(2):
            here.heard.clear()
            for name, client in enumerate(here.clients):
                client.sendall(asking(name))
            await eventually(lambda: len(here.heard) == len(here.idle) == many)
            assert len(set(here.heard)) == many


@pytest.mark.parametrize(
    ("rush", "in_a_turn"), [(False, BEGUN_AT_ONCE), (True, BEGUN_IN_A_RUSH + REFUSED_AT_ONCE)]
)
async def test_a_turn_is_short_however_many_wait(room: Room, rush: bool, in_a_turn: int) -> None:
    many = 3 * in_a_turn
    room.rush = rush
    async with room.open(many) as here:
        for name, connection in enumerate(here.idle):
            here.doorstep.lobby.hold(connection, asking(name), 0.0)
        for turn in (1, 2, 3):
            await asyncio.sleep(0)
            assert len(here.doorstep.lobby) == many - turn * in_a_turn
        await eventually(lambda: len(here.heard) + here.refused == many)


async def test_where_few_ask_nobody_waits(room: Room) -> None:
    async with room.open(BEGUN_AT_ONCE) as here:
        for name, client in enumerate(here.clients):
            client.sendall(asking(name))
        await eventually(lambda: len(here.heard) == BEGUN_AT_ONCE)
        assert not here.most_arriving


async def test_in_a_rush_those_that_wait_are_refused_on_connections_that_go_on(room: Room) -> None:
    many = BEGUN_IN_A_RUSH + REFUSED_AT_ONCE
    async with room.open(many) as here:
        for name, connection in enumerate(here.idle):
            here.doorstep.lobby.hold(connection, asking(name), 0.0)
        here.rush = True
        await eventually(lambda: len(here.heard) + here.refused == many)
        assert here.refused == REFUSED_AT_ONCE
        assert [client.recv(12) for client in here.clients].count(b"HTTP/1.1 503") == REFUSED_AT_ONCE
        for client in here.clients:
            client.sendall(LOOKING)
        await eventually(lambda: here.heard.count("/healthz") == many)


async def test_who_leaves_while_it_waits_is_forgotten(room: Room) -> None:
    many = 3 * BEGUN_AT_ONCE
    async with room.open(many) as here:
        for name, connection in enumerate(here.idle):
            here.doorstep.lobby.hold(connection, asking(name), 0.0)
        assert connection.transport is not None
        connection.transport.abort()
        await eventually(lambda: len(here.heard) == many - 1 and not here.doorstep.lobby)
        assert f"{many - 1:04}" not in here.heard


async def test_what_comes_behind_a_request_that_waits_waits_with_it(room: Room) -> None:
    async with room.open(1) as here:
        (connection,) = here.idle
        whole = asking(1) + LOOKING
        here.doorstep.lobby.hold(connection, whole[:60], 0.0)
        connection.data_received(whole[60:])
        assert connection.held is not None
        await eventually(lambda: len(here.heard) == 2)
        assert here.heard == ["0001", "/healthz"]


@pytest.mark.parametrize("first", [100, MOST_HELD + 1])
async def test_what_is_long_does_not_wait(room: Room, first: int) -> None:
    async with room.open(1) as here:
        (connection,) = here.idle
        for _ in range(BEGUN_AT_ONCE):
            here.doorstep.lobby.lets_pass()
        whole = asking(1, MOST_HELD + 1_000)
        connection.data_received(whole[:first])
        assert (connection.held is None) == (first > MOST_HELD)
        connection.data_received(whole[first:])
        assert connection.held is None
        await eventually(lambda: here.heard == ["0001"])
        await eventually(lambda: not here.doorstep.lobby)


async def test_a_connection_is_not_idle_while_something_of_it_waits(room: Room) -> None:
    async with room.open(1) as here:
        (connection,) = here.idle
        here.doorstep.lobby.hold(connection, asking(1), 0.0)
        connection._next_keepalive_close_time = 0.0
        connection._process_keepalive()
        assert connection._keepalive_handle is not None  # it is looked at later
        await eventually(lambda: here.heard == ["0001"] and connection._is_idle)
        connection._next_keepalive_close_time = 0.0
        connection._process_keepalive()
        await eventually(lambda: not here.server.connections)


async def test_a_turn_that_fails_is_not_the_last_one(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told["exception"]))
    async with room.open(1) as here:
        (connection,) = here.idle
        with monkeypatch.context() as patch:
            patch.setattr(here, "arriving", lambda many: None)  # which takes something else
            here.doorstep.lobby.hold(connection, asking(1), 0.0)
            await eventually(lambda: said)
        await eventually(lambda: here.heard == ["0001"])
    assert all(isinstance(each, TypeError) for each in said)


async def test_those_that_wait_when_it_is_over_are_forgotten_without_a_turn(room: Room) -> None:
    async with room.open(1) as here:
        (connection,) = here.idle
        here.doorstep.lobby.hold(connection, asking(1), 0.0)
        here.doorstep.clear()
        assert not here.doorstep.lobby
        connection.held = None
        here.doorstep.lobby.hold(connection, asking(2), 0.0)
        await eventually(lambda: here.heard == ["0002"])


async def test_those_that_wait_when_a_gateway_stops_are_served(provider: FakeProvider) -> None:
    many = 5 * BEGUN_AT_ONCE
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        async with Gateway(build(settings(provider))) as gateway:
            address = ("127.0.0.1", gateway.port)
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(many)]
            for client in clients:
                client.sendall(LOOKING)
                client.setblocking(False)
            for client in clients:
                assert (await loop.sock_recv(client, 4_096)).startswith(b"HTTP/1.1 200 ")
            for client in clients:
                client.sendall(chat())
            await somebody_waits(gateway._doorstep)
            waiting = len(gateway._doorstep.lobby)
            await gateway.drain()
        told = [await loop.sock_recv(client, 12) for client in clients]
    assert set(told) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"} and told.count(b"HTTP/1.1 200") >= waiting
