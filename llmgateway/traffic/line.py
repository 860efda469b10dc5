"""Those who wait for a slot: who they are, in which order they go, and how fast each queue moves.

A line decides nothing about providers; it is asked, and told who leaves. Fairness between users comes first
(`fairness`); among what waits of equals, the one whose cache is on a free machine goes first, within reason.
"""

import asyncio
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Final, TypeAlias

from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.affinity import Affinity, Match, Thread
from llmgateway.traffic.fairness import Standing
from llmgateway.traffic.lanes import Homes, Lane
from llmgateway.traffic.order import Order
from llmgateway.traffic.router import Placement, Wish
from llmgateway.traffic.turns import ByArrival

MAX_OVERTAKEN: Final = 8  # times that one whose cache is on the freed machine may go before an older waiter
RETRY_AFTER_S: Final = (1, 600)
_UNKNOWN_PACE_S: Final = 10.0
_FEW: Final = 100
_PLACES_HOLD_S: Final = (
    1.0  # of more than these few; ten thousand streams that wait ask for theirs every 15 s
)
_REMEMBERED_GRANTS: Final = 32
_REMEMBERED_MODELS: Final = 1_000


_Turn: TypeAlias = tuple[float, int, int, int]
_OVERDUE: Final = -1
_AT_HOME: Final = 0
_LAST: Final = 1


class NoCandidate(Exception):
    """Nobody serves this order any more, and nobody is about to."""


class Overloaded(GatewayError):
    """No slot is to be had in time: the queue is full, or has been waited in for too long."""

    def __init__(self, words: str, retry_after_s: int) -> None:
        super().__init__(OVERLOADED, words, (("Retry-After", str(retry_after_s)),))


@dataclass(slots=True)
class _Pace:
    """How fast a queue moves. Time in which nobody waited does not count."""

    since: float
    """When it last moved, or when somebody came to wait where nobody had."""
    pauses: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_GRANTS))

    def moved(self, now: float) -> None:
        self.pauses.append(now - self.since)
        self.since = now

    def seconds(self, now: float) -> float:
        """Give the time from one grant to the next; it grows while nothing moves."""
        known = self.pauses or (_UNKNOWN_PACE_S,)
        total = sum(known)
        return max(total / len(known), (total + now - self.since) / (len(known) + 1))


class _Crowd:
    """Those who wait for one model: how many, and which user has the most."""

    def __init__(self) -> None:
        self.depth = 0
        self._queues: defaultdict[Standing, ByArrival[Order]] = defaultdict(ByArrival)
        self._having: defaultdict[int, OrderedDict[Standing, None]] = defaultdict(OrderedDict)
        """Who has so many waiting, and who has come to have them first."""
        self._most = 0

    def add(self, order: Order) -> None:
        queue = self._queues[order.standing]
        queue.add(order)
        self._count(order.standing, len(queue) - 1, len(queue))

    def discard(self, order: Order) -> None:
        queue = self._queues[order.standing]
        queue.discard(order)
        self._count(order.standing, len(queue) + 1, len(queue))
        if not queue:
            del self._queues[order.standing]

    def _count(self, standing: Standing, before: int, now: int) -> None:
        self.depth += now - before
        if before:
            del self._having[before][standing]
            if not self._having[before]:
                del self._having[before]
        if now:
            self._having[now][standing] = None
        if now > self._most or self._most not in self._having:
            self._most = now  # it changes by one at a time, so nobody has a number between

    def newest_of_who_has_most(self, than: Standing) -> Order | None:
        """Name the newest waiter of whoever has the most, if that leaves them with more than another has."""
        if self._most <= len(self._queues.get(than, ())) + 1:
            return None
        return self._queues[next(iter(self._having[self._most]))][-1]


