"""One decision: which provider takes this call, or that it has to wait.

Plain functions of values; time and chance are arguments. Nothing is changed here.
"""

from collections.abc import Sequence
from random import Random
from typing import Final, Literal

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.affinity import NO_MATCH, Affinity, Match, Thread

# Where slots are unknown, a provider is too busy beside another if it has at least so many more in flight,
# and more than twice as many. Leaving a conversation's home at a smaller difference recomputes its prompt for
# nothing.
CROWDED_BY: Final = 4
CROWDED_TIMES: Final = 2
SYSTEM_PROMPT_SLACK: Final = 2  # live conversations more than the least that a shared system prompt is worth


class Wish(msgspec.Struct, eq=False):
    """What is asked for, by whom: all of a request that bears on who may serve it."""

    caller: Caller
    model: str
    thread: Thread = Thread()
    endpoint: str = ""
    """The name of the endpoint that is wanted; "" for one that everybody has."""
    only: str = ""
    """The name of the one provider that will do; "" if any will."""
    tried: set[str] = msgspec.field(default_factory=set)
    """The names of those that will not do any more."""


class Placement(msgspec.Struct, frozen=True):
    """Where a call goes.

    `affinity` is `hit`, `miss` or `spill`, or empty if the call belongs to no conversation. `match` is what
    the affinity had of it.
    """

    provider: Provider
    affinity: Literal["", "hit", "miss", "spill"] = ""
    match: Match = NO_MATCH


def candidates(fleet: Fleet, wish: Wish, *, now: float) -> Sequence[Provider]:
    """Give the providers that could take a call: online, usable, with this model and endpoint, not tried.

    One that fails real requests again and again is left out, unless there is no other. With `only` there is
    no other than the one of that name.
    """
    found = fleet.serving(wish.caller, wish.model, wish.endpoint)
    if wish.only:
        found = [p for p in found if p.name == wish.only]
    if wish.tried:
        found = [p for p in found if p.name not in wish.tried]
    if len(found) < 2:
        return found
    return [p for p in found if p.conduct.spotless or p.conduct.lets_through(wish.model, now)] or found


def prospects(fleet: Fleet, wish: Wish) -> list[Provider]:
    """Give the providers that are worth waiting for.

    Those that warm up, or sleep and can be woken; and those that have the model loaded only by somebody else.
    """
    return [
        p
        for p in fleet.usable_by(wish.caller)
        if p.name not in wish.tried and p.may_come_to_serve(wish.model)
        if p.has_endpoint(wish.endpoint, wish.model) and (not wish.only or p.name == wish.only)
    ]


def place(
    among: Sequence[Provider], wish: Wish, affinity: Affinity, chance: Random, *, now: float
) -> Placement | None:
    """Pick the provider for a call, or None if all slots are taken.

    In this order: the caller's own if they prefer that; a free slot; the home of the conversation; the model
    in memory; for what is asked aside in a session, not the last slot of the conversation's home; the system
    prompt in memory; the fewest live conversations per weight; the fewest in flight per weight; one that
    lists the model by this very name; chance.
    """
    thread = wish.thread
    match = affinity.match(thread, now=now) if thread.links else NO_MATCH
    if len(among) != 1:
        return _choose(among, wish, match, affinity, chance, now=now)
    (only,) = among
    if not only.has_room_for(wish.model):
        return None
    _, conversation = match
    known = conversation is not None and conversation.home == only.name
    return Placement(only, "hit" if known else "miss" if thread.links else "", match)


def _choose(
    among: Sequence[Provider], wish: Wish, match: Match, affinity: Affinity, chance: Random, *, now: float
) -> Placement | None:
    caller, model, thread = wish.caller, wish.model, wish.thread
    _, conversation = match
    free = [p for p in among if p.has_room_for(model)]
    if caller.route == "prefer_own":
        free = [p for p in free if p.config.owner == caller.user] or free
    if not free:
        return None
    home = next((p for p in among if conversation is not None and p.name == conversation.home), None)
    if home is not None and thread.opening and not _least_busy(home, free):
        home = None  # it opens as another one did: most likely a conversation of its own
    if home in free:
        if not _crowded(home, free, model):
            return Placement(home, "hit", match)
        free.remove(home)
    subject = affinity.subject(thread, now=now) if conversation is None else None
    live = {p.name: affinity.live(p.name, now=now) for p in free}
    least = min(live.values())

    def standing(p: Provider) -> tuple[bool, bool, bool, float, float, bool, float]:
        found = p.find(model)
        loads = (found is not None and found.loaded is False) or _crowded(p, free, model)
        pushes_out = subject is not None and p.name == subject.home and not _has_room_beside(p, model)
        holds = affinity.holds_system(thread, p.name, now=now) and live[p.name] <= least + SYSTEM_PROMPT_SLACK
        weight = p.config.weight
        living = live[p.name] / weight if thread.known else 0.0
        by_another_name = model not in p.models
        return loads, pushes_out, not holds, living, p.in_flight / weight, by_another_name, chance.random()

    best = min(free, key=standing)
    if not thread.known:
        return Placement(best)
    return Placement(best, "miss" if home is None else "spill", match)


def _has_room_beside(provider: Provider, model: str) -> bool:
    """Tell whether a provider surely has a free slot beside that in which a conversation rests."""
    return provider.slots_for(model) is not None and provider.has_room_for(model, 2)


def _least_busy(provider: Provider, among: Sequence[Provider]) -> bool:
    return provider.in_flight / provider.config.weight <= min(p.in_flight / p.config.weight for p in among)


def _crowded(provider: Provider, among: Sequence[Provider], model: str) -> bool:
    """Tell whether a provider of unknown capacity is clearly busier than another that could take the call."""
    if provider.slots_for(model) is not None:
        return False
    fair = min(p.in_flight / p.config.weight for p in among) * provider.config.weight
    return provider.in_flight >= fair + CROWDED_BY and provider.in_flight > CROWDED_TIMES * fair
