"""Which provider takes a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmgateway.access.keys import Caller
from llmgateway.config.load import build
from llmgateway.errors import NO_PROVIDER, no_provider
from llmgateway.fleet.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.servers import generic
from llmgateway.servers.models import Model
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.router import (
    SYSTEM_PROMPT_SLACK,
    Placement,
    Wish,
    candidates,
    place,
    prospects,
)

BOB = Caller("bob")
NOBODY = Thread()
DEAF = replace(
    generic.KIND,
    name="deaf",
    may_speak=frozenset(),
    lacks=frozenset({"transcriptions", "translations"}),
)


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


def names(providers: Sequence[Provider]) -> str:
    return " ".join(provider.name for provider in providers)


def placed(
    them: Fleet,
    caller: Caller = BOB,
    thread: Thread = NOBODY,
    memory: Affinity | None = None,
    chance: Random | None = None,
) -> Placement | None:
    """Where a call goes; it is recorded nowhere."""
    among = candidates(them, Wish(caller, "m"), now=0)
    return place(among, Wish(caller, "m", thread), memory or Affinity(), chance or Random(7), now=0)


def choose(them: Fleet, caller: Caller = BOB, chance: Random | None = None) -> Provider:
    """Who takes a call that belongs to no conversation."""
    found = placed(them, caller, chance=chance)
    assert found is not None and found.affinity == ""
    return found.provider


def chosen(them: Fleet, caller: Caller = BOB, calls: int = 200) -> set[str]:
    """Who is chosen, over many throws of the dice."""
    chance = Random(7)
    return {choose(them, caller, chance).name for _ in range(calls)}


def told(found: Placement | None) -> str:
    """Where it goes and why, as `p1 hit`, or `wait`."""
    return "wait" if found is None else f"{found.provider.name} {found.affinity}".strip()


def test_a_candidate_is_online_serves_exactly_this_model_is_usable_and_not_tried() -> None:
    them = fleet({}, {}, {"owner": "alice"}, {}, {})
    them.providers["p2"].warm("it is loading its model")
    them.providers["p4"].models = {"M": Model("M"), "m:latest": Model("m:latest")}
    assert names(candidates(them, Wish(BOB, "m"), now=0)) == "p1 p5"
    assert names(candidates(them, Wish(BOB, "m", tried={"p1"}), now=0)) == "p5"
    assert names(candidates(them, Wish(BOB, "m", tried={"p1", "p5"}), now=0)) == ""
    assert names(candidates(them, Wish(Caller("alice"), "m"), now=0)) == "p1 p3 p5"
    assert names(candidates(them, Wish(BOB, "other"), now=0)) == ""


def test_the_only_one_that_will_do_is_the_only_candidate_even_if_it_fails_and_others_do_not() -> None:
    them = fleet({}, {})
    for _ in range(FAILURES_IN_A_ROW):
        them.providers["p1"].fared_badly("m", now=0)
    assert names(candidates(them, Wish(BOB, "m"), now=0)) == "p2"
    assert names(candidates(them, Wish(BOB, "m", only="p1"), now=0)) == "p1"
    assert names(candidates(them, Wish(BOB, "m", tried={"p1"}, only="p1"), now=0)) == ""
    for provider in them.providers.values():
        provider.observe(Probe(State.WARMING), now=0)
    assert names(prospects(them, Wish(BOB, "m", only="p2"))) == "p2"


def test_who_is_known_to_lack_an_endpoint_is_no_candidate_for_it_and_not_waited_for() -> None:
    them = fleet({}, {}, {}, {})
    for name, state in (("p2", State.ONLINE), ("p3", State.WARMING), ("p4", State.WARMING)):
        kind = generic.KIND if name == "p4" else DEAF
        them.providers[name].observe(Probe(state, "", {"m": Model("m")}, kind=kind), now=0)
    assert names(candidates(them, Wish(BOB, "m", endpoint="transcriptions"), now=0)) == "p1"
    assert names(candidates(them, Wish(BOB, "m", endpoint="messages"), now=0)) == "p1", (
        "nor has it that dialect"
    )
    assert names(candidates(them, Wish(BOB, "m", endpoint="chat"), now=0)) == "p1 p2"
    assert names(candidates(them, Wish(BOB, "m"), now=0)) == "p1 p2", "what has no name is had by everybody"
    assert names(candidates(them, Wish(BOB, "", endpoint="transcriptions"), now=0)) == "p1"
    assert names(prospects(them, Wish(BOB, "m", endpoint="transcriptions"))) == "p4"
    assert names(prospects(them, Wish(BOB, "m", endpoint="chat"))) == "p3 p4"


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
    wins = Counter(choose(them, BOB, chance).name for _ in range(3_000))
    assert wins.keys() == {"p1", "p2", "p3"}
    assert all(900 < count < 1_100 for count in wins.values()), wins


def test_load_follows_the_weights() -> None:
    them = fleet({"weight": 3}, {"weight": 1})
    chance = Random(7)
    for _ in range(40):
        choose(them, BOB, chance).in_flight += 1
    assert [provider.in_flight for provider in them.providers.values()] == [30, 10]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.5, 1, 2, 4])), min_size=1), st.integers())
@example([(5, 4), (1, 0.5)], 7)
def test_nobody_less_busy_is_passed_over(loads: list[tuple[int, float]], seed: int) -> None:
    them = fleet(*({"in_flight": busy, "weight": weight} for busy, weight in loads))
    winner = choose(them, BOB, Random(seed))
    assert winner.in_flight / winner.config.weight == min(busy / weight for busy, weight in loads)


# --- who waits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("providers", "expected"),
    [
        ([{"slots": 1, "in_flight": 1}], "wait"),
        ([{"slots": 1, "in_flight": 2}, {"slots": 4, "in_flight": 4}], "wait"),
        ([{"slots": 1, "in_flight": 1}, {"slots": 9, "in_flight": 8}], "p2"),
        ([{"slots": 1, "in_flight": 1}, {"in_flight": 50}], "p2"),
        ([], "wait"),
    ],
    ids=str,
)
def test_a_call_waits_when_all_slots_are_taken(providers: list[dict[str, Any]], expected: str) -> None:
    assert told(placed(fleet(*providers))) == expected


@pytest.mark.parametrize(("route", "expected"), [("any", "p2"), ("prefer_own", "p2"), ("only_own", "wait")])
def test_a_free_slot_of_another_is_better_than_waiting_for_ones_own(route: Any, expected: str) -> None:
    them = fleet({"owner": "bob", "slots": 1, "in_flight": 1}, {})
    assert told(placed(them, Caller("bob", route=route))) == expected


def test_worth_waiting_for_is_who_warms_up_or_sleeps_and_can_be_woken() -> None:
    wakes: dict[str, Any] = {"wake": {"mac": "aa:bb:cc:dd:ee:ff"}}
    them = fleet({}, {}, {}, wakes, wakes, {**wakes, "owner": "alice"})
    _, p2, p3, p4, _, p6 = them.providers.values()
    p2.warm("it is loading its model")
    for provider in (p3, p4, p6):
        for _ in range(2):
            provider.observe(Probe(State.OFFLINE, "it is unreachable"), now=0)
    assert names(prospects(them, Wish(BOB, "m"))) == "p2 p4"
    assert names(prospects(them, Wish(BOB, "m", tried={"p2"}))) == "p4"
    assert names(prospects(them, Wish(BOB, "other"))) == ""
    assert names(prospects(them, Wish(Caller("alice"), "m"))) == "p2 p4 p6"
    assert names(candidates(them, Wish(Caller("alice"), "m"), now=0)) == "p1 p5"


def test_one_that_keeps_failing_is_left_out_for_a_while_unless_there_is_no_other() -> None:
    them = fleet({}, {})
    for _ in range(FAILURES_IN_A_ROW):
        them.providers["p1"].fared_badly(None, now=0)
    assert names(candidates(them, Wish(BOB, "m"), now=FIRST_PAUSE_S / 2)) == "p2"
    assert names(candidates(them, Wish(BOB, "m", tried={"p2"}), now=FIRST_PAUSE_S / 2)) == "p1"
    assert names(candidates(them, Wish(BOB, "m"), now=FIRST_PAUSE_S)) == "p1 p2"


# --- where a conversation goes --------------------------------------------------------------------


def thread(*links: str, system: str | None = None) -> Thread:
    return Thread(tuple(link.encode() for link in links), system.encode() if system else None)


@pytest.mark.parametrize(
    ("providers", "expected"),
    [
        ([{}, {}], "p1 hit"),
        ([{"in_flight": 1}, {}], "p1 hit"),
        ([{"in_flight": 3}, {}], "p1 hit"),
        ([{"in_flight": 4}, {}], "p2 spill"),  # clearly busier: at least 4 more, and more than twice as many
        ([{"in_flight": 5}, {"in_flight": 2}], "p1 hit"),
        ([{"in_flight": 8}, {"in_flight": 4}], "p1 hit"),
        ([{"in_flight": 9}, {"in_flight": 4}], "p2 spill"),
        ([{"in_flight": 9}], "p1 hit"),  # there is no other
        ([{"slots": 8, "in_flight": 7}, {}], "p1 hit"),  # it is known that it can take more
        ([{"slots": 2, "in_flight": 2}, {"slots": 2}], "p2 spill"),
        ([{"slots": 2, "in_flight": 2}, {"slots": 2, "in_flight": 2}], "wait"),
    ],
    ids=str,
)
def test_a_conversation_leaves_its_home_only_when_that_is_full_or_clearly_busier(
    providers: list[dict[str, Any]], expected: str
) -> None:
    memory = Affinity()
    memory.remember(thread("hi"), "p1", now=0)
    assert told(placed(fleet(*providers), thread=thread("hi", "hi, more"), memory=memory)) == expected


def test_a_conversation_whose_home_has_left_finds_a_new_one() -> None:
    memory = Affinity()
    memory.remember(thread("hi"), "gone", now=0)
    assert told(placed(fleet({}), thread=thread("hi", "more"), memory=memory)) == "p1 miss"


def test_new_conversations_go_where_the_fewest_live_per_weight() -> None:
    them, memory = fleet({"weight": 2}, {}), Affinity()
    for number in range(30):
        found = placed(them, thread=thread(f"hi {number}"), memory=memory, chance=Random(number))
        assert found is not None and found.affinity == "miss"
        memory.remember(thread(f"hi {number}"), found.provider.name, now=0)
    assert [memory.living(now=0)[name] for name in them.providers] == [20, 10]


def test_a_shared_system_prompt_draws_but_does_not_pile_up() -> None:
    them, memory = fleet({}, {}, {}), Affinity()
    homes = []
    for number in range(30):
        said = thread(f"hi {number}", system="be brief")
        found = placed(them, thread=said, memory=memory, chance=Random(number))
        assert found is not None
        memory.remember(said, found.provider.name, now=0)
        memory.computed(said, found.provider.name, now=0)
        homes.append(found.provider.name)
    assert len(set(homes[: SYSTEM_PROMPT_SLACK + 1])) == 1
    assert max(Counter(homes).values()) - min(Counter(homes).values()) <= SYSTEM_PROMPT_SLACK + 1


@pytest.mark.parametrize(
    ("loaded", "in_flight", "expected"),
    [
        ((True, False), 0, "p1"),
        ((False, True), 0, "p2"),
        ((False, None), 0, "p2"),
        ((True, False), 3, "p1"),
        ((True, False), 4, "p2"),  # it is busy
        ((False, False), 1, "p2"),
    ],
    ids=str,
)
def test_who_has_the_model_in_memory_is_preferred_unless_clearly_busier(
    loaded: tuple[bool | None, bool | None], in_flight: int, expected: str
) -> None:
    them = fleet({"in_flight": in_flight}, {})
    for provider, held in zip(them.providers.values(), loaded, strict=True):
        provider.observe(Probe(State.ONLINE, "", {"m": Model("m", loaded=held)}), now=0)
    assert chosen(them) == {expected}


def test_that_nobody_serves_a_model_is_told_in_the_words_of_the_api() -> None:
    error = no_provider("foo")
    assert error.kind == NO_PROVIDER
    assert error.message == "No online provider serving model 'foo' for this user."
