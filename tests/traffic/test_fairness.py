"""Who goes next: the counters by themselves, and what they make of a busy house in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.traffic import fairness
from llmgateway.traffic.fairness import OUTPUT_WEIGHT, FairShare, Standing, cost
from tests.simulation import House, now, run

TOKENS_PER_SECOND = 50.0
Sizes = Callable[[], Tokens]


class Shares:
    """The counters, addressed by the names of users."""

    def __init__(self) -> None:
        self.fair = FairShare()
        self.standings: dict[str, Standing] = {}

    def enter(self, user: str) -> None:
        self.standings[user] = self.fair.enter(user)

    def leave(self, user: str) -> None:
        self.fair.leave(self.standings[user])

    def grant(self, user: str, expected: float = 0.0) -> None:
        self.fair.granted(self.standings[user], expected, 1)

    def charge(self, user: str, tokens: float, weight: float, *, expected: float = 0.0) -> None:
        self.fair.charge(self.standings[user], tokens, weight, expected=expected)

    def rank(self, user: str) -> tuple[float, int]:
        return self.fair.rank(user)


def line(shares: Shares, *users: str) -> str:
    """Who goes first."""
    return " ".join(sorted(users, key=shares.rank))


def shares_of(**counters: float) -> Shares:
    """Users who are all active, with these counters."""
    shares = Shares()
    for user in counters:
        shares.enter(user)
    for user, counter in counters.items():
        shares.charge(user, counter, 1.0)
    return shares


# --- the counters ------------------------------------------------------------------------------------


def test_output_costs_twice_as_much_as_input() -> None:
    assert OUTPUT_WEIGHT == 2
    assert cost(100, 10) == 120


def test_the_lowest_counter_goes_first() -> None:
    assert line(shares_of(ann=30, bob=10, cat=20), "ann", "bob", "cat") == "bob cat ann"


def test_a_counter_grows_by_tokens_per_weight() -> None:
    shares = shares_of(ann=0, bob=0)
    shares.charge("ann", 100, 1)
    shares.charge("bob", 190, 2)
    assert line(shares, "ann", "bob") == "bob ann"


def test_what_is_expected_counts_until_it_is_known() -> None:
    shares = shares_of(ann=0, bob=50)
    shares.grant("ann", 100)
    assert line(shares, "ann", "bob") == "bob ann"
    shares.charge("ann", 10, 1, expected=100)
    assert line(shares, "ann", "bob") == "ann bob"
    assert shares.rank("ann")[0] == 10


def test_ties_go_to_the_user_served_least_recently() -> None:
    shares = shares_of(ann=5, bob=5, cat=5)
    for user in ("ann", "cat", "bob", "ann"):
        shares.grant(user)
    assert line(shares, "ann", "bob", "cat") == "cat bob ann"


# --- the lift ----------------------------------------------------------------------------------------


def test_who_comes_new_is_lifted_to_the_lowest_counter_of_the_active() -> None:
    shares = shares_of(ann=300, bob=200)
    shares.enter("cat")
    assert shares.rank("cat")[0] == 200


def test_who_comes_back_is_lifted_to_the_lowest_counter_of_the_others_who_are_active() -> None:
    shares = shares_of(ann=300, bob=10, cat=20)
    shares.leave("bob")
    shares.leave("cat")
    shares.charge("ann", 100, 1)
    shares.enter("bob")
    assert shares.rank("bob")[0] == 400


def test_where_nobody_else_is_active_the_counter_is_that_of_the_user_active_last() -> None:
    shares = shares_of(ann=300, bob=10, cat=500)
    for user in ("cat", "ann", "bob"):
        shares.leave(user)
    shares.enter("dan")
    assert shares.rank("dan")[0] == 10
    shares.leave("dan")
    shares.enter("ann")
    assert shares.rank("ann")[0] == 300


def test_who_comes_back_is_never_put_down() -> None:
    shares = shares_of(ann=10, bob=500)
    shares.leave("bob")
    shares.enter("bob")
    assert shares.rank("bob")[0] == 500


def test_who_has_more_than_one_request_is_lifted_with_the_first_only() -> None:
    shares = shares_of(ann=0, bob=0)
    shares.charge("bob", 100, 1)
    shares.enter("ann")
    assert shares.rank("ann")[0] == 0
    shares.leave("ann")
    shares.charge("bob", 100, 1)
    shares.enter("ann")
    assert shares.rank("ann")[0] == 0


def test_nobody_is_lifted_to_what_is_only_expected_of_others() -> None:
    shares = shares_of(ann=100)
    shares.grant("ann", 5_000)
    shares.enter("bob")
    assert shares.rank("bob")[0] == 100


def test_the_lift_is_to_the_lowest_of_all_who_are_active_whatever_they_were_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what a correction takes back counts: nobody is lifted to what the lowest had before."""
    monkeypatch.setattr(fairness, "FORGET_AFTER", 2)  # so that the forgotten are cleared away, too
    chance, shares, active = Random(5), Shares(), Counter[str]()
    for _ in range(5_000):
        user = f"u{chance.randrange(6)}"
        others = [shares.fair._active[other].served for other in +active]
        known = shares.fair._idle.get(user, Standing(user))
        match chance.choice("enter enter leave leave charge charge".split()):
            case "enter":
                shares.enter(user)
                if not active[user] and others:
                    assert shares.rank(user)[0] == max(known.served, min(others))
                active[user] += 1
            case "charge" if active[user]:
                shares.charge(user, chance.choice((-7.0, 2.0, 5.0)), 1)
            case "leave" if active[user]:
                shares.leave(user)
                active[user] -= 1
        assert len(shares.fair._lowest) <= 2 * (6 + 2), "what has been forgotten is kept"


