"""Those of the line whom the same providers can serve, and where the caches of each of them are.

What bears on who can serve a request is the same for all of a lane, so that the fleet is asked for a lane and
not for each who waits in it. In a lane, whose turn it is can be asked of all; of those who were overtaken
often enough; and of those whose cache is with one provider.

Conversations move while their next turns wait. `Homes` knows which chains would tell otherwise where a cache
is, and looks again when one of these is remembered. Chains that are forgotten tell nobody; so who would go
first for a cache is looked at once more.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Final, TypeAlias

from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.affinity import Affinity, Match, Thread
from llmgateway.traffic.order import Order
from llmgateway.traffic.router import Wish, able, candidates, prospects
from llmgateway.traffic.turns import ByArrival, Turns

_EVE: Final = "eve"
Said: TypeAlias = tuple["Lane", object, Hashable]
"""What has the same home: the lane, the user, and the longest link."""


class Lane:
    """Waiters whom the same providers can serve: what is true of `wish` is true of each."""

    def __init__(self, key: Hashable, wish: Wish, fleet: Fleet) -> None:
        self.key = key
        self.wish = Wish(  # a request's own will change once it is granted a slot
            wish.caller, wish.model, endpoint=wish.endpoint, only=wish.only, tried=set(wish.tried)
        )
        self._fleet = fleet
        self.waiting: Turns[Order] = Turns()
        self.overdue: Turns[Order] = Turns()
        """Those who may not be overtaken any more."""
        self.at_home: defaultdict[Hashable, Turns[Order]] = defaultdict(Turns)
        """By the provider with their cache, the first of each user's who have the same."""
        self.look()

    def look(self) -> None:
        """See who can serve these waiters, now that the fleet has changed."""
        model = self.wish.model
        self.able = {provider: number for number, provider in enumerate(able(self._fleet, self.wish))}
        self.free = {provider for provider in self.able if provider.has_room_for(model)}
        """Those of them who may have a free slot; nobody else has."""
        self.hopeful = bool(self.able) or bool(prospects(self._fleet, self.wish))
        """False if nobody serves these waiters, and nobody is about to."""

    def ready(self, *, now: float) -> Collection[Provider]:
        """Give the candidates of these waiters who have a free slot."""
        if not self.free:
            return ()
        self.free = {provider for provider in self.free if provider.has_room_for(self.wish.model)}
        if all(provider.conduct.spotless for provider in self.free):
            return self.free
        return self.free.intersection(candidates(self._fleet, self.wish, now=now))

    def among(self, home: Hashable | None, *, now: float) -> Sequence[Provider]:
        """Give the candidates that make a difference to where a waiter goes: who is free, and its home."""
        found = set(self.ready(now=now))
        at_home = self._fleet.providers.get(home) if isinstance(home, str) else None
        if at_home in self.able and at_home not in found:
            found.update({at_home}.intersection(candidates(self._fleet, self.wish, now=now)))
        return sorted(found, key=self.able.__getitem__)


class _Talk:
    """The waiters of one user in a lane who say the same: one home, and the first of them goes first."""

    def __init__(self, lane: Lane, thread: Thread) -> None:
        self.lane = lane
        self.thread = thread
        self.orders: ByArrival[Order] = ByArrival()
        self.home: Hashable | None = None
        self.told_by: tuple[Hashable, ...] = ()


class Homes:
    """Where the caches of those who wait are."""

    def __init__(self, affinity: Affinity, clock: Callable[[], float]) -> None:
        self._affinity = affinity
        self._now = clock
        self._talks: dict[Said, _Talk] = {}
        self._told: defaultdict[Hashable, set[_Talk]] = defaultdict(set)
        """By link, eve or conversation, who has another home if that is remembered anew."""

    def add(self, order: Order, lane: Lane) -> None:
        """Have a waiter take part, if it is of any conversation."""
        if not order.thread.links:
            return
        said = _said(order, lane)
        talk = self._talks.get(said)
        if talk is None:
            talk = self._talks[said] = _Talk(lane, order.thread)
            talk.orders.add(order)
            self._look(talk)
            return
        first = talk.orders[0]
        talk.orders.add(order)
        if talk.orders[0] is order and talk.home is not None:
            lane.at_home[talk.home].discard(first)
            lane.at_home[talk.home].add(order)

    def discard(self, order: Order, lane: Lane) -> None:
        """Have a waiter take part no longer, if it does."""
        talk = self._talks.get(_said(order, lane)) if order.thread.links else None
        if talk is None:
            return
        first = talk.orders[0]
        if first is order:
            self._leave_home(talk)
        talk.orders.discard(order)
        if not talk.orders:
            self._hear_no_more(talk)
            del self._talks[_said(order, lane)]
        elif first is order:
            self._come_home(talk)

    def home(self, order: Order, lane: Lane) -> Hashable | None:
        """Name the provider that has the cache of a waiter."""
        talk = self._talks.get(_said(order, lane)) if order.thread.links else None
        return None if talk is None else talk.home

    def first(self, lane: Lane, home: Hashable) -> Order | None:
        """Give the waiter of a lane who goes first of those whose cache is with a provider."""
        while (turns := lane.at_home.get(home)) is not None and (order := turns.first()) is not None:
            conversation = self._affinity.find(order.thread, now=self._now())
            if conversation is not None and conversation.home == home:
                return order
            self._look(self._talks[_said(order, lane)])
        return None

    def remembered(self, thread: Thread, match: Match) -> None:
        """Look again where the caches are of those who go on from what has just been remembered."""
        _, conversation = match
        for talk in tuple(self._told.get(conversation, ())):
            if conversation is not None and conversation.home == talk.home:
                break  # it has not moved, and so nobody's home has
            self._look(talk)
        for news in (thread.links[-1], (_EVE, thread.eve)):
            for talk in tuple(self._told.get(news, ())):
                self._look(talk)

    def _look(self, talk: _Talk) -> None:
        self._leave_home(talk)
        self._hear_no_more(talk)
        link, conversation = self._affinity.match(talk.thread, now=self._now())
        talk.home = None if conversation is None else conversation.home
        talk.told_by = (*_links_to(talk.thread, link), *([] if conversation is None else [conversation]))
        for news in talk.told_by:
            self._told[news].add(talk)
        self._come_home(talk)

    def _hear_no_more(self, talk: _Talk) -> None:
        for news in talk.told_by:
            self._told[news].discard(talk)
            if not self._told[news]:
                del self._told[news]
        talk.told_by = ()

    def _come_home(self, talk: _Talk) -> None:
        if talk.home is not None:
            talk.lane.at_home[talk.home].add(talk.orders[0])

    def _leave_home(self, talk: _Talk) -> None:
        turns = talk.lane.at_home.get(talk.home)
        if turns is not None:
            turns.discard(talk.orders[0])
            if not turns:
                del talk.lane.at_home[talk.home]


def _said(order: Order, lane: Lane) -> Said:
    return lane, order.standing, order.thread.links[-1]


def _links_to(thread: Thread, matched: Hashable) -> Iterator[Hashable]:
    """Give all that would be a longer match of a thread than this link, and the link."""
    before_eve = False
    for link in reversed(thread.links):
        yield link
        if before_eve:
            yield _EVE, link
        if link == matched:
            return
        before_eve = before_eve or link == thread.eve
