"""Reaching a provider through a proxy: SOCKS5, or HTTP's CONNECT.

Rules:

- The library is loaded only where a proxy is configured and used.
- A failure is told in our own words with the proxy's place in them; never what the proxy wrote, which may
  repeat the password.
"""

import asyncio
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from llmgateway.config.addresses import ProxyAddress
from llmgateway.fleet.names import HostName, LookUp, NameFailed, SocketAddress

if TYPE_CHECKING:
    from python_socks import ProxyError

_MOST_HEAD_BYTES: Final = 65_536


class ProxyFailed(OSError):
    """The proxy made no way to the provider; the text says why, as the end of a sentence."""


class _Unreached(ProxyFailed):
    """There is no proxy at this address."""


class Tunnel:
    """The way to one provider through its proxy."""

    def __init__(self, proxy: ProxyAddress, look_up: LookUp) -> None:
        self._proxy = proxy
        self._name = HostName(proxy.host, proxy.port, look_up)
        self._loop = asyncio.get_running_loop()

    @property
    def resolves(self) -> bool:
        """True if the proxy is told the provider's name, to look it up where it is."""
        return self._proxy.scheme != "socks5"

    async def connect(self, host: str, port: int, limit_s: float) -> socket.socket:
        """Connect to a host by way of the proxy. Raises ProxyFailed or TimeoutError."""
        async with asyncio.timeout(limit_s):
            try:
                *others, last = found = await self._name.addresses(limit_s)
            except NameFailed as failure:
                raise ProxyFailed(f"its proxy {self._proxy.place} is not to be found: {failure}") from None
            for address in others:
                try:
                    async with asyncio.timeout(limit_s / len(found)):
                        return await self._by(address, host, port, limit_s)
                except (_Unreached, TimeoutError):
                    continue
            return await self._by(last, host, port, limit_s)

    async def _by(self, address: SocketAddress, host: str, port: int, limit_s: float) -> socket.socket:
        from python_socks import ProxyConnectionError, ProxyError, ProxyType
        from python_socks.async_.asyncio import Proxy

        proxy, is_http = self._proxy, self._proxy.scheme == "http"
        way = Proxy(
            ProxyType.HTTP if is_http else ProxyType.SOCKS5,
            address[0].partition("%")[0],
            address[1],
            proxy.user,
            proxy.password,
            loop=cast(asyncio.AbstractEventLoop, _WholeHeads(self._loop)) if is_http else self._loop,
        )
        try:
            return await way.connect(host.partition("%")[0], port, timeout=limit_s)
        except ProxyConnectionError as exc:
            refused = isinstance(exc.__cause__, ConnectionRefusedError)
            why = "connection refused" if refused else "no way there"
            raise _Unreached(f"its proxy {proxy.place} is unreachable ({why})") from None
        except ProxyError as exc:
            raise ProxyFailed(f"its proxy {proxy.place} {_refusal(exc, proxy)}") from None
        except TimeoutError:
            raise
        except OSError:
            raise ProxyFailed(f"its proxy {proxy.place} closed the connection") from None
        except ValueError:
            raise ProxyFailed(f"its proxy {proxy.place} gave an answer that makes no sense") from None


def _refusal(exc: "ProxyError", proxy: ProxyAddress) -> str:
    """Say what the proxy did in the place of connecting."""
    code, said = exc.error_code, str(exc)
    if code == 407 or (code is None and "authentication" in said):
        return (
            "refused the user and password in the config"
            if proxy.user
            else "refused to work without a user and password; write them into `proxy`, as user:password@"
        )
    if code is None:
        closed = "closed the connection" if "closed" in said else ""
        return closed or f"gave no answer of a {'HTTP' if proxy.scheme == 'http' else 'SOCKS5'} proxy"
    if proxy.scheme != "http":  # the words are the library's, by the number
        return f"refused the connection ({said[:1].lower()}{said[1:]})"
    try:
        return f"refused the connection ({code} {HTTPStatus(code).phrase})"
    except ValueError:
        return f"refused the connection ({code})"


class _WholeHeads:
    """What the library needs of the loop; it takes the first piece of an answer's head for all of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        await self._loop.sock_connect(sock, address)

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        await self._loop.sock_sendall(sock, data)

    async def sock_recv(self, sock: socket.socket, nbytes: int) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _MOST_HEAD_BYTES:
            piece = await self._loop.sock_recv(sock, nbytes)
            if not piece:
                break
            head += piece
        return head
