"""One request of a client and its answer: the body in, the answer out, straight to the transport.

Nothing wakes for a piece of an answer: a provider's bytes are written as they come, framed as the client
understands (RFC 9112 6). What a client does not read in time holds its provider back.
"""

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Literal, Protocol

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError

from llmgateway.api.dialect import Dialect, at_event_boundary, error_body, error_event
from llmgateway.api.endpoints import Body
from llmgateway.errors import INVALID_REQUEST, REQUEST_TIMEOUT, REQUEST_TOO_LARGE, GatewayError
from llmgateway.http.headers import AnswerHead, Field, RequestHead

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_JSON: Final = b"Content-Type: application/json\r\n"
_EVENT_STREAM: Final = (
    b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
)
Family = Literal["access-control-", "x-ratelimit-"]
_FAMILIES: Final[Mapping[Family, re.Pattern[bytes]]] = {
    "access-control-": re.compile(rb"(?mi)^access-control-[^\r\n]*\r\n"),
    "x-ratelimit-": re.compile(rb"(?mi)^x-ratelimit-[^\r\n]*\r\n"),
}
_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds."""

    head_s: float = 10.0
    """For a request's head, from its first byte."""
    keep_alive_s: float = 75.0
    """For the next request on a connection."""
    pause_s: float = 30.0
    """Between two pieces of a request's body."""
    body_s: float = 600.0
    """For a request's body."""
    stall_s: float = 600.0
    """For reading anything of what waits for it."""
    deaf_s: float = 5.0
    """For a request that keeps others waiting behind it, once there are so many that no more are read."""


class Flow(Protocol):
    """What can be held back while a client does not read."""

    def pause(self) -> None:
        """Stop feeding the client."""

    def resume(self) -> None:
        """Go on."""


class Carrier(Protocol):
    """What a client needs of its connection."""

    patience: Patience
    flow: Flow | None
    """What is held back while the client does not read."""
    date_line: Callable[[], bytes]
    """Gives the `Date` of answers that are made now."""

    @property
    def writing_paused(self) -> bool:
        """True while the client reads too slowly for more."""

    @property
    def in_another_protocol(self) -> bool:
        """True if what follows this request is no HTTP, so that nothing more can be understood."""

    def request_of(self, message: RawRequestMessage, content: StreamReader) -> web.BaseRequest:
        """Make aiohttp's own request of one of its messages."""

    def all_of(self, content: StreamReader) -> bytes:
        """Give a body that is here to its end."""

    def check_framing(self) -> None:
        """Break a body off that stopped making sense."""

    def cancel(self) -> None:
        """Cancel whoever serves the request."""


