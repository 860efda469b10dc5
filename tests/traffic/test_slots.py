"""Who gets a slot, who waits for one, and what those are told who wait in vain; in virtual time."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from llmgateway.api.usage import Tokens
from llmgateway.fleet.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S
from llmgateway.fleet.provider import Probe, State
from llmgateway.traffic.affinity import Thread
from llmgateway.traffic.line import MAX_OVERTAKEN
from tests.simulation import House, now, online, run, steps

LOADING = Probe(State.WARMING, "it is loading its model")
REFUSES = Probe(State.MISCONFIGURED, "it refuses the key")
GONE = Probe(State.OFFLINE, "it is unreachable")
WAKE: dict[str, Any] = {"mac": "aa:bb:cc:dd:ee:ff"}
TALK = Thread((b"talk",))


# --- one queue, many machines ------------------------------------------------------------------------


def test_a_provider_works_on_as_many_requests_as_it_has_slots() -> None:
    async def story() -> None:
        house = House(a={"slots": 2})
        asked = [house.start("ann", name=f"r{number}") for number in range(5)]
        await steps()
        assert (house.served, house.slots.line.depth("m")) == (["r0", "r1"], 3)
        await asyncio.sleep(1.5)
        assert (house["a"].in_flight, house.slots.line.depth("m")) == (2, 1)
        assert await asyncio.gather(*asked) == ["a"] * 5
        assert (now(), house.in_flight) == (3.0, 0)

    run(story())


def test_where_nobody_knows_the_slots_nobody_waits() -> None:
    async def story() -> None:
        house = House(a={})
        await asyncio.gather(*(house.ask("ann") for _ in range(500)))
        assert now() == 1.0

    run(story())


def test_who_needs_one_provider_waits_for_it_whatever_else_is_free() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={}, c={})
        first, second = house.start("ann", only="a"), house.start("ann", name="second", only="a")
        await steps()
        assert (house.served, house.slots.line.depth("m")) == (["ann"], 1)
        assert [await first, await second] == ["a", "a"]
        assert now() == 2.0

    run(story())


def test_who_needs_one_provider_has_nobody_when_that_one_goes_or_is_none() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={})
        first, second = house.start("ann", seconds=9.0, only="a"), house.start("ann", name="second", only="a")
        await steps()
        for _ in range(house["a"].health.fall):
            house["a"].observe(GONE, now=now())
        assert await second == "no candidate"
        assert await house.ask("ann", only="gone") == "no candidate"
        await first

    run(story())


def test_a_keeper_that_sleeps_is_woken_for_the_next_try_and_one_that_is_gone_is_not() -> None:
    async def story() -> None:
        house = House(a={"wake": WAKE}, b={})
        for name in ("a", "b"):
            for _ in range(house[name].health.fall):
                house[name].observe(GONE, now=now())
            assert (
                f"kept by {name}, which is offline since" in house.slots.keeper_is_away(house[name]).message
            )
        assert [name for _, name in house.woken] == ["a"]

    run(story())


def test_who_waits_for_one_provider_does_not_keep_others_from_the_next() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        house["b"].observe(online("n"), now=0)
        first, second = house.start("ann", seconds=100), house.start("ann", name="stuck")
        await steps()
        assert house.slots.line.depth("m") == 1
        assert await house.ask("ann", model="n") == "b"
        assert now() == 1.0
        assert [await first, await second] == ["a", "a"]

    run(story())


def test_who_waits_is_served_by_whichever_candidate_is_free_first() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        house.start("ann", seconds=9, tried="b")
        house.start("ann", seconds=3, tried="a")
        await steps()
        assert await house.ask("ann") == "b"
        assert now() == 4.0
        await asyncio.sleep(10)

    run(story())


def test_the_flood_of_one_user_keeps_another_waiting_for_one_release_only() -> None:
    async def story() -> None:
        house = House(size=200, a={"slots": 2})
        ended = Tokens(10, 5, estimated=False)
        flood = [house.start("ann", tokens=ended, seconds=1 + n % 2, estimate=600) for n in range(100)]
        await asyncio.sleep(7.2)
        guest = house.start("bob", tokens=ended, estimate=600)
        await steps()
        assert house.slots.line.position(house.orders["bob"]) == 1
        before = len(house.served)
        await guest
        assert house.served[before] == "bob", "the very next slot was not theirs"
        await asyncio.gather(*flood)

    run(story())


def test_a_flood_that_was_overestimated_keeps_nobody_waiting_longer() -> None:
    """The lift must not count what is only expected of the requests in flight."""

    async def story() -> None:
        house = House(size=200, a={"slots": 4})
        flood = [house.start("ann", tokens=Tokens(10, 1), estimate=5_000) for _ in range(100)]
        await asyncio.sleep(5.5)
        assert len(house.served) == 24
        await house.ask("bob", tokens=Tokens(10, 1), estimate=5_000)
        assert house.served[24:28].count("bob") == 1
        await asyncio.gather(*flood)

    run(story())


def test_requests_of_one_user_are_first_in_first_out() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 2})
        names = [f"r{number}" for number in range(30)]
        await asyncio.gather(*(house.ask("ann", name=name, estimate=50 * len(name)) for name in names))
        assert house.served == names

    run(story())


# --- what happens while somebody waits ---------------------------------------------------------------


@pytest.mark.parametrize("state", [State.OFFLINE, State.WARMING, State.MISCONFIGURED])
def test_a_candidate_that_comes_online_serves_the_waiters_at_once(state: State) -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 2})
        for _ in range(2):
            house["b"].observe(Probe(state, "so it is"), now=0)
        asked = [house.start("ann", seconds=50) for _ in range(4)]
        await asyncio.sleep(5)
        assert house.slots.line.depth("m") == 3
        house["b"].observe(online("m"), now=now())
        assert house["b"].in_flight == 2  # in the same step
        await asyncio.gather(*asked)

    run(story())


def test_a_model_that_appears_serves_the_waiters_at_once() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 2})
        house["b"].observe(online("n"), now=0)
        asked = [house.start("ann", seconds=50) for _ in range(3)]
        await steps()
        house["b"].observe(online("n", "m"), now=now())
        assert house["b"].in_flight == 2
        await asyncio.gather(*asked)

    run(story())


def test_capacity_changes_at_once_up_and_down_and_breaks_no_lease() -> None:
    async def story() -> None:
        house = House(a={"told": 1})
        asked = [house.start("ann", seconds=10) for _ in range(12)]
        await steps()
        house["a"].observe(online("m", slots=4), now=now())
        assert house["a"].in_flight == 4
        house["a"].observe(online("m", slots=1), now=now())
        await asyncio.sleep(9)
        assert house["a"].in_flight == 4
        await asyncio.sleep(2)
        assert house["a"].in_flight == 1
        assert await asyncio.gather(*asked) == ["a"] * 12

    run(story())


@pytest.mark.parametrize(
    "news", [(GONE, GONE), (Probe(State.MISCONFIGURED, "it wants a key", certain=True),), (online("n"),)]
)
def test_who_has_nothing_left_to_wait_for_is_told_at_once(news: tuple[Probe, ...]) -> None:
    async def story() -> None:
        house = House(a={"slots": 1})
        running, waiting = house.start("ann", seconds=50), house.start("ann")
        await steps()
        for probe in news:
            house["a"].observe(probe, now=now())
        assert (await waiting, now()) == ("no candidate", 0.0)
        assert await house.ask("ann") == "no candidate"
        assert await running == "a"

    run(story())


def test_who_waits_for_a_model_to_load_waits_on() -> None:
    async def story() -> None:
        house = House(a={"slots": 1})
        house["a"].observe(LOADING, now=0)
        waiting = house.start("ann")
        await asyncio.sleep(40)
        house["a"].observe(online("m"), now=now())
        assert (await waiting, now()) == ("a", 41.0)

    run(story())


def test_a_machine_that_sleeps_is_sent_for_while_somebody_waits_for_it() -> None:
    async def story() -> None:
        house = House(a={"slots": 1, "wake": WAKE})
        for _ in range(2):
            house["a"].observe(GONE, now=0)
        waiting = house.start("ann")
        await asyncio.sleep(30.5)
        assert house.woken[0] == (0.0, "a")
        assert all(later[0] - earlier[0] == 1.0 for earlier, later in pairwise(house.woken))
        house["a"].observe(online("m"), now=now())
        assert await waiting == "a"
        woken = len(house.woken)
        await asyncio.sleep(60)
        assert len(house.woken) == woken

    run(story())


def test_nobody_is_sent_for_while_another_provider_is_up() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"wake": WAKE})
        for _ in range(2):
            house["b"].observe(GONE, now=0)
        await asyncio.gather(*(house.ask("ann") for _ in range(5)))
        assert not house.woken

    run(story())


def test_the_end_of_a_pause_is_noticed_though_it_tells_nobody() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        for _ in range(FAILURES_IN_A_ROW):
            house["b"].fared_badly(None, now=now())
        running = house.start("ann", seconds=1_000)
        await steps()
        assert await house.ask("ann") == "b"
        assert FIRST_PAUSE_S <= now() - 1.0 <= FIRST_PAUSE_S + 1.0
        await asyncio.sleep(2)
        assert house.slots._timer is None  # nobody waits, and nobody looks
        await running

    run(story())


def test_who_comes_just_when_a_pause_ends_does_not_overtake() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        await asyncio.sleep(0.5)
        for _ in range(FAILURES_IN_A_ROW):
            house["b"].fared_badly(None, now=now())
        running = house.start("ann", seconds=100)
        await asyncio.sleep(0.2)
        waiting = house.start("ann", name="older", seconds=5)
        await asyncio.sleep(FIRST_PAUSE_S - 0.1)
        assert await house.ask("ann", name="younger") == "b"
        assert house.served == ["ann", "older", "younger"]
        await asyncio.gather(running, waiting)

    run(story())


def test_where_many_slots_become_free_at_once_who_comes_meanwhile_does_not_overtake() -> None:
    async def story() -> None:
        house = House(a={"told": 1})
        older = [house.start("ann", name=f"r{number}", seconds=9) for number in range(100)]
        await steps()
        house["a"].observe(online("m", slots=100), now=now())
        assert house["a"].in_flight < 100, "all were granted in one turn of the loop"
        younger = house.start("ann", name="younger", seconds=9)
        assert await asyncio.gather(*older, younger) == ["a"] * 101
        assert house.served == [*(f"r{number}" for number in range(100)), "younger"]
        assert now() == 18.0, "there was no slot left for it"

    run(story())


def test_where_nobody_serves_many_any_more_all_are_told() -> None:
    async def story() -> None:
        house = House(a={"slots": 1})
        asked = [house.start("ann", seconds=1) for _ in range(50)]
        await steps()
        for _ in range(2):
            house["a"].observe(GONE, now=now())
        assert (await asyncio.gather(*asked)) == ["a"] + ["no candidate"] * 49

    run(story())


# --- leaving the queue -------------------------------------------------------------------------------


def test_a_slot_granted_to_one_who_has_just_been_cancelled_goes_to_the_next() -> None:
    async def story() -> None:
        house = House(a={"told": 1})
        running, leaver, heir = (house.start("ann", name=name, seconds=5) for name in ("r", "l", "h"))
        await steps()
        house["a"].observe(online("m", slots=2), now=now())  # the grant,
        leaver.cancel()  # before the waiter's next step
        await asyncio.gather(leaver, return_exceptions=True)
        await steps()
        assert (house.served, house["a"].in_flight) == (["r", "h"], 2)
        await asyncio.gather(running, heir)
        assert (now(), house.in_flight) == (5.0, 0)

    run(story())


def test_a_trial_that_was_granted_to_one_who_has_just_been_cancelled_is_given_to_the_next() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        running = house.start("ann", seconds=1_000, tried="b")
        await asyncio.sleep(0.5)
        for _ in range(FAILURES_IN_A_ROW):
            house["b"].fared_badly(None, now=now())
        await asyncio.sleep(0.2)
        leaver = house.start("ann", name="leaver")
        await asyncio.sleep(FIRST_PAUSE_S - 0.1)  # the queue is looked at every second, so not just now
        house["b"].changed()
        assert house["b"].in_flight == 1  # the grant,
        leaver.cancel()  # before the waiter's next step
        await steps()
        assert (house.served, house["b"].in_flight) == (["ann"], 0)
        asked_at = now()
        assert await house.ask("ann") == "b"
        assert now() - asked_at < 1.5  # of simulated time
        await running

    run(story())


def test_a_grant_that_was_never_taken_costs_nothing() -> None:
    async def story() -> None:
        house = House(a={"told": 1})
        running = house.start("ann", seconds=5)
        leaver = house.start("bob", estimate=1e6)
        await steps()
        house["a"].observe(online("m", slots=2), now=now())
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        asked = [
            house.start(user, name=f"{user} {n}", seconds=5) for n in range(3) for user in ("bob", "cat")
        ]
        await asyncio.gather(running, *asked)
        assert house.served[:3] == ["ann", "bob 0", "cat 0"]
        assert {name.split()[0] for name in house.served[3:5]} == {"bob", "cat"}

    run(story())


def test_a_slot_that_is_granted_in_the_instant_of_the_timeout_is_used() -> None:
    async def story() -> None:
        house = House(timeout_s=10, a={"told": 1})
        running = house.start("ann", seconds=20)
        waiting = house.start("ann", name="late")
        await steps()
        shortly_before = 10.0 - 5e-10  # so that both are run in one turn of the loop, the grant first
        asyncio.get_running_loop().call_at(
            shortly_before, partial(house["a"].observe, online("m", slots=2), now=10.0)
        )
        assert await waiting == "a"
        await running
        assert house.in_flight == 0

    run(story())


# --- conversations -----------------------------------------------------------------------------------


def test_among_equals_the_one_whose_cache_is_on_the_freed_machine_goes_first() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        house.affinity.remember(TALK, "a", now=0)
        busy = [house.start("ann", seconds=5, tried=tried) for tried in ("a", "b")]
        await steps()
        asked = [house.start("ann", name="new"), house.start("ann", name="talk", thread=TALK)]
        await asyncio.gather(*busy, *asked)
        assert house.places["talk"] == "a"
        assert house.orders["talk"].affinity == "hit"
        assert house.slots.affinity_results == {"": 3, "hit": 1}

    run(story())


def test_the_one_with_a_cache_goes_first_only_so_many_times() -> None:
    async def story() -> None:
        house = House(a={"slots": 1})
        house.affinity.remember(TALK, "a", now=0)
        asked = [house.start("ann", name="running"), house.start("ann", name="patient")]
        asked += [house.start("ann", name="hasty", thread=TALK) for _ in range(3 * MAX_OVERTAKEN)]
        await asyncio.gather(*asked)
        assert house.served.index("patient") == 1 + MAX_OVERTAKEN

    run(story())


def test_a_cache_on_a_machine_that_is_no_candidate_is_no_reason_to_go_first() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, b={"slots": 1})
        house.affinity.remember(TALK, "b", now=0)
        for _ in range(2):
            house["b"].observe(GONE, now=0)
        asked = [house.start("ann", name=name) for name in ("running", "older")]
        asked.append(house.start("ann", name="younger", thread=TALK))
        await asyncio.gather(*asked)
        assert house.served == ["running", "older", "younger"]

    run(story())
