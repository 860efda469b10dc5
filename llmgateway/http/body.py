"""A request's body: at hand, as it almost always is when its head is read, or read within limits.

A body is bounded in size and in time, and has to come at a minimum rate; both only while it is waited
for, so that nobody is slow whom we hold back. What all bodies hold together is bounded too. It is asked
for only once somebody wants it: until then a client that waits to be invited (`Expect: 100-continue`)
sends nothing. What nobody wants is skipped, so that it is not taken for the next request.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
from aiohttp import StreamReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError

from llmgateway.api.endpoints import Body
from llmgateway.errors import INVALID_REQUEST, REQUEST_TIMEOUT, REQUEST_TOO_LARGE, GatewayError
from llmgateway.http.headers import Field, RequestHead
from llmgateway.http.room import Hold


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds."""

    silent_s: float = 10.0
    """For the first byte, once it is connected."""
    spare_s: float = 1.0
    """For a request's head where there is no room for others than vital ones."""
    head_s: float = 10.0
    """For a request's head, from its first byte."""
    keep_alive_s: float = 75.0
    """For the next request on a connection."""
    rate_s: float = 20.0
    """For a request's body to fall behind the least rate; so it is also the longest pause."""
    body_s: float = 3600.0
    """For a request's body, as far as it is waited for: 100 MB over a slow line of a home take half of it."""
    stall_s: float = 600.0
    """For reading anything of what waits for it."""
    deaf_s: float = 5.0
    """For a request that keeps others waiting behind it, once there are so many that no more are read."""


class Intake(Protocol):
    """What a body needs of the connection that it comes by."""

    patience: Patience
    transport: asyncio.Transport | None
    now: Callable[[], float]

    @property
    def min_rate(self) -> int:
        """How many bytes of a body have to come in a second."""

    def all_of(self, content: StreamReader) -> bytes:
        """Give a body that is here to its end."""

    def check_framing(self) -> None:
        """Break a body off that stopped making sense."""


class RequestBody(msgspec.Struct, eq=False):
    """The body of one request, which may be empty."""

    _connection: Intake
    content: StreamReader
    """What aiohttp's parser feeds; the empty one once a body that was at hand has been given."""
    _fields: tuple[Field, ...]
    _head: RequestHead
    _version: tuple[int, int]
    _asked: bool = False
    _patience_s: float = 0.0
    """How long its client may still be waited for."""
    _ahead_s: float = 0.0
    """How long it may be waited for until more comes, to keep the least rate."""
    read_bytes: int = 0
    """How much of it has been read piece by piece."""
    broken: bool = False
    """True if it turned out not to be framed as HTTP wants it: nothing can be understood behind it."""

    def at_hand(self, limit_bytes: int) -> Body | None:
        """Give the body if all of it is here, as almost always, and nothing is wrong with it."""
        content = self.content
        if content is EMPTY_PAYLOAD:
            return b""
        if not content.is_eof() or content.exception() is not None or content.total_bytes > limit_bytes:
            return None
        self.content = EMPTY_PAYLOAD
        return self._connection.all_of(content)

    async def read(self, limit_bytes: int, hold: Hold | None = None, enough_bytes: int = sys.maxsize) -> Body:
        """Read the body up to a size and within limits of time; of a long one, its first part.

        Raises GatewayError (400, 408, 413, 503).
        """
        self.check_length(limit_bytes, hold)
        body = bytearray()
        while len(body) <= enough_bytes:
            piece = await self.next_piece(limit_bytes)
            if not body and self.ended:
                return piece
            if hold is not None:
                hold.grow_to(len(body) + len(piece))
            body += piece
            if self.ended:
                break
        return body

    def check_length(self, limit_bytes: int, hold: Hold | None = None) -> None:
        """Refuse a body that is declared too large, before its client sends it. Raises GatewayError."""
        length = self.length
        if length is not None and length > limit_bytes:
            raise too_large(limit_bytes)
        if length is not None and hold is not None:
            hold.grow_to(length)

    @property
    def length(self) -> int | None:
        """What it was declared to have, in bytes."""
        for name, value in self._fields:
            if name.lower() == b"content-length":
                return int(value.lstrip(b"0") or 0)
        return None

    @property
    def ended(self) -> bool:
        """True once all of it has been read."""
        return self.content.at_eof()

    async def next_piece(self, limit_bytes: int) -> bytes:
        """Read what has come of it, or what comes next. Raises GatewayError (400, 408, 413)."""
        content, now = self.content, self._connection.now
        try:
            if not self._asked:
                self._ask()
            if content.is_eof():
                piece = content.read_nowait()
            else:
                began = now()
                async with asyncio.timeout_at(began + min(self._patience_s, self._ahead_s)):
                    piece = await content.readany()
                self._count_wait(now() - began, len(piece))
            broken = content.exception()  # a piece may have come before the break, in one packet
            if broken is not None:
                raise broken
        except TimeoutError:
            raise GatewayError(
                REQUEST_TIMEOUT, "The client took too long to send the request's body."
            ) from None
        except (RequestPayloadError, HttpProcessingError):
            self.broken = True
            raise GatewayError(
                INVALID_REQUEST, "The request's body is not framed as HTTP wants it."
            ) from None
        self.read_bytes += len(piece)
        if self.read_bytes > limit_bytes:
            raise too_large(limit_bytes)
        return piece

    def _count_wait(self, waited_s: float, size_bytes: int) -> None:
        patience = self._connection.patience
        self._patience_s -= waited_s
        gained_s = size_bytes / self._connection.min_rate
        self._ahead_s = min(patience.rate_s, self._ahead_s - waited_s + gained_s)

    def _ask(self) -> None:
        """Have the body sent, if its client waits to be asked."""
        self._asked = True
        patience = self._connection.patience
        self._patience_s, self._ahead_s = patience.body_s, patience.rate_s
        if not self.content.is_eof():
            self._invite()
            self._connection.check_framing()

    def _invite(self) -> None:
        """Answer `Expect: 100-continue`: the key is good, the body is wanted."""
        transport = self._connection.transport
        if self.on_invitation and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    @property
    def on_invitation(self) -> bool:
        """True if its client sends it only when it is told to."""
        expected = self._head.named.get(b"expect")
        return expected is not None and expected.lower() == b"100-continue" and self._version >= (1, 1)

    @property
    def is_here(self) -> bool:
        """True once its end, if it has one, has come."""
        return self.content is EMPTY_PAYLOAD or self.content.is_eof()

    async def skip_some(self) -> None:
        """Read some of the rest of it, which nobody wants."""
        await self.content.readany()

    def break_off(self, exc: BaseException) -> None:
        """Let whoever reads it learn that there will be no more of it."""
        self.content.set_exception(exc)
        self.content.feed_eof()  # or somebody would linger for the rest

    _cancel = break_off
    """What aiohttp calls it, of the request that a connection is about when it is lost."""


def too_large(limit_bytes: int) -> GatewayError:
    """Say that a body is over the limit."""
    return GatewayError(REQUEST_TOO_LARGE, f"The request's body is over the limit of {limit_bytes} bytes.")
