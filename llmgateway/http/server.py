"""The clients' connections, of which each has its `downstream`."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from llmgateway.http.body import Patience
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd
from llmgateway.http.dates import Dates
from llmgateway.http.doorstep import Doorstep
from llmgateway.http.downstream import MAX_LINE_BYTES, ClientConnection
from llmgateway.http.lobby import Calm
from llmgateway.http.turnstile import Answer, Turnstile

MIN_RATE: Final = 1024


class ClientServer(web.Server):
    """aiohttp's low-level server, making our connections. A client that hangs up cancels its handler."""

    def __init__(
        self,
        answer: Answer,
        patience: Patience,
        crowd: Crowd,
        is_vital: Callable[[Client], bool] = lambda client: False,
        doorstep: Doorstep | None = None,
    ) -> None:
        """Have requests answered; those that are vital also where the crowd is too large for others."""
        super().__init__(
            cast(Any, answer),  # aiohttp itself never calls it: ClientConnection.start does
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            patience=patience,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )
        self.turnstile = Turnstile(answer, crowd, is_vital)
        self.crowd = crowd
        self.doorstep = doorstep or Doorstep(Calm(), lambda target: False, lambda target: None, crowd)
        self.min_rate = MIN_RATE
        """How many bytes of a request's body have to come in a second, while it is waited for."""
        self.date_line = Dates().line

    def __call__(self) -> RequestHandler:
        """Make the protocol of a new connection."""
        return ClientConnection(self, loop=self._loop, is_let_in=False, **self._kwargs)

    def let_in(self) -> RequestHandler:
        """Make the protocol of one whose first request neither waits nor is refused: it has waited."""
        return ClientConnection(self, loop=self._loop, is_let_in=True, **self._kwargs)

    async def delivered(self, limit_s: float) -> bool:
        """Wait until the system has taken all answers, within `limit_s` seconds; tell whether it has."""
        waits = (cast(ClientConnection, connection).delivered() for connection in self.connections)
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*waits, return_exceptions=True)
        except TimeoutError:
            return False
        return True
