"""However many connections come at once, they are accepted at once, and begun in an order."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress

import pytest

from llmgateway.config.load import build
from llmgateway.http.arrivals import (
    ACCEPTED_AT_ONCE,
    BEGUN_AT_ONCE,
    SILENT_AT_ONCE,
    STANDING_BY_ALWAYS,
    Arrivals,
    Connect,
)
from llmgateway.http.crowd import Crowd
from llmgateway.http.doorstep import Doorstep
from llmgateway.http.lobby import BEGUN_AT_ONCE as OF_THE_LOBBY
from llmgateway.http.lobby import BEGUN_IN_A_RUSH, REFUSED_AT_ONCE
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings
from tests.raw_client import chat, request

Connected = tuple[asyncio.BaseTransport, object]
CHAT = "/v1/chat/completions"
ASKING = request("POST", CHAT, "Content-Length: 2") + b"{}"
LOOKING = request("GET", "/healthz")
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Counted(asyncio.Protocol):
    """Counts the connections that are there."""

    there = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counted.there += 1

    def connection_lost(self, exc: Exception | None) -> None:
        Counted.there -= 1


class LetIn(Counted):
    """One that has waited."""


class Full:
    """As epoll where there may be no more of it."""

    def register(self, number: int, events: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")


def first_of(one: socket.socket) -> bytes:
    """The first bytes that have come; nothing if none have."""
    try:
        return one.recv(4)
    except BlockingIOError:
        return b""


class Place:
    """Somewhere to arrive; `came` are those that were begun, by the first bytes that they had sent.

    Before these stands how each has come in: `in` if its first request has waited, `met` if it was met at the
    doorstep in a rush.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.rush = False
        self.lets_in = 0
        self.most_arriving, self.late_s = 0, -1.0
        self.crowd = Crowd(10_000, lambda: 0.0)
        self.doorstep = Doorstep(self, CHAT.__eq__, self._shed, self.crowd)
        self.came: list[bytes] = []
        self._stack = stack
        self.listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4_096))

    def arriving(self, many: int, late_s: float) -> None:
        self.most_arriving = max(many, self.most_arriving)
        self.late_s = late_s

    def _shed(self, target: str) -> bytes | None:
        self.lets_in -= 1
        return None if self.lets_in >= 0 else REFUSED

    def arrivals(self, connect: Connect | None = None, *, legible: bool = True) -> Arrivals:
        arrivals = Arrivals(
            self.listening, self.doorstep, Counted, LetIn, connect or self._noted, legible=legible
        )
        self._stack.callback(arrivals.close)
        return arrivals

    async def all_in(self, arrivals: Arrivals) -> None:
        """Wait until nobody waits any more."""
        await eventually(
            lambda: not arrivals.standing_by and not self.doorstep.lobby and not arrivals._connecting
        )

    def client(self, sends: bytes = b"") -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(self.listening.getsockname()))
        client.sendall(sends)
        return client

    async def _noted(self, make: Callable[[], asyncio.Protocol], one: socket.socket) -> Connected:
        with one:
            made = make()
            how = b"in " if isinstance(made, LetIn) else b"" if isinstance(made, Counted) else b"met "
            self.came.append(how + first_of(one))
        return asyncio.BaseTransport(), None


@pytest.fixture
async def place(nothing_leaks: None) -> AsyncIterator[Place]:
    with ExitStack() as stack:
        yield Place(stack)


async def test_those_that_wait_behind_one_are_accepted_with_it(place: Place) -> None:
    Counted.there = 0
    clients = [place.client(LOOKING) for _ in range(ACCEPTED_AT_ONCE + 1)]
    arrivals = place.arrivals(asyncio.get_running_loop().connect_accepted_socket)
    arrivals()  # as a listener that has accepted one calls it
    assert arrivals.standing_by == ACCEPTED_AT_ONCE - BEGUN_AT_ONCE
    await eventually(lambda: Counted.there == ACCEPTED_AT_ONCE and not arrivals._connecting)
    arrivals()
    await eventually(lambda: Counted.there == ACCEPTED_AT_ONCE + 1 and not arrivals._connecting)
    for client in clients:
        client.close()
    await eventually(lambda: not Counted.there)


