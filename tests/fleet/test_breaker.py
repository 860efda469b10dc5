"""A provider that keeps failing is left alone for a while; and failovers may cost only so much."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmgateway.fleet.breaker import (
    FAILURES_IN_A_ROW,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    RETRY_MOST,
    RETRY_RESERVE,
    RETRY_SHARE,
    Breaker,
    RetryBudget,
)

FOR_EVER = 1e12


def taken_out(*, now: float = 0.0) -> Breaker:
    """A breaker that has just seen as many failures as it bears."""
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.started(1e9)
        breaker.failed(now)
    return breaker


def fail_the_trial(breaker: Breaker) -> float:
    """Let the next trial fail as soon as there may be one; gives the pause that follows."""
    now = breaker.open_until
    assert breaker.lets_through(now)
    breaker.started(1e9)
    assert breaker.failed(now)
    return breaker.open_until - now


# --- when it is taken out ----------------------------------------------------------------------------


def test_a_provider_is_taken_out_by_so_many_failures_in_a_row() -> None:
    breaker = Breaker()
    told = [breaker.failed(100.0) for _ in range(FAILURES_IN_A_ROW)]
    assert told == [False] * (FAILURES_IN_A_ROW - 1) + [True]
    assert not breaker.lets_through(100.0)


def test_a_success_in_between_makes_the_count_start_anew() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert not breaker.failed(0)
        breaker.succeeded()
    assert breaker.lets_through(0)


def test_an_answer_that_only_begins_is_no_success() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.started(1e9)
        breaker.answered()
        breaker.failed(0)
    assert not breaker.lets_through(0)


def test_a_provider_in_order_takes_any_number_at_once() -> None:
    breaker = Breaker()
    for _ in range(100):
        assert breaker.lets_through(0)
        breaker.started(1e9)


# --- the pause and the trial -------------------------------------------------------------------------


def test_nothing_is_sent_during_the_pause() -> None:
    breaker = taken_out(now=50)
    assert not breaker.lets_through(50)
    assert not breaker.lets_through(50 + FIRST_PAUSE_S - 0.001)
    assert breaker.lets_through(50 + FIRST_PAUSE_S)


def test_after_the_pause_one_request_is_tried_at_a_time() -> None:
    breaker = taken_out()
    breaker.started(1e9)
    assert not breaker.lets_through(FOR_EVER)


def test_a_trial_that_succeeds_lets_everybody_back() -> None:
    breaker = taken_out()
    breaker.started(1e9)
    breaker.answered()
    assert breaker.lets_through(0)
    breaker.started(1e9)
    assert breaker.lets_through(0)


def test_a_trial_that_is_abandoned_frees_the_way_for_the_next() -> None:
    breaker = taken_out()
    breaker.started(1e9)
    breaker.abandoned()
    assert not breaker.lets_through(FIRST_PAUSE_S - 0.001)
    assert breaker.lets_through(FIRST_PAUSE_S)
    breaker.started(1e9)
    assert not breaker.lets_through(FIRST_PAUSE_S)


def test_each_trial_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    breaker = taken_out()
    pauses = [FIRST_PAUSE_S, *(fail_the_trial(breaker) for _ in range(10))]
    assert all(later == min(2 * earlier, LONGEST_PAUSE_S) for earlier, later in pairwise(pauses))
    assert pauses[-1] == LONGEST_PAUSE_S


def test_the_pause_stays_bounded_however_many_trials_fail() -> None:
    breaker = taken_out()
    assert {fail_the_trial(breaker) for _ in range(3_000)} == {20.0, 40.0, 80.0, 160.0, LONGEST_PAUSE_S}


def test_the_next_pause_is_longer_until_an_answer_came_to_its_end() -> None:
    breaker = taken_out()
    breaker.started(1e9)
    breaker.answered()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(0)
    assert breaker.open_until == 2 * FIRST_PAUSE_S
    breaker.started(1e9)
    breaker.answered()
    breaker.succeeded()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(0)
    assert breaker.open_until == FIRST_PAUSE_S


@given(st.lists(st.sampled_from(("started", "answered", "succeeded", "abandoned", "failed"))))
def test_whatever_happens_a_provider_is_never_out_for_longer_than_the_longest_pause(acts: list[str]) -> None:
    breaker = Breaker()
    for second, act in enumerate(acts):
        takes_time = act in ("started", "failed")
        getattr(breaker, act)(second) if takes_time else getattr(breaker, act)()
    breaker.abandoned()
    assert breaker.lets_through(len(acts) + LONGEST_PAUSE_S)


def test_one_incident_with_many_in_flight_is_one_incident() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.started(0.0)
    for _ in range(100):
        breaker.failed(0.0)
    assert breaker.open_until == FIRST_PAUSE_S


# --- the retry budget --------------------------------------------------------------------------------


def takes(budget: RetryBudget, now: float) -> int:
    """How many failovers are granted at this moment."""
    return next(count for count in range(100_000) if not budget.take(now))


def test_a_reserve_is_granted_to_those_who_ask_seldom() -> None:
    assert takes(RetryBudget(), now=0) == RETRY_RESERVE


def test_the_reserve_comes_back_within_a_minute_and_does_not_add_up() -> None:
    budget = RetryBudget()
    takes(budget, now=1_000)
    assert takes(budget, now=1_000) == 0
    assert takes(budget, now=1_030) == RETRY_RESERVE / 2
    assert takes(budget, now=9_999) == RETRY_RESERVE


def test_failovers_may_be_a_share_of_the_requests() -> None:
    budget = RetryBudget()
    takes(budget, now=0)
    for _ in range(300):
        budget.deposit(now=0)
    assert takes(budget, now=0) == 300 * RETRY_SHARE


def test_what_is_saved_up_is_bounded() -> None:
    budget = RetryBudget()
    for _ in range(50_000):
        budget.deposit(now=0)
    assert takes(budget, now=0) == RETRY_MOST


def test_a_dying_fleet_gets_little_more_than_its_share_of_retries() -> None:
    budget = RetryBudget()
    requests = 100 * 600
    granted = 0
    for number in range(requests):  # 100 a second for ten minutes; each wants two failovers
        budget.deposit(now=number / 100)
        granted += budget.take(number / 100) + budget.take(number / 100)
    assert granted <= requests * RETRY_SHARE + 11 * RETRY_RESERVE


def test_only_the_first_request_after_a_pause_is_the_trial() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        assert not breaker.started(1e9)
        breaker.failed(0.0)
    assert breaker.started(1e9)
    assert not breaker.started(1e9)
    assert not breaker.lets_through(LONGEST_PAUSE_S)
