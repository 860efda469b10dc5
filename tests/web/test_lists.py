"""Lists of models are made anew when the fleet has changed, and for whoever has not had them."""

from __future__ import annotations

import re

from llmgateway.access.keys import Caller
from llmgateway.fleet.provider import Probe, State
from llmgateway.web.lists import MOST_LISTS, Lists
from tests import simulation

ANN = Caller("ann")


class Counted:
    """Makes lists, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return str(self.made).encode()


def test_a_list_is_made_once_until_the_fleet_changes() -> None:
    fleet, make = simulation.fleet({"a": {}, "b": {}}), Counted()
    lists = Lists(fleet)
    assert [lists.of(ANN, "models", make) for _ in range(3)] == [b"1", b"1", b"1"]
    fleet.providers["a"].observe(simulation.online("m"), now=1)
    assert lists.of(ANN, "models", make) == b"1", "nothing has changed"
    fleet.providers["a"].observe(simulation.online("m", "n"), now=1)
    assert lists.of(ANN, "models", make) == b"2"
    fleet.providers["b"].observe(Probe(State.OFFLINE, "gone", certain=True), now=1)
    assert lists.of(ANN, "models", make) == b"3"


def test_nobody_is_given_the_list_of_another_user_key_or_page() -> None:
    lists, make = Lists(simulation.fleet({"a": {}})), Counted()
    whose = (
        ANN,
        Caller("bob"),
        Caller("ann", groups=frozenset({"kids"})),
        Caller("ann", route="only_own"),
        Caller("ann", models=(re.compile("m"),)),
        Caller("ann", models=(re.compile("n"),)),
    )
    found = {lists.of(caller, what, make) for caller in whose for what in ("models", "tags")}
    assert len(found) == make.made == 2 * len(whose)
    assert {lists.of(caller, what, make) for caller in whose for what in ("models", "tags")} == found


def test_only_so_many_lists_are_kept_and_the_one_asked_for_least_recently_goes_first() -> None:
    lists, make = Lists(simulation.fleet({"a": {}})), Counted()
    for number in range(MOST_LISTS + 1):
        lists.of(ANN, number, make)
        lists.of(ANN, 0, make)
    assert make.made == MOST_LISTS + 1
    lists.of(ANN, 1, make)
    assert make.made == MOST_LISTS + 2
