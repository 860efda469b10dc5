"""How many connections of clients there may be."""

from __future__ import annotations

from contextlib import AsyncExitStack

from llmgateway.config.load import build
from llmgateway.http.body import Patience
from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings
from tests.raw_client import Ending, RawClient, chat, request
from tests.script import stall


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


async def test_where_there_are_too_many_connections_it_still_tells_how_it_is(provider: FakeProvider) -> None:
    async with Gateway(build(settings(provider)), most_connections=3) as gateway, AsyncExitStack() as stack:
        _ = [await stack.enter_async_context(RawClient(gateway.port)) for _ in range(3)]
        for target, status in (("/healthz", 200), ("/metrics", 200), ("/v1/models", 503), ("/gateway/", 503)):
            async with RawClient(gateway.port) as one_more:
                await one_more.send(request("GET", target))
                response = await one_more.response()
                assert (target, response.status) == (target, status)
                assert response.header("connection") == "close" and response.header("x-request-id")


async def test_an_address_has_a_bound_of_its_own_that_a_new_config_moves(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(server={"connections_per_address": 2}, patience=Patience(spare_s=0.1))
    async with AsyncExitStack() as stack:
        _ = [await stack.enter_async_context(RawClient(gateway.port)) for _ in range(2)]
        async with RawClient(gateway.port) as one_more:
            response = await one_more.response()
            assert (response.status, response.json["error"]["type"]) == (503, "overloaded")
            assert "from this address" in response.json["error"]["message"]
        async with RawClient(gateway.port) as one_more:
            await one_more.send(request("GET", "/healthz"))
            assert (await one_more.response()).status == 200
        gateway.adopt(build(settings(server={"connections_per_address": 4})))
        async with RawClient(gateway.port) as one_more:
            await one_more.send(request("GET", "/v1/models"))
            assert (await one_more.response()).status == 200


def from_behind(address: str) -> bytes:
    return chat(None, f"X-Forwarded-For: {address}")


async def test_behind_a_trusted_proxy_each_has_as_many_requests_as_it_may_have_connections(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    at_once, provider.script = provider.script, stall()
    server = {"connections_per_address": 1, "trusted_proxies": ["127.0.0.1"]}
    gateway = await gateway_for(provider, server=server)
    async with RawClient(gateway.port) as one, RawClient(gateway.port) as same:
        await one.send(from_behind("192.0.2.1"))
        await provider.next_call()
        await same.send(from_behind("192.0.2.1"))
        response = await same.response()
        assert (response.status, response.header("x-gateway-error")) == (503, "overloaded")
        provider.script = at_once
        await same.send(from_behind("192.0.2.2"))
        assert (await same.response()).status == 200
        one.leave()

        async def is_let_in() -> bool:
            await same.send(from_behind("192.0.2.1"))
            return (await same.response()).status == 200

        await eventually(is_let_in)


async def test_who_is_not_trusted_cannot_speak_for_others(gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(server={"connections_per_address": 1})
    async with RawClient(gateway.port), RawClient(gateway.port) as other:
        await other.send(from_behind("192.0.2.2"))
        assert (await other.response()).status == 503
