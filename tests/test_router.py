"""Which provider takes a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmgateway.config import build
from llmgateway.discovery import Model
from llmgateway.errors import NO_PROVIDER
from llmgateway.fleet import Fleet, Probe, Provider, State
from llmgateway.keys import Caller
from llmgateway.router import candidates, choose, no_provider

BOB = Caller("bob")


def fleet(*providers: dict[str, Any], models: Sequence[str] = ("m",)) -> Fleet:
    """Online providers p1, p2, ... that serve these models; `in_flight` sets how busy one is."""
    entries = {f"p{number}": dict(entry) for number, entry in enumerate(providers, start=1)}
    busy = {name: entry.pop("in_flight", 0) for name, entry in entries.items()}
    urls = {name: {"url": "http://127.0.0.1:9", **entry} for name, entry in entries.items()}
    made = Fleet(build({"users": {"alice": {}, "bob": {}}, "providers": urls}))
    for name, provider in made.providers.items():
        provider.observe(Probe(State.ONLINE, "", {model: Model(model) for model in models}), now=0)
        provider.in_flight = busy[name]
    return made


def named(providers: Sequence[Provider]) -> str:
    return " ".join(provider.name for provider in providers)


def chosen(them: Fleet, caller: Caller = BOB, calls: int = 200) -> set[str]:
    """Who is chosen, over many throws of the dice."""
    chance = Random(7)
    among = candidates(them, caller, "m")
    return {choose(among, caller, chance).name for _ in range(calls)}


def test_a_candidate_is_online_serves_exactly_this_model_is_usable_and_not_tried() -> None:
    them = fleet({}, {}, {"owner": "alice"}, {}, {})
    them.providers["p2"].warm("it is loading its model")
    them.providers["p4"].models = {"M": Model("M"), "m:latest": Model("m:latest")}
    assert named(candidates(them, BOB, "m")) == "p1 p5"
    assert named(candidates(them, BOB, "m", {"p1"})) == "p5"
    assert named(candidates(them, BOB, "m", {"p1", "p5"})) == ""
    assert named(candidates(them, Caller("alice"), "m")) == "p1 p3 p5"
    assert named(candidates(them, BOB, "other")) == ""


@pytest.mark.parametrize(
    ("providers", "winners"),
    [
        ([{}, {"in_flight": 1}], "p1"),
        ([{"in_flight": 3}, {"in_flight": 2}, {"in_flight": 4}], "p2"),
        ([{"in_flight": 3, "weight": 4}, {"in_flight": 1}], "p1"),
        ([{"in_flight": 1, "weight": 0.5}, {"in_flight": 1}], "p2"),
        ([{"in_flight": 4, "weight": 4}, {"in_flight": 1}], "p1 p2"),
        ([{}, {}, {"in_flight": 1}], "p1 p2"),
        ([{"weight": 100}, {}], "p1 p2"),
        ([{}], "p1"),
    ],
    ids=str,
)
def test_the_fewest_in_flight_per_weight_win(providers: list[dict[str, Any]], winners: str) -> None:
    assert chosen(fleet(*providers)) == set(winners.split())


@pytest.mark.parametrize(
    ("route", "winners"), [("any", {"p1"}), ("prefer_own", {"p2"}), ("only_own", {"p2"})]
)
def test_own_providers_come_first_for_those_who_prefer_them(route: Any, winners: set[str]) -> None:
    them = fleet({}, {"owner": "bob", "in_flight": 9}, {"owner": "alice", "share": ["bob"], "in_flight": 1})
    assert chosen(them, Caller("bob", route=route)) == winners


def test_among_several_own_the_fewest_in_flight_win() -> None:
    them = fleet({}, {"owner": "bob", "in_flight": 2}, {"owner": "bob", "in_flight": 1})
    assert chosen(them, Caller("bob", route="prefer_own")) == {"p3"}


def test_who_prefers_their_own_takes_others_where_there_is_none() -> None:
    assert chosen(fleet({}, {"in_flight": 1}), Caller("bob", route="prefer_own")) == {"p1"}


def test_chance_is_fair_between_equals() -> None:
    them = fleet({}, {}, {}, {"in_flight": 1})
    chance = Random(7)
    among = candidates(them, BOB, "m")
    wins = Counter(choose(among, BOB, chance).name for _ in range(3_000))
    assert wins.keys() == {"p1", "p2", "p3"}
    assert all(900 < count < 1_100 for count in wins.values()), wins


def test_load_follows_the_weights() -> None:
    them = fleet({"weight": 3}, {"weight": 1})
    chance = Random(7)
    for _ in range(40):
        choose(candidates(them, BOB, "m"), BOB, chance).in_flight += 1
    assert [provider.in_flight for provider in them.providers.values()] == [30, 10]


@hypothesis_settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.5, 1, 2, 4])), min_size=1), st.integers())
def test_nobody_less_busy_is_passed_over(loads: list[tuple[int, float]], seed: int) -> None:
    them = fleet(*({"in_flight": busy, "weight": weight} for busy, weight in loads))
    winner = choose(candidates(them, BOB, "m"), BOB, Random(seed))
    assert winner.in_flight / winner.config.weight == min(busy / weight for busy, weight in loads)


def test_that_nobody_serves_a_model_is_told_in_the_words_of_the_api() -> None:
    error = no_provider("foo")
    assert error.kind == NO_PROVIDER
    assert error.message == "No online provider serving model 'foo' for this user."
