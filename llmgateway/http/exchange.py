"""One provider's answer, from its first byte to its last: waited for, read, or relayed to a sink.

Rules:

- The answer is not shown before its first body byte (or its end) is there: until then a failure can go to
  another provider.
- What had arrived before an answer broke off is handed on before the break is told.
- Bounded: what is buffered before a sink is there. A sink that is full pauses the socket.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from llmgateway.errors import ProviderBroke, ProviderFailed, ProviderTimedOut
from llmgateway.http.headers import NO_HEAD, AnswerHead
from llmgateway.http.upload import Sending

BUFFER_BYTES: Final = 64 * 1024


class Wire(Protocol):
    """What an exchange needs of the connection that carries it."""

    reading_paused: bool
    """True while nothing more is read from the provider."""

    def pause_reading(self) -> None:
        """Stop reading until `resume_reading`."""

    def resume_reading(self) -> bool:
        """Read on; tells whether reading had been paused."""

    def abort(self) -> None:
        """Close at once; what was not sent yet is dropped."""


class Sink(Protocol):
    """Takes the body of an answer; never blocks, never raises."""

    @property
    def full(self) -> bool:
        """True if it wants no more for now; the exchange is told to resume when that is over."""

    def feed(self, data: bytes, *, final: bool) -> None:
        """Take the next piece; `final` is True once, with the last bytes or with none."""

    def feed_chunk(self, data: bytes, framed: bytes, now: float) -> None:
        """Take the next piece, which came as one chunk: `framed` is the same with its framing.

        `now` is on the loop's clock.
        """


class Deadlines:
    """Ends exchanges whose first byte does not come in time: one timer, however many of them wait.

    All have the same limit, so the first that waits is the first that is due.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._due: dict[Exchange, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, exchange: "Exchange") -> None:
        """Count the time from now on."""
        due = self._due[exchange] = self._loop.time() + self.limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def discard(self, exchange: "Exchange") -> None:
        """Count no longer."""
        del self._due[exchange]

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for exchange, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            exchange.took_too_long(self.limit_s)

    def stop(self) -> None:
        """Let nothing be due any more."""
        if self._timer is not None:
            self._timer.cancel()


