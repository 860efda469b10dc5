"""How many connections of clients there may be."""

from __future__ import annotations

from contextlib import AsyncExitStack

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings
from tests.raw_client import Ending, RawClient, request


async def test_connections_beyond_what_the_system_grants_are_told_so_counted_and_welcome_later(
    provider: FakeProvider,
) -> None:
    async with Gateway(build(settings(provider)), most_connections=3) as gateway, AsyncExitStack() as stack:
        first, *_ = [await stack.enter_async_context(RawClient(gateway.port)) for _ in range(3)]
        async with RawClient(gateway.port) as one_more:
            response = await one_more.response()
            assert (response.status, response.json["error"]["type"]) == (503, "overloaded")
            assert response.header("retry-after") == "5"
            assert response.ending is Ending.COMPLETE and await one_more.closed() is not Ending.OPEN
        await first.send(request("GET", "/metrics"))
        assert b"\ngateway_connections_refused_total 1.0\n" in (await first.response()).body
        first.leave()

        async def is_let_in() -> bool:
            async with RawClient(gateway.port) as another:
                await another.send(request("GET", "/healthz"))
                return (await another.response()).status == 200

        await eventually(is_let_in)
