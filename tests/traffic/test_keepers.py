"""Who is remembered to keep which response: for how long, how many, and for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmgateway.access.keys import Caller
from llmgateway.errors import GatewayError
from llmgateway.fleet.fleet import Fleet
from llmgateway.traffic.keepers import KNOWN_S, MOST, Keepers
from tests.traffic.test_router import fleet

ANN, BEN = Caller("ann"), Caller("ben")


@pytest.fixture
def them() -> Fleet:
    return fleet({}, {}, models=["m", "n"])


@pytest.fixture
def known(them: Fleet) -> Keepers:
    return Keepers(them)


def learn(known: Keepers, made: str, caller: Caller, *, now: float = 0.0, provider: str = "p1") -> None:
    known.learn(made, caller, "m", known._fleet.providers[provider], now=now)


def keeper(known: Keepers, wanted: str, caller: Caller, *, now: float = 0.0) -> str:
    """The name of who keeps a response; "" if it is unknown to the caller."""
    try:
        return known.keeper(wanted, caller, now=now)[0].name
    except GatewayError as error:
        assert error.kind.status == 404 and f"'{wanted}'" not in error.brief
        return ""


def test_a_response_is_known_for_an_hour_after_it_was_last_asked_for(known: Keepers) -> None:
    learn(known, "r", ANN)
    for now in (0.0, KNOWN_S - 1, 2 * KNOWN_S - 2):
        assert keeper(known, "r", ANN, now=now) == "p1"
    assert keeper(known, "r", BEN, now=2 * KNOWN_S) == ""
    assert keeper(known, "r", ANN, now=3 * KNOWN_S - 2) == ""


def test_what_is_no_longer_known_goes_when_its_user_has_another_made(known: Keepers) -> None:
    for number in range(5):
        learn(known, f"r{number}", ANN, now=number)
    assert keeper(known, "r0", ANN, now=100.0)
    learn(known, "later", ANN, now=KNOWN_S + 10)
    assert len(known) == 2 and keeper(known, "r0", ANN, now=KNOWN_S + 10)


def test_whoever_has_the_most_makes_room_by_what_was_asked_for_longest_ago(known: Keepers) -> None:
    for number in range(10):
        learn(known, f"ben{number}", BEN)
    for number in range(MOST + 5):
        learn(known, f"ann{number}", ANN)
        if number == MOST - 20:
            assert keeper(known, "ann0", ANN)
    assert len(known) == MOST
    assert all(keeper(known, f"ben{number}", BEN) for number in range(10))
    assert keeper(known, "ann0", ANN) and not any(keeper(known, f"ann{n}", ANN) for n in range(1, 16))
    assert keeper(known, "ann16", ANN)


def test_an_id_stays_with_whom_it_was_first_until_it_is_no_longer_known(known: Keepers) -> None:
    learn(known, "r", ANN)
    for other in (BEN, replace(ANN, person="kim")):
        learn(known, "r", other, now=1.0, provider="p2")
        assert (keeper(known, "r", other, now=1.0), keeper(known, "r", ANN, now=1.0)) == ("", "p1")
    learn(known, "r", ANN, now=2.0, provider="p2")
    assert keeper(known, "r", ANN, now=2.0) == "p2"
    learn(known, "r", BEN, now=2.0 + KNOWN_S)
    assert (keeper(known, "r", BEN, now=2.0 + KNOWN_S), keeper(known, "r", ANN, now=2.0 + KNOWN_S)) == (
        "p1",
        "",
    )
    assert len(known) == 1


def test_nothing_is_left_of_users_of_whom_nothing_is_known(known: Keepers) -> None:
    for number in range(MOST + 5):
        learn(known, f"r{number}", Caller(f"u{number}"))
    assert len(known) == len(known._kept) == MOST


def test_an_id_that_is_none_is_not_repeated(known: Keepers) -> None:
    for wanted in ("a b", "x" * 5_000, "<b>"):
        with pytest.raises(GatewayError) as raised:
            known.keeper(wanted, ANN, now=0.0)
        assert wanted not in raised.value.message and len(raised.value.message) < 300
