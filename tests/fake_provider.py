"""A scripted LLM server over real sockets, without an HTTP library, so that it can misbehave at every byte.

    async with FakeProvider("rig", models=["m"]) as provider:
        provider.once(error(500))                     # the next call
        provider.script = stream("Hello", " world")   # all calls after that
        ...
        exchange = await provider.next_call()         # the first call that nobody has asked for yet
        await exchange.hung_up()

It answers `GET /v1/models` by itself (`provider.on` overrides any path) and any other GET with 404. A
script that fails also fails the test, when the provider closes. The port stays reserved between `refuse`
and `come_back`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

from tests.exchange import Exchange, Request, Script, Wire
from tests.guard import HANG_S
from tests.script import answer, error, listing, polite
from tests.secrecy import watch


class FakeProvider:
    """One fake LLM server. Further keywords are its settings in the gateway's config, such as `owner`."""

    def __init__(
        self,
        name: str = "rig",
        *,
        models: Iterable[str | Mapping[str, Any]] = ("m",),
        key: str | None = None,
        **settings: Any,
    ) -> None:
        self.name = name
        self.models = list(models)
        self.key = key
        """Where set, every request without this Bearer key is answered with 401."""
        self.settings = settings
        self.script: Script = polite()
        self.before_body: Script | None = None
        """Runs when the head of a call has come, before its body is read."""
        self.on: dict[str, Script] = {}
        self.calls: list[Exchange] = []
        """Every exchange but the GETs."""
        self.probes: list[Request] = []
        """Every GET."""
        self.accepted = 0
        """How many connections there have been."""
        self._once: deque[Script] = deque()
        self._unseen: asyncio.Queue[Exchange] = asyncio.Queue()
        self._wires: set[Wire] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        await self.come_back()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.refuse()
        self._reserved.close()
        if self._failures and kind is None:
            raise BaseExceptionGroup(f"scripts of {self.name} failed", self._failures)

    @property
    def url(self) -> str:
        """The OpenAI base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def entry(self) -> dict[str, Any]:
        """What stands in the gateway's config under `providers.NAME`; a busy machine may connect slowly."""
        settings = {**self.settings, "timeouts": {"connect": "1h", **self.settings.get("timeouts", {})}}
        return {"url": self.url, **({"api_key": self.key} if self.key else {}), **settings}

    @property
    def requests(self) -> list[Request]:
        """The requests of all calls, in the order in which they came."""
        return [exchange.request for exchange in self.calls]

    @property
    def looks(self) -> list[Request]:
        """The GETs of the list of models, one for each probe; what else a probe asks for depends on it."""
        return [probe for probe in self.probes if probe.target == "/v1/models"]

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._wires)

    @property
    def callers(self) -> list[str]:
        """Who is connected now: their addresses, and what they have sent that was not yet taken."""
        return [f"{wire.peer}, which sent {bytes(wire.received[:40])!r}" for wire in self._wires]

    def once(self, *scripts: Script) -> None:
        """Answer the next calls so, one script each, before going back to `script`."""
        self._once.extend(scripts)

    async def next_call(self, within: float = HANG_S) -> Exchange:
        """The next call in the order of arrival; wait for it."""
        try:
            async with asyncio.timeout(within):
                return await self._unseen.get()
        except TimeoutError:
            raise AssertionError(f"{self.name} got no call within {within} s") from None

    async def refuse(self) -> None:
        """Go away: drop every connection, and refuse new ones."""
        if self._server:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        wires = list(self._wires)
        async with asyncio.timeout(HANG_S):
            await asyncio.gather(
                *(wire.made.wait() for wire in wires)
            )  # of one just accepted, that comes next
            for wire in wires:
                wire.transport.abort()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(wire.closed.wait() for wire in wires))

    async def stop_accepting(self) -> None:
        """Refuse new connections; those that exist live on."""
        if self._server:
            self._server.close()
            self._server = None

    async def come_back(self) -> None:
        """Listen on the same port as before."""
        listener = _bound(self.port)
        listener.listen(1024)
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=listener)

    def drop_idle(self) -> None:
        """Close every connection, as a server does with those that idled for too long."""
        for wire in self._wires:
            wire.transport.close()

    def _accept(self) -> Wire:
        self.accepted += 1
        wire = Wire(self.accepted)
        self._wires.add(wire)
        task = asyncio.get_running_loop().create_task(self._serve(wire), name=f"fake provider {self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._served)
        return wire

    def _served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            self._failures.append(failure)

    async def _serve(self, wire: Wire) -> None:
        await wire.made.wait()
        try:
            while not wire.transport.is_closing():
                await self._exchange(wire)
        except (EOFError, ConnectionError):
            pass
        finally:
            wire.transport.close()
            try:
                await wire.closed.wait()
            finally:
                self._wires.discard(wire)

    async def _exchange(self, wire: Wire) -> None:
        received = await wire.until(b"\r\n\r\n")
        exchange = Exchange(_parse(received, wire), wire)
        from_gateway = exchange.request.header("via") is not None
        if from_gateway:
            watch.received(self.port, received)
        try:
            if self.before_body and exchange.request.method != "GET":
                self._record(exchange)
                await exchange.perform(self.before_body)
                if exchange.complete or wire.transport.is_closing():
                    return wire.transport.close()
            exchange.request = replace(exchange.request, body=await _body(exchange.request, wire))
            if from_gateway:
                watch.received(self.port, exchange.request.body)
            self._record(exchange)
            await exchange.perform(self._script_for(exchange.request))
        finally:
            exchange.finish()

    def _record(self, exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            self.probes.append(exchange.request)
        elif exchange not in self.calls:
            self.calls.append(exchange)
            self._unseen.put_nowait(exchange)

    def _script_for(self, request: Request) -> Script:
        path = request.target.partition("?")[0]
        if self.key and request.header("authorization") != f"Bearer {self.key}":
            return error(401, "Invalid API Key", "authentication_error")
        if path in self.on:
            return self.on[path]
        if request.method == "GET":
            return (
                listing(*self.models)
                if path == "/v1/models"
                else error(404, "File Not Found", "not_found_error")
            )
        return self._once.popleft() if self._once else self.script


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """The base URL of a server whose connections are never made: its queue of new ones is full (Linux)."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/v1"
    finally:
        for each in (*fillers, full):
            each.close()


def redirect(to: str) -> Script:
    """A 307 that must not be followed."""
    return answer(307, b"", {"Location": to})


def _bound(port: int) -> socket.socket:
    """A socket that holds the port; without `listen` the kernel refuses connections to it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", port))
    return holder


def _parse(head: bytes, wire: Wire) -> Request:
    first, *fields = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = first.split(" ", 2)
    headers = [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]
    return Request(method, target, version, headers, b"", wire.number)


async def _body(request: Request, wire: Wire) -> bytes:
    if "chunked" in (request.header("transfer-encoding") or "").lower():
        pieces = []
        while size := int((await wire.until(b"\r\n")).split(b";")[0], 16):
            pieces.append(await wire.exactly(size))
            await wire.exactly(2)
        await wire.until(b"\r\n")
        return b"".join(pieces)
    return await wire.exactly(int(request.header("content-length") or 0))
