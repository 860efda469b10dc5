"""How many tokens a prompt has, guessed from its size, and an answer, from its time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.traffic.estimate import _REMEMBERED_MODELS, _REMEMBERED_PROVIDERS, Usual


def within_10_percent(guess: float, truth: float) -> bool:
    return abs(guess - truth) <= max(1, truth / 10)


def test_of_an_unknown_model_a_token_has_four_bytes() -> None:
    sizes = Usual()
    assert [sizes.prompt("m", size) for size in (0, 400, 4_000)] == [0, 100, 1_000]


@pytest.mark.parametrize("bytes_a_token", [1.5, 3.1, 4.4])
@pytest.mark.parametrize("template_tokens", [0, 12, 300])
def test_after_a_few_dozen_requests_prompts_are_guessed_within_10_percent(
    bytes_a_token: float, template_tokens: int
) -> None:
    chance = random.Random(1)
    sizes = Usual()

    def asked() -> tuple[int, int]:
        size = round(10 ** chance.uniform(1.5, 5))
        return size, round(template_tokens + size / (bytes_a_token * chance.uniform(0.95, 1.05)))

    for _ in range(40):
        sizes.learn("m", *asked())
    for size, tokens in (asked() for _ in range(200)):
        assert within_10_percent(sizes.prompt("m", size), min(tokens, 100_000)), size


def test_one_answer_tells_much() -> None:
    sizes = Usual()
    sizes.learn("m", 5, 14)  # mostly template
    assert within_10_percent(sizes.prompt("m", 5), 14)
    assert within_10_percent(sizes.prompt("m", 4_000), 1_014)
    sizes.learn("n", 10_000, 5_000)
    assert within_10_percent(sizes.prompt("n", 10_000), 5_000)


def test_requests_of_one_size_are_guessed_by_what_they_had() -> None:
    sizes = Usual()
    for _ in range(1_000):
        sizes.learn("m", 800, 250)
    assert sizes.prompt("m", 800) == 250
    assert within_10_percent(sizes.prompt("m", 8_000), 2_500)


def test_what_changes_is_learnt_anew() -> None:
    sizes = Usual()
    for bytes_a_token in (4, 2):
        for size in range(100, 20_000, 100):
            sizes.learn("m", size, size // bytes_a_token)
    assert within_10_percent(sizes.prompt("m", 6_000), 3_000)


def test_images_do_not_make_an_estimate_absurd() -> None:
    sizes = Usual()
    for _ in range(50):
        sizes.learn("m", 5_000_000, 1_200)
        sizes.learn("m", 300, 90)
    assert sizes.prompt("m", 300) < 200
    assert sizes.prompt("other", 50_000_000) == 100_000


def test_an_odd_model_is_still_guessed_to_have_some_tokens() -> None:
    sizes = Usual()
    for _ in range(100):
        sizes.learn("grows", 100, 10)
        sizes.learn("grows", 10_000, 3_000)
        sizes.learn("shrinks", 100, 500)
        sizes.learn("shrinks", 10_000, 50)
    assert sizes.prompt("grows", 40) > 0
    assert sizes.prompt("shrinks", 50_000) > 0


def test_models_are_forgotten_that_nobody_uses() -> None:
    sizes = Usual()
    for number in range(1_000):
        sizes.learn(f"m{number}", 1_000, 1_000)
    sizes.learn("m0", 1_000, 1_000)
    sizes.learn("one more", 1_000, 1_000)
    assert sizes.prompt("m0", 1_000) == 1_000
    assert sizes.prompt("m1", 1_000) == 250


@given(st.lists(st.tuples(st.integers(-1, 1 << 40), st.integers(-1, 1 << 40))), st.integers(0, 1 << 40))
def test_an_estimate_is_always_a_sane_number(learnt: list[tuple[int, int]], size: int) -> None:
    sizes = Usual()
    for pair in learnt:
        sizes.learn("m", *pair)
    assert 0 <= sizes.prompt("m", size) <= 100_000


# --- speed -------------------------------------------------------------------------------------------


def test_what_nobody_waits_for_is_taken_to_come_at_the_usual_speed() -> None:
    usual = Usual()
    assert usual.written("rig", "m", 60.0, None) == 0
    for _ in range(20):
        usual.learn("m", 0, 0, 100, "rig", 2.0)
    assert usual.written("rig", "m", 3.0, None) == 150
    assert usual.written("rig", "m", 3.0, 40) == 40
    assert usual.written("rig", "n", 3.0, None) == usual.written("den", "m", 3.0, None) == 0


def test_of_how_many_models_a_speed_is_remembered_is_bounded() -> None:
    usual = Usual()
    for number in range(_REMEMBERED_MODELS + 200):
        usual.learn(f"m{number}", 0, 0, 1, "rig", 1.0)
        usual.learn("odd", 0, 0, 0, "rig", 1.0)
        usual.learn("odd", 0, 0, 1, "rig", 0.0)
    assert len(usual._models) <= _REMEMBERED_MODELS


def test_of_how_many_providers_a_speed_is_remembered_is_bounded() -> None:
    usual = Usual()
    for number in range(_REMEMBERED_PROVIDERS + 20):
        usual.learn("m", 0, 0, 100, f"rig{number}", 1.0)
    known = [usual.written(f"rig{number}", "m", 1.0, None) for number in range(_REMEMBERED_PROVIDERS + 20)]
    assert known == [0] * 20 + [100] * _REMEMBERED_PROVIDERS
