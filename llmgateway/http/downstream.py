"""A client's connection, and the loop over its requests.

This module, `server` and a little `body`, touch what aiohttp does not promise: `web.Server` makes plain
`RequestHandler`s, so a subclass of both is needed to render malformed requests in our envelope, to limit how
long a head may take, and to learn when a client reads too slowly. aiohttp parses, keeps and closes the
connections; the loop over their requests is ours, as its own makes a request, a writer, a response and a task
for each, a fifth of what a request cost. tests/http/test_server.py fails when an aiohttp release changes any
of it.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from llmgateway.errors import INVALID_REQUEST, REQUEST_TIMEOUT, GatewayError
from llmgateway.http.body import Patience, RequestBody
from llmgateway.http.client import Client, Flow, plain_error
from llmgateway.http.crowd import Crowd
from llmgateway.http.doorstep import Doorstep
from llmgateway.http.headers import HeadReader
from llmgateway.http.lobby import Held
from llmgateway.http.switching import InPlaceOfParser
from llmgateway.http.turnstile import Answer, Turnstile
from llmgateway.log import Events

events = Events("downstream")

MAX_LINE_BYTES: Final = 16 * 1024
_OF_TLS: Final = "HTTPS traffic"  # as aiohttp names what begins like it


class Shared(Protocol):
    """What connections share."""

    turnstile: Turnstile
    crowd: Crowd
    doorstep: Doorstep
    min_rate: int
    """How many bytes of a request's body have to come in a second, while it is waited for."""
    date_line: Callable[[], bytes]


