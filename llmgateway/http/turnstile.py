"""Who of a crowd is answered: by ways of their own for those who are not simply clients among others."""

import secrets
from collections.abc import Awaitable, Callable

from llmgateway.errors import GatewayError
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd, Excess
from llmgateway.http.peers import peer_of, traces_in

Answer = Callable[[Client], Awaitable[None]]
"""Answers a request through the client. It must not raise."""


class Turnstile:
    """Lets requests through to who answers them."""

    def __init__(self, answer: Answer, crowd: Crowd, is_vital: Callable[[Client], bool]) -> None:
        self.answer = answer
        self._crowd = crowd
        self._is_vital = is_vital

    async def if_vital(self, excess: Excess, client: Client) -> None:
        """Answer one request on a connection that is one too many, if it must be answered all the same."""
        client.close_after()
        if self._is_vital(client):
            await self.answer(client)
        else:
            _refuse(client, self._crowd.refusal(excess))

    async def by_proxy(self, client: Client) -> None:
        """Answer a request that a trusted proxy passes on: it counts for whom it is from."""
        link, traces = client.link, traces_in(client.head.named)
        address = peer_of(link.address, traces, self._crowd.trusted, over_tls=link.over_tls).address
        name = "" if address is None else self._crowd.name(str(address))
        excess = self._crowd.count(name)
        try:
            if excess:
                _refuse(client, self._crowd.refusal(excess))
            else:
                await self.answer(client)
        finally:
            self._crowd.uncount(name)


def _refuse(client: Client, error: GatewayError) -> None:
    client.request_id = secrets.token_hex(16)
    client.fail(error)
