"""Who of a crowd is answered: by ways of their own for those who are not simply clients among others."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from llmgateway.errors import GatewayError
from llmgateway.http.client import Client
from llmgateway.http.crowd import Crowd, Excess
from llmgateway.http.peers import FORWARDED_FOR, TRACES, Network, peer_of, traces_in

_FORWARDED_FOR: Final = FORWARDED_FOR.encode()
_TRACES: Final = frozenset(name.encode() for name in TRACES)
_MOST_NAMES: Final = 1_000
_MOST_CLAIMED: Final = 256  # bytes of a chain of proxies that is remembered

Answer = Callable[[Client], Awaitable[None]]
"""Answers a request through the client. It must not raise."""


class Turnstile:
    """Lets requests through to who answers them."""

    def __init__(self, answer: Answer, crowd: Crowd, is_vital: Callable[[Client], bool]) -> None:
        self.answer = answer
        self._crowd = crowd
        self._is_vital = is_vital
        self._names: dict[tuple[str, bytes, bool], str] = {}
        self._trusted: Sequence[Network] = ()

    async def if_vital(self, excess: Excess, client: Client) -> None:
        """Answer one request on a connection that is one too many, if it must be answered all the same."""
        client.close_after()
        if self._is_vital(client):
            await self.answer(client)
        else:
            _refuse(client, self._crowd.refusal(excess))

    async def by_proxy(self, connected: str, client: Client) -> None:
        """Answer a request that a trusted proxy passes on: it counts for whom it is from."""
        name = self._name_behind(connected, client)
        excess = self._crowd.count(name)
        try:
            if excess:
                _refuse(client, self._crowd.refusal(excess))
            else:
                await self.answer(client)
        finally:
            self._crowd.uncount(name)

    def _name_behind(self, connected: str, client: Client) -> str:
        """Give the name under which the client of a proxy counts. Remembered, as it takes long to find."""
        named, trusted = client.head.named, self._crowd.trusted
        if self._trusted is not trusted or len(self._names) >= _MOST_NAMES:
            self._names.clear()
            self._trusted = trusted
        claimed, proxied = named.get(_FORWARDED_FOR, b""), not _TRACES.isdisjoint(named)
        told = connected, claimed, proxied
        name = self._names.get(told)
        if name is None:
            address = peer_of(connected, traces_in(named), trusted, over_tls=False).address
            name = "" if address is None else self._crowd.name(str(address))
            if len(claimed) <= _MOST_CLAIMED:
                self._names[told] = name
        return name


def _refuse(client: Client, error: GatewayError) -> None:
    client.request_id = secrets.token_hex(16)
    client.fail(error)