class ClientConnection(RequestHandler):
    """A client's connection, with the limits and the manners that aiohttp leaves to us.

    It is long as aiohttp wants one object for all that it asks of a connection.
    """

    __slots__ = (
        "_answer",
        "_deaf_timer",
        "_head_timer",
        "_heads",
        "_is_let_in",
        "_is_spare",
        "_name",
        "_stall_timer",
        "date_line",
        "flow",
        "held",
        "now",
        "patience",
        "server",
        "serving",
    )

    def __init__(
        self,
        manager: Shared,
        *,
        loop: asyncio.AbstractEventLoop,
        patience: Patience,
        is_let_in: bool,
        **settings: Any,
    ) -> None:
        silent_s = min(patience.silent_s, patience.keep_alive_s)
        super().__init__(cast(Any, manager), loop=loop, keepalive_timeout=silent_s, **settings)
        self.server = manager
        self.date_line = manager.date_line
        self.patience = patience
        self.now = loop.time
        self.flow: Flow | None = None
        self.serving: Client | None = None
        self._answer: Answer = manager.turnstile.answer
        self._name, self._is_spare, self._is_let_in = "", False, is_let_in
        self.held: Held | None = None
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
                    await self._hear_out()
                    break
                client = self._client_of(message, content)
                del message, content  # an answer may take an hour
                kept = await self._serve(client)
                if not client.body.is_here:
                    await self._linger(client)
                elif client.body.broken:
                    await self._hear_out()
                if not kept or self._close or self._force_close:
                    break
                self._next_keepalive_close_time = self.now() + self.patience.keep_alive_s
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

    def _client_of(self, message: RawRequestMessage, content: StreamReader) -> Client:
        head = self._heads.read(message.raw_headers)
        body = RequestBody(self, content, message.raw_headers, head, message.version)
        return Client(self, message, body, head)

    async def _serve(self, client: Client) -> bool:
        """Have a request answered; tells whether the connection may be used again."""
        self.serving = client
        self._current_request = client.body  # type: ignore[assignment]  # of which it wants `_cancel` only
        try:
            await self._answer(client)
            self._current_request = self.serving = None
            if self._paused:  # the next request of a client that does not read has to wait
                await self.drained()
        except ConnectionError:
            return False
        finally:
            self._current_request = self.serving = None
        return client.finish()

    async def _linger(self, client: Client) -> None:
        """Read the rest of a body for a while: closing at once could cut off the answer (RFC 9112 9.6)."""
        if client.body.on_invitation and self.transport is not None:
            self.transport.close()  # it was told not to send the body: nothing will come to wait for
        with suppress(TimeoutError, RequestPayloadError, HttpProcessingError):
            async with asyncio.timeout(self._lingering_time):
                while not client.body.is_here and not self._force_close:
                    await client.body.skip_some()
        self._close = self._close or not client.body.is_here

    async def _hear_out(self) -> None:
        """Let a client that was refused close first: what it still sends would take its answer away."""
        self._close = True
        transport = self.transport
        if transport is not None and transport.can_write_eof():
            transport.write_eof()
            await asyncio.sleep(self._lingering_time)  # the end of the connection ends this task

    @property
    def min_rate(self) -> int:
        """How many bytes of a body have to come in a second."""
        return self.server.min_rate

    @property
    def in_another_protocol(self) -> bool:
        """True if what follows is in another protocol, by the client's wish, which is not granted.

        aiohttp's parser hears nothing any more then.
        """
        return self._upgraded and not self._messages

    def switch(self, hear: Callable[[bytes], None]) -> None:
        """Have what follows heard in that protocol; aiohttp has kept what came early, within bounds."""
        self.set_parser(cast(Any, InPlaceOfParser(hear)))

    def all_of(self, content: StreamReader) -> bytes:
        """Give a body that is here to its end.

        `read_nowait` would have the parser look again for what it has held back: nothing, behind an end.
        """
        return b"".join(content._buffer)

    def request_of(self, message: RawRequestMessage, content: StreamReader) -> web.BaseRequest:
        """Make aiohttp's own request of one of its messages."""
        assert self._request_factory is not None and self._task_handler is not None
        writer = StreamWriter(self, self._loop)
        return self._request_factory(message, content, self, writer, self._task_handler)

    # -- what comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve a connection, unless there are too many."""
        super().connection_made(transport)
        crowd, peer = self.server.crowd, transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        self._name = crowd.name(address)
        excess = crowd.enter(self._name)
        if excess and not crowd.take_spare():
            self._turn_away(crowd.refusal(excess))
        elif excess:
            self._is_spare = self._is_let_in = True
            self._answer = partial(self.server.turnstile.if_vital, excess)
            late = self.patience.spare_s
            self._head_timer = self._loop.call_later(late, lambda: self._turn_away(crowd.refusal(excess)))
        elif crowd.is_proxy(address):
            self._answer = partial(self.server.turnstile.by_proxy, address)

    def _turn_away(self, error: GatewayError) -> None:
        if self.transport is not None:
            self.transport.write(plain_error(error))
        self.force_close()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is refused, or waits in the lobby."""
        if self.held is not None:
            self.held.add(data)
        elif self._is_let_in or not self._is_idle or not self.server.doorstep.stops(self, data, self.now()):
            self.hear(data)

    def hear(self, data: bytes) -> None:
        """Parse what came; a head that has begun must be complete in time."""
        self._is_let_in = self._is_spare
        super().data_received(data)
        if self.serving is not None:
            self.check_framing()
            self._watch_deafness()
        waits_for_head = not self._request_count or (self._waiter is not None and not self._waiter.done())
        if not waits_for_head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif waits_for_head and self._head_timer is None and data:
            self._head_timer = self._loop.call_later(self.patience.head_s, self._head_took_too_long)

    @property
    def _is_idle(self) -> bool:
        """True while nothing of a request has come, and the client reads."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and self._head_timer is None and not self._paused

    def refuse(self, data: bytes) -> bool:
        """Refuse a request, unless it is let in; tells whether it was refused."""
        answer = self.server.doorstep.answer_to(data)
        if answer is not None and self.transport is not None:
            self.transport.write(answer)
            self._next_keepalive_close_time = self.now() + self.patience.keep_alive_s
        return answer is not None

    def _process_keepalive(self) -> None:
        self._keepalive_handle = None
        if self.held is not None:  # it asks
            self._next_keepalive_close_time = self.now() + self.patience.keep_alive_s
        if self._head_timer is None:  # else a head has begun, which has a clock of its own
            super()._process_keepalive()

    def _watch_deafness(self) -> None:
        """Bound how long requests behind a running one may keep us from hearing the client leave.

        aiohttp stops reading when too much is queued, and a socket that is not read tells nothing.
        """
        client = self.serving
        if client is None or self._deaf_timer is not None:
            return
        if self._deaf and client.body.is_here:
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
        if self._messages and self.serving is not None and not self.serving.body.is_here:
            self.serving.body.break_off(RequestPayloadError("broken framing"))

    def _head_took_too_long(self) -> None:
        words = f"The request's head took longer than {self.patience.head_s:g} s."
        self._turn_away(GatewayError(REQUEST_TIMEOUT, words))

    def _refuse(self, exc: BaseException) -> None:
        """Answer what was not HTTP, in the envelope; nothing of it is quoted or logged: it may hold a key."""
        words = "is not valid HTTP/1.1"
        if isinstance(exc, LineTooLong):
            words = f"has a line over {MAX_LINE_BYTES} bytes"
        elif _OF_TLS in str(exc):
            words = "is TLS, and this port speaks plain HTTP; the URL must begin with http://"
            events.info("a client speaks TLS to the plain HTTP port; its URL must begin with http://")
        events.info("malformed request", trouble=type(exc).__name__)
        if self.transport is not None:
            self.transport.write(plain_error(GatewayError(INVALID_REQUEST, f"The request {words}.")))

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
        self.server.crowd.leave(self._name, spare=self._is_spare)
        self.flow = self.held = None
        self._stop_stall_timer()
        for timer in (self._head_timer, self._deaf_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
