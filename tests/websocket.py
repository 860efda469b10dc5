"""WebSockets for journeys: a provider's side on an `Exchange`, and frames as bytes for impolite clients.

    provider.on["/v1/realtime"] = session(say("hello"), echo())

Nothing here keeps the rules of the protocol unless the script does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from websockets.frames import Close, Frame, Opcode

from tests.exchange import Exchange, Headers, Script
from tests.raw_client import RawClient, Response, request

PATH = "/v1/realtime"
NONCE = base64.b64encode(bytes(range(16))).decode()
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ASKS = (
    "Connection: Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {NONCE}",
)


def accept_of(nonce: str) -> str:
    return base64.b64encode(hashlib.sha1((nonce + GUID).encode()).digest()).decode()


def handshake(*headers: str, target: str = f"{PATH}?model=m", key: str | None = "") -> bytes:
    """The bytes of a good handshake, with more headers; `key` of None leaves the API key out."""
    asked = request("GET", target, *ASKS, *headers)
    return asked if key is not None else request("GET", target, *ASKS, *headers, key=None)


def text(data: str, *, mask: bool = True) -> bytes:
    return Frame(Opcode.TEXT, data.encode()).serialize(mask=mask)


def close(code: int, reason: str = "", *, mask: bool = True) -> bytes:
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=mask)


@dataclass
class Said:
    """One frame as it came, unmasked."""

    opcode: Opcode
    data: bytes
    masked: bool

    @property
    def code(self) -> int:
        """Of a Close."""
        return Close.parse(self.data).code


async def said(read: Callable[[int], Awaitable[bytes]]) -> Said:
    """Read one frame."""
    first, second = await read(2)
    size = second & 0x7F
    if size >= 126:
        size = int.from_bytes(await read(2 if size == 126 else 8), "big")
    mask = await read(4) if second & 0x80 else b""
    data = await read(size)
    if mask:
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    return Said(Opcode(first & 0x0F), data, bool(mask))


# The provider's side.

Act = Callable[["Session"], Awaitable[None]]


class Session:
    """An open session, as its provider has it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.heard: list[Said] = []

    async def listen(self) -> Said:
        """Hear the next frame."""
        frame = await said(self.exchange.receive)
        self.heard.append(frame)
        return frame

    async def send(self, *data: bytes) -> None:
        for piece in data:
            await self.exchange.send(piece)


def session(*acts: Act, headers: Headers = None) -> Script:
    """Grant the WebSocket, do all of this, and hang up."""

    async def played(exchange: Exchange) -> None:
        nonce = exchange.request.header("sec-websocket-key") or ""
        granted = {"Connection": "upgrade", "Upgrade": "WebSocket", "Sec-WebSocket-Accept": accept_of(nonce)}
        await exchange.head(101, granted | dict(headers or {}))
        here = Session(exchange)
        for act in acts:
            await act(here)
        exchange.complete = True
        exchange.cut()

    return played


def say(*texts: str) -> Act:
    async def act(here: Session) -> None:
        for each in texts:
            await here.send(text(each, mask=False))

    return act


def raw(*data: bytes) -> Act:
    async def act(here: Session) -> None:
        await here.send(*data)

    return act


def echo() -> Act:
    """Say again what is said, answer pings, until the client says Close, which is answered."""

    async def act(here: Session) -> None:
        while True:
            heard = await here.listen()
            opcode = Opcode.PONG if heard.opcode is Opcode.PING else heard.opcode
            if opcode is not Opcode.PONG or heard.opcode is Opcode.PING:
                await here.send(Frame(opcode, heard.data).serialize(mask=False))
            if heard.opcode is Opcode.CLOSE:
                return

    return act


def until(happened: Callable[[], Awaitable[object]]) -> Act:
    async def act(here: Session) -> None:
        await happened()

    return act


# The client's side.


class RawSocket(RawClient):
    """A client of a WebSocket that sends any bytes at all."""

    async def open(self, *headers: str, more: bytes = b"") -> Response:
        """Shake hands, with `more` in the same packet; gives the answer, whatever it is."""
        await self.send(handshake(*headers) + more)
        return await self.head(to="GET")

    async def listen(self) -> Said:
        """Hear the next frame. Raises EOFError at the end."""
        return await said(self.exactly)

    async def exactly(self, size: int) -> bytes:
        """Read so many bytes. Raises EOFError at the end."""
        while len(self._buffer) < size:
            await self._more()
        return self._take(size)
