"""How many tokens a prompt has, guessed from its size, and an answer, from its time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.traffic.estimate import _REMEMBERED_MODELS, PromptSize, Speed


def within_10_percent(guess: float, truth: float) -> bool:
    return abs(guess - truth) <= max(1, truth / 10)


def test_of_an_unknown_model_a_token_has_four_bytes() -> None:
    sizes = PromptSize()
    assert [sizes.estimate("m", size) for size in (0, 400, 4_000)] == [0, 100, 1_000]


@pytest.mark.parametrize("bytes_a_token", [1.5, 3.1, 4.4])
@pytest.mark.parametrize("template_tokens", [0, 12, 300])
def test_after_a_few_dozen_requests_prompts_are_guessed_within_10_percent(
    bytes_a_token: float, template_tokens: int
) -> None:
    chance = random.Random(1)
    sizes = PromptSize()

    def asked() -> tuple[int, int]:
        size = round(10 ** chance.uniform(1.5, 5))
        return size, round(template_tokens + size / (bytes_a_token * chance.uniform(0.95, 1.05)))

    for _ in range(40):
        sizes.learn("m", *asked())
    for size, tokens in (asked() for _ in range(200)):
        assert within_10_percent(sizes.estimate("m", size), min(tokens, 100_000)), size


def test_one_answer_tells_much() -> None:
    sizes = PromptSize()
    sizes.learn("m", 5, 14)  # mostly template
    assert within_10_percent(sizes.estimate("m", 5), 14)
    assert within_10_percent(sizes.estimate("m", 4_000), 1_014)
    sizes.learn("n", 10_000, 5_000)
    assert within_10_percent(sizes.estimate("n", 10_000), 5_000)


def test_requests_of_one_size_are_guessed_by_what_they_had() -> None:
    sizes = PromptSize()
    for _ in range(1_000):
        sizes.learn("m", 800, 250)
    assert sizes.estimate("m", 800) == 250
    assert within_10_percent(sizes.estimate("m", 8_000), 2_500)


def test_what_changes_is_learnt_anew() -> None:
    sizes = PromptSize()
    for bytes_a_token in (4, 2):
        for size in range(100, 20_000, 100):
            sizes.learn("m", size, size // bytes_a_token)
    assert within_10_percent(sizes.estimate("m", 6_000), 3_000)


def test_images_do_not_make_an_estimate_absurd() -> None:
    sizes = PromptSize()
    for _ in range(50):
        sizes.learn("m", 5_000_000, 1_200)
        sizes.learn("m", 300, 90)
    assert sizes.estimate("m", 300) < 200
    assert sizes.estimate("other", 50_000_000) == 100_000


def test_an_odd_model_is_still_guessed_to_have_some_tokens() -> None:
    sizes = PromptSize()
    for _ in range(100):
        sizes.learn("grows", 100, 10)
        sizes.learn("grows", 10_000, 3_000)
        sizes.learn("shrinks", 100, 500)
        sizes.learn("shrinks", 10_000, 50)
    assert sizes.estimate("grows", 40) > 0
    assert sizes.estimate("shrinks", 50_000) > 0


def test_models_are_forgotten_that_nobody_uses() -> None:
    sizes = PromptSize()
    for number in range(1_000):
        sizes.learn(f"m{number}", 1_000, 1_000)
    sizes.learn("m0", 1_000, 1_000)
    sizes.learn("one more", 1_000, 1_000)
    assert sizes.estimate("m0", 1_000) == 1_000
    assert sizes.estimate("m1", 1_000) == 250


@given(st.lists(st.tuples(st.integers(-1, 1 << 40), st.integers(-1, 1 << 40))), st.integers(0, 1 << 40))
def test_an_estimate_is_always_a_sane_number(learnt: list[tuple[int, int]], size: int) -> None:
    sizes = PromptSize()
    for pair in learnt:
        sizes.learn("m", *pair)
    assert 0 <= sizes.estimate("m", size) <= 100_000


# --- speed -------------------------------------------------------------------------------------------


def test_what_nobody_waits_for_is_taken_to_come_at_the_usual_speed() -> None:
    speed = Speed()
    assert speed.estimate("rig", "m", 60.0, None) == 0
    for _ in range(20):
        speed.learn("rig", "m", 100, 2.0)
    assert speed.estimate("rig", "m", 3.0, None) == 150
    assert speed.estimate("rig", "m", 3.0, 40) == 40
    assert speed.estimate("rig", "n", 3.0, None) == speed.estimate("den", "m", 3.0, None) == 0


def test_of_how_many_models_a_speed_is_remembered_is_bounded() -> None:
    speed = Speed()
    for number in range(_REMEMBERED_MODELS + 200):
        speed.learn("rig", f"m{number}", 1, 1.0)
        speed.learn("rig", "odd", 0, 1.0)
        speed.learn("rig", "odd", 1, 0.0)
    assert len(speed._usual) <= _REMEMBERED_MODELS
