"""Who is at the other end of a connection, and who really, when reverse proxies stand in between.

Only what a trusted proxy says is believed. `X-Forwarded-For` is read from its end, as each proxy adds the
address that it saw there; the first address that is not a trusted proxy's is the client's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_THIS_MACHINE: Final = "127.0.0.1"
FORWARDED_FOR: Final = "x-forwarded-for"
FORWARDED_PROTO: Final = "x-forwarded-proto"
TRACES: Final = (
    FORWARDED_FOR,
    FORWARDED_PROTO,
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
    "forwarded",
    "via",
)
"""What proxies leave in a request."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection as the system tells it."""

    address: str
    """What is connected: the client, or a proxy; empty if that is unknown."""
    own_address: str
    """The address of this machine that it is connected to."""
    over_tls: bool
    """True if it is encrypted."""


NO_LINK: Final = Link("", "", over_tls=False)


def link_of(tell: Callable[[str], object]) -> Link:
    """Tell who is connected, and how, from what a transport tells by name."""
    return Link(_host(tell("peername")), _host(tell("sockname")), tell("sslcontext") is not None)


def _host(address: object) -> str:
    """Give the host of a socket's address; that of a Unix socket is empty, or a path: it is here."""
    if isinstance(address, tuple) and address:
        return str(address[0])
    return "" if address is None else _THIS_MACHINE


@dataclass(frozen=True, slots=True)
class Peer:
    """The client behind a request; no address if it cannot be known."""

    address: Address | None
    secure: bool
    """Whether the client's own connection is encrypted."""
    proxied: bool
    """Whether somebody passed the request on, trusted or not."""

    def is_in(self, networks: Sequence[Network]) -> bool:
        """Tell whether the client is in one of these networks, as far as that can be trusted."""
        return self.address is not None and is_in(self.address, networks)


def origin_of(address: Address) -> str:
    """Name whoever has an address: of IPv6 that is a network of /64, all of which one machine can have."""
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


def traces_in(named: Mapping[bytes, bytes]) -> dict[str, str]:
    """Give what proxies left, of the fields of a request by lower-case name."""
    found = ((name, named.get(name.encode())) for name in TRACES)
    return {name: value.decode("latin-1") for name, value in found if value is not None}


def peer_of(
    connected: str, headers: Mapping[str, str], trusted: Sequence[Network], *, over_tls: bool
) -> Peer:
    """Find the client: the address that is connected, or whom trusted proxies speak for.

    `headers` are those of TRACES that came, by lower-case name, with repeated fields joined by commas. Where
    a proxy that is not trusted has passed a request on, or a trusted one that does not say for whom, the
    address is unknown: what is connected is not the client, and what it claims may be false.
    """
    address = address_of(connected)
    proxied = not headers.keys().isdisjoint(TRACES)
    if not proxied or address is None:
        return Peer(address, over_tls, proxied)
    if not is_in(address, trusted):
        return Peer(None, over_tls, proxied)
    schemes = headers.get(FORWARDED_PROTO, "https" if over_tls else "http").split(",")
    secure = all(scheme.strip().lower() == "https" for scheme in schemes)
    return Peer(_client_of(headers.get(FORWARDED_FOR, ""), trusted), secure, proxied)


def _client_of(forwarded_for: str, trusted: Sequence[Network]) -> Address | None:
    """Follow the chain of trusted proxies back to whom the first of them has seen."""
    address = None
    for claimed in reversed([each.strip() for each in forwarded_for.split(",") if each.strip()]):
        address = address_of(claimed)
        if address is None or not is_in(address, trusted):
            break
    return address


def address_of(text: str) -> Address | None:
    """Read an address; one with a port (some proxies) or a zone is as good, and ::ffff:1.2.3.4 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_in(address: Address, networks: Sequence[Network]) -> bool:
    """Tell whether an address is in one of these networks."""
    return any(address in network for network in networks)
