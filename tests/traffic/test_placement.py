"""The table by which a provider is picked for a call, row by row, and what it makes of many conversations."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from llmgateway.access.keys import Caller
from llmgateway.fleet.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, State
from llmgateway.servers.models import Model
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.router import Placement, Wish, candidates, place, prospects
from tests import simulation

BOB = Caller("bob")
OWN = Caller("bob", route="prefer_own")
TALK = Thread((b"talk",))
NEW = Thread((b"new",))
SHARED = Thread((b"new",), b"the system prompt")


def fleet(in_flight: str = "", *, unloaded: str = "", **providers: Any) -> Fleet:
    """Providers that are online; `in_flight` is how busy they are, in their order."""
    made = simulation.fleet(providers)
    for provider, count in zip(made.providers.values(), in_flight.split(), strict=False):
        provider.in_flight = int(count)
    for name in unloaded.split():
        made.providers[name].observe(Probe(State.ONLINE, "", {"m": Model("m", loaded=False)}), now=0)
    return made


def living(**counts: int) -> Affinity:
    """So many live conversations with each provider; `TALK` is at home with the first."""
    affinity = Affinity()
    for number, (name, count) in enumerate(counts.items()):
        for one in range(count):
            first = number == 0 and one == 0
            affinity.remember(TALK if first else Thread((f"{name}{one}".encode(),)), name, now=0)
    return affinity


def placement(
    them: Fleet, thread: Thread, affinity: Affinity, caller: Caller = BOB, seed: int = 0
) -> Placement | None:
    among = candidates(them, Wish(caller, "m"), now=0)
    return place(among, Wish(caller, "m", thread), affinity, Random(seed), now=0)


def places(them: Fleet, thread: Thread = NEW, affinity: Affinity | None = None, caller: Caller = BOB) -> str:
    """Where a call goes, over many throws of the dice, and what became of its affinity."""
    among, known = candidates(them, Wish(caller, "m"), now=0), affinity or Affinity()
    found = [place(among, Wish(caller, "m", thread), known, Random(seed), now=0) for seed in range(60)]
    return " ".join(sorted({shown(one) for one in found}))


def shown(placement: Placement | None) -> str:
    return f"{placement.provider.name} {placement.affinity}".strip() if placement else "waits"


# --- a free slot, and the caller's own ---------------------------------------------------------------


def test_where_all_slots_are_taken_a_call_waits() -> None:
    assert places(fleet("1 2", a={"slots": 1}, b={"slots": 2})) == "waits"
    assert places(fleet("1 2", a={"slots": 1}, b={"slots": 2}), TALK, living(a=1)) == "waits"
    assert places(fleet("1 2", a={"slots": 1}, b={"slots": 3})) == "b miss"


def test_the_callers_own_come_first_if_they_say_so() -> None:
    them = fleet("0 7", a={}, b={"owner": "bob"})
    assert places(them, NEW, living(b=5), OWN) == "b miss"
    assert places(them, NEW, living(b=5), BOB) == "a miss"


def test_the_callers_own_come_before_the_home_and_others_take_over_when_it_is_full() -> None:
    assert places(fleet("0 1", a={}, b={"owner": "bob", "slots": 2}), TALK, living(a=1), OWN) == "b spill"
    assert places(fleet("0 2", a={}, b={"owner": "bob", "slots": 2}), TALK, living(a=1), OWN) == "a hit"


# --- home --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "in_flight", "expected"),
    [
        (4, "0 0", "a hit"),
        (4, "3 0", "a hit"),  # as long as the home has a free slot, however busy it is
        (4, "4 0", "b spill"),
        (4, "4 3", "b spill"),
        (4, "4 4", "waits"),
        (None, "3 0", "a hit"),
        (None, "4 0", "b spill"),  # at least four more
        (None, "4 1", "a hit"),
        (None, "5 1", "b spill"),
        (None, "8 4", "a hit"),  # and more than twice as many
        (None, "9 4", "b spill"),
        (None, "20 17", "a hit"),
    ],
)
def test_a_conversation_leaves_its_home_only_when_that_is_full_or_clearly_busier(
    slots: int | None, in_flight: str, expected: str
) -> None:
    capacity = {} if slots is None else {"slots": slots}
    assert places(fleet(in_flight, a=capacity, b=capacity), TALK, living(a=1)) == expected


def test_a_strong_home_may_be_busier_before_it_is_left() -> None:
    for in_flight, expected in (("12 2", "a hit"), ("17 2", "b spill"), ("3 0", "a hit"), ("4 0", "b spill")):
        assert places(fleet(in_flight, a={"weight": 4}, b={}), TALK, living(a=1)) == expected


def test_a_home_of_unknown_slots_is_not_left_for_one_whose_slots_are_taken() -> None:
    assert places(fleet("9 2", a={}, b={"slots": 2}), TALK, living(a=1)) == "a hit"


def test_the_home_comes_before_what_is_loaded() -> None:
    assert places(fleet("2 0", unloaded="a", a={}, b={}), TALK, living(a=1)) == "a hit"


def test_a_conversation_that_leaves_a_crowded_home_does_not_end_up_there() -> None:
    affinity = living(a=1, b=5)
    assert places(fleet("9 0", unloaded="b", a={}, b={}), TALK, affinity) == "b spill"


def test_a_home_that_is_no_candidate_any_more_is_a_miss() -> None:
    them = fleet(a={}, b={})
    for _ in range(2):
        them.providers["a"].observe(Probe(State.OFFLINE, "it is unreachable"), now=0)
    assert places(them, TALK, living(a=1)) == "b miss"


def test_a_call_that_belongs_to_no_conversation_has_no_affinity() -> None:
    assert places(fleet("1 0", a={}, b={}), Thread()) == "b"


# --- what is in memory -------------------------------------------------------------------------------


def test_a_provider_that_has_the_model_in_memory_is_preferred() -> None:
    assert places(fleet("3 0", unloaded="b", a={}, b={}), NEW, living(a=3)) == "a miss"
    assert places(fleet("3 0", unloaded="b", a={"slots": 4}, b={"slots": 4}), NEW, living(a=3)) == "a miss"


def test_a_provider_that_has_the_model_in_memory_is_not_preferred_when_it_is_busy() -> None:
    assert places(fleet("4 0", unloaded="b", a={}, b={}), NEW, living(a=3)) == "b miss"
    assert places(fleet("4 0", unloaded="b", a={"slots": 4}, b={"slots": 4}), NEW, living(a=3)) == "b miss"


def test_where_nobody_tells_what_is_loaded_it_makes_no_difference() -> None:
    assert places(fleet("1 0", a={}, b={})) == "b miss"


def test_what_is_loaded_comes_before_the_system_prompt() -> None:
    affinity = Affinity()
    affinity.remember(Thread((b"x",), SHARED.system), "a", now=0)
    affinity.computed(SHARED, "a", now=0)
    assert places(fleet(unloaded="a", a={}, b={}), SHARED, affinity) == "b miss"


@pytest.mark.parametrize(("more", "expected"), [(1, "a miss"), (2, "a miss"), (3, "b miss")])
def test_a_shared_system_prompt_draws_as_long_as_it_is_within_two_conversations(
    more: int, expected: str
) -> None:
    affinity = living(b=1)
    for number in range(1 + more):
        affinity.remember(Thread((f"t{number}".encode(),), SHARED.system), "a", now=0)
        affinity.computed(SHARED, "a", now=0)
    assert places(fleet("1 0", a={}, b={}), SHARED, affinity) == expected


# --- load --------------------------------------------------------------------------------------------


def test_the_fewest_live_conversations_per_weight_win() -> None:
    assert places(fleet("0 3", a={}, b={}), NEW, living(a=2, b=1)) == "b miss"
    assert places(fleet("3 0", a={"weight": 4}, b={}), NEW, living(a=7, b=2)) == "a miss"
    assert places(fleet("3 0", a={"weight": 4}, b={}), NEW, living(a=9, b=2)) == "b miss"


def test_then_the_fewest_in_flight_per_weight() -> None:
    assert places(fleet("2 1", a={}, b={}), NEW, living(a=2, b=2)) == "b miss"
    assert places(fleet("3 2", a={"weight": 2}, b={}), NEW, living(a=4, b=2)) == "a miss"


def test_live_conversations_do_not_matter_to_what_is_none() -> None:
    assert places(fleet("0 1", a={}, b={}), Thread(), living(a=9)) == "a"


def test_chance_decides_between_equals_only() -> None:
    assert places(fleet("1 1 2", a={}, b={}, c={})) == "a miss b miss"
    them = fleet(a={}, b={}, c={})
    chance = Random(5)
    among = candidates(them, Wish(BOB, "m"), now=0)
    found = (place(among, Wish(BOB, "m", NEW), Affinity(), chance, now=0) for _ in range(3_000))
    wins = Counter(one.provider.name for one in found if one)
    assert all(900 < wins[name] < 1_100 for name in "abc"), wins


# --- many conversations ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_system_prompt_that_all_share_does_not_pile_them_up(seed: int) -> None:
    them = fleet(a={"slots": 4}, b={"slots": 4}, c={"slots": 4})
    affinity, chance, homes = Affinity(), Random(seed), Counter[str]()
    among = candidates(them, Wish(BOB, "m"), now=0)
    for number in range(20):
        thread = Thread((f"talk {number}".encode(),), SHARED.system)
        found = place(among, Wish(BOB, "m", thread), affinity, chance, now=number)
        assert found
        affinity.remember(thread, found.provider.name, now=number)
        affinity.computed(thread, found.provider.name, now=number)
        homes[found.provider.name] += 1
    assert max(homes.values()) <= 9 and len(homes) == 3, homes


def test_conversations_spread_by_weight_and_stay() -> None:
    them = fleet(a={"weight": 2}, b={})
    affinity, chance, homes = Affinity(), Random(1), dict[int, str]()
    among = candidates(them, Wish(BOB, "m"), now=0)
    for turn in range(5):
        for number in range(30):
            links = tuple(f"{number} {link}".encode() for link in range(turn + 1))
            found = place(among, Wish(BOB, "m", Thread(links)), affinity, chance, now=turn)
            assert found
            affinity.remember(Thread(links), found.provider.name, now=turn)
            assert homes.setdefault(number, found.provider.name) == found.provider.name
            assert found.affinity == ("hit" if turn else "miss")
    assert Counter(homes.values()) == {"a": 20, "b": 10}


# --- candidates and prospects ------------------------------------------------------------------------


def test_one_that_keeps_failing_is_no_candidate_unless_it_is_the_last() -> None:
    them = fleet(a={}, b={})
    for name in "ab":
        for _ in range(FAILURES_IN_A_ROW):
            them.providers[name].fared_badly(None, now=0)
        left = [provider.name for provider in candidates(them, Wish(BOB, "m"), now=0)]
        assert left == (["b"] if name == "a" else ["a", "b"])
    assert len(candidates(them, Wish(BOB, "m"), now=FIRST_PAUSE_S)) == 2
    assert [provider.name for provider in candidates(them, Wish(BOB, "m", tried={"b"}), now=0)] == ["a"]


def test_worth_waiting_for_is_what_loads_a_model_or_can_be_woken() -> None:
    them = fleet(a={}, b={}, c={"wake": {"mac": "aa:bb:cc:dd:ee:ff"}}, d={})
    for _ in range(2):
        them.providers["b"].observe(Probe(State.WARMING, "it is loading its model"), now=0)
        them.providers["c"].observe(Probe(State.OFFLINE, "it is unreachable"), now=0)
        them.providers["d"].observe(Probe(State.OFFLINE, "it is unreachable"), now=0)
    assert [provider.name for provider in prospects(them, Wish(BOB, "m"))] == ["b", "c"]
    assert [provider.name for provider in prospects(them, Wish(BOB, "m", tried={"b"}))] == ["c"]
    assert prospects(them, Wish(BOB, "other")) == []


def test_many_that_open_in_the_same_way_at_once_are_spread() -> None:
    house, affinity = fleet(a={}, b={}, c={}), Affinity()
    opening = Thread((b"Hi",), opening=True)
    for _ in range(9):
        found = place(list(house.providers.values()), Wish(BOB, "m", opening), affinity, Random(1), now=0)
        assert found is not None
        found.provider.in_flight += 1
        affinity.remember(opening, found.provider.name, now=0)
    assert [provider.in_flight for provider in house.providers.values()] == [3, 3, 3]
