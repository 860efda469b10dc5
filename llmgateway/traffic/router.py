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
from llmgateway.traffic.affinity import NO_MATCH, Affinity, Conversation, Match, Thread

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


def able(fleet: Fleet, wish: Wish) -> Sequence[Provider]:
    """Give the providers that serve what is wished, however they fare: this changes with the fleet only."""
    found = fleet.serving(wish.caller, wish.model, wish.endpoint)
    if wish.only:
        found = [p for p in found if p.name == wish.only]
    if wish.tried:
        found = [p for p in found if p.name not in wish.tried]
    return found


def candidates(fleet: Fleet, wish: Wish, *, now: float) -> Sequence[Provider]:
    """Give the providers that could take a call: online, usable, with this model and endpoint, not tried.

    One that fails real requests again and again is left out, unless there is no other. With `only` there is
    no other than the one of that name.
    """
    found = able(fleet, wish)
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
    model, thread, (_, conversation) = wish.model, wish.thread, match
    free = [p for p in among if p.has_room_for(model)]
    if wish.caller.route == "prefer_own":
        free = [p for p in free if p.config.owner == wish.caller.user] or free
    if not free:
        return None
    home = None if conversation is None else _home(conversation, among, free, thread)
    has_room = home is not None and home in free
    if home is not None and has_room and home.slots_for(model) is not None:
        return Placement(home, "hit", match)
    calm = _calm(free, model)
    if home is not None and has_room:
        if home in calm:
            return Placement(home, "hit", match)
        free.remove(home)
    ready = [p for p in calm if not p.loads_first or not _loads(p, model)] or free
    best = _best(ready, free, wish, conversation, affinity, now=now)
    found = best[int(chance.random() * len(best))]
    if not thread.known:
        return Placement(found)
    return Placement(found, "miss" if home is None else "spill", match)


def _home(
    conversation: Conversation, among: Sequence[Provider], free: Sequence[Provider], thread: Thread
) -> Provider | None:
    """Give the home of a conversation, if this is that conversation.

    What opens as another one did, while its home is not the least busy, is most likely one of its own.
    """
    for p in among:
        if p.name == conversation.home:
            return None if thread.opening and _load(p) > min(map(_load, free)) else p
    return None


def _calm(among: Sequence[Provider], model: str) -> Sequence[Provider]:
    """Leave out those of unknown capacity that are clearly busier than another; there is always one left."""
    unsure = [p for p in among if p.capacity is None]
    if not unsure:
        return among
    least = min([p.in_flight / p.config.weight for p in among])
    return [
        p
        for p in among
        if p.in_flight < (fair := least * p.config.weight) + CROWDED_BY
        or p.in_flight <= CROWDED_TIMES * fair
        or p.slots_for(model) is not None
    ]


def _best(
    ready: Sequence[Provider],
    free: Sequence[Provider],
    wish: Wish,
    conversation: Conversation | None,
    affinity: Affinity,
    *,
    now: float,
) -> Sequence[Provider]:
    """Give those that are left when each rule in turn has its say, if they are more than one for chance.

    A rule that none would be left by has none.
    """
    best, thread, living = ready, wish.thread, affinity.living(now=now)
    subject = affinity.subject(thread, now=now) if conversation is None else None
    if subject is not None:
        best = [p for p in best if p.name != subject.home or _has_room_beside(p, wish.model)] or best
    if holders := affinity.holders(thread, now=now):
        most = min([living.get(p.name, 0) for p in free]) + SYSTEM_PROMPT_SLACK
        best = [p for p in best if p.name in holders and living.get(p.name, 0) <= most] or best
    if thread.known and len(best) > 1:
        best = _least(best, [living.get(p.name, 0) / p.config.weight for p in best])
    if len(best) > 1:
        best = _least(best, [p.in_flight / p.config.weight for p in best])
    return [p for p in best if wish.model in p.models] or best


def _least(among: Sequence[Provider], burdens: Sequence[float]) -> Sequence[Provider]:
    least = min(burdens)
    return [p for p, burden in zip(among, burdens, strict=True) if burden == least]


def _load(provider: Provider) -> float:
    return provider.in_flight / provider.config.weight


def _loads(provider: Provider, model: str) -> bool:
    """Tell whether a provider is known to have to load a model first."""
    found = provider.find(model)
    return found is not None and found.loaded is False


def _has_room_beside(provider: Provider, model: str) -> bool:
    """Tell whether a provider surely has a free slot beside that in which a conversation rests."""
    return provider.slots_for(model) is not None and provider.has_room_for(model, 2)