@dataclass(slots=True, eq=False)
class Client:
    """One request of a client and the one answer it gets. It is the sink of an exchange's bytes."""

    _connection: Carrier
    _message: RawRequestMessage | None
    _content: StreamReader
    _transport: asyncio.Transport | None
    _now: Callable[[], float]
    method: str
    raw_path: str
    version: tuple[int, int]
    fields: tuple[Field, ...]
    head: RequestHead
    _keep_alive: bool
    request_id: str = ""
    dialect: Dialect = "openai"
    status: int = 0
    """What was answered; 0 before that."""
    started: bool = False
    """True once bytes of an answer are on their way, so that the status cannot change any more."""
    answered: bool = False
    """True once bytes of a provider's answer are on their way: too late to try elsewhere."""
    ended: bool = False
    bytes_out: int = 0
    last_write: float = 0.0
    """When something was last written, on the loop's clock; 0 before that."""
    watch: Callable[[bytes], None] | None = None
    """Shown each piece of a provider's answer, after it was written."""
    _request: web.BaseRequest | None = None
    _head: bytes | None = None
    _chunked: bool = False
    _sse: bool = False
    _until_close: bool = False
    _tail: bytes = b""
    _own_lines: bytes = b""
    _families: frozenset[Family] = frozenset()

    @property
    def head_size(self) -> int:
        """How many bytes the request's head takes."""
        return len(self.raw_path) + self.head.size

    @property
    def request(self) -> web.BaseRequest:
        """The request as aiohttp has it, for pages that need more of it; made when it is first asked for.

        It is not to be had any more once the answer of a provider has begun.
        """
        if self._request is None:
            assert self._message is not None
            self._request = self._connection.request_of(self._message, self._content)
        return self._request

    @property
    def address(self) -> str:
        """The address that is connected: the client's, or a proxy's."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    @property
    def own_address(self) -> str:
        """The address of this machine that the connection came to."""
        own = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(own[0]) if isinstance(own, tuple) and own else ""

    # -- the request

    async def read_body(self, limit_bytes: int) -> Body:
        """Read the request's body whole, up to a size and within limits of time.

        Raises GatewayError (400, 408, 413).
        """
        for name, value in self.fields:
            if name.lower() == b"content-length" and int(value.lstrip(b"0") or 0) > limit_bytes:
                raise _too_large(limit_bytes)
        if not self._content.is_eof():
            self._invite_body()
            self._connection.check_framing()
        try:
            return await self._gather(limit_bytes)
        except TimeoutError:
            raise GatewayError(
                REQUEST_TIMEOUT, "The client took too long to send the request's body."
            ) from None
        except (RequestPayloadError, HttpProcessingError):
            self._keep_alive = False
            raise GatewayError(
                INVALID_REQUEST, "The request's body is not framed as HTTP wants it."
            ) from None

    def body_at_hand(self, limit_bytes: int) -> Body | None:
        """Give the body if all of it is here, as almost always, and nothing is wrong with it."""
        content = self._content
        if content is EMPTY_PAYLOAD:
            return b""
        if not content.is_eof() or content.exception() is not None or content.total_bytes > limit_bytes:
            return None
        self._content = EMPTY_PAYLOAD
        return self._connection.all_of(content)

    async def _gather(self, limit_bytes: int) -> Body:
        content, patience = self._content, self._connection.patience
        body = bytearray()
        end = self._now() + patience.body_s
        async with asyncio.timeout(None) as limit:
            while True:
                if content.is_eof():
                    piece = content.read_nowait()
                else:
                    limit.reschedule(min(self._now() + patience.pause_s, end))
                    piece = await content.readany()
                broken = content.exception()  # a piece may have come before the break, in one packet
                if broken is not None:
                    raise broken
                if not body and content.at_eof():
                    return self._within(piece, limit_bytes)
                body += piece
                self._within(body, limit_bytes)
                if content.at_eof():
                    return body

    def _within(self, body: Body, limit_bytes: int) -> Body:
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body

    def _invite_body(self) -> None:
        """Answer `Expect: 100-continue`: the key is good, the body is wanted."""
        if self._expects() and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _expects(self) -> bool:
        expected = self.head.named.get(b"expect")
        return expected is not None and expected.lower() == b"100-continue" and self.version >= (1, 1)

    # -- the answer

    def tell(self, headers: Iterable[tuple[str, str]], *, instead_of: Family | None = None) -> None:
        """Add fields of our own to the answer's head; the provider's of that family are dropped."""
        self._own_lines += "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
        if instead_of is not None:
            self._families |= {instead_of}

    def respond(self, status: int, body: bytes, lines: bytes = _JSON) -> None:
        """Send a whole answer of the gateway's own."""
        if not self._content.is_eof():
            # the rest of the body is not wanted; it would be taken for the next request
            self._keep_alive = False
        self.begin(status, b"", AnswerHead(lines, len(body)), own=True)
        self._send(body if self.method != "HEAD" else b"", final=True)

    def fail(self, error: GatewayError) -> None:
        """Tell an error: as a response, as a stream's last event, or by cutting what can't be mended."""
        if self.ended:
            return
        if not self.started:
            lines = [
                f"x-gateway-error: {error.kind.type}",
                *(f"{name}: {value}" for name, value in error.headers),
            ]
            body = error_body(error, self.dialect, self.request_id)
            self.respond(error.kind.status, body, _JSON + "".join(f"{line}\r\n" for line in lines).encode())
        elif self._sse:
            gap = b"" if at_event_boundary(self._tail) else b"\n\n"
            self._send(gap + error_event(error, self.dialect, self.request_id), final=True)
        else:
            self._cut()

    def say(self, words: str) -> None:
        """Put a comment into a silent stream; before the answer is there this commits it to be a stream."""
        if not self.started:
            self.begin(200, b"", AnswerHead(_EVENT_STREAM, None, is_sse=True))
            self.answered = False
        if self._sse and not self.ended and not self.full and at_event_boundary(self._tail):
            self._send(_PING if self.dialect == "anthropic" else f": {words}\n\n".encode(), final=False)

    def resume_stream(self) -> None:
        """Go on with the answer of a provider where a keepalive has begun the stream."""
        self.answered = True

    @property
    def full(self) -> bool:
        """True while the client reads too slowly for more."""
        return self._connection.writing_paused

    def begin(
        self, status: int, reason: bytes, head: AnswerHead, more: bytes = b"", *, own: bool = False
    ) -> None:
        """Prepare the head of an answer, with `more` lines of our own; it leaves with the first bytes fed.

        `own` says that the answer is not a provider's.
        """
        connection, passed = self._connection, head.lines
        if not own:
            self._message = None  # an answer may take an hour
            for family in self._families:
                passed = _FAMILIES[family].sub(b"", passed)
        self.status = status
        self.started = self.answered = True
        self._sse = head.is_sse
        if connection.in_another_protocol:
            self._keep_alive = False
        self._head = b"".join(
            (
                _status_line(status, reason),
                passed,
                more,
                self._own_lines,
                b"" if head.dated else connection.date_line(),
                b"x-request-id: ",
                self.request_id.encode(),
                self._framing(status, None if head.is_sse else head.content_length),
            )
        )

    def _framing(self, status: int, length: int | None) -> bytes:
        """Choose how the end of the body is told (RFC 9112 6): by length, chunks, or (HTTP/1.0) closing.

        Tell as well whether the connection is kept, where the version does not.
        """
        framing = b"\r\n"
        if status in (204, 304):
            pass
        elif length is not None:
            framing = b"\r\nContent-Length: %d\r\n" % length
        elif self.version >= (1, 1):
            self._chunked = True
            framing = b"\r\nTransfer-Encoding: chunked\r\n"
        else:
            self._until_close = True
            self._keep_alive = False
        if not self._keep_alive:
            return framing + b"Connection: close\r\n\r\n"
        return framing + (b"\r\n" if self.version >= (1, 1) else b"Connection: keep-alive\r\n\r\n")

    def feed(self, data: bytes, *, final: bool) -> None:
        """Write a piece of a provider's answer, at once; whoever watches looks at it afterwards."""
        self._send(data, final=final)
        if self.watch is not None:
            self.watch(data)

    def _send(self, data: bytes, *, final: bool) -> None:
        """Write a piece of the body. What a client that has left would have got is dropped."""
        if self.ended:
            return
        self.ended = final
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        size = len(data)
        self.bytes_out += size
        if self._sse:
            self._tail = data if size >= 4 else (self._tail + data)[-4:]
        if self._chunked:
            if size:
                data = b"%x\r\n%b\r\n" % (size, data)
            if final:
                data += b"0\r\n\r\n"
        if self._head is not None:
            data, self._head = self._head + data, None
        if data:
            transport.write(data)
            self.last_write = self._now()

    def feed_chunk(self, data: bytes, framed: bytes, now: float) -> None:
        """Write a piece that came as one chunk: as it came, where the answer is sent in chunks."""
        if self._head is not None or not self._chunked or self.ended:
            self.feed(data, final=False)
            return
        transport = self._transport
        if transport is not None and not transport.is_closing():
            size = len(data)
            self.bytes_out += size
            if self._sse:
                self._tail = data if size >= 4 else (self._tail + data)[-4:]
            transport.write(framed)
            self.last_write = now
        if self.watch is not None:
            self.watch(data)

    def _cut(self) -> None:
        """End an answer so that nobody takes it for a whole one: no proper end, and no keep-alive."""
        self.ended = True
        self._keep_alive = False
        if self._until_close and self._transport is not None:
            # Closing is how this client is told that all is well; only a reset says that it is not.
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def close_after(self) -> None:
        """Do not use the connection again after this answer."""
        self._keep_alive = False

    def cancel(self) -> None:
        """Cancel whoever serves this request."""
        self._connection.cancel()

    @contextmanager
    def holding(self, flow: Flow) -> Iterator[None]:
        """Name what to hold back while the client does not read."""
        self._connection.flow = flow
        try:
            yield
        finally:
            self._connection.flow = None

    def finish(self) -> bool:
        """End the request; tells whether its connection may be used again."""
        if not self.body_is_here and self._expects() and self._transport is not None:
            self._transport.close()  # it was told not to send the body: nothing will come to wait for
        return self._keep_alive and self.ended

    @property
    def body_is_here(self) -> bool:
        """True once the end of the request's body, if it has one, has come."""
        return self._content is EMPTY_PAYLOAD or self._content.is_eof()

    async def skip_some(self) -> None:
        """Read some of the rest of the request's body, which nobody wants."""
        await self._content.readany()

    def break_off(self, exc: BaseException) -> None:
        """Let whoever reads the request's body learn that there will be no more of it."""
        self._content.set_exception(exc)
        self._content.feed_eof()  # or somebody would linger for the rest

    _cancel = break_off
    """What aiohttp calls it, of the request that a connection is about when it is lost."""


class Heartbeat:
    """Says something on a stream that has been silent for too long, so that nothing in between cuts it."""

    def __init__(self, client: Client, every_s: float, words: Callable[[], str]) -> None:
        self._client = client
        self._every_s = every_s
        self._words = words
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer = self._loop.call_at(self._began + every_s, self._beat)

    def _beat(self) -> None:
        due = max(self._client.last_write, self._began) + self._every_s
        now = self._loop.time()
        if now >= due:
            self._client.say(self._words())
            due = now + self._every_s
        self._timer = self._loop.call_at(due, self._beat)

    def stop(self) -> None:
        """Say nothing more."""
        self._timer.cancel()


@lru_cache(64)
def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))


def _too_large(limit_bytes: int) -> GatewayError:
    return GatewayError(REQUEST_TOO_LARGE, f"The request's body is over the limit of {limit_bytes} bytes.")
