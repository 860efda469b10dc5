"""The way back to a client: one request's body in, its answer out, straight to the transport.

The one module that touches what aiohttp does not promise: `web.Server` makes plain `RequestHandler`s, so a
subclass of both is needed to render malformed requests in our envelope, to limit how long a head may take,
and to learn when a client reads too slowly. aiohttp parses, keeps and closes the connections; the loop over
their requests is ours, as its own makes a request, a writer, a response and a task for each, a fifth of what
a request cost. An answer is written to the transport by `Client`. tests/test_downstream.py fails when an
aiohttp release changes any of it.
"""

import asyncio
import re
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Literal, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from llmgateway.errors import INVALID_REQUEST, REQUEST_TIMEOUT, REQUEST_TOO_LARGE, GatewayError
from llmgateway.headers import AnswerHead, Field, HeadReader, RequestHead
from llmgateway.log import Events
from llmgateway.wire import Body, Dialect, at_event_boundary, error_body, error_event

events = Events("downstream")

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 16 * 1024

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
_BODILESS: Final = (204, 304)
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


@dataclass(slots=True, eq=False)
class Client:
    """One request of a client and the one answer it gets. It is the sink of an exchange's bytes."""

    _connection: "ClientConnection"
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
        # `read_nowait` would have the parser look again for what it has held back: nothing, behind an end.
        self._content = EMPTY_PAYLOAD
        return b"".join(content._buffer)

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
        length = None if head.is_sse else head.content_length
        if length is not None and self._keep_alive and self.version >= (1, 1) and status not in _BODILESS:
            framing = b"\r\nContent-Length: %d\r\n\r\n" % length  # as most
        else:
            framing = self._framing(status, length)
        self._head = b"".join(
            (
                _status_line(status, reason),
                passed,
                more,
                self._own_lines,
                b"" if head.dated else connection.server.date_line(),
                b"x-request-id: ",
                self.request_id.encode(),
                framing,
            )
        )

    def _framing(self, status: int, length: int | None) -> bytes:
        """Choose how the end of the body is told (RFC 9112 6): by length, chunks, or (HTTP/1.0) closing.

        Tell as well whether the connection is kept, where the version does not.
        """
        framing = b"\r\n"
        if status in _BODILESS:
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