class Line:
    """The queues of all models."""

    def __init__(self, fleet: Fleet, affinity: Affinity, clock: Callable[[], float]) -> None:
        self.orders: dict[Order, Lane] = {}
        """Those who wait, as they came to do so, and with whom."""
        self.lanes: dict[Hashable, Lane] = {}
        self._fleet = fleet
        self._sharing = fleet.sharing
        self._homes = Homes(affinity, clock)
        self._crowds: dict[str, _Crowd] = {}
        self._patient: defaultdict[Standing, ByArrival[Order]] = defaultdict(ByArrival)
        """Those of each user who may be overtaken."""
        self._now = clock
        self._paces: dict[str, _Pace] = {}
        self._places: dict[int, int] = {}
        self._places_hold_until = -math.inf

    def depth(self, model: str) -> int:
        """Count the waiters for a model."""
        crowd = self._crowds.get(model)
        return 0 if crowd is None else crowd.depth

    @property
    def depths(self) -> dict[str, int]:
        """The number of waiters for each model that has any."""
        return {model: crowd.depth for model, crowd in self._crowds.items()}

    # -- who comes and goes

    def join(self, order: Order, *, now: float) -> asyncio.Future[Placement]:
        """Let an order wait; gives what its grant comes by."""
        crowd = self._crowds.get(order.model)
        if crowd is None:
            crowd = self._crowds[order.model] = _Crowd()
            self._pace_of(order.model, now).since = now
        order.granted = asyncio.get_running_loop().create_future()
        crowd.add(order)
        if order.overtaken < MAX_OVERTAKEN:
            self._patient[order.standing].add(order)
        self._line_up(order)
        return order.granted

    def leave(self, order: Order) -> asyncio.Future[Placement]:
        """Take an order out that is about to be answered; gives what it waits for."""
        lane = self.orders.pop(order)
        self._drop(order, lane)
        if not lane.waiting and self.lanes.get(lane.key) is lane:
            del self.lanes[lane.key]
        crowd = self._crowds[order.model]
        crowd.discard(order)
        if not crowd.depth:
            del self._crowds[order.model]
        patient = self._patient[order.standing]
        patient.discard(order)
        if not patient:
            del self._patient[order.standing]
        assert order.granted is not None
        return order.granted

    def _line_up(self, order: Order) -> None:
        key = self._key(order)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, order, self._fleet)
        self.orders[order] = lane
        lane.waiting.add(order)
        self._homes.add(order, lane)
        if order.overtaken >= MAX_OVERTAKEN:
            lane.overdue.add(order)

    def _drop(self, order: Order, lane: Lane) -> None:
        """Take an order out of its lane, if it is there."""
        lane.waiting.discard(order)
        lane.overdue.discard(order)
        self._homes.discard(order, lane)

    def _key(self, wish: Wish) -> Hashable:
        """Give what bears on who can serve a wish; the models of a key do where no model is asked for."""
        by_key = () if wish.model else wish.caller.models
        reach = self._fleet.reach(wish.caller)
        return reach, wish.model, wish.endpoint, wish.only, frozenset(wish.tried), by_key

    def lane_of(self, wish: Wish) -> Lane | None:
        """Give those who wait for the same providers, if there are any."""
        lane = self.lanes.get(self._key(wish))
        return lane if lane is not None and lane.waiting else None

    def moved(self, granted: Order, *, now: float) -> None:
        """Note that an order is granted: whom it overtakes, and how fast its queue moves."""
        patient = self._patient[granted.standing]
        older = patient[: patient.before(granted)]
        for order in older:  # of whom each is met so at most MAX_OVERTAKEN times
            order.overtaken += 1
            if order.overtaken == MAX_OVERTAKEN:
                self.orders[order].overdue.add(order)
        patient[: len(older)] = [order for order in older if order.overtaken < MAX_OVERTAKEN]
        self._pace_of(granted.model, now).moved(now)

    def remembered(self, thread: Thread, match: Match) -> None:
        """Note that a conversation has just been remembered, which had this match before."""
        self._homes.remembered(thread, match)

    def newest_of_the_crowd(self, order: Order) -> Order | None:
        """Name who must give way to an order in a full queue: the newest of whoever has the most.

        Of several who have the most it is who came to have so many first. Nobody, if the order's own user
        has as many.
        """
        return self._crowds[order.model].newest_of_who_has_most(order.standing)

    # -- what becomes free

    def freed(self, provider: Provider) -> None:
        """Learn that a provider may have a free slot again."""
        for lane in self.lanes.values():
            if provider in lane.able:
                lane.free.add(provider)

    def look(self) -> None:
        """See who can serve whom, now that the fleet has changed."""
        if self._sharing is not self._fleet.sharing:
            self._sharing = self._fleet.sharing
            orders, self.orders, self.lanes = self.orders, {}, {}
            for order, lane in orders.items():
                self._drop(order, lane)
                self._line_up(order)
        for lane in self.lanes.values():
            lane.look()

    # -- in which order they go

    def first(self, *, now: float) -> Order | None:
        """Give the waiter who goes first of those for whom there is a free slot.

        By fairness; among equals by cache, within reason; then by last service; then by arrival.
        """
        heads = [head for lane in self.lanes.values() if lane.free for head in self._heads(lane, now)]
        return min(heads, key=itemgetter(0))[1] if heads else None

    def first_in_vain(self) -> Order | None:
        """Give a waiter whom nobody serves any more, nor is about to."""
        for lane in self.lanes.values():
            if not lane.hopeful and (order := self._head(lane, lane.waiting.first)) is not None:
                return order
        return None

    def _head(self, lane: Lane, first: Callable[[], Order | None]) -> Order | None:
        """Give who is first, as far as they wait: some were cancelled just now."""
        while (order := first()) is not None and not _waits(order):
            self._drop(order, lane)
        return order

    def _heads(self, lane: Lane, now: float) -> Iterator[tuple[_Turn, Order]]:
        """Give each waiter of a lane who may be the first in it, with their turn."""
        ready = lane.ready(now=now)
        if not ready:
            return
        asked = [(_OVERDUE, lane.overdue.first), (_LAST, lane.waiting.first)]
        if lane.at_home:
            asked += [(_AT_HOME, partial(self._homes.first, lane, provider.name)) for provider in ready]
        for haste, first in asked:
            if (order := self._head(lane, first)) is not None:
                yield _turn(order, haste), order

    def in_turn(self) -> list[Order]:
        """Give the waiters in the order in which they are served, less those who were cancelled just now."""
        now = self._now()
        ready = {lane: {provider.name for provider in lane.ready(now=now)} for lane in self.lanes.values()}

        def turn(entry: tuple[Order, Lane]) -> _Turn:
            order, lane = entry
            if order.overtaken >= MAX_OVERTAKEN:
                return _turn(order, _OVERDUE)
            at_home = ready[lane] and self._homes.home(order, lane) in ready[lane]
            return _turn(order, _AT_HOME if at_home else _LAST)

        waiting = [entry for entry in self.orders.items() if _waits(entry[0])]
        return [order for order, _ in sorted(waiting, key=turn)]

    def _outlook(self) -> list[Order]:
        """Give the waiters in the order in which they can expect to be served, as the counters grow."""
        ahead: defaultdict[str, float] = defaultdict(float)
        outlook = []
        for order in self.in_turn():
            user, weight = order.standing.user, order.caller.weight
            outlook.append((order.standing.rank[0] + ahead[user] / weight, order))
            ahead[user] += order.estimate
        return [order for _, order in sorted(outlook, key=lambda entry: entry[0])]

    def positions(self) -> dict[str, int]:
        """Give the place of every waiter in the queue for its model, from 1, by the id of its request."""
        places = self._look_at_places()
        return {
            order.request_id: places.get(order.arrival) or self.depth(order.model) for order in self.orders
        }

    def position(self, order: Order) -> int:
        """Tell a waiter's place in the queue for its model, from 1; 0 if it does not wait."""
        if order not in self.orders:
            return 0
        return self._look_at_places().get(order.arrival) or self.depth(order.model)

    def _look_at_places(self) -> dict[int, int]:
        """Give the places by arrival; among many, as they were a second ago at most."""
        now = self._now()
        if len(self.orders) <= _FEW or now >= self._places_hold_until:
            ahead: Counter[str] = Counter()
            self._places = {}
            for order in self._outlook():
                ahead[order.model] += 1
                self._places[order.arrival] = ahead[order.model]
            self._places_hold_until = now + _PLACES_HOLD_S
        return self._places

    # -- how long it takes

    def overloaded(self, model: str, words: str, *, now: float) -> Overloaded:
        """Say that there is no slot in time, and when it is worth another try."""
        seconds = self._retry_after(model, now)
        return Overloaded(f"{words} Try again in about {seconds} s.", seconds)

    def _retry_after(self, model: str, now: float) -> int:
        """Estimate from how fast this queue has been moving when somebody who comes now would be served."""
        pace_s = self._pace_of(model, now).seconds(now)
        least, most = RETRY_AFTER_S
        return max(least, min(most, math.ceil(pace_s * max(1, self.depth(model)))))

    def _pace_of(self, model: str, now: float) -> _Pace:
        pace = self._paces[model] = self._paces.pop(model, _Pace(now))
        while len(self._paces) > _REMEMBERED_MODELS:
            del self._paces[next(iter(self._paces))]
        return pace


def _waits(order: Order) -> bool:
    return order.granted is not None and not order.granted.done()


def _turn(order: Order, haste: int) -> _Turn:
    counter, served = order.standing.rank
    return counter, haste, served, order.arrival


def was_granted(granted: asyncio.Future[Placement]) -> bool:
    """Tell whether what a waiter waits for has come, as a grant."""
    return granted.done() and not granted.cancelled() and granted.exception() is None
