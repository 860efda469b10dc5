"""Bodies that are large, late or compressed: taken in within limits, looked at in steps, and let go in time.

Rules:

- No look at a body keeps the others waiting: whatever is long is done in steps.
- What is held in memory is charged to the room for bodies before it is held, and given back once an answer is
  being relayed, or the request has ended.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from llmgateway.access.keys import Caller
from llmgateway.api.endpoints import Body
from llmgateway.api.peek import NoModel, Peek, Unreadable
from llmgateway.api.skim import Skim
from llmgateway.books.entry import Entry
from llmgateway.config.settings import Config
from llmgateway.http.client import Client
from llmgateway.http.room import Hold, Room
from llmgateway.traffic.call import Call, CallReader, Forward, refuse_compressed, with_default
from llmgateway.traffic.proxy import Proxy

AT_ONCE_BYTES: Final = 32 * 1024
"""A body that is at hand and has no more than that is looked at without further ado."""
_WHOLE_BYTES: Final = 256 * 1024  # of a body that is looked at in one go, if it is no thicket
_MOST_COMMAS: Final = 8_000


class Freight:
    """Takes in the bodies that need some care, as one config wants it."""

    def __init__(self, config: Config, calls: CallReader, proxy: Proxy, room: Room) -> None:
        self._max_bytes = config.server.max_body
        self._default_model = config.server.default_model
        self._calls = calls
        self._proxy = proxy
        self._room = room

    async def carry(
        self, client: Client, route: Forward, caller: Caller, entry: Entry, body: Body | None
    ) -> None:
        """Have a request answered; `body` is what was at hand. Raises GatewayError."""
        with self._room.hold() as hold:
            call = await self._call(client, route, caller, entry, body, hold)
            del body  # it is the call's, which lets go of it
            call.outgoing.hold = hold
            if route.wanted:
                await self._proxy.recall(call, route.wanted, caller, client)
            else:
                await self._proxy.forward(call, caller, client)

    async def _call(
        self,
        client: Client,
        route: Forward,
        caller: Caller,
        entry: Entry,
        body: Body | None,
        hold: Hold,
    ) -> Call:
        refuse_compressed(client.head.named)
        asked_at = time.monotonic() if body is None else None
        if body is None:
            body = await client.body.read(self._max_bytes, hold, _WHOLE_BYTES)
        hold.grow_to(len(body))
        seen: Peek | None = None
        if route.endpoint.body == "json" and not (client.body.ended and _is_light(body)):
            body, seen = await self._skim(client, body, hold)
        while not client.body.ended:
            assert isinstance(body, bytearray)
            await self._add_to(body, client, hold)
        if asked_at is not None:
            entry.body_s = time.monotonic() - asked_at
        if route.wanted:
            return self._calls.recall(client, route, entry, body)
        call = self._calls.read(client, route, caller, entry, body, seen)
        if seen is not None:
            call.outgoing.model_at = seen.model_at
        return call

    async def _add_to(self, body: bytearray, client: Client, hold: Hold) -> None:
        """Wait for more of a body."""
        piece = await client.body.next_piece(self._max_bytes)
        hold.grow_to(len(body) + len(piece))
        body += piece

    async def _skim(self, client: Client, body: Body, hold: Hold) -> tuple[Body, Peek]:
        """Look at a body while it comes."""
        skim = Skim(body)
        try:
            await _in_steps(skim.look())
            while not client.body.ended:
                assert isinstance(body, bytearray)
                await self._add_to(body, client, hold)
                await _in_steps(skim.look())
        except Unreadable:
            del body, skim
            hold.release()
            while not client.body.ended:  # so that the connection serves on
                await client.body.next_piece(self._max_bytes)
            raise
        try:
            return body, skim.peek()
        except NoModel:
            if self._default_model is None:
                raise
        body = with_default(self._default_model, body, skim)
        hold.grow_to(len(body))
        skim = Skim(body)
        await _in_steps(skim.look())
        return body, skim.peek()


async def _in_steps(work: Iterator[None]) -> None:
    """Let others go on between the steps of some work."""
    for _ in work:
        await asyncio.sleep(0)


def _is_light(body: Body) -> bool:
    """Tell whether a body that is here can be looked at in one go."""
    return len(body) <= AT_ONCE_BYTES or (len(body) <= _WHOLE_BYTES and body.count(b",") <= _MOST_COMMAS)
