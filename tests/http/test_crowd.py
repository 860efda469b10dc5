"""How many connections each address may have."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from llmgateway.http.crowd import LEAST_OF_ONE, SPARE, Crowd


def crowd(most: int = 1_000, most_of_one: int | None = 2, *trusted: str) -> Crowd:
    made = Crowd(most, lambda: 0.0)
    made.bound(most_of_one, [ip_network(each) for each in trusted])
    return made


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_connection_counts_for_an_address_or_a_network_of_ipv6(address: str, name: str) -> None:
    assert crowd().name(address) == name


def test_a_trusted_proxy_is_not_bounded_by_its_address() -> None:
    assert crowd(1_000, 2, "10.0.0.0/24").name("10.0.0.7") == ""


def test_an_address_has_no_more_than_its_own_and_takes_nothing_from_others() -> None:
    made = crowd()
    assert [made.enter("a") is None for _ in range(3)] == [True, True, False]
    assert made.enter("b") is None
    made.leave("a")
    made.leave("a")
    assert made.enter("a") is None


def test_unset_it_is_a_share_of_all_but_not_a_small_one() -> None:
    assert all(crowd(4_000, None).count("a") is None for _ in range(1_000))
    large, small = crowd(4_000, None), crowd(8, None)
    assert [large.count("a") for _ in range(1_001)][-1] is not None
    assert all(small.count("a") is None for _ in range(LEAST_OF_ONE))


def test_a_few_beyond_all_are_heard_out() -> None:
    made = crowd(2, 100)
    states = []
    for _ in range(2 + SPARE + 1):
        made.enter("a")
        states.append((made.is_full, made.overfull))
    assert states == [(False, False)] * 2 + [(True, False)] * SPARE + [(True, True)]


def test_nothing_is_kept_of_who_has_left() -> None:
    made = crowd()
    for each in range(1_000):
        made.enter(f"a-{each}")
        made.leave(f"a-{each}")
    assert not made._of_each
