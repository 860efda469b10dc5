"""The gateway behind a real nginx, Caddy, HAProxy and Envoy, with the very files that contrib/ offers."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import aiohttp
import pytest
from yarl import URL

from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.in_front import caddy, envoy, haproxy, nginx
from tests.journey import ASK, KEY
from tests.raw_client import chat, events
from tests.script import answer, completion, done, play, sse, stall, wait, word
from tests.websocket import PATH, echo, say, session

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

PROXIES = (nginx, caddy, haproxy, envoy)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running reverse proxy, and a client that trusts its certificate and has alice's key."""

    url: str
    http: aiohttp.ClientSession
    tls: ssl.SSLContext

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection of one's own. It ends like that of a process: without a TLS goodbye."""
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(self.url).port, ssl=self.tls)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @property
    def host(self) -> str:
        return URL(self.url).authority

    def chat(self, *, stream: bool = False, **options: Any) -> Any:
        """`async with proxy.chat() as response`."""
        return self.http.post(f"{self.url}/v1/chat/completions", json=ASK | {"stream": stream}, **options)


ProxyFor: TypeAlias = "Callable[..., Awaitable[Proxy]]"


@pytest.fixture(params=PROXIES, ids=lambda start: start.__name__)
async def behind(
    request: pytest.FixtureRequest, gateway_for: GatewayFor, tmp_path: Path, port: int
) -> AsyncIterator[ProxyFor]:
    """Put a reverse proxy in front of a gateway: `proxy = await behind(gateway)`."""
    async with AsyncExitStack() as stack:

        async def start(gateway: Gateway, *, under: str = "") -> Proxy:
            proxy = request.param([gateway.port], tmp_path, port, under=under)
            url, cert = await stack.enter_async_context(proxy)
            tls = ssl.create_default_context(cafile=str(cert))
            session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=aiohttp.ClientTimeout(total=HANG_S),
                connector=aiohttp.TCPConnector(ssl=tls),
            )
            return Proxy(url, await stack.enter_async_context(session), tls)

        yield start


async def read_events(response: aiohttp.ClientResponse, count: int) -> list[Any]:
    """Read until so many events have come."""
    body = b""
    while len(events(body)) < count:
        piece = await response.content.readany()
        assert piece, f"it ended after {body!r}"
        body += piece
    return events(body)


async def test_an_event_arrives_before_the_next_one_is_sent(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hello"), wait(gate), word(" world"), done())
    proxy = await behind(await gateway_for(provider))
    async with proxy.chat(stream=True) as response:
        [first] = await read_events(response, 1)
        gate.set()
        second, end = await read_events(response, 2)
    contents = [event["choices"][0]["delta"]["content"] for event in (first, second)]
    assert contents == ["Hello", " world"]
    assert end == "[DONE]"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "buffered"])
async def test_a_client_that_leaves_ends_the_work_at_the_provider(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor, stream: bool
) -> None:
    provider.script = play(sse(), word("Hello"), stall()) if stream else stall()
    proxy = await behind(await gateway_for(provider))
    async with asyncio.timeout(HANG_S), proxy.connection() as (reader, writer):
        # Caddy knows its sites by name.
        writer.write(chat(stream=stream).replace(b"Host: gateway", b"Host: " + proxy.host.encode()))
        exchange = await provider.next_call()
        if stream:
            await reader.readuntil(b"Hello")
    await exchange.hung_up()


async def test_a_large_body_passes_byte_for_byte(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    body = json.dumps(ASK | {"image": "x" * 5_000_000}).encode()
    proxy = await behind(await gateway_for(provider))
    async with proxy.http.post(f"{proxy.url}/v1/chat/completions", data=BytesIO(body)) as response:
        assert response.status == 200
    assert provider.requests[0].body == body


async def test_what_is_too_large_gets_the_gateways_own_words(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    proxy = await behind(await gateway_for(provider, server={"max_body": "1MB"}))
    async with proxy.http.post(
        f"{proxy.url}/v1/chat/completions", data=BytesIO(bytes(2_000_000))
    ) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "request_too_large"


# Not Caddy: Go's server takes up to 256 KiB of the body before it answers.
@pytest.mark.parametrize("behind", [nginx, haproxy, envoy], ids=lambda start: start.__name__, indirect=True)
async def test_a_wrong_key_is_told_before_the_body_was_sent(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    proxy = await behind(await gateway_for(provider))
    refused = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await refused.wait()  # for ever, where the proxy waits for the whole body
        yield b"}"

    headers = {"Authorization": "Bearer sk-wrong"}
    url = f"{proxy.url}/v1/chat/completions"
    async with proxy.http.post(url, data=body(), headers=headers) as response:
        assert response.status == 401
        refused.set()


async def test_the_request_id_of_the_client_survives_both_ways(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    provider.script = completion()
    proxy = await behind(await gateway_for(provider))
    async with proxy.chat(headers={"x-request-id": "mine-1"}) as response:
        assert response.status == 200
        assert response.headers["x-request-id"] == "mine-1"
        assert response.headers["x-gateway-provider"] == provider.name


async def test_an_error_of_a_provider_passes_as_it_is(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    provider.script = answer(400, {"error": {"message": "too long"}}, {"x-mine": "yes"})
    proxy = await behind(await gateway_for(provider))
    async with proxy.chat() as response:
        assert (response.status, response.headers["x-mine"]) == (400, "yes")
        assert await response.json() == {"error": {"message": "too long"}}


@pytest.mark.parametrize("under", ["", "/llm"], ids=["whole site", "under a path"])
async def test_the_metrics_are_not_for_the_world(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor, under: str
) -> None:
    # It trusts the proxy, and the client of this test is on this machine: the gateway itself would show them.
    server = {"base_path": under, "trusted_proxies": ["127.0.0.1"]}
    gateway = await gateway_for(provider, server=server)
    proxy = await behind(gateway, under=under)
    async with proxy.http.get(f"http://127.0.0.1:{gateway.port}{under}/metrics") as response:
        assert response.status == 200
    async with proxy.http.get(f"{proxy.url}/metrics") as response:
        assert response.status == 404


@pytest.mark.parametrize("under", ["", "/llm"], ids=["whole site", "under a path"])
async def test_a_websocket_passes_and_says_goodbye(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor, under: str
) -> None:
    provider.on[PATH] = session(say("hello"), echo())
    gateway = await gateway_for(provider, server={"base_path": under})
    proxy = await behind(gateway, under=under)
    async with proxy.http.ws_connect(f"{proxy.url}{PATH}?model=m") as socket:
        assert await socket.receive_str(timeout=HANG_S) == "hello"
        await socket.send_str("how are you")
        assert await socket.receive_str(timeout=HANG_S) == "how are you"
        draining = asyncio.ensure_future(gateway.drain())
        assert (await socket.receive(timeout=HANG_S)).data == 1001
    assert await draining


async def test_it_works_under_a_path(
    provider: FakeProvider, gateway_for: GatewayFor, behind: ProxyFor
) -> None:
    proxy = await behind(await gateway_for(provider, server={"base_path": "/llm"}), under="/llm")
    async with proxy.chat(stream=True) as response:
        assert response.status == 200
        assert (await read_events(response, 5))[-1] == "[DONE]"
    async with proxy.http.get(f"{proxy.url}/v1/models/m") as response:
        assert response.status == 200
