"""A client that sends any bytes at all, reads as slowly as it likes, and says how the answer ended.

    async with RawClient(gateway.port) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\\r\\n", b"Host: x\\r\\n\\r\\n")   # two writes
        response = await client.response()
        assert (response.status, response.ending) == (400, Ending.COMPLETE)

Nothing is read behind the caller's back, so a caller who does not read exerts real backpressure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from tests.guard import HANG_S
from tests.journey import KEY
from tests.secrecy import PROMPT, hear, watch


class Ending(Enum):
    """How an answer ended."""

    OPEN = "not yet"
    COMPLETE = "as its framing says"
    CLOSED = "by closing the connection, and it never said how long it would be"
    CUT = "closed in the middle"
    RESET = "reset in the middle"


@dataclass
class Response:
    """An answer, parsed leniently; `body` grows while it is read."""

    status: int
    headers: list[tuple[str, str]]
    interim: list[int]
    """The 1xx answers that came before."""
    body: bytearray = field(default_factory=bytearray)
    ending: Ending = Ending.OPEN
    framing: str = ""
    """`length`, `chunked` or `close`."""
    left: int = 0
    """Bytes still to come of this chunk, or of the whole body where its length is known."""

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of the SSE events so far: JSON where it is JSON, else text such as `[DONE]`."""
        return events(bytes(self.body))


def events(body: bytes) -> list[Any]:
    """The data of every complete SSE event in these bytes."""
    found = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        data = b"\n".join(
            line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")
        )
        if data:
            try:
                found.append(json.loads(data))
            except ValueError:
                found.append(data.decode(errors="replace"))
    return found


def request(method: str, target: str, *headers: str, body: bytes = b"", key: str | None = KEY) -> bytes:
    """The bytes of a well-formed request; `headers` are whole lines."""
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway", *headers]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chat(body: bytes | None = None, *headers: str, stream: bool = False, key: str | None = KEY) -> bytes:
    """The bytes of a chat completion request for model `m`."""
    message = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
    return request(
        "POST", "/v1/chat/completions", *headers, body=body or json.dumps(message).encode(), key=key
    )


class RawClient:
    """One connection. `read_size` and `pause_s` make it a slow reader, `receive_buffer` a small one.

    `source` is the address that it comes from. With `record` it keeps all that comes in `recorded`.
    """

    def __init__(
        self,
        port: int,
        *,
        read_size: int = 65_536,
        pause_s: float = 0,
        receive_buffer: int | None = None,
        record: bool = False,
        source: str = "",
    ) -> None:
        self._port = port
        self._read_size = read_size
        self._pause_s = pause_s
        self._receive_buffer = receive_buffer
        self._record = record
        self._source = source
        self.recorded = bytearray()
        self._buffer = bytearray()
        self._ended = Ending.OPEN
        self._heard = watch.sent(f"what a client of port {port} received")

    async def __aenter__(self) -> Self:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        try:
            if self._source:
                self._socket.bind((self._source, 0))
            async with asyncio.timeout(HANG_S):
                await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        except BaseException:
            self._socket.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def send(self, *pieces: bytes, pause_s: float = 0, limit: float = HANG_S) -> None:
        """Send each piece in a write of its own. Raises ConnectionError when the other side has closed."""
        async with asyncio.timeout(limit):
            for piece in pieces:
                await asyncio.get_running_loop().sock_sendall(self._socket, piece)
                await asyncio.sleep(pause_s)

    def fileno(self) -> int:
        """Give the descriptor of its socket, to wait for."""
        return self._socket.fileno()

    def half_close(self) -> None:
        """Say that no more will be sent; go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Close the connection."""
        self._socket.close()

    def reset(self) -> None:
        """Close the connection with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def response(self, limit: float = HANG_S, *, to: str = "POST") -> Response:
        """Read one whole answer, to whatever end. `to` is the method it answers (HEAD has no body)."""
        async with asyncio.timeout(limit):
            response = await self.head(limit, to=to)
            while await self.piece(response, limit):
                pass
            return response

    async def head(self, limit: float = HANG_S, *, to: str = "POST") -> Response:
        """Read the status and headers, past any 1xx. Raises EOFError when the other side closes before."""
        interim: list[int] = []
        async with asyncio.timeout(limit):
            while True:
                lines = (await self._until(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
                status = int(lines[0].split(" ")[1])
                if status >= 200 or status == 101:
                    break
                interim.append(status)
        pairs = (line.partition(":") for line in lines[1:])
        response = Response(status, [(name, value.strip()) for name, _, value in pairs], interim)
        watch.learn_cookies(response.header("set-cookie") or "")
        response.framing, response.left = _framing(response, to)
        return response

    async def piece(self, response: Response, limit: float = HANG_S) -> bytes:
        """Read the next piece of the body, as it comes; at its end give b"" and set `response.ending`."""
        if response.ending is not Ending.OPEN:
            return b""
        try:
            async with asyncio.timeout(limit):
                piece = await self._piece(response)
        except EOFError:
            response.ending = self._ended
            if response.framing == "close" and self._ended is Ending.CUT:
                response.ending = Ending.CLOSED
            return b""
        response.body += piece
        if not piece:
            response.ending = Ending.COMPLETE
        return piece

    async def events(self, response: Response, count: int, limit: float = HANG_S) -> list[Any]:
        """Read until so many SSE events have come in all, or the body has ended; give those that came."""
        async with asyncio.timeout(limit):
            while len(response.events) < count and await self.piece(response, limit):
                pass
        return response.events

    async def closed(self, limit: float = HANG_S) -> Ending:
        """Wait until the other side closes; what still comes is thrown away."""
        async with asyncio.timeout(limit):
            with contextlib.suppress(EOFError):
                while True:
                    self._buffer.clear()
                    await self._more()
        return self._ended

    async def _piece(self, response: Response) -> bytes:
        if response.framing == "close":
            if not self._buffer:
                await self._more()
            return self._take(len(self._buffer))
        if response.framing == "chunked" and not response.left:
            response.left = int((await self._until(b"\r\n")).split(b";")[0], 16)
            if not response.left:
                while await self._until(b"\r\n") != b"\r\n":
                    pass  # trailers
        if not response.left:
            return b""
        if not self._buffer:
            await self._more()
        piece = self._take(min(response.left, len(self._buffer)))
        response.left -= len(piece)
        if response.framing == "chunked" and not response.left:
            assert await self._until(b"\r\n") == b"\r\n", "a chunk is longer than it says"
        return piece

    async def _until(self, delimiter: bytes) -> bytes:
        while (end := self._buffer.find(delimiter)) < 0:
            await self._more()
        return self._take(end + len(delimiter))

    async def _more(self) -> None:
        """Read once. Raises EOFError at the end, when `_ended` says which kind of end it was."""
        await asyncio.sleep(self._pause_s)
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, self._read_size)
        except ConnectionError:
            self._ended = Ending.RESET
            raise EOFError from None
        if not data:
            self._ended = Ending.CUT
            raise EOFError
        self._buffer += data
        hear(self._heard, data)
        if self._record:
            self.recorded += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _framing(response: Response, method: str) -> tuple[str, int]:
    """How the body ends (RFC 9112 6.3), and its length if that is known."""
    if method == "HEAD" or response.status in (101, 204, 304):
        return "length", 0
    if "chunked" in (response.header("transfer-encoding") or "").lower():
        return "chunked", 0
    if (length := response.header("content-length")) is not None:
        return "length", int(length)
    return "close", 0
