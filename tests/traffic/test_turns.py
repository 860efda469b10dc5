"""The line chooses as one would who looks at everybody, whatever comes, goes, is charged or changes.

The model has the rules as they are told: all who wait are sorted, and the first for whom there is a slot
goes. The line is held to it at each grant, over random schedules in virtual time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgateway.api.usage import Tokens
from llmgateway.config.load import build
from llmgateway.config.settings import QueueConfig
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.fairness import FairShare, Standing
from llmgateway.traffic.line import MAX_OVERTAKEN
from llmgateway.traffic.order import Order
from llmgateway.traffic.router import candidates
from llmgateway.traffic.slots import Slots
from llmgateway.traffic.turns import Turns
from tests.simulation import now, run
from tests.traffic.test_slots_properties import (
    CALLERS,
    MODELS,
    PROVIDERS,
    SIZE,
    TIMEOUT_S,
    Step,
    Story,
)

KINDS: Final = (
    "arrive arrive arrive arrive arrive arrive end end end end end run run run charge charge"
    " cancel capacity pass share state models"
).split()
SHARES: Final[tuple[dict[str, Any], ...]] = (
    {"owner": "cat"},
    {"owner": "cat", "share": ["ann"]},
    {"owner": "bob"},
    {},
)


class HeldSlots(Slots):
    """Slots that are held to the rules."""

    overtaken: Counter[Order]
    grants = 0
    hasty = 0

    def order(self, *args: Any, **kwargs: Any) -> Order:
        """Have some orders that not everybody can serve who serves others."""
        order = super().order(*args, **kwargs)
        if order.arrival % 7 == 0:
            order.only = "abc"[order.arrival % 3]
        if order.arrival % 5 == 0:
            order.tried.add("abc"[order.arrival % 3])
        return order

    def _grant_one(self) -> bool:
        expected, before = self._first(), set(self.line.orders)
        granted = super()._grant_one()
        gone = before - set(self.line.orders)
        assert granted is (expected is not None)
        assert gone == ({expected} if expected is not None else set()), "it was another's turn"
        if expected is not None:
            older = [each for each in before if each.standing is expected.standing]
            older = [each for each in older if each.arrival < expected.arrival]
            self.overtaken.update(older)
            self.grants += 1
            self.hasty += bool(older)
        return granted

    def _make_room(self, order: Order, now: float) -> None:
        waiting = [other for other in self.line.orders if other.model == order.model]
        crowd = Counter(other.standing for other in waiting)
        most = max(crowd.values())
        newest = {
            max((other for other in waiting if other.standing is one), key=lambda other: other.arrival)
            for one, count in crowd.items()
            if count == most
        }
        nobody: set[Order | None] = {None}
        found = self.line.newest_of_the_crowd(order)
        assert found in (nobody if most <= crowd[order.standing] + 1 else newest)
        super()._make_room(order, now)

    # -- the model

    def _turn(self, order: Order) -> tuple[float, int, int, int]:
        counter, served = order.standing.rank
        conversation = self._affinity.find(order.thread, now=self._now())
        at_home = conversation is not None and any(
            provider.name == conversation.home and provider.has_room_for(order.model)
            for provider in candidates(self._fleet, order, now=self._now())
        )
        haste = -1 if self.overtaken[order] >= MAX_OVERTAKEN else 0 if at_home else 1
        return counter, haste, served, order.arrival

    def in_turn(self) -> list[Order]:
        waiting = [order for order in self.line.orders if order.granted and not order.granted.done()]
        return sorted(waiting, key=self._turn)

    def _first(self) -> Order | None:
        for order in self.in_turn():
            able = candidates(self._fleet, order, now=self._now())
            if any(provider.has_room_for(order.model) for provider in able):
                return order
        return None


class HeldStory(Story):
    """Also conversations that branch and move, corrections, and providers that are shared otherwise."""

    def __init__(self, *, failures: bool = False) -> None:
        super().__init__(failures=failures)
        queue = QueueConfig(size=SIZE, timeout=TIMEOUT_S)
        self.slots = self.held = HeldSlots(self.fleet, Affinity(), queue, Random(3), clock=now)
        self.held.overtaken = Counter()
        self.tree = Random(7)
        self.capacity(2, 1)

    async def take(self, step: Step) -> None:
        what, which, how = step
        acts: dict[str, Callable[[int, int], None]] = {"charge": self.charge, "share": self.share}
        if what not in acts:
            await super().take(step)
            return
        acts[what](which, how)
        self.check()

    def arrive(self, which: int, how: int) -> None:
        links = tuple(self.tree.choices(range(3), k=self.tree.randrange(5)))
        chains = tuple(hash(links[: at + 1]) for at in range(len(links)))
        eve = chains[-2] if len(chains) > 2 and how % 2 else None
        thread = Thread(chains, opening=len(chains) == 1 and how % 3 == 0, eve=eve)
        caller, model = CALLERS[which % 3], MODELS[which // 3 % 2]
        self.begin(caller, model, thread, how)

    def state(self, which: int, how: int) -> None:
        """Have it online most of the time."""
        super().state(which, how if how < 6 else 1)

    def models(self, which: int, how: int) -> None:
        """Have it serve something."""
        super().models(which, min(how, 3) or 3)

    def charge(self, which: int, how: int) -> None:
        """Correct what a running request has cost, upwards or downwards."""
        running = [request for request in self.requests if request.provider]
        if running:
            self.slots.correct(running[which % len(running)].order, Tokens(how, 3 * which))

    def share(self, which: int, how: int) -> None:
        entries = {
            name: {"url": "http://127.0.0.1:9", **entry, **(SHARES[how % 4] if name == "c" else {})}
            for name, entry in PROVIDERS.items()
        }
        for entry in entries.values():
            entry.pop("told", None)
        entries["c"].pop("owner" if "owner" not in SHARES[how % 4] else "", None)
        users: dict[str, Any] = {name: {} for name in ("ann", "bob", "cat")}
        self.fleet.adopt(build({"users": users, "providers": entries}))

    def check(self) -> None:
        super().check()
        line, held = self.slots.line, self.held
        assert line.depths == Counter(order.model for order in line.orders)
        assert line.in_turn() == held.in_turn()
        able = [candidates(self.fleet, order, now=now()) for order in line.orders]
        assert held.waiting_by_provider() == Counter(provider.name for some in able for provider in some)

    def check_turns(self) -> None:
        """The model is stricter."""

    async def finish(self) -> None:
        await super().finish()
        line = self.slots.line
        homes = line._homes
        left = (line.orders, line.lanes, line.depths, line._patient, homes._talks, homes._told)
        assert not any(left), "something is kept of those who have gone"
        assert not any(request.order.standing.turns for request in self.requests)


async def tell(steps: Sequence[Step], *, failures: bool = False) -> HeldStory:
    story = HeldStory(failures=failures)
    for step in steps:
        await story.take(step)
    await story.finish()
    return story


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.integers(0, 11)), min_size=25, max_size=60
    ),
    st.booleans(),
)
def test_whoever_goes_first_is_who_would_if_all_were_sorted(steps: list[Step], failures: bool) -> None:
    run(tell(steps, failures=failures))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_so_over_a_long_run(seed: int) -> None:
    chance = Random(seed)
    steps = [(chance.choice(KINDS), chance.randrange(12), chance.randrange(12)) for _ in range(1_000)]
    story = run(tell(steps, failures=seed % 2 == 1))
    assert story.held.grants > 50
    assert story.held.hasty > 20


# --- turns by themselves ------------------------------------------------------------------------------


def test_turns_are_kept_true_while_counters_move_and_take_no_more_room_than_who_waits() -> None:
    chance, fair, turns = Random(2), FairShare(), Turns[Any]()
    standings = [fair.enter(f"u{number}") for number in range(9)]
    waiting: list[Any] = []

    def turn(waiter: Any) -> tuple[float, int, int]:
        return *waiter.standing.rank, waiter.arrival

    for arrival in range(5_000):
        standing: Standing = chance.choice(standings)
        match chance.choice("come come go grant charge charge".split()):
            case "come":
                back = arrival - chance.choice((0, 0, 0, 400))  # one that has waited before
                waiting.append(SimpleNamespace(standing=standing, arrival=back + chance.random()))
                turns.add(waiting[-1])
            case "go" if waiting:
                turns.discard(waiting.pop(chance.randrange(len(waiting))))
            case "grant":
                fair.granted(standing, chance.choice((0, 2, 5)), 1)
            case "charge":
                fair.charge(standing, chance.choice((-3, 2, 5)), 1, expected=chance.choice((0, 2, 5)))
        if chance.random() < 0.5:
            assert turns.first() is min(waiting, key=turn, default=None)
        assert len(turns._heap) <= 2 * len(standings) + 20
    while waiting:
        assert turns.first() is min(waiting, key=turn)
        turns.discard(waiting.pop(chance.randrange(len(waiting))))
    assert not turns
    assert not any(standing.turns for standing in standings)
