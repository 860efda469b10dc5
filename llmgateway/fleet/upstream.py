"""Exchanges with providers: a pool of connections for each, and what goes wrong on the way there.

Foreign exceptions are translated here, and only here. A request that met a connection which the provider had
just closed is sent once more on a fresh one, if no byte of an answer came; nothing else is ever sent twice by
this module.

The pool of a provider that a new config has no place for keeps no connection, and lasts as long as its last
exchange.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from llmgateway.api.endpoints import Body
from llmgateway.config.settings import ProviderConfig
from llmgateway.errors import ProviderFailed, ProviderTimedOut, ProviderUnreachable
from llmgateway.fleet.fleet import Provider
from llmgateway.http.connection import Connection
from llmgateway.http.exchange import Deadlines, Exchange
from llmgateway.http.headers import Field, request_head

MAX_IDLE_CONNECTIONS: Final = 1024


class Outgoing(msgspec.Struct, gc=False):
    """A request on its way to whichever provider takes it.

    `path` is the gateway's own (from the endpoint table), `query` what followed `?`, `fields` what the client
    sent, `lines` what passes on of it. `body` is dropped once an answer is relayed: it may be large, and the
    answer may take an hour.
    """

    path: str
    query: str
    fields: tuple[Field, ...]
    lines: bytes
    request_id: str
    body: Body


class Address:
    """Where a provider is, and what never changes about requests to it."""

    def __init__(self, config: ProviderConfig) -> None:
        parts = urlsplit(config.url)
        assert parts.hostname is not None
        self.host = parts.hostname
        self.secure = parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self._base = parts.path
        self.replaced = frozenset(name.lower().encode() for name in config.headers)
        lines = [f"Host: {parts.netloc}"] if b"host" not in self.replaced else []
        if config.api_key is not None:
            lines.append(f"Authorization: Bearer {config.api_key}")
        lines += [f"{name}: {value}" for name, value in config.headers.items()]
        self.lines = "".join(f"{line}\r\n" for line in lines).encode()

        self._openings: dict[str, bytes] = {}

    def target(self, path: str) -> str:
        """Place an endpoint below the provider's base URL if it is one of `/v1`, else below its origin."""
        return self._base + path.removeprefix("/v1") if path.startswith("/v1/") else path

    def head(self, request: Outgoing) -> bytes:
        """Write the head of a request as it goes to this provider."""
        opening = self._openings.get(request.path) if not request.query else self._opening(request)
        if opening is None:
            opening = self._openings[request.path] = self._opening(request)
        lines = request.lines
        if self.replaced:
            lines = request_head(request.fields, replaced=self.replaced).lines
        own = f"X-Request-Id: {request.request_id}\r\nContent-Length: {len(request.body)}\r\n\r\n"
        return opening + lines + own.encode()

    def _opening(self, request: Outgoing) -> bytes:
        query = f"?{request.query}" if request.query else ""
        return f"POST {self.target(request.path)}{query} HTTP/1.1\r\n".encode() + self.lines