# --- bounds ------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many users are remembered: few enough to be quick."""
    monkeypatch.setattr(fairness, "FORGET_AFTER", 50)
    return 50


def test_no_more_than_so_many_idle_users_are_remembered(few: int) -> None:
    shares = Shares()
    for number in range(5 * few):
        shares.enter(f"u{number}")
        shares.charge(f"u{number}", 5, 1)
        shares.leave(f"u{number}")
        assert len(shares.fair._idle) <= few


def test_the_user_idle_for_longest_is_forgotten_first(few: int) -> None:
    shares = Shares()
    for number in range(few):
        shares.enter(f"u{number}")
        shares.leave(f"u{number}")
    shares.enter("u0")
    shares.charge("u0", 1e9, 1)
    shares.leave("u0")
    for number in range(10):
        shares.enter(f"v{number}")
    shares.enter("u0")
    assert shares.rank("u0")[0] == 1e9


def test_nobody_who_is_active_is_ever_forgotten(few: int) -> None:
    shares = Shares()
    users = [f"u{number}" for number in range(few + 10)]
    for user in users:
        shares.enter(user)
        shares.charge(user, 7, 1)
    assert {shares.rank(user)[0] >= 7 for user in users} == {True}
    for user in users:
        shares.leave(user)


ACTS = ("enter", "leave", "charge")
Act = tuple[str, int, float]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from("enter leave charge".split()), st.integers(0, 3), st.floats(0, 1e6)))
)
def test_no_counter_ever_falls_behind_what_was_served(acts: list[Act]) -> None:
    shares, active, served = Shares(), dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0.0)
    for act, number, tokens in acts:
        user = f"u{number}"
        if act == "enter":
            shares.enter(user)
            active[number] += 1
        elif active[number] and act == "charge":
            shares.charge(user, tokens, 1)
            served[number] += tokens
        elif active[number]:
            shares.leave(user)
            active[number] -= 1
        if active[number]:
            assert shares.rank(user)[0] >= served[number] * 0.999999


# --- a busy house ------------------------------------------------------------------------------------


async def keep_asking(
    house: House, caller: Caller, sizes: Sizes, *, at_once: int, until: float, estimate: float = 600
) -> None:
    """Always have so many requests waiting or running; a token takes its time."""

    async def one_after_the_other() -> None:
        while now() < until:
            tokens = sizes()
            seconds = cost(tokens.prompt, tokens.completion) / TOKENS_PER_SECOND
            guess = cost(tokens.prompt, house.usual.output("m", None)) if estimate < 0 else estimate
            await house.ask(caller, tokens=tokens, seconds=seconds, estimate=guess)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_the_other())


