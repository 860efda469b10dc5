"""Those who wait for a slot: who they are, in which order they go, and how fast each queue moves.

A line decides nothing about providers; it is asked, and told who leaves. Fairness between users comes first
(`fairness`); among what waits of equals, the one whose cache is on a free machine goes first, within reason.
"""

import asyncio
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from llmgateway.errors import OVERLOADED, GatewayError, ProviderFailed
from llmgateway.fleet.breaker import Breaker
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.fairness import FairShare, Standing
from llmgateway.traffic.router import Placement, Wish

MAX_OVERTAKEN: Final = 8  # times that one whose cache is on the freed machine may go before an older waiter
RETRY_AFTER_S: Final = (1, 600)
_UNKNOWN_PACE_S: Final = 10.0
_REMEMBERED_GRANTS: Final = 32
_REMEMBERED_MODELS: Final = 1_000


class NoCandidate(Exception):
    """Nobody serves this order any more, and nobody is about to."""


class Overloaded(GatewayError):
    """No slot is to be had in time: the queue is full, or has been waited in for too long."""

    def __init__(self, words: str, retry_after_s: int) -> None:
        super().__init__(OVERLOADED, words, (("Retry-After", str(retry_after_s)),))


class Doubt(msgspec.Struct, frozen=True):
    """A failure that may as well be the fault of the request. `trials` wait for what comes of it."""

    provider: Provider
    failure: ProviderFailed
    trials: tuple[Breaker, ...]


class Order(Wish, kw_only=True):
    """One request's wish to be served. `estimate` is in virtual tokens (see fairness)."""

    estimate: float
    standing: Standing
    request_id: str = ""
    waited_s: float = 0.0
    affinity: str = ""
    expected: float = 0.0
    charged: float = 0.0
    arrival: int = 0
    overtaken: int = 0
    trials: tuple[Breaker, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    granted: asyncio.Future[Placement] | None = None


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


class Line:
    """The queues of all models. `home_is_free` tells whether the machine with an order's cache has a slot."""

    def __init__(self, fair: FairShare, home_is_free: Callable[[Order], bool]) -> None:
        self.orders: list[Order] = []
        """Those who wait, in no special order."""
        self._fair = fair
        self._home_is_free = home_is_free
        self._paces: dict[str, _Pace] = {}

    def depth(self, model: str) -> int:
        """Count the waiters for a model."""
        return sum(order.model == model for order in self.orders)

    # -- who comes and goes

    def join(self, order: Order, *, now: float) -> asyncio.Future[Placement]:
        """Let an order wait; gives what its grant comes by."""
        if not self.depth(order.model):
            self._pace_of(order.model, now).since = now
        order.granted = asyncio.get_running_loop().create_future()
        self.orders.append(order)
        return order.granted

    def leave(self, order: Order) -> asyncio.Future[Placement]:
        """Take an order out that is about to be answered; gives what it waits for."""
        self.orders.remove(order)
        assert order.granted is not None
        return order.granted

    def moved(self, granted: Order, *, now: float) -> None:
        """Note that an order is granted: whom it overtakes, and how fast its queue moves."""
        for order in self.orders:
            if order.arrival < granted.arrival and order.standing is granted.standing:
                order.overtaken += 1
        self._pace_of(granted.model, now).moved(now)

    def newest_of_the_crowd(self, order: Order) -> Order | None:
        """Name who must give way to an order in a full queue: the newest of whoever has the most.

        Nobody, if the order's own user has as many.
        """
        waiting = [other for other in self.orders if other.model == order.model]
        crowd = Counter(other.standing for other in waiting)
        standing, count = crowd.most_common(1)[0]
        if count <= crowd[order.standing] + 1:
            return None
        return max(
            (other for other in waiting if other.standing is standing), key=lambda other: other.arrival
        )

    # -- in which order they go

    def in_turn(self) -> list[Order]:
        """Give the waiters in the order in which they are served, less those who were cancelled just now."""
        waiting = [order for order in self.orders if order.granted is not None and not order.granted.done()]
        return sorted(waiting, key=self._standing)

    def _standing(self, order: Order) -> tuple[float, int, int, int]:
        """Order by fairness; among equals by cache, within reason; then by last service; then by arrival."""
        counter, served = self._fair.rank(order.standing.user)
        haste = -1 if order.overtaken >= MAX_OVERTAKEN else 0 if self._home_is_free(order) else 1
        return counter, haste, served, order.arrival

    def _outlook(self) -> list[Order]:
        """Give the waiters in the order in which they can expect to be served, as the counters grow."""
        ahead: defaultdict[str, float] = defaultdict(float)
        outlook = []
        for order in self.in_turn():
            user, weight = order.standing.user, order.caller.weight
            outlook.append((self._fair.rank(user)[0] + ahead[user] / weight, order))
            ahead[user] += order.estimate
        return [order for _, order in sorted(outlook, key=lambda entry: entry[0])]

    def positions(self) -> dict[str, int]:
        """Give the place of every waiter in the queue for its model, from 1, by the id of its request."""
        ahead: Counter[str] = Counter()
        positions = {}
        for order in self._outlook():
            ahead[order.model] += 1
            positions[order.request_id] = ahead[order.model]
        return positions

    def position(self, order: Order) -> int:
        """Tell a waiter's place in the queue for its model, from 1; 0 if it does not wait."""
        line = [other for other in self._outlook() if other.model == order.model]
        return line.index(order) + 1 if order in line else 0

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


def was_granted(granted: asyncio.Future[Placement]) -> bool:
    """Tell whether what a waiter waits for has come, as a grant."""
    return granted.done() and not granted.cancelled() and granted.exception() is None
