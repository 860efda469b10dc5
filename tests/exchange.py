"""One exchange of the fake provider with its client: what came, and all that a server may do in answer.

Scripts (`script.py`) perform on an `Exchange`. Nothing here keeps the rules of HTTP unless the script does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tests.guard import HANG_S

Headers = Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request exactly as it came; a chunked body is joined, nothing else is touched."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    """1 for the first connection that this provider accepted, 2 for the second, ..."""

    def header(self, name: str) -> str | None:
        """The values of one header, joined by commas; None when it did not come."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Wire(asyncio.Protocol):
    """One connection of the fake provider: bytes in, bytes out, and when the other side went away."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.peer: object = None
        self.received = bytearray()
        self.made = asyncio.Event()
        self.gone = asyncio.Event()
        self.gone_at: float | None = None
        self.closed = asyncio.Event()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        self.transport.set_write_buffer_limits(high=0)  # a write counts once the kernel has all of it
        self.peer = transport.get_extra_info("peername")
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()

    def eof_received(self) -> bool:
        self._other_side_left()
        return True  # stay half open: what happens next is the script's business

    def connection_lost(self, exc: Exception | None) -> None:
        self._other_side_left()
        self._writable.set()
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        if self.closed.is_set() or self.transport.is_closing():
            raise ConnectionResetError("the connection of this exchange is closed")
        self.transport.write(data)
        await self._writable.wait()
        if self.closed.is_set():
            raise ConnectionResetError("the connection went away with a part of this in its buffer")

    async def until(self, delimiter: bytes) -> bytes:
        """Read up to and including the delimiter; raise EOFError when the other side leaves before."""
        while (end := self.received.find(delimiter)) < 0:
            await self._more()
        return self._take(end + len(delimiter))

    async def exactly(self, size: int) -> bytes:
        while len(self.received) < size:
            await self._more()
        return self._take(size)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    async def _more(self) -> None:
        if self.gone.is_set():
            raise EOFError
        self._news.clear()
        await self._news.wait()

    def _take(self, size: int) -> bytes:
        taken = bytes(memoryview(self.received)[:size])
        del self.received[:size]
        return taken

    def _other_side_left(self) -> None:
        if not self.gone.is_set():
            self.gone_at = time.monotonic()
            self.gone.set()
        self._news.set()


class Exchange:
    """What a script performs on. `complete` is set just before the last byte of a proper answer."""

    def __init__(self, request: Request, wire: Wire) -> None:
        self.request = request
        self.complete = False
        self.left_early = False
        """The client hung up before the answer was complete."""
        self.started_at = time.monotonic()
        self._wire = wire
        self._closed_here = False
        self._sent = 0
        self._sending = 0
        self._over = asyncio.Event()

    @property
    def written(self) -> int:
        """How many bytes of the answer the kernel has taken so far."""
        if not self._sending or self._wire.closed.is_set():
            return self._sent
        return self._sent + self._sending - min(self._wire.transport.get_write_buffer_size(), self._sending)

    @property
    def hung_up_at(self) -> float | None:
        """`time.monotonic()` of the moment when the client left, if it left early."""
        return self._wire.gone_at if self.left_early else None

    async def hung_up(self, within: float = HANG_S) -> None:
        """Wait until the client leaves before the answer is complete; fail if it does not."""
        try:
            async with asyncio.timeout(within):
                await self._over.wait()
        except TimeoutError:
            raise AssertionError(f"the client did not hang up within {within} s") from None
        assert self.left_early, "the exchange came to its own end; nobody hung up"

    async def over(self, within: float = HANG_S) -> None:
        """Wait until the exchange has ended, in whatever way."""
        async with asyncio.timeout(within):
            await self._over.wait()

    # What a script does.

    async def send(self, data: bytes) -> None:
        """Write raw bytes; return once the kernel has taken them all."""
        self._sending = len(data)
        await self._wire.write(data)
        self._sent += len(data)
        self._sending = 0

    async def receive(self, size: int) -> bytes:
        """Read so many bytes of what comes behind the request. Raises EOFError when the client leaves."""
        return await self._wire.exactly(size)

    async def head(self, status: int = 200, headers: Headers = None, *, reason: str = "Whatever") -> None:
        """Send a status line and headers; how the body is framed is the caller's business."""
        lines = [
            f"HTTP/1.1 {status} {reason}",
            *(f"{key}: {value}" for key, value in (headers or {}).items()),
        ]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        """Send one HTTP chunk."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: Any) -> None:
        """Send one SSE event in a chunk of its own."""
        await self.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    async def end(self) -> None:
        """Send the last chunk: the body is complete."""
        self.complete = True
        await self.send(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes, headers: Headers = None) -> None:
        """Send a whole answer with a Content-Length, in one write."""
        self.complete = True
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{key}: {value}" for key, value in fields.items())]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def cut(self) -> None:
        """Close the connection (FIN), wherever the answer stands."""
        self._closed_here = not self._wire.gone.is_set()
        self._wire.transport.close()

    def reset(self) -> None:
        """Reset the connection (RST)."""
        self._closed_here = not self._wire.gone.is_set()
        self._wire.reset()

    def stop_reading(self) -> None:
        """Leave the rest of the request in the kernel. A client that leaves is not seen until `read_on`."""
        self._wire.transport.pause_reading()

    def read_on(self) -> None:
        self._wire.transport.resume_reading()

    async def perform(self, script: Script) -> None:
        """Run a script until it ends, or until the client leaves."""
        performance = asyncio.ensure_future(script(self))
        left = asyncio.ensure_future(self._wire.gone.wait())
        try:
            await asyncio.wait({performance, left}, return_when=asyncio.FIRST_COMPLETED)
            if not performance.done():
                performance.cancel()
                await asyncio.wait({performance})
            if not performance.cancelled() and not isinstance(performance.exception(), ConnectionError):
                performance.result()
        finally:
            performance.cancel()
            left.cancel()

    def finish(self) -> None:
        """Called once by the provider, when the exchange has ended."""
        self.left_early = self._wire.gone.is_set() and not self.complete and not self._closed_here
        self._over.set()


Script = Callable[[Exchange], Awaitable[None]]
