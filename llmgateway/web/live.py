"""The live page's news: the snapshot as JSON, and its changes as events for as long as somebody looks.

Whoever looks is asked anew before each event, so that a session that has ended, or a key, shows no more.

Every request is answered through its Client, but for the events: they are written by aiohttp's own response,
by way of aiohttp-sse. That frames them, pings, bounds how long a viewer may take, and has the system give up
on one that is gone. To have it write through the Client would take a writer of ours behind an interface of
aiohttp's that is not promised, for this one page; so it writes on the connection by itself, and the
connection is closed behind it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from aiohttp_sse import EventSourceResponse

from llmgateway.errors import FORBIDDEN, INVALID_REQUEST, OVERLOADED, GatewayError, draining
from llmgateway.http.client import Client
from llmgateway.log import last_lines
from llmgateway.web.routes import NO_STORE, PAGE, Page
from llmgateway.web.status import Status
from llmgateway.web.visitors import Visitors

PERIOD_S: Final = 0.5
"""The least time between two snapshots for one viewer."""
MOST_VIEWERS: Final = 100
MOST_VIEWERS_OF_A_USER: Final = 20
VIEWERS_RETRY_S: Final = 30
_JSON: Final = f"Content-Type: application/json\r\n{NO_STORE}".encode()


class Live:
    """Shows what the gateway is doing, once or until the viewer leaves."""

    def __init__(self, status: Status, visitors: Visitors, recall: Callable[[], Awaitable[None]]) -> None:
        """Show what `status` knows; `recall` is awaited before anybody is shown what was used."""
        self._status = status
        self._visitors = visitors
        self._recall = recall
        self._viewers: dict[Client, str] = {}
        self._closing = asyncio.Event()
        self.routes: Mapping[str, Page] = {
            PAGE + "status": Page(self._snapshot),
            PAGE + "events": Page(self._events, ("GET",)),
            PAGE + "log": Page(self._log),
        }

    def drain(self) -> None:
        """Send viewers away, those who do not read by force: their connections would hold the end up."""
        self._closing.set()
        for transport in [viewer.request.transport for viewer in self._viewers]:
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()

    async def _snapshot(self, client: Client) -> None:
        viewer = self._visitors.who(client, by_session=True, by_config=True)
        await self._recall()
        cookie = self._visitors.renewed(client)
        lines = _JSON + f"Set-Cookie: {cookie}\r\n".encode() if cookie else _JSON
        client.respond(200, orjson.dumps(self._status.snapshot(viewer, wall=time.time())), lines)

    async def _log(self, client: Client) -> None:
        if not self._visitors.who(client, by_session=True).admin:
            raise GatewayError(FORBIDDEN, "The log is for admins.")
        client.respond(200, orjson.dumps({"lines": last_lines()}), _JSON)

    async def _events(self, client: Client) -> None:
        user = self._visitors.who(client, by_session=True).user
        if self._closing.is_set():
            raise draining()
        if client.version < (1, 1):
            raise GatewayError(INVALID_REQUEST, "Events need HTTP/1.1.")
        own = sum(other == user for other in self._viewers.values())
        if len(self._viewers) >= MOST_VIEWERS or own >= MOST_VIEWERS_OF_A_USER:
            again = (("Retry-After", str(VIEWERS_RETRY_S)),)
            raise GatewayError(OVERLOADED, "There are too many viewers already.", again)
        self._viewers[client] = user
        try:
            await self._recall()
            await self._stream(client)
        except (ConnectionError, TimeoutError):
            pass  # it left, or does not read
        finally:
            del self._viewers[client]

    async def _stream(self, client: Client) -> None:
        cookie = self._visitors.renewed(client)
        renewing = {"Set-Cookie": cookie} if cookie else {}
        response = EventSourceResponse(headers={"x-request-id": client.request_id, **renewing})
        await response.prepare(client.request)
        client.status = response.status
        client.started = True
        async with response:
            await self._show(client, response)
        await response.write_eof()

    async def _show(self, client: Client, response: EventSourceResponse) -> None:
        """Send a snapshot whenever something has changed, for as long as the viewer may look."""
        last: dict[str, Any] = {}
        while not self._closing.is_set():
            try:
                viewer = self._visitors.who(client, by_session=True)
            except GatewayError:
                return
            if self._visitors.is_to_renew(client):
                return  # it comes again, and is given another cookie
            snapshot = self._status.snapshot(viewer, wall=time.time())
            if (lasting := _lasting(snapshot)) != last:
                last = lasting
                await response.send(orjson.dumps(snapshot).decode(), event="snapshot")
            try:
                async with asyncio.timeout(PERIOD_S):
                    await self._closing.wait()
            except TimeoutError:
                pass


def _lasting(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a snapshot what changes only because time passes: viewers have clocks of their own."""
    return {
        **snapshot,
        "gateway": {**snapshot["gateway"], "now": None},
        "requests": [{**row, "age_s": None} for row in snapshot["requests"]],
        "limits": [{**row, "resets_in_s": None} for row in snapshot["limits"]],
    }
