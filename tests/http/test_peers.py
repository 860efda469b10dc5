"""Who is believed about who is calling: trusted proxies, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest

from llmgateway.http.peers import NO_LINK, TRACES, Link, Peer, link_of, peer_of

PROXIES = tuple(map(ip_network, ("10.0.0.1", "10.1.0.0/16", "fd00::/64")))
LOOPBACK = tuple(map(ip_network, ("127.0.0.0/8", "::1")))


def seen(connected: str, headers: Mapping[str, str] | None = None, *, over_tls: bool = False) -> Peer:
    return peer_of(connected, headers or {}, PROXIES, over_tls=over_tls)


def client_of(connected: str, forwarded_for: str) -> str | None:
    """Who is behind a connection that brings this X-Forwarded-For."""
    address = seen(connected, {"x-forwarded-for": forwarded_for}).address
    return None if address is None else str(address)


@pytest.mark.parametrize(
    ("told", "link"),
    [
        (
            {"peername": ("203.0.113.7", 5), "sockname": ("10.0.0.1", 80)},
            Link("203.0.113.7", "10.0.0.1", False),
        ),
        (
            {"peername": ("::1", 5, 0, 0), "sockname": ("::1", 80, 0, 0), "sslcontext": object()},
            Link("::1", "::1", True),
        ),
        ({"peername": "", "sockname": "/run/gateway.sock"}, Link("127.0.0.1", "127.0.0.1", False)),
        ({}, NO_LINK),
    ],
    ids=["IPv4", "TLS over IPv6", "Unix socket", "lost"],
)
def test_what_the_system_tells_of_a_connection_is_who_is_connected(
    told: dict[str, object], link: Link
) -> None:
    assert link_of(told.get) == link


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("connected", ["203.0.113.7", "10.0.0.1", "2001:db8::7"])
def test_who_connects_without_a_proxy_is_the_client(connected: str, over_tls: bool) -> None:
    assert seen(connected, over_tls=over_tls) == Peer(ip_address(connected), over_tls, proxied=False)


@pytest.mark.parametrize(
    ("connected", "meant"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_an_address_is_read_as_the_system_writes_it(connected: str, meant: str) -> None:
    assert str(seen(connected).address) == meant


def test_a_mapped_address_is_in_the_networks_of_ipv4() -> None:
    assert seen("::ffff:127.0.0.1").is_in(LOOPBACK)
    assert client_of("::ffff:10.0.0.1", "203.0.113.7") == "203.0.113.7"


@pytest.mark.parametrize("connected", ["", "unix", "not an address", "127.0.0.1.5", "1277.0.0.1"])
def test_what_is_no_address_is_in_no_network(connected: str) -> None:
    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert seen(connected).address is None
    assert not seen(connected).is_in(everything)
    assert not peer_of(connected, {"x-forwarded-for": "127.0.0.1"}, everything, over_tls=False).is_in(
        everything
    )


# Who may speak for others.


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("connected", ["127.0.0.1", "203.0.113.7", "10.0.0.2", "fd00:0:0:1::1"])
def test_whoever_is_not_trusted_makes_the_client_unknown_by_speaking_for_others(
    connected: str, trace: str
) -> None:
    peer = seen(connected, {trace: "127.0.0.1"})
    assert peer == Peer(None, secure=False, proxied=True)
    assert not peer.is_in(LOOPBACK)


def test_a_lie_about_the_scheme_is_not_believed_either() -> None:
    assert not seen("203.0.113.7", {"x-forwarded-proto": "https"}).secure
    assert seen("203.0.113.7", {"x-forwarded-proto": "http"}, over_tls=True).secure


@pytest.mark.parametrize(
    "headers", [{trace: "203.0.113.7"} for trace in TRACES if trace != "x-forwarded-for"]
)
def test_a_trusted_proxy_that_does_not_say_for_whom_is_not_the_client_itself(
    headers: dict[str, str],
) -> None:
    assert seen("10.0.0.1", headers).address is None


@pytest.mark.parametrize("nothing", ["", " ", ",", " , ,"])
def test_a_trusted_proxy_that_speaks_for_nobody_is_not_the_client_itself(nothing: str) -> None:
    assert client_of("10.0.0.1", nothing) is None


# Chains.


@pytest.mark.parametrize(
    ("connected", "forwarded_for", "client"),
    [
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "  203.0.113.7  ", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7,fd00::5,10.1.2.3", "203.0.113.7"),
        ("fd00::5", "2001:db8::7, 10.1.2.3", "2001:db8::7"),
        ("10.0.0.1", "203.0.113.7, , 10.1.2.3,", "203.0.113.7"),
        # What stands before the first that is not trusted is that one's claim.
        ("10.0.0.1", "127.0.0.1, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "127.0.0.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("10.0.0.1", "10.1.9.9, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "127.0.0.1, ::1, 10.0.0.1, 198.51.100.1, 10.0.0.1", "198.51.100.1"),
        # A client in the proxies' own network.
        ("10.0.0.1", "10.1.9.9, 10.1.2.3", "10.1.9.9"),
        # As some proxies write it: with ports, in brackets, mapped, with a zone.
        ("10.0.0.1", "203.0.113.7:50123", "203.0.113.7"),
        ("10.0.0.1", "[2001:db8::7]:50123", "2001:db8::7"),
        ("10.0.0.1", "[2001:db8::7]", "2001:db8::7"),
        ("10.0.0.1", "2001:DB8::0007", "2001:db8::7"),
        ("10.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", "203.0.113.7, ::ffff:10.1.2.3", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7, 10.1.2.3:4711", "203.0.113.7"),
    ],
)
def test_the_client_is_the_last_one_that_is_no_trusted_proxy(
    connected: str, forwarded_for: str, client: str
) -> None:
    assert client_of(connected, forwarded_for) == client


@pytest.mark.parametrize(
    "garbage",
    [
        "unknown",
        "_hidden",
        "localhost",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "127.0.0.1/8",
        "'127.0.0.1'",
        '"127.0.0.1"',
        "127.0.0.1;",
        "127.0.0.1 203.0.113.7",
        "for=127.0.0.1",
        "\u0661\u0662\u0667.0.0.1",
        "\udcff",
        ":",
        "[",
        "[]:80",
        "::::",
        "%",
        "x" * 10_000,
    ],
)
def test_from_what_is_no_address_nobody_becomes_known(garbage: str) -> None:
    assert client_of("10.0.0.1", garbage) is None
    assert client_of("10.0.0.1", f"127.0.0.1, {garbage}") is None
    assert client_of("10.0.0.1", f"127.0.0.1, {garbage}, 10.1.2.3") is None


def test_a_very_long_chain_is_read_all_the_same() -> None:
    assert (
        client_of("10.0.0.1", ",".join(["127.0.0.1", "203.0.113.7", *["10.1.2.3"] * 5000])) == "203.0.113.7"
    )


# The client's own connection.


@pytest.mark.parametrize(
    ("said", "over_tls", "secure"),
    [
        ("https", False, True),
        ("HTTPS", False, True),
        (" https ", False, True),
        ("https, https", False, True),
        ("http", False, False),
        ("http", True, False),
        ("https, http", False, False),
        ("http, https", False, False),
        ("", True, False),
        ("wss", False, False),
        ("httpsx", False, False),
    ],
)
def test_a_trusted_proxy_says_whether_the_client_came_over_tls(
    said: str, over_tls: bool, secure: bool
) -> None:
    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": said}
    assert seen("10.0.0.1", headers, over_tls=over_tls).secure is secure


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_trusted_proxy_that_says_nothing_of_it_came_as_the_client_did(over_tls: bool) -> None:
    assert seen("10.0.0.1", {"x-forwarded-for": "203.0.113.7"}, over_tls=over_tls).secure is over_tls
