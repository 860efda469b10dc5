"""Who is really at the other end of a connection, when reverse proxies stand in between.

Only what a trusted proxy says is believed. `X-Forwarded-For` is read from its end, as each proxy adds the
address that it saw there; the first address that is not a trusted proxy's is the client's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


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
        return self.address is not None and _is_in(self.address, networks)


def peer_of(
    connected: str, headers: Mapping[str, str], trusted: Sequence[Network], *, over_tls: bool
) -> Peer:
    """Find the client: the address that is connected, or whom trusted proxies speak for.

    `headers` is case-insensitive, with repeated fields joined by commas. Where a proxy that is not trusted
    has passed a request on, the address is unknown: it is not the client's, and what it claims may be false.
    """
    address = _address(connected)
    forwarded = headers.get("x-forwarded-for")
    proxied = forwarded is not None or "forwarded" in headers
    if address is None or not _is_in(address, trusted):
        return Peer(None if proxied else address, over_tls, proxied)
    secure = headers.get("x-forwarded-proto", "https" if over_tls else "http").strip().lower() == "https"
    for claimed in reversed((forwarded or "").split(",")):
        if not claimed.strip():
            continue
        address = _address(claimed.strip())
        if address is None or not _is_in(address, trusted):
            break
    return Peer(address, secure, proxied)


def _address(text: str) -> Address | None:
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


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
