"""Servers built on ASGI, as vLLM is: a real uvicorn, with a realtime endpoint and without."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.conftest import GatewayFor, ProviderFor
from tests.guard import HANG_S
from tests.journey import KEY, eventually
from tests.journeys.test_accounting import booked
from tests.journeys.test_realtime import asked, socket_of
from tests.websocket import PATH, close, handshake, raw, session


async def _models(_: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [{"id": "m"}]})


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


@asynccontextmanager
async def uvicorn_with(*routes: BaseRoute) -> AsyncIterator[str]:
    """A server that has these routes beside its list of models; its URL."""
    app = Starlette(routes=[Route("/v1/models", _models), *routes])
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", loop="asyncio", lifespan="off", ws="websockets-sansio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        await eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)
        listener.close()


async def test_one_that_has_the_endpoint_talks(gateway_for: GatewayFor, http: aiohttp.ClientSession) -> None:
    async with uvicorn_with(WebSocketRoute(PATH, _echo)) as url:
        gateway = await gateway_for(providers={"rig": {"url": url}})
        async with http.ws_connect(socket_of(gateway), compress=15) as websocket:
            for said in ("hello", "x" * 200_000):
                await websocket.send_str(said)
                assert await websocket.receive_str(timeout=HANG_S) == said
        assert (await booked(gateway))["outcome"] == "ok"


async def test_one_that_has_it_not_says_403_which_is_no_fault_of_its_own(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    spare = await provider_for("spare")
    spare.on[PATH] = session(raw(close(1000, mask=False)))
    users = {"alice": {"keys": [KEY], "route": "prefer_own"}}
    async with uvicorn_with() as url:
        rig = {"url": url, "owner": "alice"}
        gateway = await gateway_for(spare, providers={"rig": rig}, users=users)
        for _ in range(6):
            response = await asked(gateway, handshake())
            assert (response.status, response.header("x-gateway-provider")) == (101, "spare")
        assert gateway.fleet.providers["rig"].conduct.spotless
        spare.on[PATH] = session()
        await spare.refuse()
        response = await asked(gateway, handshake())
        assert (response.status, response.header("x-gateway-provider")) == (403, "rig")