async def test_where_nobody_waits_nobody_is_waited_for(place: Place) -> None:
    arrivals = place.arrivals()
    assert isinstance(arrivals(), Counted) and not arrivals.standing_by and not place.most_arriving


async def test_whoever_can_wait_is_begun_behind_those_who_cannot(place: Place) -> None:
    for _ in range(2 * OF_THE_LOBBY):
        place.client(ASKING)
    place.client()
    place.client(LOOKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    assert len(place.doorstep.lobby) == 2 * OF_THE_LOBBY and not arrivals.standing_by
    await place.all_in(arrivals)
    assert place.came == [b"GET ", b"", *[b"in POST"] * 2 * OF_THE_LOBBY]
    assert place.most_arriving == 2 * OF_THE_LOBBY


@pytest.mark.parametrize(
    "asking",
    [
        ASKING[:-1],
        ASKING.replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("POST", CHAT, "Content-Length: 2", "Connection: close") + b"{}",
        request("POST", CHAT, "Content-Length: 2", "X-Request-Id: mine") + b"{}",
        request("POST", CHAT, "Transfer-Encoding: chunked"),
        request("POST", CHAT, "Content-Length: 90000") + b"x" * 90_000,
    ],
    ids=["unfinished", "HTTP 1.0", "closing", "with an id", "chunked", "long"],
)
async def test_what_is_special_about_a_request_lets_it_wait_no_less(place: Place, asking: bytes) -> None:
    for _ in range(3):
        place.client(asking)
    place.client(LOOKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    await place.all_in(arrivals)
    assert place.came == [b"GET ", *[b"in POST"] * 3]


async def test_how_long_they_have_stood_by_is_told(place: Place) -> None:
    for _ in range(3 * OF_THE_LOBBY):
        place.client(ASKING)
    arrivals = place.arrivals()
    asyncio.get_running_loop().call_soon(time.sleep, 0.005)
    arrivals.take_in()
    await place.all_in(arrivals)
    assert place.late_s > 0.0


async def test_who_has_too_many_connections_is_told_so_and_is_not_let_in_for_others(place: Place) -> None:
    place.rush, place.lets_in = True, 1
    place.crowd.bound(0, ())
    clients = [place.client(ASKING) for _ in range(BEGUN_IN_A_RUSH + 1)]
    arrivals = place.arrivals()
    arrivals.take_in()
    await place.all_in(arrivals)
    assert place.lets_in == 1 and place.crowd.refused == 1
    told = clients[-1].recv(4_096)
    assert told.startswith(b"HTTP/1.1 503 ") and b"too many connections from this address" in told
    await place.all_in(arrivals)


async def test_of_those_that_have_said_nothing_the_oldest_are_begun(place: Place) -> None:
    clients = [place.client() for _ in range(SILENT_AT_ONCE + 1)]
    arrivals = place.arrivals()
    arrivals.take_in()
    assert arrivals.standing_by == 1
    clients[0].sendall(LOOKING)  # it is begun, and its first bytes are read behind that
    await place.all_in(arrivals)
    assert place.came == [b"GET ", *[b""] * SILENT_AT_ONCE]


async def test_who_says_something_in_the_meantime_is_begun_where_that_belongs(place: Place) -> None:
    many = 10 * SILENT_AT_ONCE
    clients = [place.client() for _ in range(many)]
    arrivals = place.arrivals()
    arrivals.take_in()
    clients[-1].sendall(LOOKING)
    clients[-2].sendall(ASKING)
    clients[-3].close()
    await place.all_in(arrivals)
    looking, asking = place.came.index(b"GET "), place.came.index(b"in POST")
    assert looking < 3 * SILENT_AT_ONCE and asking < 4 * SILENT_AT_ONCE
    assert place.came.count(b"") == many - 3 and len(place.came) == many - 1
    assert not place.crowd.expected


async def test_in_a_rush_who_says_something_in_the_meantime_is_refused(place: Place) -> None:
    place.rush = True
    clients = [place.client() for _ in range(10 * SILENT_AT_ONCE)]
    arrivals = place.arrivals()
    arrivals.take_in()
    asking = clients[-BEGUN_IN_A_RUSH - 1 :]
    for client in asking:
        client.sendall(ASKING)
    await place.all_in(arrivals)
    assert place.came.count(b"met POST") == BEGUN_IN_A_RUSH
    assert place.came.count(b"met ") == len(clients) - len(asking) and place.lets_in == -1


async def test_where_the_system_has_no_epoll_those_that_say_nothing_are_like_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    for _ in range(BEGUN_AT_ONCE + 1):
        place.client()
    arrivals = place.arrivals()
    arrivals.take_in()
    assert arrivals.standing_by == 1
    await place.all_in(arrivals)
    assert len(place.came) == BEGUN_AT_ONCE + 1


async def test_those_that_are_half_made_at_the_end_are_ended(place: Place) -> None:
    Counted.there = 0
    clients = [place.client(LOOKING) for _ in range(BEGUN_AT_ONCE)]
    arrivals = place.arrivals(asyncio.get_running_loop().connect_accepted_socket)
    arrivals.take_in()
    await asyncio.sleep(0)  # they have begun, and are not connected
    arrivals.close()
    await arrivals.all_connected()
    await eventually(lambda: not Counted.there)
    assert len(clients) == BEGUN_AT_ONCE and not place.crowd.expected


async def test_all_of_those_that_wait_can_be_taken_in_however_little_room_there_is(place: Place) -> None:
    for _ in range(10_000):
        place.crowd.enter("")
    for _ in range(ACCEPTED_AT_ONCE + 1):
        place.client(LOOKING)
    arrivals = place.arrivals()
    arrivals.take_in_all()
    assert place.crowd.expected == ACCEPTED_AT_ONCE + 1 and not arrivals.standing_by
    await arrivals.all_connected()
    assert len(place.came) == ACCEPTED_AT_ONCE + 1


async def test_in_a_rush_most_are_told_so_and_closed_without_anything_being_made_of_them(
    place: Place,
) -> None:
    place.rush = True
    clients = [place.client(ASKING) for _ in range(BEGUN_IN_A_RUSH + REFUSED_AT_ONCE)]
    arrivals = place.arrivals()
    arrivals.take_in()
    await place.all_in(arrivals)
    assert place.came == [b"met POST"] * BEGUN_IN_A_RUSH and not place.crowd.expected
    told = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    for client in clients[BEGUN_IN_A_RUSH:]:
        assert client.recv(1_024) == told and not client.recv(1)


async def test_whoever_is_let_in_in_a_rush_is_counted_once(place: Place) -> None:
    place.rush, place.lets_in = True, 3
    for _ in range(BEGUN_IN_A_RUSH + REFUSED_AT_ONCE):
        place.client(ASKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    await place.all_in(arrivals)
    assert place.came[BEGUN_IN_A_RUSH:] == [b"in POST"] * 3
    assert place.lets_in == 3 - REFUSED_AT_ONCE


async def test_those_who_waited_before_a_rush_are_refused_as_well(place: Place) -> None:
    for _ in range(BEGUN_IN_A_RUSH + 9):
        place.client(ASKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    place.rush = True
    await place.all_in(arrivals)
    assert len(place.came) == BEGUN_IN_A_RUSH and place.lets_in == -9


async def test_who_left_in_the_meantime_is_nothing_to_tell_of(place: Place) -> None:
    place.rush = True
    for _ in range(BEGUN_IN_A_RUSH + 1):
        place.client(ASKING).close()
    arrivals = place.arrivals()
    arrivals.take_in()
    await place.all_in(arrivals)
    assert place.lets_in == -1


async def test_where_nothing_can_be_read_yet_nobody_is_looked_at(place: Place) -> None:
    place.rush = True
    place.client(ASKING)
    arrivals = place.arrivals(legible=False)
    arrivals.take_in()
    await eventually(lambda: place.came == [b"met POST"])


@pytest.mark.parametrize(("room", "most"), [(80, 80), (0, STANDING_BY_ALWAYS)])
async def test_no_more_stand_by_than_there_is_room_for(place: Place, room: int, most: int) -> None:
    for _ in range(10_000 - room):
        place.crowd.enter("")
    for _ in range(100):
        place.client(ASKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    assert place.crowd.expected == len(place.doorstep.lobby) == most
    await place.all_in(arrivals)


async def test_who_is_slow_with_a_handshake_is_not_waited_for(place: Place) -> None:
    async def never(make: object, one: socket.socket) -> Connected:
        with one:
            await asyncio.Event().wait()
        raise AssertionError

    place.client()
    arrivals = place.arrivals(never, legible=False)
    arrivals.take_in()
    await arrivals.all_connected()
    assert len(arrivals._connecting) == 1
    arrivals.close()
    await eventually(lambda: not arrivals._connecting)


async def test_those_that_are_not_connected_yet_are_given_up_at_the_end(place: Place) -> None:
    async def never(make: object, one: socket.socket) -> Connected:
        with one:
            await asyncio.Event().wait()
        raise AssertionError

    clients = [place.client() for _ in range(BEGUN_AT_ONCE + 1)]
    arrivals = place.arrivals(never, legible=False)
    arrivals()
    assert len(arrivals._connecting) == BEGUN_AT_ONCE and arrivals.standing_by == 1
    arrivals.close()
    await eventually(lambda: not arrivals._connecting)
    assert not any(client.recv(1) for client in clients) and not place.crowd.expected


async def test_a_connection_that_fails_is_nothing_to_tell_of(place: Place) -> None:
    async def failing(make: object, one: socket.socket) -> Connected:
        with one:
            raise ConnectionResetError

    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told))
    place.client()
    arrivals = place.arrivals(failing)
    arrivals()
    await eventually(lambda: not arrivals._connecting)
    assert not said


async def test_how_long_one_has_said_nothing_is_not_told(place: Place) -> None:
    clients = [place.client() for _ in range(SILENT_AT_ONCE + 1)]
    arrivals = place.arrivals()
    arrivals.take_in()
    assert arrivals._next_turn is not None and arrivals._silent is not None
    arrivals._next_turn.cancel()  # as if others were before it
    (arrival,) = arrivals._silent._them.values()
    arrival.at -= 3600.0
    clients[-1].sendall(ASKING)
    await eventually(lambda: place.most_arriving)
    assert 0.0 <= place.late_s < 3600.0
    await place.all_in(arrivals)


async def test_where_the_system_has_no_room_for_those_that_say_nothing_they_are_like_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals = place.arrivals()
    clients = [place.client() for _ in range(SILENT_AT_ONCE + 1)]
    with monkeypatch.context() as patch:
        patch.setattr(arrivals._silent, "epoll", Full())
        assert isinstance(arrivals(), Counted) and not arrivals.standing_by
    await place.all_in(arrivals)
    assert place.came == [b""] * len(clients)


async def test_what_goes_wrong_with_others_takes_nobodys_connection(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arrivals = place.arrivals()
    with monkeypatch.context() as patch:
        patch.setattr(place.doorstep, "crowd", None)
        assert isinstance(arrivals(), Counted)
    assert "accepting connections failed" in caplog.text


async def test_who_has_just_come_when_a_gateway_ends_is_sent_away(provider: FakeProvider) -> None:
    with ExitStack() as stack:
        async with Gateway(build(settings(provider))) as gateway:
            address = ("127.0.0.1", gateway.port)
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
            for client in clients[::2]:
                client.sendall(chat())
            await eventually(lambda: gateway._doorstep.crowd.expected, every=0)
        for client in clients:
            with suppress(ConnectionResetError):
                while client.recv(65_536):
                    pass


async def test_those_that_wait_when_a_gateway_leaves_its_port_to_others_are_told(
    gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"reuse_port": True})
    with ExitStack() as stack:
        address = ("127.0.0.1", gateway.port)
        clients = [
            stack.enter_context(socket.create_connection(address)) for _ in range(ACCEPTED_AT_ONCE + 1)
        ]
        for client in clients:
            client.sendall(chat())
            client.setblocking(False)
        await gateway.drain()
        loop = asyncio.get_running_loop()
        told = [await loop.sock_recv(client, 13) for client in clients]
    assert set(told) <= {b"HTTP/1.1 200 ", b"HTTP/1.1 503 "}
