"""A large body on its way to a provider: from memory, from a file, or from a client that still sends it.

Rules:

- It is sent piece by piece, and no faster than the provider reads; what waits to be sent is bounded.
- To one connection at a time. Another one gets it from the beginning, if that is still here.
- The wait for an answer counts while the provider does not read, or has it all: never while the client sends.
- Where another name takes the place of the model's, only those bytes are others.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import msgspec

from llmgateway.api.endpoints import Body, Buffer
from llmgateway.api.multipart import Span
from llmgateway.http.body import RequestBody
from llmgateway.http.room import Hold

PIECE_BYTES: Final = 256 * 1024
KEPT_BYTES: Final = 1 << 20
"""How much of what a client sends is kept to be sent again elsewhere."""


class Edit(msgspec.Struct, frozen=True):
    """Other bytes for those at a place."""

    at: Span
    value: bytes

    @property
    def more_bytes(self) -> int:
        """How much longer it makes a body."""
        return len(self.value) - (self.at[1] - self.at[0])

    def of(self, piece: Buffer, offset: int) -> Buffer:
        """Give a piece, which begins at `offset` of the whole, as it is with this."""
        start, stop = self.at
        end = offset + len(piece)
        if end <= start or (offset >= stop and offset > start):
            return piece
        before, behind = piece[: max(0, start - offset)], piece[max(0, stop - offset) :]
        return b"".join((before, self.value if offset <= start < end else b"", behind))


class Sending:
    """A body on its way by one connection, which tells it when to wait and when to end."""

    def __init__(self, transport: asyncio.Transport, edit: Edit | None, *, chunked: bool) -> None:
        self._transport = transport
        self._chunked = chunked
        self.edit = edit
        self.over = False
        """True once nothing more of it can be sent by this connection, be it all or not."""
        self.complete = False
        """True once all of it has been sent."""
        self._paused = False
        self._wake: asyncio.Future[None] | None = None
        self._begin_wait: Callable[[], None] | None = None
        self._end_wait: Callable[[], None] | None = None
        self._is_timed = False

    def send(self, piece: Buffer) -> None:
        """Write a piece; not an empty one, which would be the end."""
        if self._chunked:
            self._transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
        else:
            self._transport.write(piece)

    def end(self) -> None:
        """Say that this was all."""
        if self._chunked:
            self._transport.write(b"0\r\n\r\n")
        self.complete = self.over = True
        self._time()

    async def ready(self) -> None:
        """Wait until the provider reads, or does not want any more."""
        while self._paused and not self.over:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    # -- for the connection

    def pause(self) -> None:
        """Learn that the provider does not read as fast as it is written to."""
        self._paused = True
        self._time()

    def resume(self) -> None:
        """Learn that it reads on."""
        self._paused = False
        self._time()
        self._rouse()

    def stop(self) -> None:
        """Learn that the connection takes no more."""
        self.over = True
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def time_by(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """Have each wait for the provider timed, from now on."""
        self._begin_wait, self._end_wait = begin, end
        self._time()

    def time_no_more(self) -> None:
        """Have no more waits timed."""
        if self._is_timed and self._end_wait is not None:
            self._end_wait()
        self._begin_wait = self._end_wait = None

    def _time(self) -> None:
        waits = self._paused or self.complete
        if waits == self._is_timed or self._begin_wait is None or self._end_wait is None:
            return
        self._is_timed = waits
        (self._begin_wait if waits else self._end_wait)()


class Upload(ABC):
    """A large body, and whoever is sent it. `run` is a task's, for as long as the request lasts."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._sending: Sending | None = None
        self._news = asyncio.Event()

    def size(self, edit: Edit | None = None) -> int | None:
        """Tell how many bytes it has when it is sent, if that is known."""
        return self._size if self._size is None or edit is None else self._size + edit.more_bytes

    @property
    def repeatable(self) -> bool:
        """True while it can be sent from its beginning."""
        return True

    def let_go(self) -> bool:
        """Hold nothing for another provider any more; tells whether no memory is held at all."""
        return True

    def begin(self, transport: asyncio.Transport, edit: Edit | None) -> Sending:
        """Send it by a connection from now on, and by no other."""
        self._sending = Sending(transport, edit, chunked=self._size is None)
        self._news.set()
        return self._sending

    async def run(self) -> None:
        """Send it to whoever it is to be sent to. Raises GatewayError if its client fails."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._sending is not None:
                await self._send(self._sending)

    async def _send(self, sending: Sending) -> None:
        offset = 0
        while True:
            await sending.ready()
            piece = b"" if sending.over else await self.read(offset)
            if sending.over:
                return
            if not piece:
                sending.end()
                return
            written = piece if sending.edit is None else sending.edit.of(piece, offset)
            if written:
                sending.send(written)
            offset += len(piece)

    @abstractmethod
    async def read(self, offset: int) -> Buffer:
        """Give the piece that begins at an offset; nothing at the end. Raises GatewayError."""


class Stored(Upload):
    """A body that is here, in memory."""

    def __init__(self, body: Body) -> None:
        super().__init__(len(body))
        self._body = body

    def let_go(self) -> bool:
        """Hold it no more, once it is sent."""
        if self._sending is not None and self._sending.over:
            self._body = b""
        return not self._body

    async def read(self, offset: int) -> Buffer:
        """Give a part of it."""
        return memoryview(self._body)[offset : offset + PIECE_BYTES]


class Packed(Stored):
    """A body that came compressed, and goes on so; if it has to be edited, as what it stands for."""

    def __init__(self, packed: Body, plain: Body) -> None:
        super().__init__(packed)
        self._packed, self._plain = packed, plain

    def size(self, edit: Edit | None = None) -> int | None:
        """Tell how many bytes are sent."""
        return len(self._packed) if edit is None else len(self._plain) + edit.more_bytes

    def let_go(self) -> bool:
        """Hold it no more, once it is sent."""
        if super().let_go():
            self._packed = self._plain = b""
        return not self._packed

    def begin(self, transport: asyncio.Transport, edit: Edit | None) -> Sending:
        """Send it by a connection from now on, in the form that it wants."""
        self._body = self._packed if edit is None else self._plain
        return super().begin(transport, edit)


class Live(Upload):
    """A body that its client is still sending: what came last is kept, and at first all of it."""

    def __init__(self, body: RequestBody, beginning: Body, limit_bytes: int, hold: Hold) -> None:
        super().__init__(body.length)
        self._source = body
        self._limit_bytes = limit_bytes
        self._kept = bytearray(beginning)
        self._hold = hold
        self._base = 0
        self._came = asyncio.Event()
        self._has_room = asyncio.Event()

    @property
    def repeatable(self) -> bool:
        """True until more of it was sent than is kept."""
        return self._base == 0

    async def run(self) -> None:
        """Read it from its client, a little ahead, and send it. Raises GatewayError, in a group."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fill())
            await super().run()

    async def _fill(self) -> None:
        while not self._source.ended:
            if len(self._kept) >= KEPT_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
            self._kept += await self._source.next_piece(self._limit_bytes)
            self._hold.grow_to(len(self._kept))
            self._came.set()

    async def read(self, offset: int) -> Buffer:
        """Give what is here, or what comes next; all before that has been sent."""
        self._forget_before(offset)
        while offset - self._base >= len(self._kept) and not self._source.ended:
            self._came.clear()
            await self._came.wait()
        at = offset - self._base
        return bytes(self._kept[at : at + PIECE_BYTES])

    def _forget_before(self, offset: int) -> None:
        """Keep no longer what was sent, once that is much."""
        if offset >= KEPT_BYTES:
            del self._kept[: offset - self._base]
            self._base = offset
            self._has_room.set()


class Cargo(msgspec.Struct, frozen=True):
    """An upload as one provider gets it."""

    upload: Upload
    edit: Edit | None = None

    @property
    def framing(self) -> str:
        """Tell its length in a request's head, or that it is told by the way it comes."""
        size = self.upload.size(self.edit)
        return "Transfer-Encoding: chunked\r\n" if size is None else f"Content-Length: {size}\r\n"
