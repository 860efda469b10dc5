"""Making connections to a provider, and saying in words why none came about.

Foreign exceptions of the way there are translated here, and only here. The name and the connection each have
the provider's `connect` timeout, and the message tells which of them ran out.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final

from llmgateway.errors import ProviderTimedOut, ProviderUnreachable
from llmgateway.fleet.address import Address
from llmgateway.fleet.names import Found, HostName, LookUp, NameFailed, SocketAddress
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.proxies import ProxyFailed, Tunnel
from llmgateway.fleet.schemes import IF_HTTP, of_tls
from llmgateway.fleet.trust import NoTrust, Trust
from llmgateway.http.connection import Connection

Make = Callable[[], Connection]

_OUT_OF_FILES: Final = (errno.EMFILE, errno.ENFILE)
_CLOSING_S: Final = 0.01


class Dialer:
    """Makes the connections to one provider."""

    def __init__(
        self,
        provider: Provider,
        address: Address,
        trust: Trust,
        look_up: LookUp,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect to a provider; `make_room` closes files that nobody uses, and tells if there were any."""
        self.name = HostName(address.host, address.port, look_up)
        self._provider = provider
        self._address = address
        self._trust = trust
        self._make_room = make_room
        proxy = provider.config.proxy
        self._tunnel = Tunnel(proxy, look_up) if proxy is not None else None
        self._loop = asyncio.get_running_loop()

    async def dial(self, make: Make) -> Connection:
        """Make a new connection, trying the host's addresses one after the other. Raises ProviderFailed."""
        limit_s = self._provider.config.timeouts.connect
        name = self._provider.name
        try:
            return await self._dial_with_room(make, limit_s)
        except (NameFailed, NoTrust) as failure:
            raise ProviderUnreachable(name, f"is unreachable: {failure}.") from None
        except TimeoutError:
            proxy = self._provider.config.proxy
            raise ProviderTimedOut(name, "connect", limit_s, proxy.place if proxy else "") from None
        except (OSError, UnicodeError) as exc:
            raise ProviderUnreachable(name, f"is unreachable: {_words(exc, self._address.secure)}.") from exc

    async def _dial_with_room(self, make: Make, limit_s: float) -> Connection:
        """Connect; where no file can be opened any more, once more without the connections that are idle."""
        try:
            return await self._dial(make, limit_s)
        except OSError as exc:
            if exc.errno not in _OUT_OF_FILES or not self._make_room():
                raise
        await asyncio.sleep(_CLOSING_S)
        return await self._dial(make, limit_s)

    async def _dial(self, make: Make, limit_s: float) -> Connection:
        if self._address.socket:
            async with asyncio.timeout(limit_s):
                _, connection = await self._loop.create_unix_connection(make, self._address.socket)
            return connection
        began_at = self._loop.time()
        if self._tunnel is not None and self._tunnel.resolves:
            return await self._any_of(((self._address.host, self._address.port),), make, limit_s)
        found = await self.name.addresses(limit_s)
        try:
            return await self._any_of(found, make, limit_s)
        except (OSError, TimeoutError):
            left_s = began_at + limit_s - self._loop.time()
            others = await self.name.others_than(found, left_s)  # it may have moved
            if not others:
                raise
        return await self._any_of(others, make, limit_s)

    async def _any_of(self, found: Found, make: Make, limit_s: float) -> Connection:
        """Connect to the first address that can be had, all within `limit_s`."""
        *others, last = found
        async with asyncio.timeout(limit_s):
            for address in others:  # each may take its share of the time: the next one may be the good one
                try:
                    async with asyncio.timeout(limit_s / len(found)):
                        return await self._to(address, make)
                except (OSError, TimeoutError):
                    continue
            return await self._to(last, make)

    async def _to(self, address: SocketAddress, make: Make) -> Connection:
        tls = self._trust.context(self._provider.config.tls) if self._address.secure else None
        server_hostname = self._address.host.partition("%")[0] if tls else None
        sock = None
        if self._tunnel is not None:
            limit_s = self._provider.config.timeouts.connect
            sock = await self._tunnel.connect(address[0], address[1], limit_s)
        elif len(address) == 4 and address[3]:
            sock = await _connected(address, self._loop)
        if sock is not None:
            _, connection = await self._loop.create_connection(
                make, sock=sock, ssl=tls, server_hostname=server_hostname
            )
        else:
            _, connection = await self._loop.create_connection(
                make, address[0], address[1], ssl=tls, server_hostname=server_hostname
            )
        return connection


async def _connected(address: SocketAddress, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """Connect to an IPv6 address with a zone, which uvloop would lose on the way. Raises OSError."""
    sock = socket.socket(socket.AF_INET6)
    try:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            await _writable(sock, loop)
        if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))
    except BaseException:  # cancelled as well
        sock.close()
        raise
    return sock


async def _writable(sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    ready = asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)


def _words(exc: Exception, secure: bool) -> str:
    """Say in words why no connection came about."""
    match exc:
        case ProxyFailed():
            return str(exc)
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is not accepted ({exc.verify_message})"
        case ssl.SSLError():
            return of_tls(exc)
        case ConnectionResetError() | ConnectionAbortedError() if secure:
            return f"TLS failed (the connection was closed). {IF_HTTP}"
        case socket.gaierror() | UnicodeError():
            return "its host name cannot be resolved"
        case FileNotFoundError():
            return "there is no such socket"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return "the gateway itself has too many files open"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case _ if "refused" in str(exc) or "Errno 111" in str(exc):
            return "connection refused"  # several addresses were tried, each refused
        case _:
            return "no connection"
