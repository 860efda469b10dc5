"""Exchanges with providers: a pool of connections for each, and the requests on them.

A request that met a connection which the provider had just closed is sent once more on a fresh one, if no
byte of an answer came, or only a 408, which servers say when they close what has idled (RFC 9110, 15.5.9);
nothing else is ever sent twice by this module.

The pool of a provider that a new config has no place for keeps no connection, and lasts as long as its last
exchange.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from llmgateway.api.endpoints import Body
from llmgateway.errors import ProviderFailed, ProviderRedirected, ProviderTimedOut
from llmgateway.fleet.address import Address, Outgoing
from llmgateway.fleet.dialing import Dialer
from llmgateway.fleet.names import LookUp, look_up
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.redirects import is_redirect, redirected
from llmgateway.fleet.trust import Trust
from llmgateway.http.connection import Connection
from llmgateway.http.exchange import Deadlines, Exchange
from llmgateway.http.handshake import SWITCH
from llmgateway.http.switching import Switching
from llmgateway.http.upload import Cargo
from llmgateway.http.via import new_name

MAX_IDLE_CONNECTIONS: Final = 1024
_IDLED: Final = 408  # said of a connection on which nothing has come for long, just when something does


def _repeatable(cargo: Cargo | None) -> bool:
    """Tell whether a request can be sent once more."""
    return cargo is None or cargo.upload.repeatable


class Pool:
    """The connections to one provider."""

    def __init__(
        self,
        provider: Provider,
        address: Address,
        dialer: Dialer,
        forget: Callable[[Provider], None] = lambda provider: None,
    ) -> None:
        """Keep connections to a provider; once it is gone and nobody needs them any more, call `forget`."""
        self.address = address
        self.dialer = dialer
        self._uses = 0
        self._provider = provider
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(provider.config.timeouts.first_byte)
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def open(self, head: bytes, body: Body, cargo: Cargo | None = None) -> Exchange:
        """Send a request and wait for the first byte of its answer. Raises ProviderFailed."""
        self._uses += 1
        limit_s = self._provider.config.timeouts.first_byte
        if limit_s != self._deadlines.limit_s:
            self._deadlines = Deadlines(limit_s)
        try:
            connection = self._take() if self._idle else None
            while True:
                fresh = connection is None
                if connection is None:
                    connection = await self._connect()
                exchange = Exchange(self._provider.name, connection, self._loop, self._leave)
                sending = None
                if cargo is None:
                    connection.send(exchange, head, body)
                else:
                    sending = connection.send_cargo(exchange, head, cargo)
                try:
                    await exchange.first_byte(self._deadlines, sending)
                    if fresh or exchange.status != _IDLED or not _repeatable(cargo):
                        return exchange
                    exchange.cut()
                except ProviderFailed as failure:
                    if fresh or not exchange.untouched or isinstance(failure, ProviderTimedOut):
                        raise
                    if not _repeatable(cargo):
                        raise
                self.close_idle()  # its neighbours are as old
                connection = None
        except BaseException:  # cancelled as well: nobody else can end this use
            self._leave()
            raise

    async def switch(self, head: bytes, accept: bytes) -> Exchange:
        """Ask for another protocol, on a connection for this alone, and wait for the answer.

        Raises ProviderFailed, also for a 101 that does not say `accept`.
        """
        self._uses += 1
        deadlines = Deadlines(self._provider.config.timeouts.first_byte)
        try:
            connection = await self.dialer.dial(lambda: Switching(accept, self._all.discard))
            if connection.usable:
                self._all.add(connection)
            exchange = Exchange(self._provider.name, connection, self._loop, self._leave)
            connection.send(exchange, head, b"")
            await exchange.first_byte(deadlines)
            return exchange
        except BaseException:
            self._leave()
            raise
        finally:
            deadlines.stop()

    def _leave(self) -> None:
        """End one use; the pool of a provider that is gone ends with its last one."""
        self._uses -= 1
        if self._provider.gone and not self._uses:
            self._forget(self._provider)

    def retire(self) -> None:
        """Keep nothing for later: the provider is gone."""
        self.close_idle()
        if not self._uses:
            self._forget(self._provider)

    def _take(self) -> Connection | None:
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh(now):
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        connection = await self.dialer.dial(lambda: Connection(self._went_idle, self._all.discard))
        if connection.usable:
            self._all.add(connection)
        return connection

    def _went_idle(self, connection: Connection) -> None:
        if len(self._idle) < MAX_IDLE_CONNECTIONS and not self._provider.gone:
            self._idle.append(connection)
        else:
            connection.abort()

    def last_byte(self) -> float:
        """Tell when an answer that is still under way last brought a byte (loop's clock); 0 if none has."""
        return max((c.exchange.last_byte for c in self._all if c.exchange is not None), default=0.0)

    def works(self) -> bool:
        """Tell whether an answer is awaited or under way, within its time limits; not if nobody reads it."""
        return any(c.exchange is not None and not c.reading_paused for c in self._all)

    def sweep(self) -> None:
        """Close connections that have been idle for too long."""
        now = asyncio.get_running_loop().time()
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.fresh(now):
                self._idle.append(connection)
            else:
                connection.abort()

    def close_idle(self) -> bool:
        """Close all connections that are idle; tells whether there were any."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()
        return bool(idle)

    def close(self) -> None:
        """Close all connections."""
        self._deadlines.stop()
        self.close_idle()
        for connection in list(self._all):
            connection.abort()


class Upstream:
    """The way to all providers."""

    def __init__(self, look_up: LookUp = look_up, name: str = "") -> None:
        """Find hosts by `look_up`, which may block; send what is sent in the name of a gateway."""
        self.name = name or new_name()
        """The pseudonym of the gateway, in the `Via` of all that it sends."""
        self._look_up = look_up
        self._pools: dict[Provider, Pool] = {}
        self._trust = Trust()

    def pool(self, provider: Provider) -> Pool:
        """Give the provider's pool."""
        pool = self._pools.get(provider)
        if pool is None:
            address = Address(provider.config, self.name)
            dialer = Dialer(provider, address, self._trust, self._look_up, self._make_room)
            pool = self._pools[provider] = Pool(provider, address, dialer, self._forget)
        return pool

    def _make_room(self) -> bool:
        """Close all connections that nobody uses; tells whether there were any."""
        return sum(pool.close_idle() for pool in self._pools.values()) > 0

    def _forget(self, provider: Provider) -> None:
        self._pools.pop(provider, None)

    def retire(self, gone: Iterable[Provider]) -> None:
        """Close the idle connections to providers that are gone; what is in flight there ends by itself."""
        for provider in gone:
            if (pool := self._pools.get(provider)) is not None:
                pool.retire()

    def open(self, provider: Provider, request: Outgoing) -> Coroutine[Any, Any, Exchange]:
        """Send a request; gives the exchange when the first byte of its answer is there. Use it as `with`.

        Whoever has a lease on a provider when it goes may come here later: its pool is made anew then. Raises
        ProviderFailed.
        """
        pool = self._pools.get(provider) or self.pool(provider)
        if request.accept:
            head = pool.address.head(request).removesuffix(b"\r\n") + SWITCH + b"\r\n"
            return pool.switch(head, request.accept)
        return pool.open(pool.address.head(request), request.body, request.cargo)

    def redirected(self, provider: Provider, request: Outgoing, exchange: Exchange) -> ProviderRedirected:
        """Say where a provider's answer of 3xx leads, and what is to be done about it."""
        address = self.pool(provider).address
        return redirected(provider, address, request.path, exchange.status, exchange.head)

    async def get(self, provider: Provider, path: str, limit_bytes: int) -> tuple[int, bytes]:
        """Fetch a small page: status and body, cut at `limit_bytes`.

        The caller limits the time. Raises ProviderFailed, also for a redirect.
        """
        pool = self.pool(provider)
        head = f"GET {pool.address.target(path)} HTTP/1.1\r\n".encode() + pool.address.lines
        head += pool.address.via.encode() + b"Accept: application/json\r\nAccept-Encoding: identity\r\n\r\n"
        with await pool.open(head, b"") as exchange:
            if is_redirect(exchange.status, exchange.head):
                raise redirected(provider, pool.address, path, exchange.status, exchange.head)
            body, _ = await exchange.read(limit_bytes, provider.config.timeouts.idle)
            if exchange.failure is not None:
                raise exchange.failure
            return exchange.status, body

    def seeks(self, provider: Provider) -> bool:
        """Tell whether nobody knows yet where the provider's host name leads."""
        pool = self._pools.get(provider)
        return pool is not None and pool.dialer.name.sought

    def last_byte(self, provider: Provider) -> float:
        """Tell when an answer that is under way last brought a byte (loop's clock); 0 if none is."""
        pool = self._pools.get(provider)
        return pool.last_byte() if pool is not None else 0.0

    def works(self, provider: Provider) -> bool:
        """Tell whether the provider is at work for us, within the time limits of that work."""
        pool = self._pools.get(provider)
        return pool is not None and pool.works()

    def sweep(self, provider: Provider) -> None:
        """Close the provider's connections that have been idle for too long."""
        if (pool := self._pools.get(provider)) is not None:
            pool.sweep()

    def close(self) -> None:
        """Close all connections to all providers, also to those that are gone."""
        for pool in self._pools.values():
            pool.close()
