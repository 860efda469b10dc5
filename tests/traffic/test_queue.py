"""How long the queue is, where one stands in it, and what those are told for whom it is too long."""

from __future__ import annotations

import asyncio

import pytest

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.traffic.affinity import Thread
from llmgateway.traffic.estimate import Usual
from llmgateway.traffic.line import _REMEMBERED_MODELS
from tests.simulation import House, now, online, run, steps, taking_part

# --- whose queue it is -------------------------------------------------------------------------------


def test_nobody_fills_the_queue_of_everybody() -> None:
    async def story() -> None:
        house = House(size=5, a={"slots": 1})
        asked = [house.start("ann", seconds=2) for _ in range(6)]
        await steps()
        bob = house.start("bob", seconds=2)
        await steps()
        assert house.slots.line.depth("m") == 5
        assert await bob == "a"
        said = await asyncio.gather(*asked)
        assert sum(answer.startswith("503") for answer in said) == 1, "the newest of ann's gave way"
        assert said[-1].startswith("503")
        assert house.in_flight == 0

    run(story())


# --- told to come back later -------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back_from_how_fast_it_moves() -> None:
    async def story() -> None:
        house = House(size=5, a={"slots": 1})
        asked = [house.start("ann", seconds=2) for _ in range(6)]
        await asyncio.sleep(6.1)
        asked += [house.start("ann", seconds=2) for _ in range(3)]
        await steps()
        assert house.slots.line.depth("m") == 5
        assert await house.ask("ann") == "503 overloaded, retry after 10"
        await asyncio.gather(*asked)

    run(story())


def test_what_to_say_does_not_count_the_time_in_which_nobody_waited() -> None:
    async def story() -> None:
        house = House(size=5, a={"slots": 1})
        await asyncio.gather(*(house.ask("ann", seconds=2) for _ in range(6)))
        await asyncio.sleep(8 * 3_600)
        asked = [house.start("ann", seconds=2) for _ in range(6)]
        await steps()
        assert await house.ask("ann") == "503 overloaded, retry after 10"
        await asyncio.gather(*asked)

    run(story())


def test_a_queue_that_has_come_to_a_halt_says_so() -> None:
    async def story() -> None:
        house = House(size=5, timeout_s=1_000, a={"slots": 1})
        asked = [house.start("ann", seconds=2) for _ in range(4)] + [house.start("ann", seconds=900)]
        asked += [house.start("ann") for _ in range(1)]
        await asyncio.sleep(400)
        asked += [house.start("ann") for _ in range(4)]
        await steps()
        assert int((await house.ask("ann")).split()[-1]) >= 300
        await asyncio.gather(*asked)

    run(story())


def test_the_queue_is_bounded_for_each_model_by_itself() -> None:
    async def story() -> None:
        house = House(size=3, a={"slots": 1})
        house["a"].observe(online("m", "n"), now=0)
        asked = [house.start("ann", model=model, seconds=50) for model in "mmmmnnn"]
        await steps()
        assert "503" in await house.ask("ann", model="m")
        assert "503" in await house.ask("ann", model="n")
        assert (house.slots.line.depth("m"), house.slots.line.depth("n")) == (3, 3)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert (house.in_flight, house.slots.line.depth("m")) == (0, 0)

    run(story())


def test_who_waits_too_long_is_told_when_to_come_back() -> None:
    async def story() -> None:
        house = House(timeout_s=20, a={"slots": 1})
        running, waiting = house.start("ann", seconds=50), house.start("bob")
        assert (await waiting)[:28] == "503 overloaded, retry after "
        assert (now(), house.slots.line.depth("m")) == (20.0, 0)
        await running

    run(story())


def test_the_time_to_wait_is_that_of_the_request_and_not_of_each_attempt() -> None:
    async def story() -> None:
        house = House(timeout_s=20, a={"told": 1})
        running = house.start("ann", seconds=50)
        await steps()
        order = house.slots.order(Caller("bob"), "m", Thread(), 100)
        with taking_part(house.slots, order):
            order.waited_s = 15.0  # before a provider said that it is loading its model
            with pytest.raises(Exception, match="in time"):
                await house.slots.lease(order)
        assert now() == 5.0
        await running

    run(story())


# --- position ----------------------------------------------------------------------------------------


def test_a_position_is_the_order_in_which_waiters_can_expect_to_be_served() -> None:
    async def story() -> None:
        house = House(a={"slots": 1})
        running = house.start("cat", seconds=5)
        await steps()
        asked = [house.start("ann", name=f"ann {n}") for n in range(3)]
        asked += [house.start("bob", name=f"bob {n}") for n in range(3)]
        await steps()
        positions = {
            name: house.slots.line.position(order) for name, order in house.orders.items() if name != "cat"
        }
        await asyncio.gather(running, *asked)
        assert sorted(positions, key=positions.__getitem__) == house.served[1:]
        assert sorted(positions.values()) == [1, 2, 3, 4, 5, 6]

    run(story())


def test_the_positions_among_many_are_told_as_they_were_a_moment_ago() -> None:
    async def story() -> None:
        house = House(a={"slots": 1}, size=200)
        running = house.start("cat", seconds=0.5)
        await steps()
        asked = [house.start(f"user {n}") for n in range(150)]
        await steps()
        last = house.orders["user 149"]
        before = house.slots.line.position(last)
        await running
        await steps()
        soon = house.slots.line.position(last)
        await asyncio.sleep(1)
        assert (before, soon) == (150, 150)
        assert house.slots.line.position(last) < 150
        assert house.slots.line.position(house.orders["cat"]) == 0
        await asyncio.gather(*asked)

    run(story())


# --- bounds ------------------------------------------------------------------------------------------


def test_what_is_remembered_of_models_is_bounded() -> None:
    async def story() -> None:
        house = House(a={"slots": 1})
        names = [f"m{number}" for number in range(_REMEMBERED_MODELS + 200)]
        house["a"].observe(online(*names), now=0)
        for name in names:
            await asyncio.gather(*(house.ask("ann", model=name, tokens=Tokens(1, 1)) for _ in range(2)))
        assert len(house.slots.line._paces) <= _REMEMBERED_MODELS

    run(story())


def test_the_usual_length_of_an_answer_is_learnt_for_each_model() -> None:
    usual = Usual()
    unknown = usual.output("m", None)
    for _ in range(30):
        usual.learn("m", completion_tokens=2_000)
    assert usual.output("m", None) == pytest.approx(2_000, rel=0.01)
    assert usual.output("m", 50) == 50
    assert usual.output("n", None) == unknown


def test_of_how_many_models_an_answer_is_remembered_is_bounded() -> None:
    usual = Usual()
    for number in range(_REMEMBERED_MODELS + 200):
        usual.learn(f"m{number}", completion_tokens=1)
    assert len(usual._models) <= _REMEMBERED_MODELS