def always(completion: int) -> Sizes:
    return lambda: Tokens(20, completion, estimated=False)


def ratio(
    ann: Sizes, bob: Sizes, *, weights: tuple[float, float] = (1, 1), slots: int = 2, estimate: float = -1
) -> float:
    """How many times as many tokens as bob ann is served, over a run in which both always want more."""

    async def story() -> float:
        house = House(a={"slots": slots})
        async with asyncio.TaskGroup() as group:
            for name, sizes, weight in (("ann", ann, weights[0]), ("bob", bob, weights[1])):
                caller = Caller(name, weight=weight)
                group.create_task(
                    keep_asking(house, caller, sizes, at_once=2 * slots, until=8_000, estimate=estimate)
                )
        return house.tokens["ann"] / house.tokens["bob"]

    return run(story())


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_two_users_with_equal_demand_are_served_equal_tokens_whatever_the_size_of_their_requests(
    slots: int,
) -> None:
    assert 0.8 < ratio(always(100), always(4_000), slots=slots) < 1.25


def test_sizes_that_vary_even_out() -> None:
    chance = Random(4)
    short, long = (
        (lambda: Tokens(50, chance.randint(1, 200))),
        (lambda: Tokens(500, chance.randint(1, 6_000))),
    )
    assert 0.8 < ratio(short, long) < 1.25


@pytest.mark.parametrize("estimate", [20.0, 800.0, 80_000.0])
def test_estimates_that_are_wrong_by_a_factor_are_corrected(estimate: float) -> None:
    assert 0.8 < ratio(always(100), always(4_000), estimate=estimate) < 1.25


@pytest.mark.parametrize("slots", [1, 4])
def test_weights_one_to_two_give_one_to_two(slots: int) -> None:
    assert 0.8 < 2 * ratio(always(300), always(300), weights=(1, 2), slots=slots) < 1.25
    assert 0.8 < 2 * ratio(always(100), always(4_000), weights=(1, 2), slots=slots) < 1.25


def test_who_comes_back_from_idleness_neither_starves_the_others_nor_is_punished() -> None:
    async def story() -> Iterator[float]:
        house = House(a={"slots": 2})
        ann, bob, size = Caller("ann"), Caller("bob"), always(400)
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_asking(house, ann, size, at_once=4, until=12_000))
            await asyncio.sleep(6_000)
            before = house.tokens["ann"]
            group.create_task(keep_asking(house, bob, size, at_once=4, until=12_000))
            await asyncio.sleep(600)
            early = house.tokens["bob"] / (house.tokens["ann"] - before)
            await asyncio.sleep(5_000)
            late = house.tokens["bob"] / (house.tokens["ann"] - before)
        return iter((early, late))

    early, late = run(story())
    assert 0.7 < early < 1.43
    assert 0.9 < late < 1.11


def test_a_user_who_asks_now_and_then_is_served_at_the_next_release() -> None:
    async def story() -> list[float]:
        house = House(a={"slots": 2})
        waits = []
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_asking(house, Caller("ann"), always(400), at_once=20, until=10_000))
            while now() < 9_000:
                await asyncio.sleep(77)
                since = now()
                await house.ask("bob", tokens=Tokens(20, 20), seconds=1)
                waits.append(now() - since - 1)
        return waits

    assert max(run(story())) <= cost(20, 400) / TOKENS_PER_SECOND


def test_three_users_share_like_two() -> None:
    async def story() -> dict[str, float]:
        house = House(a={"slots": 2}, b={"slots": 1})
        async with asyncio.TaskGroup() as group:
            for user, size in (("ann", 100), ("bob", 1_000), ("cat", 4_000)):
                group.create_task(keep_asking(house, Caller(user), always(size), at_once=6, until=8_000))
        return house.tokens

    tokens = run(story())
    assert max(tokens.values()) < 1.25 * min(tokens.values()), tokens
