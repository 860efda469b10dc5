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
    bounded = crowd(1_000, 2, "10.0.0.0/24")
    assert bounded.name("10.0.0.7") == "" and bounded.is_proxy("10.0.0.7")
    assert not bounded.is_proxy("10.0.1.7") and not bounded.is_proxy("")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_bounded_only_where_a_bound_is_set(address: str) -> None:
    assert crowd(1_000, None).name(address) == ""
    assert crowd(1_000, 2).name(address)
    assert not crowd(1_000, None).is_proxy(address)


def test_an_address_has_no_more_than_its_own_and_takes_nothing_from_others() -> None:
    made = crowd()
    assert [not made.enter("a") for _ in range(3)] == [True, True, False]
    assert not made.enter("b")
    made.leave("a", spare=False)
    made.leave("a", spare=False)
    assert not made.enter("a")


def test_unset_it_is_a_share_of_all_but_not_a_small_one() -> None:
    assert not any(crowd(4_000, None).count("a") for _ in range(1_000))
    large, small = crowd(4_000, None), crowd(8, None)
    assert [large.count("a") for _ in range(1_001)][-1]
    assert not any(small.count("a") for _ in range(LEAST_OF_ONE))


def test_a_few_that_are_too_many_are_heard_out() -> None:
    made = crowd(2, 100)
    assert [made.enter("a") for _ in range(3)] == ["", "", "connections"]
    assert [made.take_spare() for _ in range(SPARE + 1)] == [True] * SPARE + [False]
    made.leave("a", spare=False)
    assert not made.take_spare()
    made.leave("a", spare=True)
    assert made.take_spare()


def test_what_is_too_much_is_told_once_a_minute_each(caplog: pytest.LogCaptureFixture) -> None:
    made = crowd(2, 100)
    for _ in range(100):
        made.refusal("connections")
        made.refusal("connections from this address")
    assert made.refused == 200 and len(caplog.records) == 2


def test_nothing_is_kept_of_who_has_left() -> None:
    made = crowd()
    for each in range(1_000):
        made.enter(f"a-{each}")
        made.leave(f"a-{each}", spare=False)
    assert not made._of_each
