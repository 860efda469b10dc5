"""The choice among many, held against a plain model of its rules: one key for each, the least of all wins."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmgateway.access.keys import Caller
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.servers import llamacpp, ollama
from llmgateway.servers.models import Model
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.router import (
    CROWDED_BY,
    CROWDED_TIMES,
    SYSTEM_PROMPT_SLACK,
    Wish,
    place,
)
from tests import simulation

BUSY = st.sampled_from([0, 0, 1, 2, 4, 5, 8])  # with those at which one is just not crowded


class Loaded(Random):
    """Dice that always show the same, from 0 to just below 1."""

    def __init__(self, shown: float) -> None:
        super().__init__()
        self._shown = shown

    def random(self) -> float:
        return self._shown


def model_of_the_rules(
    among: Sequence[Provider], wish: Wish, affinity: Affinity
) -> tuple[set[str], Literal["", "hit", "miss", "spill"]]:
    """Say between whom chance may decide, and what that is to the conversation; between none if it waits."""
    caller, model, thread = wish.caller, wish.model, wish.thread
    conversation = affinity.find(thread, now=0)
    free = [p for p in among if p.has_room_for(model)]
    if caller.route == "prefer_own":
        free = [p for p in free if p.config.owner == caller.user] or free
    if not free:
        return set(), ""

    def load(p: Provider) -> float:
        return p.in_flight / p.config.weight

    def crowded(p: Provider) -> bool:
        fair = min(map(load, free)) * p.config.weight
        unknown = p.slots_for(model) is None
        return unknown and p.in_flight >= fair + CROWDED_BY and p.in_flight > CROWDED_TIMES * fair

    home = next((p for p in among if conversation is not None and p.name == conversation.home), None)
    if home is not None and thread.opening and load(home) > min(map(load, free)):
        home = None
    if home in free:
        if not crowded(home):
            return {home.name}, "hit"
        free.remove(home)
    subject = affinity.subject(thread, now=0) if conversation is None else None
    living = affinity.living(now=0)

    def standing(p: Provider) -> tuple[object, ...]:
        found = p.find(model)
        loads = (found is not None and found.loaded is False) or crowded(p)
        room_beside = p.slots_for(model) is not None and p.has_room_for(model, 2)
        pushes_out = subject is not None and p.name == subject.home and not room_beside
        holds = p.name in affinity.holders(thread, now=0)
        draws = holds and living[p.name] <= min(living[other.name] for other in free) + SYSTEM_PROMPT_SLACK
        lives = living[p.name] / p.config.weight if thread.known else 0.0
        return loads, pushes_out, not draws, lives, load(p), model not in p.models

    best = min(map(standing, free))
    winners = {p.name for p in free if standing(p) == best}
    return winners, "" if not thread.known else "miss" if home is None else "spill"


@st.composite
def fleets(draw: st.DrawFn) -> list[Provider]:
    """Providers of all kinds, as busy as it comes; few values, so that there are many ties."""
    count = draw(st.integers(2, 9))
    entries = {
        f"p{number}": {
            "weight": draw(st.sampled_from([0.5, 1, 1, 1, 3])),
            **draw(st.sampled_from([{}, {}, {"owner": "bob"}, {"owner": "ann", "share": ["everyone"]}])),
            **draw(st.sampled_from([{}, {}, {"slots": 1}, {"slots": 4}])),
        }
        for number in range(count)
    }
    providers = list(simulation.fleet(entries).providers.values())
    for provider in providers:
        name = draw(st.sampled_from(["m", "m", "m:latest"]))
        loaded = draw(st.sampled_from([None, None, True, False]))
        slots = draw(st.sampled_from([None, None, 2]))
        kind = ollama.KIND if name == "m:latest" else llamacpp.KIND
        listed = {name: Model(name, loaded=loaded, slots=slots)}
        provider.observe(Probe(State.ONLINE, "", listed, kind=kind), now=0)
        for _ in range(draw(BUSY)):
            provider.took("m", now=0)
    return providers


THREADS = (
    Thread(),
    Thread((), "system"),
    Thread(("talk",)),
    Thread(("talk",), "system"),
    Thread(("talk",), opening=True),
    Thread(("new",), session="session", length=1),
    Thread(("new",), "system"),
)


@st.composite
def memories(draw: st.DrawFn) -> Affinity:
    """What is known of conversations: where they live, and who has read the system prompt."""
    affinity = Affinity()
    for number in range(9):
        for one in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
            affinity.remember(Thread((number, one)), f"p{number}", now=0)
        if draw(st.integers(0, 3)) == 0:
            affinity.computed(Thread((), "system"), f"p{number}", now=0)
    if draw(st.booleans()):
        affinity.remember(Thread(("talk",)), f"p{draw(st.integers(0, 8))}", now=0)
    if draw(st.booleans()):
        known = Thread(("subject",), session="session", length=9)
        affinity.remember(known, f"p{draw(st.integers(0, 8))}", now=0)
    return affinity


@hypothesis_settings(deadline=None, max_examples=300)
@given(fleets(), memories(), st.sampled_from(THREADS), st.sampled_from(["any", "prefer_own"]))
def test_the_choice_is_that_of_the_plain_rules_and_chance_has_the_same_say(
    among: list[Provider], affinity: Affinity, thread: Thread, route: Any
) -> None:
    wish = Wish(Caller("bob", route=route), "m", thread)
    winners, result = model_of_the_rules(among, wish, affinity)
    if not winners:
        assert place(among, wish, affinity, Random(1), now=0) is None
    shares = [(number + 0.5) / len(winners) for number in range(len(winners))]
    found = [place(among, wish, affinity, Loaded(share), now=0) for share in shares]
    assert {one.provider.name for one in found if one is not None} == winners
    assert all(one is not None and one.affinity == result for one in found)