class ClientConnection(RequestHandler):
    """A client's connection, with the limits and the manners that aiohttp leaves to us."""

    __slots__ = (
        "_deaf_timer",
        "_head_timer",
        "_heads",
        "_stall_timer",
        "flow",
        "now",
        "patience",
        "server",
        "serving",
    )

    def __init__(
        self,
        manager: "ClientServer",
        *,
        loop: asyncio.AbstractEventLoop,
        patience: Patience,
        **settings: Any,
    ) -> None:
        super().__init__(manager, loop=loop, keepalive_timeout=patience.keep_alive_s, **settings)
        self.server = manager
        self.patience = patience
        self.now = loop.time
        self.flow: Flow | None = None
        self.serving: Client | None = None
        self._heads = HeadReader()
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._deaf_timer: asyncio.TimerHandle | None = None

    # -- one request after another

    async def start(self) -> None:
        """Serve the requests of this connection, one after the other, in one task: the connection's own."""
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                message, content = self._messages.popleft()
                if self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                if isinstance(message, _ErrInfo):
                    self._refuse(message.exc)
                    break
                client = Client(
                    self,
                    message,
                    content,
                    self.transport,
                    self.now,
                    message.method,
                    message.path,
                    message.version,
                    message.raw_headers,
                    self._heads.read(message.raw_headers),
                    # aiohttp's parser takes the trailers of a chunked body for fields of the next request.
                    not (message.should_close or message.chunked),
                )
                del message, content  # an answer may take an hour
                kept = await self._serve(client)
                if not client.body_is_here:
                    await self._linger(client)
                if not kept or self._close or self._force_close:
                    break
                self._next_keepalive_close_time = self.now() + self._keepalive_timeout
                if self._keepalive_handle is None:
                    self._keepalive_handle = self._loop.call_at(
                        self._next_keepalive_close_time, self._process_keepalive
                    )
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception:
            events.exception("serving a connection failed")
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve(self, client: Client) -> bool:
        """Have a request answered; tells whether the connection may be used again."""
        self.serving = client
        self._current_request = client  # type: ignore[assignment]  # of which it wants `_cancel` only
        try:
            response = await self.server.answer(client)
            self._current_request = self.serving = None
            if response is not None:
                _, gone = await self.finish_response(client.request, response, None)
                return bool(response.keep_alive) and not gone
            if self._paused:  # the next request of a client that does not read has to wait
                await self.drained()
        except ConnectionError:
            return False
        finally:
            self._current_request = self.serving = None
        return client.finish()

    async def _linger(self, client: Client) -> None:
        """Read the rest of a body for a while: closing at once could cut off the answer (RFC 9112 9.6)."""
        with suppress(TimeoutError, RequestPayloadError, HttpProcessingError):
            async with asyncio.timeout(self._lingering_time):
                while not client.body_is_here and not self._force_close:
                    await client.skip_some()
        self._close = self._close or not client.body_is_here

    @property
    def in_another_protocol(self) -> bool:
        """True if what follows is in another protocol, by the client's wish, which is not granted.

        aiohttp's parser hears nothing any more then.
        """
        return self._upgraded and not self._messages

    def request_of(self, message: RawRequestMessage, content: StreamReader) -> web.BaseRequest:
        """Make aiohttp's own request of one of its messages."""
        assert self._request_factory is not None and self._task_handler is not None
        writer = StreamWriter(self, self._loop)
        return self._request_factory(message, content, self, writer, self._task_handler)

    # -- what comes

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that has begun must be complete in time."""
        super().data_received(data)
        if self._messages and self.serving is not None:
            self.check_framing()
        if self._buffer_paused or self._reading_paused:
            self._watch_deafness()
        waits_for_head = not self._request_count or (self._waiter is not None and not self._waiter.done())
        if not waits_for_head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif waits_for_head and self._head_timer is None and data:
            self._head_timer = self._loop.call_later(self.patience.head_s, self._head_took_too_long)

    def _watch_deafness(self) -> None:
        """Bound how long requests behind a running one may keep us from hearing the client leave.

        aiohttp stops reading when too much is queued, and a socket that is not read tells nothing.
        """
        client = self.serving
        if client is None or self._deaf_timer is not None:
            return
        if self._deaf and client.body_is_here:
            self._deaf_timer = self._loop.call_later(self.patience.deaf_s, self._been_deaf, client)

    @property
    def _deaf(self) -> bool:
        return self._buffer_paused or self._reading_paused

    def _been_deaf(self, client: Client) -> None:
        self._deaf_timer = None
        if self.serving is client and self._deaf:
            events.info("too many requests behind one that is running")
            self._abort()
        else:
            self._watch_deafness()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on, if anything had stopped it: aiohttp asks for it at the end of every body."""
        if self._reading_paused or resume_parser:
            super().resume_reading(resume_parser)

    def cancel(self) -> None:
        """Cancel the task that serves the requests."""
        if self._task_handler is not None:
            self._task_handler.cancel()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def check_framing(self) -> None:
        """Tell a request whose body stopped making sense; aiohttp would let it wait for more.

        Nothing can be parsed behind an unfinished body but an error.
        """
        if self._messages and self.serving is not None and not self.serving.body_is_here:
            self.serving.break_off(RequestPayloadError("broken framing"))

    def _head_took_too_long(self) -> None:
        if self.transport is not None:
            error = GatewayError(
                REQUEST_TIMEOUT, f"The request's head took longer than {self.patience.head_s:g} s."
            )
            self.transport.write(_plain_error(error))
        self.force_close()

    def _refuse(self, exc: BaseException) -> None:
        """Answer what was not HTTP, in the envelope; nothing of it is quoted or logged: it may hold a key."""
        events.info("malformed request", trouble=type(exc).__name__)
        too_long = isinstance(exc, LineTooLong)
        words = f"has a line over {MAX_LINE_BYTES} bytes" if too_long else "is not valid HTTP/1.1"
        if self.transport is not None:
            self.transport.write(_plain_error(GatewayError(INVALID_REQUEST, f"The request {words}.")))

    def pause_writing(self) -> None:
        """Hold the provider back: the client does not read as fast as it writes."""
        super().pause_writing()
        self._stall_timer = self._loop.call_later(self.patience.stall_s, self._stalled)
        if self.flow is not None:
            self.flow.pause()

    def resume_writing(self) -> None:
        """Let the provider go on."""
        super().resume_writing()
        self._stop_stall_timer()
        if self.flow is not None:
            self.flow.resume()

    async def drained(self) -> None:
        """Wait until the client has read most of what was written. Raises ConnectionError when it leaves."""
        if self._paused:
            await self._drain_helper()

    async def delivered(self) -> None:
        """Wait until the system has taken all that was written. Raises ConnectionError."""
        transport = self.transport
        if transport is None or not transport.get_write_buffer_size():
            return
        transport.set_write_buffer_limits(high=0)  # so that `resume_writing` means: all of it
        await self.drained()

    def _stalled(self) -> None:
        events.info("client stopped reading", limit_s=self.patience.stall_s)
        self._abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection; its handler is cancelled."""
        self.flow = None
        self._stop_stall_timer()
        for timer in (self._head_timer, self._deaf_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


def _plain_error(error: GatewayError) -> bytes:
    """Render an error for a connection on which no request was understood."""
    request_id = secrets.token_hex(12)
    body = error_body(error, "openai", request_id)
    head = (
        f"HTTP/1.1 {error.kind.status} {HTTPStatus(error.kind.status).phrase}\r\n"
        f"Content-Type: application/json\r\nx-gateway-error: {error.kind.type}\r\n"
        f"x-request-id: {request_id}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


Answer = Callable[[Client], Awaitable[web.StreamResponse | None]]
"""Answers a request through the client, or gives a response of aiohttp's. It must not raise."""


class ClientServer(web.Server):
    """aiohttp's low-level server, making our connections. A client that hangs up cancels its handler."""

    def __init__(self, answer: Answer, patience: Patience) -> None:
        super().__init__(
            cast(Any, answer),  # aiohttp itself never calls it: ClientConnection.start does
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            patience=patience,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )
        self.answer = answer
        self._date = (0, b"")

    def date_line(self) -> bytes:
        """Give the `Date` of answers that are made now."""
        second = int(time.time())
        if self._date[0] != second:
            self._date = second, b"Date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._date[1]

    def __call__(self) -> RequestHandler:
        """Make the protocol of a new connection."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    async def delivered(self, limit_s: float) -> bool:
        """Wait until the system has taken all answers, within `limit_s` seconds; tell whether it has."""
        waits = (cast(ClientConnection, connection).delivered() for connection in self.connections)
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*waits, return_exceptions=True)
        except TimeoutError:
            return False
        return True
