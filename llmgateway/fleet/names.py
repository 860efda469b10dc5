"""Looking up the host names of providers: each apart from all others, and bounded.

Rules:

- A look-up is the system's own (`getaddrinfo`), so that /etc/hosts, mDNS (`.local`) and whatever else the
  machine is told to ask works. It blocks, so it has a thread to itself, never one that others wait for; of
  each name at most one look-up is under way. A thread that hangs keeps nothing waiting, not even the end of
  the process.
- What was found last is good until something better is found: it is used when a look-up is slow or fails.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final, cast

GRACE_S: Final = 0.25
"""How long a look-up may take where the last addresses are known; it goes on without anybody waiting."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
Found = tuple[SocketAddress, ...]
LookUp = Callable[[str, int], Found]


class NameFailed(Exception):
    """A name has no addresses, or nobody said so in time; the text says which, as the end of a sentence."""


def look_up(host: str, port: int) -> Found:
    """Ask the system for the addresses of a host; blocks. Raises OSError or UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(cast(SocketAddress, address) for *_, address in found))


def written_out(host: str, port: int) -> Found:
    """Give the address of a host that is written as one, as `192.168.1.10` or `fe80::1%eth0`; else nothing.

    Raises NameFailed if this machine has no such interface.
    """
    try:
        ip = ip_address(host)
    except ValueError:
        return ()
    if not isinstance(ip, IPv6Address) or ip.scope_id is None:
        return ((host, port),)
    zone = ip.scope_id
    try:
        index = int(zone) if zone.isascii() and zone.isdigit() else socket.if_nametoindex(zone)
    except OSError:
        raise NameFailed(f"this machine has no network interface {zone}") from None
    return ((host.partition("%")[0], port, 0, index),)


class HostName:
    """One provider's host, and where it is as far as is known."""

    def __init__(self, host: str, port: int, look_up: LookUp) -> None:
        self._host, self._port = host, port
        self._look_up = look_up
        self._loop = asyncio.get_running_loop()
        self._found: Found = ()
        self._slow = False
        """Whether the last look-up that ended failed, or took longer than anybody should wait."""
        self._under_way: asyncio.Future[None] | None = None
        self._asked_at = 0.0

    @property
    def sought(self) -> bool:
        """True while nothing is known and a look-up is under way."""
        return not self._found and self._under_way is not None

    async def addresses(self, limit_s: float) -> Found:
        """Give the addresses: of a look-up, or those found last if that is slow or fails.

        Waits for at most `limit_s`. Raises NameFailed.
        """
        if found := written_out(self._host, self._port):
            return found
        ended = self._look()
        if not self._found:
            await asyncio.wait({ended}, timeout=limit_s)
        elif not self._slow and (left_s := self._asked_at + GRACE_S - self._loop.time()) > 0:
            await asyncio.wait({ended}, timeout=min(left_s, limit_s))
        if self._found:
            return self._found
        if ended.done():
            raise NameFailed("its host name cannot be resolved")
        raise NameFailed(f"its host name cannot be looked up in {limit_s:g} s")

    async def others_than(self, tried: Found, limit_s: float) -> Found:
        """Give what a look-up that is still under way finds instead, within `limit_s`; else nothing."""
        if self._under_way is not None and limit_s > 0:
            await asyncio.wait({self._under_way}, timeout=limit_s)
        return tuple(address for address in self._found if address not in tried)

    def _look(self) -> asyncio.Future[None]:
        """Begin a look-up, or join the one that is under way."""
        if self._under_way is None:
            self._under_way = self._loop.create_future()
            self._asked_at = self._loop.time()
            thread = threading.Thread(target=self._ask, name=f"look-up of {self._host}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had
                ended = self._under_way
                self._learn(())
                return ended
        return self._under_way

    def _ask(self) -> None:
        """Look up, in a thread; the loop learns what came of it, if it still runs."""
        try:
            found = self._look_up(self._host, self._port)
        except (OSError, ValueError):  # UnicodeError is one
            found = ()
        try:
            self._loop.call_soon_threadsafe(self._learn, found)
        except RuntimeError:
            pass  # it has ended meanwhile

    def _learn(self, found: Found) -> None:
        ended, self._under_way = self._under_way, None
        self._slow = not found or self._loop.time() - self._asked_at > GRACE_S
        self._found = found or self._found
        if ended is not None:
            ended.set_result(None)
