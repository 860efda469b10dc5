"""Who is refused again and again waits for it, and nobody else does."""

from __future__ import annotations

from contextlib import ExitStack

from llmgateway.access.tries import (
    FORGIVEN_EVERY_S,
    FREE,
    LONGEST_S,
    MOST_COUNTED,
    MOST_REMEMBERED,
    MOST_WAITING,
    MOST_WAITING_OF_ONE,
    Tries,
)


def refused(tries: Tries, times: int, name: str = "a", now: float = 0.0) -> list[float]:
    return [tries.refuse(name, now=now) for _ in range(times)]


def test_some_tries_are_free_and_then_each_waits_longer_up_to_a_bound() -> None:
    delays = refused(Tries(), 30)
    assert delays[:FREE] == [0.0] * FREE
    assert delays[FREE : FREE + 3] == [0.05, 0.1, 0.2]
    assert delays == sorted(delays) and delays[-1] == LONGEST_S


def test_tries_of_others_count_for_nobody_else() -> None:
    tries = Tries()
    refused(tries, 30)
    assert tries.refuse("b", now=0.0) == 0.0


def test_tries_are_forgiven_with_time() -> None:
    tries = Tries()
    refused(tries, 1_000)
    later = MOST_COUNTED * FORGIVEN_EVERY_S
    assert tries.refuse("a", now=later / 2) > 0.0
    assert tries.refuse("a", now=later * 2) == 0.0


def test_who_asks_with_a_bad_key_now_and_then_never_waits() -> None:
    tries = Tries()
    assert not any(tries.refuse("a", now=FORGIVEN_EVERY_S * each) for each in range(1_000))


def test_only_so_many_are_remembered_the_latest() -> None:
    tries = Tries()
    refused(tries, 30)
    for each in range(MOST_REMEMBERED):
        tries.refuse(f"other-{each}", now=0.0)
    assert len(tries) == MOST_REMEMBERED
    assert tries.refuse("a", now=0.0) == 0.0


def test_only_so_many_wait_of_one_and_in_all_and_give_their_places_back() -> None:
    tries = Tries()
    with ExitStack() as stack:
        of_one = [stack.enter_context(tries.waiting("a")) for _ in range(MOST_WAITING_OF_ONE + 1)]
        assert of_one == [True] * MOST_WAITING_OF_ONE + [False]
        others = [stack.enter_context(tries.waiting(f"b-{each}")) for each in range(MOST_WAITING)]
        assert others.count(True) == MOST_WAITING - MOST_WAITING_OF_ONE
    with tries.waiting("a") as may_wait:
        assert may_wait
