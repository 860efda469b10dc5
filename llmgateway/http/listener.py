"""The sockets that clients connect to: of every address that is to be listened on, or a Unix socket.

Rules:

- `::` means every address of the machine, IPv4 too, whatever the system makes of it by itself; where there is
  no IPv6, it means those of IPv4.
- All addresses get the same port, also where the system chooses it.
- What another entry covers already is not bound again.
- A port is shared only with programs of the same user that ask for it too; the system sees to that.
"""

import errno
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Final

EVERY_IPV4: Final = "0.0.0.0"
EVERY_ADDRESS: Final = "::"
SOCKET_MODE: Final = 0o660
_Address = tuple[socket.AddressFamily, str]


def listening(hosts: Sequence[str], port: int, *, shared: bool = False) -> list[socket.socket]:
    """Bind to every address of these hosts, at one port; 0 is any free one. Raises OSError, UnicodeError."""
    found: list[_Address] = []
    for host in hosts:
        found += _addresses(host)
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, address in _uncovered(found):
            one = stack.enter_context(_bound(family, address, port, shared=shared))
            port = one.getsockname()[1]
            sockets.append(one)
        stack.pop_all()
    return sockets


def listening_on_file(path: str) -> socket.socket:
    """Bind to a Unix socket that its owner and group may use; one that nobody listens on any more makes room.

    Raises OSError.
    """
    file = Path(path)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if file.exists() and stat.S_ISSOCK(file.stat().st_mode):
            _refuse_if_used(path)
            file.unlink()
        one.bind(path)
        file.chmod(SOCKET_MODE)
    except BaseException:
        one.close()
        raise
    return one


def _refuse_if_used(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, path)


def _addresses(host: str) -> list[_Address]:
    """Give the addresses of a host. Raises OSError, UnicodeError."""
    if host == EVERY_ADDRESS and not _speaks_ipv6():
        host = EVERY_IPV4
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, str(place[0])) for family, _, _, _, place in found]


def _speaks_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return socket.has_ipv6


def _uncovered(addresses: Sequence[_Address]) -> list[_Address]:
    """Leave out what is named twice, and what `::` or 0.0.0.0 cover."""
    every = {address for _, address in addresses}
    found = []
    for family, address in dict.fromkeys(addresses):
        is_ipv4 = ip_address(address.partition("%")[0]).version == 4
        covered = EVERY_ADDRESS in every and address != EVERY_ADDRESS
        covered |= EVERY_IPV4 in every and is_ipv4 and address != EVERY_IPV4
        if not covered:
            found.append((family, address))
    return found


def _bound(family: socket.AddressFamily, address: str, port: int, *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != EVERY_ADDRESS)
        # Looked up once more, as that gives a zone as the number that `bind` wants.
        one.bind(socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4])
    except BaseException:
        one.close()
        raise
    return one