class Pool:
    """The connections to one provider."""

    def __init__(
        self,
        provider: Provider,
        address: Address,
        tls: ssl.SSLContext | None,
        forget: Callable[[Provider], None] = lambda provider: None,
    ) -> None:
        """Keep connections to a provider; once it is gone and nobody needs them any more, call `forget`."""
        self.address = address
        self._uses = 0
        self._provider = provider
        self._tls = tls
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(provider.config.timeouts.first_byte)
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def open(self, head: bytes, body: Body) -> Exchange:
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
                connection.send(exchange, head, body)
                try:
                    await exchange.first_byte(self._deadlines)
                    return exchange
                except ProviderFailed as failure:
                    if fresh or not exchange.untouched or isinstance(failure, ProviderTimedOut):
                        raise
                    self.close_idle()  # its neighbours are as old
                    connection = None
        except BaseException:  # cancelled as well: nobody else can end this use
            self._leave()
            raise

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
        """Make a new connection, trying the host's addresses one after the other."""
        limit_s = self._provider.config.timeouts.connect
        name = self._provider.name
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._connect_to_any(limit_s)
        except TimeoutError:
            raise ProviderTimedOut(name, "connect", limit_s) from None
        except (OSError, UnicodeError) as exc:
            raise ProviderUnreachable(name, f"is unreachable: {_words(exc)}.") from exc
        if connection.usable:
            self._all.add(connection)
        return connection

    async def _connect_to_any(self, limit_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = self.address.host, self.address.port
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        *others, last = dict.fromkeys(str(address[0]) for *_, address in found)
        for address in others:  # each may take its share of the time: the next one may be the good one
            try:
                async with asyncio.timeout(limit_s / (len(others) + 1)):
                    return await self._connect_to(address)
            except (OSError, TimeoutError):
                continue
        return await self._connect_to(last)

    async def _connect_to(self, address: str) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._went_idle, self._all.discard),
            address,
            self.address.port,
            ssl=self._tls,
            server_hostname=self.address.host if self._tls else None,
        )
        return connection

    def _went_idle(self, connection: Connection) -> None:
        if len(self._idle) < MAX_IDLE_CONNECTIONS and not self._provider.gone:
            self._idle.append(connection)
        else:
            connection.abort()

    def last_byte(self) -> float:
        """Tell when an answer that is still under way last brought a byte (loop's clock); 0 if none has."""
        return max((c.exchange.last_byte for c in self._all if c.exchange is not None), default=0.0)

    def sweep(self) -> None:
        """Close connections that have been idle for too long."""
        now = asyncio.get_running_loop().time()
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.fresh(now):
                self._idle.append(connection)
            else:
                connection.abort()

    def close_idle(self) -> None:
        """Close all connections that are idle."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()

    def close(self) -> None:
        """Close all connections."""
        self._deadlines.stop()
        self.close_idle()
        for connection in list(self._all):
            connection.abort()


def _words(exc: Exception) -> str:
    """Say in words why no connection came about."""
    match exc:
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is not accepted ({exc.verify_message})"
        case ssl.SSLError():
            return f"TLS failed ({exc.reason or 'no details'})"
        case socket.gaierror() | UnicodeError():
            return "its host name cannot be resolved"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case _ if "refused" in str(exc) or "Errno 111" in str(exc):
            return "connection refused"  # several addresses were tried, each refused
        case _:
            return "no connection"


class Upstream:
    """The way to all providers."""

    def __init__(self) -> None:
        self._pools: dict[Provider, Pool] = {}
        self._tls: ssl.SSLContext | None = None

    def pool(self, provider: Provider) -> Pool:
        """Give the provider's pool."""
        pool = self._pools.get(provider)
        if pool is None:
            address = Address(provider.config)
            if address.secure and self._tls is None:
                self._tls = (
                    ssl.create_default_context()
                )  # reads the system's certificates: only if somebody needs them
            tls = self._tls if address.secure else None
            pool = self._pools[provider] = Pool(provider, address, tls, self._forget)
        return pool

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
        return pool.open(pool.address.head(request), request.body)

    async def get(self, provider: Provider, path: str, limit_bytes: int) -> tuple[int, bytes]:
        """Fetch a small page: status and body, cut at `limit_bytes`.

        The caller limits the time. Raises ProviderFailed.
        """
        pool = self.pool(provider)
        head = f"GET {pool.address.target(path)} HTTP/1.1\r\n".encode() + pool.address.lines
        head += b"Accept: application/json\r\nAccept-Encoding: identity\r\n\r\n"
        with await pool.open(head, b"") as exchange:
            body, _ = await exchange.read(limit_bytes, provider.config.timeouts.idle)
            if exchange.failure is not None:
                raise exchange.failure
            return exchange.status, body

    def last_byte(self, provider: Provider) -> float:
        """Tell when an answer that is under way last brought a byte (loop's clock); 0 if none is."""
        pool = self._pools.get(provider)
        return pool.last_byte() if pool is not None else 0.0

    def sweep(self, provider: Provider) -> None:
        """Close the provider's connections that have been idle for too long."""
        if (pool := self._pools.get(provider)) is not None:
            pool.sweep()

    def close(self) -> None:
        """Close all connections to all providers, also to those that are gone."""
        for pool in self._pools.values():
            pool.close()
