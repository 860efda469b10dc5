"""What a user and a key may use: counted right at any moment, told honestly, and never leaking."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits.storage.base import Storage

from llmgateway.access.counters import MIN_SWEPT, Counters, SteadyClock
from llmgateway.access.limits import (
    MAX_TERMS,
    Admission,
    Limits,
    as_openai_writes,
    in_words,
)
from llmgateway.config.users import LimitsConfig
from llmgateway.errors import RATE_LIMITED, GatewayError

START: Final = 1_790_000_000.0
TICK_S: Final = 1 / 1024  # adds up without rounding, so that a bound can be met exactly
NONE: Final = LimitsConfig()


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Desk:
    """Limits with a clock that is set by hand, and one user with one key to ask for."""

    user: LimitsConfig = NONE
    key: LimitsConfig = NONE
    clock: Clock = field(default_factory=Clock)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = Limits(self.clock)

    def admit(self, user: str = "alice", key: str = "k1", name: str | None = "laptop") -> Admission:
        return self.limits.admit(self.limits.wish(user, self.user, key, self.key, key_name=name))

    def refusal(self, **who: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            self.admit(**who)
        return caught.value

    def admits(self) -> bool:
        """Tell whether a request gets in; if so, it has taken what it takes."""
        try:
            self.admit().release()
        except GatewayError:
            return False
        return True

    def used(self) -> list[tuple[str, int, float]]:
        rows = self.limits.state("alice", self.user)
        rows += self.limits.state("alice", self.key, key_id="k1", key_name="laptop")
        return [(row.name, row.used, row.resets_in_s) for row in rows]


def per_minute(requests: int) -> LimitsConfig:
    return LimitsConfig(requests_per_minute=requests)


def header(answer: GatewayError | Admission, name: str) -> str | None:
    headers = answer.headers if isinstance(answer, GatewayError) else answer.headers()
    return dict(headers).get(name)


def told_limits(answer: GatewayError | Admission, counts: str = "requests") -> list[str | None]:
    return [header(answer, f"x-ratelimit-{what}-{counts}") for what in ("limit", "remaining", "reset")]


def retry_s(refusal: GatewayError) -> int:
    told = header(refusal, "Retry-After")
    assert told is not None
    assert re.fullmatch("[1-9][0-9]*", told)
    return int(told)


# --- Requests -------------------------------------------------------------------------------------


def test_a_request_over_the_limit_is_refused_in_words_that_name_it() -> None:
    desk = Desk(per_minute(2))
    desk.admit()
    desk.clock.now += 48.5
    desk.admit()
    refusal = desk.refusal()
    assert refusal.kind is RATE_LIMITED
    assert refusal.message == "Limit reached: 2 requests per minute for user 'alice'. Try again in 12 s."
    assert refusal.headers == (
        ("Retry-After", "12"),
        ("x-ratelimit-limit-requests", "2"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "1m0s"),
    )


def test_a_limit_of_a_key_is_told_as_that_of_the_key() -> None:
    desk = Desk(key=per_minute(1))
    desk.admit()
    message = "Limit reached: 1 request per minute for key 'laptop' of user 'alice'. Try again in 60 s."
    assert desk.refusal().message == message


def test_a_key_without_a_name_is_told_by_the_beginning_of_its_id() -> None:
    desk = Desk(key=per_minute(1))
    desk.admit(key="5e8848" + 58 * "0", name=None)
    assert "for key '5e884800' of user" in desk.refusal(key="5e8848" + 58 * "0", name=None).message


def test_the_window_moves_and_does_not_start_anew() -> None:
    desk = Desk(per_minute(2))
    assert [desk.admits(), desk.admits()] == [True, True]
    desk.clock.now += 60
    assert [desk.admits()] == [True]
    desk.clock.now += 59
    assert [desk.admits(), desk.admits()] == [True, False]
    desk.clock.now += 1
    assert [desk.admits(), desk.admits()] == [True, False]


def test_all_keys_of_a_user_share_the_users_limit() -> None:
    desk = Desk(per_minute(2), per_minute(2))
    desk.admit(key="k1")
    desk.admit(key="k2")
    assert "for user 'alice'" in desk.refusal(key="k3").message
    desk.admit(user="bob", key="k4")


def test_keys_of_one_name_are_counted_apart() -> None:
    desk = Desk(key=per_minute(1))
    desk.admit(key="k1", name=None)
    desk.admit(key="k2", name=None)
    desk.admit(user="bob", key="k1", name=None)
    desk.refusal(key="k1", name="named since")


def test_retry_after_holds_for_all_limits_at_once() -> None:
    desk = Desk(LimitsConfig(requests_per_minute=1, parallel=1), LimitsConfig(tokens_per_day=10))
    desk.admit().charge(10)
    desk.clock.now += 30
    refusal = desk.refusal()
    assert retry_s(refusal) == 86_370
    assert "10 tokens per day for key 'laptop' of user 'alice'. Try again in 24 h 0 min." in refusal.message


# --- Tokens ---------------------------------------------------------------------------------------


def test_tokens_are_charged_afterwards_and_block_the_next_request() -> None:
    desk = Desk(LimitsConfig(tokens_per_minute=1000))
    first, second = desk.admit(), desk.admit()
    desk.clock.now += 300
    first.charge(999)
    assert desk.admits()
    second.release()
    second.charge(500)
    desk.clock.now += 20
    refusal = desk.refusal()
    assert refusal.message == "Limit reached: 1,000 tokens per minute for user 'alice'. Try again in 40 s."
    assert told_limits(refusal, "tokens") == ["1000", "0", "40s"]
    assert desk.used() == [("tokens_per_minute", 1499, 40.0)]
    desk.clock.now += 40
    assert desk.admits()
    assert desk.used() == [("tokens_per_minute", 0, 0.0)]


def test_tokens_count_for_the_user_and_the_key_by_minute_and_by_day() -> None:
    both = LimitsConfig(tokens_per_minute=100, tokens_per_day=1000)
    desk = Desk(both, both)
    with desk.admit() as admission:
        admission.charge(7)
        admission.charge(0)
        admission.charge(3)
    minute, day = ("tokens_per_minute", 10, 60.0), ("tokens_per_day", 10, 86_400.0)
    assert desk.used() == [minute, day, minute, day]


# --- Parallel requests ----------------------------------------------------------------------------


def test_a_place_among_the_parallel_requests_is_given_back_exactly_once() -> None:
    desk = Desk(LimitsConfig(parallel=2))
    first, _second = desk.admit(), desk.admit()
    refusal = desk.refusal()
    assert refusal.message == (
        "Limit reached: 2 parallel requests for user 'alice'. Try again when one of them has ended."
    )
    assert refusal.headers == (("Retry-After", "1"),)
    first.release()
    first.release()
    desk.admit()
    desk.refusal()


def test_what_most_likely_costs_nothing_is_counted_and_needs_neither_tokens_nor_a_place() -> None:
    user = LimitsConfig(requests_per_minute=3, tokens_per_day=10, parallel=1)
    desk = Desk(user)
    held = desk.admit()
    held.charge(10)
    desk.refusal()
    free = desk.limits.admit(desk.limits.wish("alice", desk.user, "k1", desk.key, costs=False))
    assert [row[:2] for row in desk.used()] == [
        *(("parallel", 1), ("requests_per_minute", 2), ("tokens_per_day", 10))
    ]
    free.charge(5)
    free.release()
    assert [row[:2] for row in desk.used()] == [
        *(("parallel", 1), ("requests_per_minute", 2), ("tokens_per_day", 15))
    ]
    desk.limits.admit(desk.limits.wish("alice", desk.user, "k1", desk.key, costs=False))
    with pytest.raises(GatewayError, match="3 requests per minute"):
        desk.limits.admit(desk.limits.wish("alice", desk.user, "k1", desk.key, costs=False))


def test_leaving_the_with_gives_the_place_back_whatever_happened() -> None:
    desk = Desk(LimitsConfig(parallel=1), LimitsConfig(parallel=1))
    with pytest.raises(ZeroDivisionError), desk.admit():
        raise ZeroDivisionError
    with desk.admit():
        assert not desk.admits()
    assert desk.admits()


def test_a_refused_request_takes_nothing() -> None:
    desk = Desk(LimitsConfig(requests_per_minute=5, parallel=5), LimitsConfig(parallel=1))
    held = desk.admit()
    before = desk.used()
    desk.refusal()
    assert desk.used() == before
    held.release()
    assert desk.used() == [("parallel", 0, 0.0), ("requests_per_minute", 1, 60.0), ("parallel", 0, 0.0)]


# --- Headers --------------------------------------------------------------------------------------


def test_the_headers_show_the_limit_with_the_least_share_left() -> None:
    desk = Desk(
        LimitsConfig(requests_per_minute=10, tokens_per_day=1000), LimitsConfig(requests_per_minute=3)
    )
    admission = desk.admit()
    assert told_limits(admission) == ["3", "2", "1m0s"]
    assert told_limits(admission, "tokens") == ["1000", "1000", "0s"]
    for other in ("k2", "k3", "k4", "k5"):
        desk.admit(key=other)
    assert told_limits(admission) == ["10", "5", "1m0s"]


def test_the_headers_show_how_things_stand_when_they_are_asked_for() -> None:
    desk = Desk(LimitsConfig(requests_per_minute=10, tokens_per_minute=100, tokens_per_day=150))
    admission = desk.admit()
    admission.charge(80)
    desk.clock.now += 12.5
    assert told_limits(admission) == ["10", "9", "48s"]
    assert told_limits(admission, "tokens") == ["100", "20", "48s"]
    desk.clock.now += 60
    assert told_limits(admission) == ["10", "10", "0s"]
    assert told_limits(admission, "tokens") == ["150", "70", "23h58m48s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.059, "59ms"), (0.9991, "1s"), (1, "1s"), (1.01, "2s"), (59.5, "1m0s"),
        (60, "1m0s"), (360, "6m0s"), (3599.5, "1h0m0s"), (86_399, "23h59m59s"),
    ],
)  # fmt: skip
def test_lengths_of_time_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert as_openai_writes(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 s"), (119, "119 s"), (120, "2 min"), (121, "3 min"), (3541, "1 h 0 min"), (27_000, "7 h 30 min")],
)
def test_lengths_of_time_are_written_for_people(seconds: int, text: str) -> None:
    assert in_words(seconds) == text


# --- Without limits -------------------------------------------------------------------------------


def test_callers_without_limits_share_one_admission_that_does_nothing() -> None:
    desk = Desk()
    admission = desk.admit()
    assert admission is desk.admit(user="bob", key="k2")
    with admission:
        admission.charge(10**9)
    assert admission.headers() == ()
    assert desk.used() == []


# --- A changed config -----------------------------------------------------------------------------


def test_a_changed_limit_keeps_what_was_used() -> None:
    desk = Desk(LimitsConfig(requests_per_minute=2, tokens_per_day=100))
    desk.admit().charge(50)
    desk.clock.now += 10
    desk.admit()
    assert not desk.admits()
    desk.user = LimitsConfig(requests_per_minute=3, tokens_per_day=100)
    assert [desk.admits(), desk.admits()] == [True, False]
    desk.user = LimitsConfig(tokens_per_day=50)
    assert "50 tokens per day" in desk.refusal().message
    desk.user = LimitsConfig(tokens_per_day=51)
    assert desk.admits()


def test_a_lowered_limit_tells_when_enough_has_left_the_window() -> None:
    desk = Desk(per_minute(10))
    for _ in range(6):
        desk.admit()
        desk.clock.now += 1
    desk.user = per_minute(2)
    refusal = desk.refusal()
    assert retry_s(refusal) == 58
    assert told_limits(refusal) == ["2", "0", "59s"]
    desk.clock.now += 57
    assert not desk.admits()
    desk.clock.now += 1
    assert desk.admits()


def test_parallel_requests_are_remembered_over_a_change() -> None:
    desk = Desk(LimitsConfig(parallel=3))
    first, _second, _third = desk.admit(), desk.admit(), desk.admit()
    desk.user = LimitsConfig(parallel=2)
    first.release()
    desk.refusal()
    desk.user = NONE
    desk.admit()
    desk.user = LimitsConfig(parallel=4)
    assert desk.used() == [("parallel", 2, 0.0)]


# --- The clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [0.5, 3600.0, 10.0 * 365 * 86_400])
def test_a_clock_that_is_put_back_makes_nobody_wait_for_longer(jump_s: float) -> None:
    desk = Desk(LimitsConfig(requests_per_minute=1, tokens_per_minute=10))
    desk.admit().charge(10)
    desk.clock.now += 20
    assert retry_s(desk.refusal()) == 40
    desk.clock.now -= jump_s
    assert retry_s(desk.refusal()) == 40
    desk.clock.now += 40
    assert desk.admits()


def test_a_clock_that_is_put_back_again_and_again_still_lets_time_pass() -> None:
    desk = Desk(per_minute(1))
    desk.admit()
    for _ in range(11):
        desk.clock.now += 5
        assert not desk.admits()
        desk.clock.now -= 100
        assert not desk.admits()
    desk.clock.now += 4
    assert not desk.admits()
    desk.clock.now += 1
    assert desk.admits()


# --- The storage ----------------------------------------------------------------------------------


def test_the_storage_is_one_of_the_librarys() -> None:
    assert isinstance(Counters(SteadyClock(Clock())), Storage)


def test_nothing_grows_with_time() -> None:
    clock = Clock()
    steady = SteadyClock(clock)
    counters = Counters(steady)
    for number in range(20 * MIN_SWEPT):
        clock.now += 1
        steady.tick()
        counters.incr(f"sum {number}", 60)
        counters.acquire_entry(f"window {number}", 10, 60)
        counters.acquire_entry("always the same", 100, 60)
        assert len(counters) <= 2 * 121 + 2
    assert counters.get_moving_window("always the same", 1000, 60)[1] == 60


def test_reading_leaves_nothing_behind() -> None:
    counters = Counters(SteadyClock(Clock()))
    assert counters.get("nobody") == 0
    assert counters.get_expiry("nobody") == START
    assert counters.get_moving_window("nobody", 5, 60) == (START, 0)
    assert not counters.acquire_entry("nobody", 0, 60)
    assert len(counters) == 0


def test_the_storage_can_be_cleared_as_the_library_wants() -> None:
    counters = Counters(SteadyClock(Clock()))
    for key in ("a", "b"):
        counters.incr(key, 60)
        counters.acquire_entry(key, 5, 60)
    counters.clear("a")
    assert (counters.get("a"), counters.get("b")) == (0, 1)
    assert counters.check()
    assert counters.reset() == 2
    assert len(counters) == 0


def test_more_keys_than_are_kept_at_hand_are_counted_all_the_same() -> None:
    desk = Desk(per_minute(MAX_TERMS + 10))
    for number in range(MAX_TERMS + 10):
        desk.admit(key=f"k{number}")
    desk.refusal()


# --- Whatever happens -----------------------------------------------------------------------------

Pauses = st.integers(0, 40 * 1024)
Small = st.one_of(st.none(), st.integers(1, 4))
Some_limits = st.builds(
    LimitsConfig, requests_per_minute=Small, tokens_per_minute=Small, tokens_per_day=Small, parallel=Small
)


@given(limit=st.integers(1, 5), pauses=st.lists(Pauses, max_size=40))
def test_never_more_than_the_limit_in_any_60_seconds(limit: int, pauses: list[int]) -> None:
    desk = Desk(per_minute(limit))
    admitted: list[float] = []
    for pause in pauses:
        desk.clock.now += pause * TICK_S
        within = [at for at in admitted if at > desk.clock.now - 60]
        came_in = desk.admits()
        assert came_in == (len(within) < limit)
        if came_in:
            admitted.append(desk.clock.now)


@given(
    user=Some_limits,
    key=Some_limits,
    steps=st.lists(st.tuples(Pauses, st.integers(0, 3)), min_size=1, max_size=15),
    fraction=st.floats(0, 1),
)
def test_retry_after_is_honest(
    user: LimitsConfig, key: LimitsConfig, steps: list[tuple[int, int]], fraction: float
) -> None:
    desk = Desk(user, key, Clock(START + fraction))
    for pause, tokens in steps:
        desk.clock.now += pause * TICK_S
        try:
            with desk.admit() as admission:
                admission.charge(tokens)
        except GatewayError as refusal:
            asked_at, wait_s = desk.clock.now, retry_s(refusal)
            if wait_s > 1:
                desk.clock.now = asked_at + wait_s - 1
                assert not desk.admits()
            desk.clock.now = asked_at + wait_s
            assert desk.admits()


@given(
    user=Some_limits,
    key=Some_limits,
    steps=st.lists(st.tuples(Pauses, st.integers(0, 3), st.booleans()), max_size=20),
)
def test_a_refusal_changes_nothing(
    user: LimitsConfig, key: LimitsConfig, steps: list[tuple[int, int, bool]]
) -> None:
    desk = Desk(user, key)
    for pause, tokens, ends in steps:
        desk.clock.now += pause * TICK_S
        before = desk.used()
        try:
            admission = desk.admit()
        except GatewayError:
            assert desk.used() == before
            continue
        admission.charge(tokens)
        if ends:
            admission.release()


Act = Callable[["Crowd", int], None]


class Crowd:
    """Requests of several callers under limits that change, and what must be in flight of each."""

    CALLERS: Final = (("alice", "k1"), ("alice", "k2"), ("bob", "k3"))

    def __init__(self) -> None:
        self.desk = Desk(LimitsConfig(parallel=2), LimitsConfig(parallel=3))
        self.held: list[tuple[str, str, Admission, bool, bool]] = []
        self.ended: list[Admission] = []

    def arrive(self, which: int) -> None:
        user, key = self.CALLERS[which % 3]
        try:
            admission = self.desk.admit(user=user, key=key)
        except GatewayError:
            return
        counted = (self.desk.user.parallel is not None, self.desk.key.parallel is not None)
        self.held.append((user, key, admission, *counted))

    def end(self, which: int) -> None:
        if self.held:
            _, _, admission, *_ = self.held.pop(which % len(self.held))
            admission.release()
            self.ended.append(admission)

    def end_again(self, which: int) -> None:
        if self.ended:
            self.ended[which % len(self.ended)].release()

    def change(self, which: int) -> None:
        self.desk.user, self.desk.key = (
            LimitsConfig(parallel=amount or None) for amount in (which % 4, which // 4 % 4)
        )

    def check(self) -> None:
        one = LimitsConfig(parallel=1)
        for user in ("alice", "bob"):
            counted = sum(of == user and by_user for of, _, _, by_user, _ in self.held)
            assert [row.used for row in self.desk.limits.state(user, one)] == [counted]
        for user, key in self.CALLERS:
            counted = sum(of == key and by_key for _, of, _, _, by_key in self.held)
            assert [row.used for row in self.desk.limits.state(user, one, key_id=key)] == [counted]


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Crowd.arrive, Crowd.arrive, Crowd.end, Crowd.end_again, Crowd.change]),
            st.integers(0, 15),
        ),
        max_size=40,
    )
)
def test_parallel_never_leaks(steps: list[tuple[Act, int]]) -> None:
    crowd = Crowd()
    for act, which in steps:
        act(crowd, which)
        crowd.check()
    with ExitStack() as stack:
        for _, _, admission, *_ in crowd.held:
            stack.enter_context(admission)
    crowd.held.clear()
    crowd.check()
