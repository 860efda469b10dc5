"""One request of a client and its answer: the body in, the answer out, straight to the transport.

Nothing wakes for a piece of an answer: a provider's bytes are written as they come, framed as the client
understands (RFC 9112 6). What a client does not read in time holds its provider back.
"""

import asyncio
import re
import secrets
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Literal, Protocol

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage

from llmgateway.api.dialect import Dialect
from llmgateway.api.endpoints import ELSEWHERE
from llmgateway.errors import GatewayError
from llmgateway.http.body import RequestBody
from llmgateway.http.handshake import SWITCHING
from llmgateway.http.headers import AnswerHead, Field, RequestHead
from llmgateway.http.peers import NO_LINK, Link, link_of

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_JSON: Final = b"Content-Type: application/json\r\n"
_EVENT_STREAM: Final = b"Content-Type: %b\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
_FINAL: Final = (401, 403)  # Claude Code would try these again for minutes if it were not told
Family = Literal["access-control-", "x-ratelimit-"]
_FAMILIES: Final[Mapping[Family, re.Pattern[bytes]]] = {
    "access-control-": re.compile(rb"(?mi)^access-control-[^\r\n]*\r\n"),
    "x-ratelimit-": re.compile(rb"(?mi)^x-ratelimit-[^\r\n]*\r\n"),
}


class Flow(Protocol):
    """What can be held back while a client does not read."""

    def pause(self) -> None:
        """Stop feeding the client."""

    def resume(self) -> None:
        """Go on."""


class Carrier(Protocol):
    """What a client needs of its connection."""

    transport: asyncio.Transport | None
    now: Callable[[], float]
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

    def cancel(self) -> None:
        """Cancel whoever serves the request."""

    def switch(self, hear: Callable[[bytes], None]) -> None:
        """Have what comes, and what has come behind the request, heard in the other protocol."""


