"""What is refused without being looked at, and that nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import cast

import pytest

from llmgateway.http.body import Patience
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd
from llmgateway.http.doorstep import LOOK_AGAIN_S, Doorstep, target_of
from llmgateway.http.downstream import ClientConnection
from llmgateway.http.server import ClientServer
from tests.journey import eventually
from tests.raw_client import Ending, RawClient, request

CHAT = "/v1/chat/completions"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def post(*lines: str, body: bytes = b"{}") -> bytes:
    return request("POST", CHAT, *lines) + body


PLAIN = post("Content-Length: 2")


def test_a_request_that_is_here_as_a_whole_is_known_by_its_target() -> None:
    assert target_of(PLAIN) == CHAT
    assert target_of(post("content-length:2", "Connection: keep-alive")) == CHAT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PLAIN[:-1],
        PLAIN + PLAIN,
        PLAIN[: PLAIN.index(b"\r\n\r\n") + 2],
        request("GET", "/healthz"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        PLAIN.replace(CHAT.encode(), b"/a b"),
        post("Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
        post("Content-Length: 2", "Transfer-Encoding: chunked"),
        post("Content-Length: 2", "Content-Length: 2"),
        post("Content-Length: 2", "Content-Length : 3"),
        post("Content-Length: +2"),
        post("Content-Length: 2", "Expect: 100-continue"),
        post("Content-Length: 2", "Upgrade: websocket"),
        post("Content-Length: 2", "Connection: close"),
        post("Content-Length: 2", "Connection:close"),
        post("Content-Length: 2", "Connection: TE, close"),
        post("Content-Length: 2\r\n 3"),
        post("Content-Length: 2", "A: b\rContent-Length: 3"),
        post("Content-Length: 2", "A: b\nTransfer-Encoding: chunked"),
        post("Content-Length: 2").replace(CHAT.encode(), CHAT.encode() + b"x" * 2_000),
        post("Content-Length: 2", "Origin: https://chat.example"),
        post("Content-Length: 2", "X-Request-Id: mine"),
    ],
)
def test_whatever_is_special_about_a_request_is_for_those_who_understand_it(data: bytes) -> None:
    assert target_of(data) is None


class Door:
    """A server behind a doorstep, on which requests for a chat are refused in a rush."""

    def __init__(self, most: int = 100, look_again_s: float = LOOK_AGAIN_S) -> None:
        self.rush = True
        self.port = 0
        self.shed = 0
        self.crowd = Crowd(most, lambda: 0.0)
        self.doorstep = Doorstep(self, CHAT.__eq__, self._shed, self.crowd, look_again_s)
        self.server = ClientServer(_greet, Patience(), self.crowd, doorstep=self.doorstep)

    def arriving(self, many: int, late_s: float) -> None:
        raise AssertionError("nobody arrives here but by the listener")

    def _shed(self, target: str) -> bytes:
        self.shed += 1
        return REFUSED

    @asynccontextmanager
    async def open(self, *, let_in: bool = False) -> AsyncIterator[Door]:
        meet = partial(self.doorstep.meet, self.server, self.server.let_in)
        make = self.server.let_in if let_in else meet
        listener = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            self.doorstep.clear()
            await self.server.shutdown(1)


async def _greet(client: Client) -> None:
    client.request_id = "id-1"
    client.respond(200, b"{}")


async def status(client: RawClient, message: bytes) -> int:
    await client.send(message)
    return (await client.response()).status


async def test_a_new_connection_is_not_taken_in_for_a_refusal(nothing_leaks: None) -> None:
    async with Door().open() as door, RawClient(door.port) as client:
        assert [await status(client, PLAIN) for _ in range(3)] == [503] * 3
        assert not door.server.connections and len(door.doorstep.standing) == 1


async def test_what_is_not_refused_takes_its_connection_in(nothing_leaks: None) -> None:
    async with Door().open() as door, RawClient(door.port) as client:
        assert await status(client, PLAIN) == 503
        assert await status(client, request("GET", "/healthz")) == 200
        assert len(door.server.connections) == 1 and not door.doorstep.standing


async def test_a_request_that_comes_in_pieces_is_let_in_with_all_of_them(nothing_leaks: None) -> None:
    async with Door().open() as door, RawClient(door.port) as client:
        await client.send(PLAIN[:20], PLAIN[20:-1], PLAIN[-1:], pause_s=0.01)
        assert (await client.response()).status == 200


async def test_whoever_was_let_in_is_not_refused_what_it_was_let_in_for(nothing_leaks: None) -> None:
    async with Door().open(let_in=True) as door, RawClient(door.port) as client:
        await eventually(lambda: door.server.connections)
        connection = cast(ClientConnection, door.server.connections[0])
        await eventually(lambda: connection._waiter is not None)  # where Python is 3.12 or newer: at once
        assert await status(client, PLAIN) == 200 and not door.shed
        assert await status(client, PLAIN) == 503


async def test_whoever_came_before_and_has_not_asked_is_refused_as_well(nothing_leaks: None) -> None:
    async with Door().open() as door:
        door.rush = False
        async with RawClient(door.port) as client:
            await eventually(lambda: door.server.connections)
            connection = cast(ClientConnection, door.server.connections[0])
            await eventually(lambda: connection._waiter is not None)
            door.rush = True
            assert [await status(client, PLAIN) for _ in range(2)] == [503] * 2
            assert await status(client, request("GET", "/healthz")) == 200


async def test_a_connection_that_was_taken_in_before_is_refused_as_well_and_goes_on(
    nothing_leaks: None,
) -> None:
    async with Door().open() as door, RawClient(door.port) as client:
        door.rush = False
        assert await status(client, PLAIN) == 200
        door.rush = True
        assert [await status(client, PLAIN) for _ in range(2)] == [503] * 2
        assert await status(client, request("GET", "/healthz")) == 200
        door.rush = False
        assert await status(client, PLAIN) == 200
        assert door.shed == 2


async def test_nothing_is_refused_where_the_end_of_another_request_is_awaited(nothing_leaks: None) -> None:
    async with Door().open() as door, RawClient(door.port) as client:
        door.rush = False
        assert await status(client, PLAIN) == 200
        await client.send(request("POST", CHAT, f"Content-Length: {len(PLAIN)}")[:-9])
        door.rush = True
        connection = cast(ClientConnection, door.server.connections[0])
        await eventually(lambda: connection._head_timer)
        await client.send(request("POST", CHAT, f"Content-Length: {len(PLAIN)}")[-9:], PLAIN, pause_s=0.01)
        assert (await client.response()).status == 200 and not door.shed


async def test_who_stands_there_for_long_without_asking_is_taken_in(nothing_leaks: None) -> None:
    async with Door(look_again_s=0.01).open() as door, RawClient(door.port):
        await eventually(lambda: door.server.connections)
        assert not door.doorstep.standing


async def test_those_that_came_at_once_are_not_taken_in_at_once() -> None:
    doorstep = Door().doorstep
    assert len({doorstep.patience_s() for _ in range(200)}) == 200
    assert all(LOOK_AGAIN_S <= doorstep.patience_s() < 2 * LOOK_AGAIN_S for _ in range(1_000))


async def test_whoever_stands_there_counts_in_the_crowd_once_and_leaves_it_once(nothing_leaks: None) -> None:
    async with Door(most=2).open() as door:
        door.crowd.bound(2, ())
        async with RawClient(door.port) as one, RawClient(door.port) as other:
            assert [await status(each, PLAIN) for each in (one, other)] == [503] * 2
            async with RawClient(door.port) as third:  # one too many: heard out, for what is vital
                assert await status(third, PLAIN) == 503
                assert door.crowd.refused == 1
            assert await status(one, request("GET", "/")) == 200
        await eventually(lambda: not door.crowd._in_all)
        assert not door.crowd._of_each


async def test_at_the_end_those_that_stand_there_are_sent_away(nothing_leaks: None) -> None:
    door = Door()
    async with AsyncExitStack() as stack:
        async with door.open():
            client = await stack.enter_async_context(RawClient(door.port))
            assert await status(client, PLAIN) == 503
        assert await client.closed() is Ending.CUT and not door.doorstep.standing
