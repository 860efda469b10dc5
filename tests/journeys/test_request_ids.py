"""The id of a request: a client's own where it gave one, and one that every server takes at the provider."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette_context import context
from starlette_context.middleware import RawContextMiddleware
from starlette_context.plugins import RequestIdPlugin

from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY, eventually
from tests.journeys.test_errors import ANTHROPIC, OPENAI, ask, asking
from tests.raw_client import RawClient, request

BEARER = (f"Authorization: Bearer {KEY}",)
DASHED = "1b4e28ba-2fa1-4bd2-883f-0016d3cca427"


async def test_ours_are_uuids_each_another_one(provider: FakeProvider, gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(provider)
    seen = set()
    for path in (OPENAI, ANTHROPIC, OPENAI):
        response = await ask(gateway.port, asking(path))
        given = response.header("x-request-id") or ""
        assert len(given) == 32 and uuid.UUID(given).hex == given
        assert (uuid.UUID(given).version, uuid.UUID(given).variant) == (4, uuid.RFC_4122)
        assert provider.requests[-1].header("x-request-id") == given
        seen.add(given)
    assert len(seen) == 3
    for message in (request("GET", "/healthz"), asking(OPENAI, key=None), b"\r\x00\r\n\r\n"):
        async with RawClient(gateway.port) as client:
            await client.send(message)
            assert len((await client.response()).header("x-request-id") or "") == 32


@pytest.mark.parametrize("own", [DASHED, DASHED.upper(), DASHED.replace("-", "")])
async def test_a_clients_own_uuid_goes_on_to_the_provider(
    provider: FakeProvider, gateway_for: GatewayFor, own: str
) -> None:
    gateway = await gateway_for(provider)
    response = await ask(gateway.port, asking(OPENAI, None, None, f"X-Request-Id: {own}", *BEARER))
    assert response.header("x-request-id") == own == provider.requests[0].header("x-request-id")


@pytest.mark.parametrize(
    "own",
    [
        *("mine", "req_011CS", "0" * 31, "0" * 33, "g" * 32),
        *(DASHED[:-1], DASHED.replace("-", "", 1), f"urn:uuid:{DASHED}"),
    ],
)
async def test_any_other_id_of_a_client_is_its_own_and_the_provider_gets_one_of_ours(
    provider: FakeProvider, gateway_for: GatewayFor, own: str
) -> None:
    gateway = await gateway_for(provider)
    for _ in range(2):
        response = await ask(gateway.port, asking(OPENAI, None, None, f"X-Request-Id: {own}", *BEARER))
        assert response.header("x-request-id") == own
    ids = [sent.header("x-request-id") or "" for sent in provider.requests]
    assert all(uuid.UUID(each).hex == each for each in ids) and len(set(ids)) == 2
    refused = await ask(gateway.port, asking(ANTHROPIC, b"{", None, f"X-Request-Id: {own}", *BEARER))
    assert refused.header("x-request-id") == refused.json["request_id"] == own


@asynccontextmanager
async def llama_cpp_python() -> AsyncIterator[int]:
    """The part of its server that looks at ids: uvicorn with starlette-context; its port."""

    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "m"}]})

    async def chat(_: Request) -> JSONResponse:
        return JSONResponse({"seen": context["X-Request-ID"]})

    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ]
    )
    app.add_middleware(RawContextMiddleware, plugins=(RequestIdPlugin(),))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", loop="asyncio", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        await eventually(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)
        listener.close()


@pytest.mark.parametrize("own", [None, "mine", DASHED])
async def test_a_server_whose_middleware_takes_only_uuids_answers(
    gateway_for: GatewayFor, own: str | None
) -> None:
    async with llama_cpp_python() as port:
        gateway = await gateway_for(providers={"rig": {"url": f"http://127.0.0.1:{port}/v1"}})
        fields = [f"X-Request-Id: {own}"] if own else []
        response = await ask(gateway.port, asking(OPENAI, None, None, *fields, *BEARER))
        assert response.status == 200, response
        if own != "mine":
            assert response.json["seen"] == response.header("x-request-id")