@dataclass(slots=True, eq=False)
class Exchange:
    """One request's answer, from its first byte to its last.

    Use as `with`: leave early, and its connection is closed at once. A complete one has given its connection
    back already.
    """

    provider: str
    _connection: Wire | None
    _loop: asyncio.AbstractEventLoop
    _on_end: Callable[[], None] = lambda: None
    status: int = 0
    """Of the answer, as its `reason` and its `head`; 0 before that is known."""
    reason: bytes = b""
    head: AnswerHead = NO_HEAD
    complete: bool = False
    lost: bool = False
    """True if the connection ended before the answer was complete."""
    hung_up: bool = False
    """True if that was in good order, by the provider."""
    untouched: bool = True
    """True until a byte of the answer came."""
    last_byte: float = 0.0
    """When the last body byte came, on the loop's clock; 0 before the first."""
    failure: ProviderFailed | None = None
    sink: Sink | None = None
    _buffer: list[bytes] = field(default_factory=list)
    _buffered: int = 0
    _buffer_limit: int = BUFFER_BYTES
    _wake: asyncio.Future[None] | None = None

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self.cut()
        self._on_end()

    # -- for the task that wants the answer

    async def first_byte(self, deadlines: Deadlines, sending: Sending | None = None) -> None:
        """Wait for the head and the first body byte, or end the exchange. Raises ProviderFailed.

        While the request is still being sent, only the provider's own part in that counts.
        """
        if sending is None:
            deadlines.add(self)
        else:
            sending.time_by(partial(deadlines.add, self), partial(deadlines.discard, self))
        try:
            while not (self.complete or self._buffered):
                await self._news()
        except BaseException:  # also one who leaves just when the byte has come
            self.cut()
            raise
        finally:
            if sending is None:
                deadlines.discard(self)
            else:
                sending.time_no_more()

    def took_too_long(self, limit_s: float) -> None:
        """Learn that the first byte has not come in time."""
        self._fail(ProviderTimedOut(self.provider, "first_byte", limit_s))

    def whole(self) -> bytes:
        """Give the body of an answer that was complete before anybody relayed it."""
        return b"".join(self._buffer)

    async def read(self, limit_bytes: int, limit_s: float) -> tuple[bytes, bool]:
        """Read the body up to a size and a time; gives what came and whether that is all.

        What was read can still be relayed.
        """
        self._buffer_limit = limit_bytes
        self.resume()
        try:
            async with asyncio.timeout(limit_s):
                while not (self.complete or self._buffered > limit_bytes):
                    await self._news()
        except (TimeoutError, ProviderFailed):
            pass  # the caller gets what is there; a relay would raise the failure again
        return b"".join(self._buffer), self.complete

    def amend(self, body: bytes) -> None:
        """Have another body relayed, of the same length, in the place of what was read."""
        assert len(body) == self._buffered
        self._buffer = [body]

    async def relay(self, sink: Sink, idle_s: float) -> None:
        """Hand the body to the sink until it ends.

        Raises ProviderFailed, after all that had arrived was handed on.
        """
        self.sink = sink
        early, self._buffer, self._buffered = b"".join(self._buffer), [], 0
        if sink.full:
            self.pause()
        else:
            self.resume()
        if early or self.complete:
            sink.feed(early, final=self.complete)
        if self.complete:
            return
        watch = _Watch(self, idle_s)
        try:
            while not self.complete:
                await self._news()
        finally:
            watch.stop()

    def pause(self) -> None:
        """Stop reading from the provider: the sink is full."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None and self._connection.resume_reading():
            self.last_byte = self._loop.time()  # the provider was not silent, it was not heard

    def rest(self) -> None:
        """Read on only once others have had their turn: the loop alone would read on up to 32 times."""
        if self.sink is not None and self._connection is not None and not self.paused:
            self.pause()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.sink is not None and not self.sink.full:
            self.resume()

    @property
    def paused(self) -> bool:
        """True while the sink holds the provider back."""
        return self._connection is not None and self._connection.reading_paused

    @property
    def wire(self) -> Wire | None:
        """The connection, as long as it belongs to this exchange."""
        return self._connection

    def cut(self) -> None:
        """End the exchange at once, if it is not complete."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _news(self) -> asyncio.Future[None]:
        """Give what to wait for until something has happened. Raises ProviderFailed if that was the end."""
        if self.failure is not None:
            raise self.failure
        self._wake = self._loop.create_future()
        return self._wake

    # -- for the connection

    def received(self, data: bytes, *, complete: bool) -> None:
        """Take body bytes that just came; with the last ones, the connection is somebody else's already."""
        if complete:
            self.complete = True
            self._connection = None
        elif data:
            self.last_byte = self._loop.time()
        if self.sink is not None:
            self.sink.feed(data, final=complete)
            if not complete:
                return
        elif data:
            self._buffer.append(data)
            self._buffered += len(data)
            if self._buffered > self._buffer_limit:
                self.pause()
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def switched(self) -> None:
        """Learn that its connection speaks another protocol from now on; it is still this exchange's."""
        self.complete = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def broke(self, trouble: str) -> None:
        """Learn that no more of this answer will come."""
        self._fail(ProviderBroke(self.provider, trouble, wordless=self.untouched))

    def idled(self, limit_s: float) -> None:
        """Learn that the provider has been silent for too long."""
        self._fail(ProviderTimedOut(self.provider, "idle", limit_s))

    def _fail(self, failure: ProviderFailed) -> None:
        if self.failure is None and not self.complete:
            self.failure = failure
            self.cut()
            if self._wake is not None and not self._wake.done():
                self._wake.set_result(None)


class _Watch:
    """Ends an exchange whose provider says nothing for too long; one timer, however many bytes pass."""

    def __init__(self, exchange: Exchange, idle_s: float) -> None:
        self._exchange = exchange
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(idle_s, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        due = (now if self._exchange.paused else self._exchange.last_byte) + self._idle_s
        if now >= due:
            self._exchange.idled(self._idle_s)
        else:
            self._timer = self._loop.call_at(due, self._look)

    def stop(self) -> None:
        self._timer.cancel()
