"""What several gateways take of a provider's slots: never more than there are, and never nothing for long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.config.settings import ClusterConfig
from llmgateway.fleet.share import ALL, Share, share_of

COUNT = st.integers(1, 40)
PROVIDER = st.sampled_from(["rig", "desk", "mini", "office-gpu"])


def shares(instances: int, slots: int, provider: str, turn: int = 0) -> list[int]:
    """What each of so many gateways takes."""
    return [Share(instances, place, turn).of(slots, provider) for place in range(instances)]


@given(COUNT, st.integers(0, 100), PROVIDER, st.integers(0, 1000))
def test_all_of_the_slots_are_shared_out_and_not_one_more(
    instances: int, slots: int, provider: str, turn: int
) -> None:
    found = shares(instances, slots, provider, turn)
    assert sum(found) == slots
    assert max(found) - min(found) <= 1
    if slots >= instances:
        assert min(found) >= 1


@given(COUNT, st.integers(1, 39), PROVIDER, st.integers(0, 1000))
def test_with_fewer_slots_than_gateways_each_of_them_has_its_turn(
    instances: int, slots: int, provider: str, turn: int
) -> None:
    turns = [shares(instances, slots, provider, turn + n) for n in range(instances)]
    assert all(any(gateway) for gateway in zip(*turns, strict=True))


@given(st.integers(2, 40), st.integers(2, 100), PROVIDER)
def test_with_enough_slots_no_share_changes_in_time(instances: int, slots: int, provider: str) -> None:
    if slots >= instances:
        assert shares(instances, slots, provider) == shares(instances, slots, provider, 1)


def test_at_different_providers_different_gateways_have_one_more() -> None:
    found = {tuple(shares(3, 4, f"rig{n}")) for n in range(30)}
    assert found == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}


@given(st.integers(2, 40), st.integers(0, 100), PROVIDER, st.integers(0, 2**32))
def test_who_does_not_know_its_place_takes_no_more_than_is_there_for_everybody(
    instances: int, slots: int, provider: str, lot: int
) -> None:
    found = Share(instances, lot=lot).of(slots, provider)
    assert found == slots // instances or (slots < instances and found == 1)


def test_who_does_not_know_its_place_draws_a_lot_each_turn() -> None:
    drawn = [Share(3, turn=turn, lot=9).of(1, "rig") for turn in range(300)]
    assert 50 < sum(drawn) < 150


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({}, ALL),
        ({"name": "gw2"}, ALL),
        ({"name": "gw2", "instances": 1}, ALL),
        ({"name": "gw2", "instances": "own"}, ALL),
        ({"name": "gw2", "instances": 3}, Share(3, 2)),
        ({"name": "gw3", "instances": 3}, Share(3, 0)),
        ({"name": "home-0", "instances": 2}, Share(2, 0)),
        ({"name": "attic", "instances": 2}, Share(2, None)),
        ({"instances": 2}, Share(2, None)),
    ],
)
def test_the_number_of_the_name_is_the_place(written: dict[str, object], meant: Share) -> None:
    assert share_of(ClusterConfig.model_validate(written)) == meant
