"""Many clients at once, calls that end when they are told to, and what is seen of the queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.exchange import Exchange, Script
from tests.journey import KEY, eventually
from tests.raw_client import RawClient, Response, chat
from tests.script import answer, polite

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

BOB = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyz"
FAMILY = {"alice": {"keys": [KEY]}, "bob": {"keys": [BOB]}}
QUICK = {"interval": "50ms", "timeout": "10m"}
LLAMA = [{"id": "m", "owned_by": "llamacpp"}]

Send = Callable[..., Awaitable[RawClient]]


@asynccontextmanager
async def crowd(port: int) -> AsyncIterator[Send]:
    """Clients that send a request each, on a connection of their own, and read their answers when asked."""
    async with AsyncExitStack() as stack:

        async def send(message: bytes | None = None) -> RawClient:
            client = await stack.enter_async_context(RawClient(port))
            await client.send(message or chat())
            return client

        yield send


async def ask(port: int, message: bytes | None = None) -> Response:
    """One request on a connection of its own, and its answer."""
    async with crowd(port) as send:
        return await (await send(message)).response()


def ask_for(model: str = "m", *, key: str = KEY, stream: bool = False, **more: Any) -> bytes:
    """A chat request for a model, by whoever has the key."""
    said = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}
    return chat(json.dumps(said).encode(), key=key)


class Turns:
    """A script whose calls are worked on until they are told to end, in the order of their arrival."""

    def __init__(self) -> None:
        self._allowed = asyncio.Semaphore(0)

    async def __call__(self, exchange: Exchange) -> None:
        await self._allowed.acquire()
        await polite()(exchange)

    def end(self, count: int = 1) -> None:
        """Let so many calls be answered."""
        for _ in range(count):
            self._allowed.release()


def props(slots: int) -> Script:
    """What llama.cpp tells of itself."""
    return answer(200, {"default_generation_settings": {"n_ctx": 4096}, "total_slots": slots})


async def waiting(gateway: Gateway, count: int, model: str = "m") -> None:
    """Wait until so many wait for a model."""
    await eventually(
        lambda: gateway.slots.line.depth(model) == count,
        saying=lambda: f"{gateway.slots.line.depth(model)} wait, not {count}",
    )


async def all_given_back(gateway: Gateway) -> None:
    """Wait until nobody waits and no slot is taken."""

    def taken() -> dict[str, int]:
        found = {name: provider.in_flight for name, provider in gateway.fleet.providers.items()}
        return {name: count for name, count in found.items() if count}

    await eventually(lambda: not taken(), saying=lambda: f"slots were not given back: {taken()}")
    assert gateway.slots.line.depth("m") == 0


def overloaded(response: Response) -> int:
    """The seconds after which a 503 says to try again."""
    assert (response.status, response.header("x-gateway-error")) == (503, "overloaded")
    assert response.json["error"]["type"] == "overloaded"
    return int(response.header("retry-after") or 0)
