"""However many connections come at once, they are accepted at once."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

from llmgateway.http.arrivals import MOST_AT_ONCE, Arrivals
from tests.journey import eventually


class Counted(asyncio.Protocol):
    """Counts the connections that are there."""

    there = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counted.there += 1

    def connection_lost(self, exc: Exception | None) -> None:
        Counted.there -= 1


async def test_those_that_wait_behind_one_are_accepted_with_it(nothing_leaks: None) -> None:
    loop, Counted.there = asyncio.get_running_loop(), 0
    with socket.create_server(("127.0.0.1", 0), backlog=MOST_AT_ONCE) as listening, ExitStack() as stack:
        for _ in range(MOST_AT_ONCE):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        arrivals = Arrivals(Counted, listening, loop.connect_accepted_socket)
        arrivals()  # as a listener that has accepted one calls it
        await eventually(lambda: Counted.there == MOST_AT_ONCE and not arrivals._connecting)
        stack.close()
        await eventually(lambda: not Counted.there)


async def test_where_nobody_waits_nobody_is_waited_for(nothing_leaks: None) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arrivals = Arrivals(Counted, listening, loop.connect_accepted_socket)
        assert isinstance(arrivals(), Counted) and not arrivals._connecting


async def test_those_that_are_not_connected_yet_are_given_up_at_the_end(nothing_leaks: None) -> None:
    async def never(make: object, one: socket.socket) -> None:
        with one:
            await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        arrivals = Arrivals(Counted, listening, never)
        arrivals()
        assert len(arrivals._connecting) == 1
        arrivals.close()
        await eventually(lambda: not arrivals._connecting)
        assert not client.recv(1)


async def test_a_connection_that_fails_is_nothing_to_tell_of(nothing_leaks: None) -> None:
    async def failing(make: object, one: socket.socket) -> None:
        with one:
            raise ConnectionResetError

    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told))
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        arrivals = Arrivals(Counted, listening, failing)
        arrivals()
        await eventually(lambda: not arrivals._connecting)
    assert not said
