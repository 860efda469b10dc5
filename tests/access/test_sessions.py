"""Sign-ins: they stand for a key, end when they should, and never fill the memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmgateway.access.keys import digest
from llmgateway.access.sessions import GRACE_S, IDLE_S, LIFE_S, MOST, MOST_OF_A_KEY, RENEW_S, Sessions

ALICE, BOB = digest("sk-alice"), digest("sk-bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Iterator[Sessions]:
    yield Sessions(clock)


def test_a_session_stands_for_the_key_that_opened_it(sessions: Sessions) -> None:
    of_alice, of_bob = sessions.open(ALICE), sessions.open(BOB)
    assert (sessions.key_digest(of_alice), sessions.key_digest(of_bob)) == (ALICE, BOB)


def test_every_sign_in_is_a_session_of_its_own(sessions: Sessions) -> None:
    first, second = sessions.open(ALICE), sessions.open(ALICE)
    assert first != second
    sessions.close(first)
    assert sessions.key_digest(first) is None
    assert sessions.key_digest(second) == ALICE


@pytest.mark.parametrize("token", ["", "x", "0" * 43, "\udcff", "\u00e9" * 50, "x" * 100_000])
def test_what_nobody_was_given_opens_nothing(sessions: Sessions, token: str) -> None:
    sessions.open(ALICE)
    assert sessions.key_digest(token) is None
    sessions.close(token)


def test_a_cookies_value_is_long_and_needs_no_quoting(sessions: Sessions) -> None:
    token = sessions.open(ALICE)
    assert len(token) >= 43
    assert token.replace("-", "").replace("_", "").isalnum()
    assert token.isascii()


def test_a_token_in_part_or_in_other_letters_opens_nothing(sessions: Sessions) -> None:
    token = sessions.open(ALICE)
    for other in (token[:-1], token + "x", token.swapcase(), f" {token}", f'"{token}"'):
        assert sessions.key_digest(other) is None


def test_a_session_ends_when_its_time_is_over_however_much_it_was_used(
    sessions: Sessions, clock: Clock
) -> None:
    token = sessions.open(ALICE)
    start = clock.now
    for share in (0.2, 0.4, 0.6, 0.8, 0.99):
        clock.now = start + share * LIFE_S
        assert sessions.key_digest(token) == ALICE
    clock.now = start + LIFE_S
    assert sessions.key_digest(token) is None
    clock.now = start  # a clock that is put back brings no session back
    assert sessions.key_digest(token) is None


def test_a_session_that_nobody_uses_ends_before_its_time(sessions: Sessions, clock: Clock) -> None:
    used, left = sessions.open(ALICE), sessions.open(ALICE)
    clock.now += IDLE_S - 1
    assert sessions.key_digest(used) == ALICE
    clock.now += 1
    assert sessions.key_digest(left) is None
    assert sessions.key_digest(used) == ALICE


# Another token.


def test_a_token_is_due_for_another_after_a_while(sessions: Sessions, clock: Clock) -> None:
    token = sessions.open(ALICE)
    clock.now += RENEW_S - 1
    assert not sessions.is_to_renew(token)
    clock.now += 1
    assert sessions.is_to_renew(token)
    assert not sessions.is_to_renew("x")
    another, left_s = sessions.renew(token)
    assert (sessions.key_digest(another), left_s) == (ALICE, LIFE_S - RENEW_S)
    assert not sessions.is_to_renew(another)


def test_the_old_token_is_good_until_the_new_one_was_shown_and_a_little_longer(
    sessions: Sessions, clock: Clock
) -> None:
    old = sessions.open(ALICE)
    clock.now += RENEW_S
    new, _ = sessions.renew(old)
    clock.now += 3 * GRACE_S
    assert sessions.key_digest(old) == ALICE
    assert sessions.key_digest(new) == ALICE
    clock.now += GRACE_S - 1
    assert sessions.key_digest(old) == ALICE
    assert not sessions.is_to_renew(old)
    clock.now += 1
    assert sessions.key_digest(old) is None
    assert sessions.key_digest(new) == ALICE


def test_a_new_token_that_was_lost_is_followed_by_another_but_not_at_once(
    sessions: Sessions, clock: Clock
) -> None:
    token = sessions.open(ALICE)
    clock.now += RENEW_S
    lost, _ = sessions.renew(token)
    assert not sessions.is_to_renew(token), "of two requests at once only one gets a new token"
    clock.now += GRACE_S
    assert sessions.is_to_renew(token)
    new, _ = sessions.renew(token)
    assert sessions.key_digest(lost) is None
    assert sessions.key_digest(new) == ALICE


def test_no_new_token_makes_a_session_last_longer(sessions: Sessions, clock: Clock) -> None:
    token = sessions.open(ALICE)
    end = clock.now + LIFE_S
    while clock.now + RENEW_S < end:
        clock.now += RENEW_S
        token, left_s = sessions.renew(token)
        assert (sessions.key_digest(token), left_s) == (ALICE, end - clock.now)
    clock.now = end
    assert sessions.key_digest(token) is None


def test_a_session_ends_under_all_its_tokens(sessions: Sessions, clock: Clock) -> None:
    tokens = [sessions.open(ALICE)]
    for _ in range(2):
        clock.now += RENEW_S
        tokens.append(sessions.renew(tokens[-1])[0])
        sessions.key_digest(tokens[-1])
    clock.now += RENEW_S
    tokens.append(sessions.renew(tokens[-1])[0])
    sessions.close(tokens[-2])
    assert [sessions.key_digest(token) for token in tokens] == [None] * 4
    assert len(vars(sessions)["_by_name"]) == 0


def test_only_sessions_of_keys_that_are_still_their_users_are_kept(sessions: Sessions) -> None:
    alice, bob = sessions.open(ALICE, "alice"), sessions.open(BOB, "bob")
    sessions.keep(lambda key_digest, user: (key_digest, user) == (BOB, "bob"))
    assert (sessions.key_digest(alice), sessions.key_digest(bob)) == (None, BOB)


def test_closing_twice_is_no_trouble(sessions: Sessions) -> None:
    token = sessions.open(ALICE)
    sessions.close(token)
    sessions.close(token)
    assert sessions.key_digest(token) is None


def test_of_too_many_sessions_the_oldest_ends(sessions: Sessions) -> None:
    keys = [digest(f"sk-{number}") for number in range(MOST)]
    tokens = [sessions.open(key) for key in keys]
    assert all(sessions.key_digest(token) for token in tokens)
    for number in range(10):
        newest = sessions.open(BOB)
        assert sessions.key_digest(newest) == BOB
        assert sessions.key_digest(tokens[number]) is None
        assert sessions.key_digest(tokens[number + 1]) == keys[number + 1]


def test_who_signs_in_again_and_again_ends_only_sessions_of_the_same_key(sessions: Sessions) -> None:
    of_bob = sessions.open(BOB)
    tokens = [sessions.open(ALICE) for _ in range(MOST + MOST_OF_A_KEY)]
    assert sessions.key_digest(of_bob) == BOB
    assert [sessions.key_digest(token) for token in tokens[-MOST_OF_A_KEY:]] == [ALICE] * MOST_OF_A_KEY
    assert sessions.key_digest(tokens[-MOST_OF_A_KEY - 1]) is None


def test_a_token_is_nowhere_kept(sessions: Sessions) -> None:
    token = sessions.open(ALICE)
    kept = repr(vars(sessions))
    assert token not in kept
    assert "sk-alice" not in kept
