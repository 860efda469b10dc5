"""Sign-ins: they stand for a key, end when they should, and never fill the memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmgateway.access.keys import digest
from llmgateway.access.sessions import LIFE_S, MOST, MOST_OF_A_KEY, Sessions

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
    for share in (0.2, 0.5, 0.9):
        clock.now = start + share * LIFE_S
        assert sessions.key_digest(token) == ALICE
    clock.now = start + LIFE_S
    assert sessions.key_digest(token) is None
    clock.now = start  # a clock that is put back brings no session back
    assert sessions.key_digest(token) is None


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
