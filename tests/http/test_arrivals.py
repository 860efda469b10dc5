"""However many connections come at once, they are accepted at once, and begun in an order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pytest

from llmgateway.http.arrivals import (
    ACCEPTED_AT_ONCE,
    BEGUN_AT_ONCE,
    BEGUN_IN_A_RUSH,
    LATER_AT_ONCE,
    REFUSED_AT_ONCE,
    STANDING_BY_ALWAYS,
    Arrivals,
    Connect,
)
from llmgateway.http.crowd import Crowd
from llmgateway.http.doorstep import Doorstep
from tests.journey import eventually
from tests.raw_client import request

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


class Place:
    """Somewhere to arrive; `came` are those that were begun, by the first bytes that they had sent."""

    def __init__(self, stack: ExitStack) -> None:
        self.rush = False
        self.lets_in = 0
        self.most_arriving = 0
        self.crowd = Crowd(10_000, lambda: 0.0)
        self.doorstep = Doorstep(self, CHAT.__eq__, self._shed, self.crowd)
        self.came: list[bytes] = []
        self._stack = stack
        self.listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4_096))

    def arriving(self, many: int) -> None:
        self.most_arriving = max(many, self.most_arriving)

    def _shed(self, target: str) -> bytes | None:
        self.lets_in -= 1
        return None if self.lets_in >= 0 else REFUSED

    def arrivals(self, connect: Connect | None = None, *, legible: bool = True) -> Arrivals:
        arrivals = Arrivals(self.listening, self.doorstep, Counted, connect or self._noted, legible=legible)
        self._stack.callback(arrivals.close)
        return arrivals

    def client(self, sends: bytes = b"") -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(self.listening.getsockname()))
        client.sendall(sends)
        return client

    async def _noted(self, make: Callable[[], asyncio.Protocol], one: socket.socket) -> None:
        with one:
            self.came.append(one.recv(4) if make is Counted else b"met " + one.recv(4))


@pytest.fixture
async def place(nothing_leaks: None) -> AsyncIterator[Place]:
    with ExitStack() as stack:
        yield Place(stack)


async def test_those_that_wait_behind_one_are_accepted_with_it(place: Place) -> None:
    Counted.there = 0
    clients = [place.client() for _ in range(ACCEPTED_AT_ONCE)]
    arrivals = place.arrivals(asyncio.get_running_loop().connect_accepted_socket)
    arrivals()  # as a listener that has accepted one calls it
    assert arrivals.standing_by == ACCEPTED_AT_ONCE - BEGUN_AT_ONCE
    await eventually(lambda: Counted.there == ACCEPTED_AT_ONCE and not arrivals._connecting)
    for client in clients:
        client.close()
    await eventually(lambda: not Counted.there)


async def test_where_nobody_waits_nobody_is_waited_for(place: Place) -> None:
    arrivals = place.arrivals()
    assert isinstance(arrivals(), Counted) and not arrivals.standing_by and not place.most_arriving


async def test_whoever_can_wait_is_begun_behind_those_who_cannot(place: Place) -> None:
    for _ in range(2 * LATER_AT_ONCE):
        place.client(ASKING)
    place.client(LOOKING)
    place.client()  # nothing is known of it
    arrivals = place.arrivals()
    arrivals.take_in()
    assert place.most_arriving == 2 * LATER_AT_ONCE and arrivals.standing_by == LATER_AT_ONCE
    await eventually(lambda: not arrivals.standing_by and not arrivals._connecting)
    assert place.came == [b"met GET ", *[b"met POST"] * 2 * LATER_AT_ONCE]


async def test_in_a_rush_most_are_told_so_and_closed_without_anything_being_made_of_them(
    place: Place,
) -> None:
    place.rush = True
    clients = [place.client(ASKING) for _ in range(BEGUN_IN_A_RUSH + REFUSED_AT_ONCE)]
    arrivals = place.arrivals()
    arrivals.take_in()
    assert not arrivals.standing_by
    await eventually(lambda: not arrivals._connecting)
    assert place.came == [b"met POST"] * BEGUN_IN_A_RUSH
    told = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    for client in clients[BEGUN_IN_A_RUSH:]:
        assert client.recv(1_024) == told and not client.recv(1)


async def test_whoever_is_let_in_in_a_rush_is_counted_once(place: Place) -> None:
    place.rush, place.lets_in = True, 3
    for _ in range(BEGUN_IN_A_RUSH + REFUSED_AT_ONCE):
        place.client(ASKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    await eventually(lambda: not arrivals._connecting)
    assert place.came[BEGUN_IN_A_RUSH:] == [b"POST"] * 3
    assert place.lets_in == 3 - REFUSED_AT_ONCE


async def test_those_who_waited_before_a_rush_are_refused_as_well(place: Place) -> None:
    for _ in range(LATER_AT_ONCE + BEGUN_IN_A_RUSH + 9):
        place.client(ASKING)
    arrivals = place.arrivals()
    arrivals.take_in()
    place.rush = True
    await eventually(lambda: not arrivals.standing_by and not arrivals._connecting)
    assert len(place.came) == LATER_AT_ONCE + BEGUN_IN_A_RUSH and place.lets_in == -9


async def test_who_left_in_the_meantime_is_nothing_to_tell_of(place: Place) -> None:
    place.rush = True
    for _ in range(BEGUN_IN_A_RUSH + 1):
        place.client(ASKING).close()
    arrivals = place.arrivals()
    arrivals.take_in()
    assert place.lets_in == -1 and not arrivals.standing_by
    await eventually(lambda: not arrivals._connecting)


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
    assert arrivals.standing_by == most - LATER_AT_ONCE
    await eventually(lambda: not arrivals.standing_by and not arrivals._connecting)


async def test_those_that_are_not_connected_yet_are_given_up_at_the_end(place: Place) -> None:
    async def never(make: object, one: socket.socket) -> None:
        with one:
            await asyncio.Event().wait()

    clients = [place.client() for _ in range(BEGUN_AT_ONCE + 1)]
    arrivals = place.arrivals(never)
    arrivals()
    assert len(arrivals._connecting) == BEGUN_AT_ONCE and arrivals.standing_by == 1
    arrivals.close()
    await eventually(lambda: not arrivals._connecting)
    assert not any(client.recv(1) for client in clients)


async def test_a_connection_that_fails_is_nothing_to_tell_of(place: Place) -> None:
    async def failing(make: object, one: socket.socket) -> None:
        with one:
            raise ConnectionResetError

    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told))
    place.client()
    arrivals = place.arrivals(failing)
    arrivals()
    await eventually(lambda: not arrivals._connecting)
    assert not said