@dataclass(slots=True, eq=False)
class Client:
    """One request of a client and the one answer it gets. It is the sink of an exchange's bytes.

    It is long as a chunk must not have to pass through two objects: how an answer begins, goes on and ends is
    of one piece.
    """

    _connection: Carrier
    message: InitVar[RawRequestMessage]
    body: RequestBody
    head: RequestHead
    method: str = field(init=False)
    raw_path: str = field(init=False)
    version: tuple[int, int] = field(init=False)
    fields: tuple[Field, ...] = field(init=False)
    _message: RawRequestMessage | None = field(init=False)
    _transport: asyncio.Transport | None = field(init=False)
    _now: Callable[[], float] = field(init=False)
    _keep_alive: bool = field(init=False)
    request_id: str = ""
    dialect: Dialect = ELSEWHERE
    status: int = 0
    """What was answered; 0 before that."""
    started: bool = False
    """True once an answer has begun, be it a keepalive's, so that the status cannot change any more."""
    answered: bool = False
    """True once a provider's answer has begun: too late to try elsewhere."""
    ended: bool = False
    """True once the last bytes of an answer are on their way."""
    missed: bool = False
    """Whether it had left when there was something to be written."""
    bytes_out: int = 0
    last_write: float = 0.0
    """When something was last written, on the loop's clock; 0 before that."""
    watch: Callable[[bytes], None] | None = None
    """Shown each piece of a provider's answer, after it was written."""
    farewell: Callable[[GatewayError], None] | None = None
    """Tells an error once another protocol is spoken, and ends that in its own time."""
    _request: web.BaseRequest | None = None
    _head: bytes | None = None
    _chunked: bool = False
    _in_events: bool = False
    _until_close: bool = False
    _tail: bytes = b""
    _own_lines: bytes = b""
    _families: frozenset[Family] = frozenset()

    def __post_init__(self, message: RawRequestMessage) -> None:
        self.method, self.raw_path, self.version = message.method, message.path, message.version
        self.fields = message.raw_headers
        self._message = message
        # of the connection, what each piece of an answer needs
        self._transport, self._now = self._connection.transport, self._connection.now
        # aiohttp's parser takes the trailers of a chunked body for fields of the next request.
        self._keep_alive = not (message.should_close or message.chunked)

    @property
    def request(self) -> web.BaseRequest:
        """The request as aiohttp has it, for pages that need more of it; made when it is first asked for.

        It is not to be had any more once the answer of a provider has begun.
        """
        if self._request is None:
            assert self._message is not None
            self._request = self._connection.request_of(self._message, self.body.content)
        return self._request

    @property
    def link(self) -> Link:
        """Who is connected, and how."""
        return NO_LINK if self._transport is None else link_of(self._transport.get_extra_info)

    # -- the answer

    def tell(self, headers: Iterable[tuple[str, str]], *, instead_of: Family | None = None) -> None:
        """Add fields of our own to the answer's head; the provider's of that family are dropped."""
        self._own_lines += "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
        if instead_of is not None:
            self._families |= {instead_of}

    def respond(self, status: int, body: bytes, lines: bytes = _JSON) -> None:
        """Send a whole answer of the gateway's own."""
        if self.body.broken or not self.body.is_here:
            # the rest of the body is not wanted; it would be taken for the next request
            self._keep_alive = False
        self._start(status, b"", AnswerHead(lines, len(body)), lines)
        self._send(body if self.method != "HEAD" else b"", final=True)

    def fail(self, error: GatewayError) -> None:
        """Tell an error: as a response, as a stream's last event, or by cutting what can't be mended."""
        if self.ended:
            return
        if self.farewell is not None:
            self.farewell(error)
        elif not self.started:
            body = self.dialect.error_body(error, self.request_id)
            self.respond(error.kind.status, body, _JSON + _error_lines(error))
        elif self._in_events:
            stream = self.dialect.stream
            gap = b"" if stream.at_boundary(self._tail) else stream.gap
            event = self.dialect.error_event(self.dialect.error_body(error, self.request_id))
            self._send(gap + event, final=True)
        else:
            self._cut()

    def say(self, words: str) -> None:
        """Put a comment into a silent stream; before the answer is there this commits it to be a stream."""
        keepalive, stream = self.dialect.keepalive, self.dialect.stream
        if keepalive is None:
            return
        if not self.started:
            lines = _EVENT_STREAM % stream.media_type
            self._start(200, b"", AnswerHead(lines, None, stream, may_grow=True), lines)
        if self._in_events and not self.ended and not self.full and stream.at_boundary(self._tail):
            self._send(keepalive(words), final=False)

    def may_add_to(self, head: AnswerHead) -> bool:
        """Tell whether an answer is a stream of the dialect's events, so that one of ours may be added."""
        return head.may_grow and head.framing is self.dialect.stream

    @property
    def full(self) -> bool:
        """True while the client reads too slowly for more."""
        return self._connection.writing_paused

    def begin(self, status: int, reason: bytes, head: AnswerHead, more: bytes = b"") -> None:
        """Begin the answer of a provider, with `more` lines of our own; its head leaves with the first bytes.

        Where a keepalive has begun the stream, the answer goes on with it.
        """
        self.answered = True
        self._message = None  # an answer may take an hour
        if self.started:
            return
        lines = head.lines
        if self._families:
            for family in self._families:
                lines = _FAMILIES[family].sub(b"", lines)
        self._start(status, reason, head, lines + more)

    def _start(self, status: int, reason: bytes, head: AnswerHead, lines: bytes) -> None:
        """Prepare the head of an answer, in which these lines stand before our own."""
        connection = self._connection
        self.status = status
        self.started = True
        self._in_events = self.may_add_to(head)
        if connection.in_another_protocol:
            self._keep_alive = False
        self._head = b"".join(
            (
                _status_line(status, reason),
                lines,
                self._own_lines,
                b"" if head.dated else connection.date_line(),
                b"x-request-id: ",
                self.request_id.encode(),
                self._framing(status, None if self._in_events else head.content_length),
            )
        )

    def _framing(self, status: int, length: int | None) -> bytes:
        """Choose how the end of the body is told (RFC 9112 6): by length, chunks, or (HTTP/1.0) closing.

        Tell as well whether the connection is kept, where the version does not.
        """
        framing, persists = b"\r\n", self.version >= (1, 1)
        if status == SWITCHING:
            return b"\r\n\r\n"
        if status in (204, 304):
            pass
        elif length is not None:
            framing = b"\r\nContent-Length: %d\r\n" % length
        elif persists:
            self._chunked = True
            framing = b"\r\nTransfer-Encoding: chunked\r\n"
        else:
            self._until_close = True
            self._keep_alive = False
        if not self._keep_alive:
            return framing + b"Connection: close\r\n\r\n"
        return framing + (b"\r\n" if persists else b"Connection: keep-alive\r\n\r\n")

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
            self.missed = True
            return
        size = len(data)
        self.bytes_out += size
        if self._in_events:
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
            if self._in_events:
                self._tail = data if size >= 4 else (self._tail + data)[-4:]
            transport.write(framed)
            self.last_write = now
        if self.watch is not None:
            self.watch(data)

    def end(self) -> None:
        """End an answer of which the client has all that counts, though the provider has not ended it.

        Its last event is completed if there is but a line break missing.
        """
        if self._chunked or self._until_close:
            stream, tail = self.dialect.stream, self._tail
            gap = b"" if not self._in_events or stream.at_boundary(tail) else stream.gap
            self._send(gap[1:] if gap and tail.endswith(gap[:1]) else gap, final=True)
        elif not self.ended:
            self._cut()  # it was promised a length

    def _cut(self) -> None:
        """End an answer so that nobody takes it for a whole one: no proper end, and no keep-alive."""
        self.ended = True
        self._keep_alive = False
        if self._until_close and self._transport is not None:
            # Closing is how this client is told that all is well; only a reset says that it is not.
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def close_unless_heard(self) -> None:
        """Do not use the connection again if its client has an answer before it has sent its body."""
        if not self.body.is_here:
            self._keep_alive = False

    def close_after(self) -> None:
        """Do not use the connection again after this answer."""
        self._keep_alive = False

    def cancel(self) -> None:
        """Cancel whoever serves this request."""
        self._connection.cancel()

    # -- another protocol

    @property
    def may_switch(self) -> bool:
        """True if what follows the request is in another protocol, should that be granted."""
        return self._connection.in_another_protocol

    def switch(self, hear: Callable[[bytes], None]) -> None:
        """Have all that comes behind the request heard; the answer has told that it is granted."""
        self._connection.switch(hear)

    def hear(self, more: bool) -> None:
        """Read on, or stop reading for now."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            (transport.resume_reading if more else transport.pause_reading)()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

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
        return self._keep_alive and self.ended


def plain_error(error: GatewayError) -> bytes:
    """Render an error for a connection on which no request was understood."""
    return whole_error(error, ELSEWHERE, secrets.token_hex(16), "Connection: close\r\n")


def whole_error(error: GatewayError, dialect: Dialect, request_id: str, more: str = "") -> bytes:
    """Render an error, head and all, with more lines in its head."""
    body = dialect.error_body(error, request_id)
    rest = f"x-request-id: {request_id}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return _status_line(error.kind.status, b"") + _JSON + _error_lines(error) + rest.encode() + body


@lru_cache(64)
def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))


def _error_lines(error: GatewayError) -> bytes:
    headers = (("x-gateway-error", error.kind.type), *error.headers)
    told = "x-should-retry: false\r\n" if error.kind.status in _FINAL else ""
    return "".join((*(f"{name}: {value}\r\n" for name, value in headers), told)).encode()
