"""A WebSocket between a client and a provider: their bytes both ways, as they are, until one of them leaves.

The bytes are relayed and not the messages, so whatever both ends have agreed on passes: compression, pings,
closes, text that is none. Their frames are followed (see `frames`) for three things only. Rules:

- Who does not read holds the other back.
- Who ends it says so: the gateway puts a Close where a frame may stand, and gives the client a while to
  answer, so that none gets lost behind a connection that is reset. Where a frame never ends it is cut.
- Silence is asked about: both get a Ping of ours, whose Pong means nothing to the other one (5.5.3), so no
  proxy in between cuts a session that only has nothing to say. Who is silent for all that is gone.
- Whose key is good no more is told so at the next look, and gone.
- What a provider's messages say can be heard on the side, after it was written.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Final

from llmgateway.errors import (
    CANCELLED,
    DRAINING,
    INVALID_API_KEY,
    UPSTREAM_ERROR,
    ErrorKind,
    GatewayError,
    ProviderBroke,
    ProviderFailed,
    ProviderTimedOut,
)
from llmgateway.http.client import Client
from llmgateway.http.frames import (
    GOING_AWAY,
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    Follower,
    Piece,
    close_frame,
    ping_frame,
)
from llmgateway.http.switching import Switching
from llmgateway.log import Events

events = Events("tunnel")

CLOSING_S: Final = 5.0
"""How long the other end may take to answer a Close."""
PINGS_UNTIL_GONE: Final = 3
_CODES: Final[Mapping[ErrorKind, int]] = {
    DRAINING: GOING_AWAY,
    CANCELLED: POLICY_VIOLATION,
    INVALID_API_KEY: POLICY_VIOLATION,
}


class Tunnel:
    """One session; `run` is its life."""

    def __init__(
        self,
        client: Client,
        line: Switching,
        provider: str,
        *,
        idle_s: float,
        ping_s: float,
        listen: Callable[[Piece], None],
        check: Callable[[], object],
    ) -> None:
        """Join a client and a provider who have shaken hands.

        `idle_s` is how long one of them may be silent, `ping_s` after how long it is asked, 0 for seldom; so
        often `check` is called, which raises GatewayError to end it.
        """
        self.bytes_in = 0
        self._client = client
        self._line = line
        self._provider = provider
        self._idle_s = idle_s
        self._ping_s = min(ping_s or idle_s, idle_s / PINGS_UNTIL_GONE)
        self._listen = listen
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._up, self._down = Follower(), Follower()
        self._up_at = self._down_at = self._loop.time()
        """When something last came from the client, and from the provider."""
        self._left = False
        """Whether the provider has left."""
        self._held = False
        """Whether the client is held back."""
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.parting: GatewayError | None = None
        """What both are told, if the gateway ends it."""
        self.failure: ProviderFailed | None = None
        """The provider's, if that is why."""
        self._last_up = self._last_down = b""
        """The Close that waits for the end of a frame."""
        self._timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        """Of the wait for the answer to a Close."""

    @property
    def closed(self) -> bool:
        """True once one end has said Close to the other."""
        return self._up.closed or self._down.closed

    async def run(self) -> None:
        """Relay until one of them leaves.

        Raises ProviderFailed; or the GatewayError by which it was ended, which the client has been told.
        """
        client = self._client
        client.farewell = self.part
        self._timer = self._loop.call_later(self._ping_s, self._look)
        try:
            with client.holding(self):
                self._line.listen(self)
                if client.full:
                    self.pause()
                client.switch(self.from_client)
                await self._over
        finally:
            for timer in (self._timer, self._limit):
                if timer is not None:
                    timer.cancel()
        if self.failure is not None:
            raise self.failure
        if self.parting is not None:
            raise self.parting

    # -- what comes

    def from_provider(self, data: bytes) -> None:
        """Hand on what the provider says."""
        if self._over.done():
            return
        self._down_at = self._loop.time()
        if self.parting is None:
            self._client.feed(data, final=False)
            for piece in self._down.follow(data):
                self._listen(piece)
        elif self._last_down:
            self._client.feed(self._down.rest_of_frame(data), final=False)
            self._say_last()
        if self._down.closed:
            self._closes()

    def from_client(self, data: bytes) -> None:
        """Hand on what the client says."""
        if self._over.done():
            return
        self._up_at = self._loop.time()
        self.bytes_in += len(data)
        if self.parting is None:
            self._line.write(data)
        elif self._last_up:
            rest = self._up.rest_of_frame(data)
            self._line.write(rest)
            data = data[len(rest) :]
            self._say_last()
        self._up.pass_by(data)
        if self._up.closed:
            self._closes()

    def provider_left(self) -> None:
        """End with the provider; a client that has not answered its Close, or ours, may do so still."""
        self._left = True
        if self._over.done():
            return
        if self._up.closed or self._last_down:
            self._end()
        elif self.parting is None and not self._down.closed:
            failure = ProviderBroke(self._provider, "closed the connection without a WebSocket's Close.")
            if self._down.between:  # there are servers that end every session so, and mean no harm
                self.part(_told_of(failure))
            else:
                self._fail(failure)

    # -- flow

    def pause(self) -> None:
        """Stop feeding the client."""
        self._line.pause_reading()

    def resume(self) -> None:
        """Go on."""
        if self._line.resume_reading():
            self._down_at = self._loop.time()  # the provider was not silent, it was not heard

    def hold_client(self) -> None:
        """Hear no more of the client: the provider does not read."""
        self._held = True
        self._client.hear(False)
        self._up_at = self._loop.time()

    def release_client(self) -> None:
        """Hear the client again."""
        self._held = False
        self._client.hear(True)
        self._up_at = self._loop.time()

    # -- ends

    def part(self, error: GatewayError) -> None:
        """Say Close to both, as soon as a frame may stand there; and why, to the client."""
        if self.parting is not None:
            return
        self.parting = error
        if not self._down.closed:
            self._last_down = close_frame(_CODES.get(error.kind, INTERNAL_ERROR), error.message)
        if not self._up.closed:
            self._last_up = close_frame(GOING_AWAY, "", secrets.token_bytes(4))
        if self._held:  # the provider would not read it, and the client's answer must be heard
            self._last_up = b""
            self.release_client()
        self._say_last()
        self._closes()

    def _fail(self, failure: ProviderFailed) -> None:
        """End it as the provider has failed; a client in the middle of a frame can be told nothing."""
        self.failure = failure
        self.part(_told_of(failure))
        if self._last_down:
            self._end()

    def _say_last(self) -> None:
        if self._last_down and self._down.between:
            self._client.feed(self._last_down, final=False)
            self._last_down = b""
        if self._last_up and self._up.between:
            self._line.write(self._last_up)
            self._last_up = b""

    def _closes(self) -> None:
        """Give what is left of a session its time, once either end has said Close."""
        if self._up.closed and (self._left or self.parting is not None):
            self._end()
        elif self._limit is None:
            self._limit = self._loop.call_later(CLOSING_S, self._end)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    # -- silence

    def _look(self) -> None:
        """Ask both for a sign of life if one was silent for long; end it if that did not help."""
        if self._limit is not None:
            return  # it has its limit
        try:
            self._check()
        except GatewayError as error:
            self.part(error)
            return
        now = self._loop.time()
        since_up, since_down = now - self._up_at, now - self._down_at
        deaf = since_up >= self._idle_s and self._held
        if deaf or (since_down >= self._idle_s and not self._line.reading_paused):
            self._fail(ProviderTimedOut(self._provider, "idle", self._idle_s))
        elif since_up >= self._idle_s:
            events.info("a client is silent and answers no ping", limit_s=self._idle_s)
            self._client.abort()
        elif max(since_up, since_down) >= self._ping_s:
            self._ping()
        self._timer = self._loop.call_later(self._ping_s, self._look)

    def _ping(self) -> None:
        if self._down.between and not self._down.closed and not self._client.full:
            self._client.feed(ping_frame(), final=False)
        if self._up.between and not self._up.closed and not self._held:
            self._line.write(ping_frame(secrets.token_bytes(4)))


def _told_of(failure: ProviderFailed) -> GatewayError:
    return GatewayError(UPSTREAM_ERROR, failure.message, brief=failure.noted)
