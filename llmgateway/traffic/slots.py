"""Fair leases on the providers' capacity, and the queue for them.

One order per request, one lease at a time per order, given back on every way out. Decisions are synchronous:
`_dispatch` runs whenever a slot may have become free or a waiter's prospects may have changed, and grants
until nothing more can be granted, so no slot is idle while somebody who may use it waits. A waiter is served
by whichever of its candidates has a slot first.

The one trap: a slot granted to a waiter that was cancelled but has not run yet. Such a grant is given back by
the waiter itself, in `_wait`, on its way out.
"""

import asyncio
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.config.settings import QueueConfig
from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.fleet.fleet import Fleet, Provider
from llmgateway.log import Events
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.fairness import FairShare, Standing, cost
from llmgateway.traffic.router import Placement, candidates, place, prospects

events = Events("slots")

MAX_OVERTAKEN: Final = 8  # times that one whose cache is on the freed machine may go before an older waiter
RETRY_AFTER_S: Final = (1, 600)
_UNKNOWN_PACE_S: Final = 10.0
_REMEMBERED_GRANTS: Final = 32
_REMEMBERED_MODELS: Final = 1_000
_LOOK_S: Final = 1.0
_UNKNOWN_OUTPUT: Final = 256.0  # tokens
_LEARNING: Final = 0.2


class NoCandidate(Exception):
    """Nobody serves this order any more, and nobody is about to."""


class Order(msgspec.Struct, eq=False):
    """One request's wish to be served. `estimate` is in virtual tokens (see fairness)."""

    caller: Caller
    model: str
    thread: Thread
    estimate: float
    standing: Standing
    slots: "Slots"
    request_id: str = ""
    tried: set[str] = msgspec.field(default_factory=set)
    waited_s: float = 0.0
    affinity: str = ""
    expected: float = 0.0
    charged: float = 0.0
    arrival: int = 0
    overtaken: int = 0
    on_trial: bool = False
    granted: asyncio.Future[Placement] | None = None

    def __enter__(self) -> "Order":
        return self

    def __exit__(self, *_: object) -> None:
        self.slots.leave(self)


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


class Slots:
    """Who is served next, and where."""

    def __init__(
        self,
        fleet: Fleet,
        affinity: Affinity,
        queue: QueueConfig,
        chance: Random,
        *,
        wake: Callable[[Sequence[Provider]], None] = lambda asleep: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._fleet = fleet
        self._affinity = affinity
        self._queue = queue
        self._chance = chance
        self._wake = wake
        self._now = clock or _loop_time
        self._fair = FairShare()
        self.affinity_results: Counter[str] = Counter()
        self._waiting: list[Order] = []
        self._arrivals = 0
        self._usual_output: dict[str, float] = {}
        self._pace: dict[str, _Pace] = {}
        self._timer: asyncio.TimerHandle | None = None
        fleet.on_change(self._dispatch)

    def adopt(self, queue: QueueConfig) -> None:
        """Take over new settings; who waits already keeps the place and the time they were given."""
        self._queue = queue
        self._affinity.keep(self._fleet.providers)

    # -- one request

    def order(
        self, caller: Caller, model: str, thread: Thread, estimate: float, request_id: str = ""
    ) -> Order:
        """Let a request take part: its user is active until it leaves. Use as `with`.

        What `settle` has not corrected by then stays charged as it was estimated.
        """
        self._arrivals += 1
        standing = self._fair.enter(caller.user)
        return Order(caller, model, thread, estimate, standing, self, request_id, arrival=self._arrivals)

    def leave(self, order: Order) -> None:
        """Let an order take part no longer."""
        if order.expected:
            self._charge(order, order.charged + order.expected)
        self._fair.leave(order.standing)

    def settle(self, order: Order, tokens: Tokens) -> None:
        """Correct the estimate that was charged, now that it is known what the answer cost."""
        self._charge(order, cost(tokens.prompt, tokens.completion))
        if tokens.estimated:
            return
        usual = self._usual_output.pop(order.model, None)
        if usual is None:
            usual = float(tokens.completion)
            while len(self._usual_output) >= _REMEMBERED_MODELS:
                del self._usual_output[next(iter(self._usual_output))]
        self._usual_output[order.model] = usual + _LEARNING * (tokens.completion - usual)

    def answered(self, order: Order, provider: Provider) -> None:
        """Learn that a provider has begun to answer an order."""
        if not provider.breaker.spotless:
            provider.breaker.answered()
        if order.thread.system is not None:
            self._affinity.computed(order.thread, provider.name, now=self._now())

    def refund(self, order: Order) -> None:
        """Take the estimate back: the provider failed, and served nothing."""
        self._charge(order, order.charged)

    def expected_output(self, model: str, limit: int | None) -> float:
        """Guess how many tokens an answer of this model will have."""
        usual = self._usual_output.get(model, _UNKNOWN_OUTPUT)
        return usual if limit is None else min(usual, limit)

    def hopeful(self, order: Order) -> bool:
        """Tell whether somebody serves this order, or is about to."""
        return bool(self._candidates(order) or self._prospects(order))

    def allow_again(self, order: Order, provider: Provider) -> None:
        """Let an order go back to a provider that was only warming up, unless it has waited long enough."""
        if order.waited_s < self._queue.timeout:
            order.tried.discard(provider.name)

    async def acquire(self, order: Order) -> Provider:
        """Wait for a slot.

        Pairs with `end_attempt`. Raises NoCandidate, or GatewayError (503) if the queue is full or slow.
        """
        return self.take(order) or (await self._wait(order)).provider

    def take(self, order: Order) -> Provider | None:
        """Give a slot that is free, and nobody else's turn, at once. Pairs with `end_attempt` as well."""
        if self._waiting:
            self._dispatch()  # what tells nobody, the end of a pause, must not favour who comes just then
        now = self._now()
        placement = self._place(order, now)
        if placement is None:
            return None
        self._grant(order, placement, now)
        return placement.provider

    def end_attempt(self, order: Order, provider: Provider) -> None:
        """Give the slot of an order back; the next waiter gets it at once.

        A trial that has told nothing by now frees the way for another.
        """
        if order.on_trial:
            order.on_trial = False
            provider.breaker.abandoned()
        provider.in_flight -= 1
        if self._waiting:
            self._dispatch()

    def depth(self, model: str) -> int:
        """Count the waiters for a model."""
        return sum(order.model == model for order in self._waiting)

    @property
    def waiting(self) -> Sequence[Order]:
        """Those who wait, in no special order."""
        return self._waiting

    def waiting_by_provider(self) -> Counter[str]:
        """Count for each provider the waiters that it could serve; one may be counted at several."""
        return Counter(p.name for order in self._waiting for p in self._candidates(order))

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

    # -- waiting

    async def _wait(self, order: Order) -> Placement:
        if not self.hopeful(order):
            raise NoCandidate
        if self.depth(order.model) >= self._queue.size and not self._make_room(order):
            raise self._overloaded(order.model, f"The queue for model '{order.model}' is full.")
        since = self._now()
        if not self.depth(order.model):
            self._pace_of(order.model).since = since
        order.granted = asyncio.get_running_loop().create_future()
        self._waiting.append(order)
        self._keep_looking()
        try:
            async with asyncio.timeout(max(0.0, self._queue.timeout - order.waited_s)):
                return await order.granted
        except TimeoutError:
            if _was_granted(order.granted):
                return order.granted.result()
            words = f"No slot for model '{order.model}' became free in time."
            raise self._overloaded(order.model, words) from None
        except BaseException:
            if _was_granted(order.granted):
                self._take_back(order, order.granted.result().provider)
            raise
        finally:
            if order in self._waiting:
                self._waiting.remove(order)
            order.waited_s += self._now() - since
            order.granted = None

    def _take_back(self, order: Order, provider: Provider) -> None:
        """Undo a grant of which its waiter never learnt."""
        self.refund(order)
        self.end_attempt(order, provider)

    def _make_room(self, order: Order) -> bool:
        """In a full queue, have the newest waiter of whoever has the most give way to one who has fewer."""
        waiting = [other for other in self._waiting if other.model == order.model]
        crowd = Counter(other.caller.user for other in waiting)
        user, count = crowd.most_common(1)[0]
        if count <= crowd[order.caller.user] + 1:
            return False
        newest = max(
            (other for other in waiting if other.caller.user == user), key=lambda other: other.arrival
        )
        words = f"The queue for model '{order.model}' is full, and you have the most requests in it."
        answer = self._leave_line(newest)
        if not answer.done():
            answer.set_exception(self._overloaded(order.model, words))
        return True

    def _candidates(self, order: Order) -> Sequence[Provider]:
        return candidates(self._fleet, order.caller, order.model, order.tried, now=self._now())

    def _prospects(self, order: Order) -> list[Provider]:
        return prospects(self._fleet, order.caller, order.model, order.tried)

    def _keep_looking(self) -> None:
        """While anybody waits, look every second for what tells nobody: the end of a pause, a sleeper."""
        for order in self._waiting:
            if not self._candidates(order):
                self._wake(self._prospects(order))
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._dispatch()
        self._keep_looking()

    def _overloaded(self, model: str, words: str) -> GatewayError:
        seconds = self._retry_after(model)
        return GatewayError(
            OVERLOADED, f"{words} Try again in about {seconds} s.", (("Retry-After", str(seconds)),)
        )

    def _retry_after(self, model: str) -> int:
        """Estimate from how fast this queue has been moving when somebody who comes now would be served."""
        pace_s = self._pace_of(model).seconds(self._now())
        least, most = RETRY_AFTER_S
        return max(least, min(most, math.ceil(pace_s * max(1, self.depth(model)))))

    # -- deciding

    def _dispatch(self) -> None:
        """Grant until nothing more can be granted; tell those who have nothing left to wait for."""
        while self._waiting and self._grant_one():
            pass
        for order in list(self._waiting):
            if order.granted is not None and not order.granted.done() and not self.hopeful(order):
                self._leave_line(order).set_exception(NoCandidate())

    def _grant_one(self) -> bool:
        if not any(provider.has_free_slot for provider in self._fleet.providers.values()):
            return False
        now = self._now()
        for order in self._in_line():
            placement = self._place(order, now)
            if placement is not None:
                self._note_overtaking(order)
                self._grant(order, placement, now)
                self._pace_of(order.model).moved(now)
                self._leave_line(order).set_result(placement)
                return True
        return False

    def _pace_of(self, model: str) -> _Pace:
        pace = self._pace[model] = self._pace.pop(model, _Pace(self._now()))
        while len(self._pace) > _REMEMBERED_MODELS:
            del self._pace[next(iter(self._pace))]
        return pace

    def _leave_line(self, order: Order) -> asyncio.Future[Placement]:
        self._waiting.remove(order)
        assert order.granted is not None
        return order.granted

    def _in_line(self) -> list[Order]:
        """Give the waiters in the order in which they are served, less those who were cancelled just now."""
        waiting = [order for order in self._waiting if order.granted is not None and not order.granted.done()]
        return sorted(waiting, key=self._standing)

    def _outlook(self) -> list[Order]:
        """Give the waiters in the order in which they can expect to be served, as the counters grow."""
        ahead: defaultdict[str, float] = defaultdict(float)
        outlook = []
        for order in self._in_line():
            user, weight = order.caller.user, order.caller.weight
            outlook.append((self._fair.rank(user)[0] + ahead[user] / weight, order))
            ahead[user] += order.estimate
        return [order for _, order in sorted(outlook, key=lambda entry: entry[0])]

    def _standing(self, order: Order) -> tuple[float, int, int, int]:
        """Order by fairness; among equals by cache, within reason; then by last service; then by arrival."""
        counter, served = self._fair.rank(order.caller.user)
        haste = -1 if order.overtaken >= MAX_OVERTAKEN else 0 if self._home_is_free(order) else 1
        return counter, haste, served, order.arrival

    def _note_overtaking(self, granted: Order) -> None:
        for order in self._waiting:
            if order.arrival < granted.arrival and order.caller.user == granted.caller.user:
                order.overtaken += 1

    def _home_is_free(self, order: Order) -> bool:
        conversation = self._affinity.find(order.thread, now=self._now())
        if conversation is None:
            return False
        return any(p.name == conversation.home and p.has_free_slot for p in self._candidates(order))

    def _place(self, order: Order, now: float) -> Placement | None:
        among = candidates(self._fleet, order.caller, order.model, order.tried, now=now)
        if not among:
            return None
        return place(among, order.caller, order.model, order.thread, self._affinity, self._chance, now=now)

    def _grant(self, order: Order, placement: Placement, now: float) -> None:
        provider = placement.provider
        provider.in_flight += 1
        order.affinity = placement.affinity
        self.affinity_results[placement.affinity] += 1
        if not provider.breaker.spotless:
            order.on_trial = provider.breaker.started(now)
        if order.thread.links:
            self._affinity.settle(order.thread, provider.name, now=now, match=placement.match)
        estimate = 0.0
        if not order.charged and not order.expected:
            order.expected = estimate = order.estimate
        self._fair.granted(order.standing, estimate, order.caller.weight)

    def _charge(self, order: Order, tokens: float) -> None:
        """Let an order have cost its user so many virtual tokens, whatever was charged or expected before."""
        self._fair.charge(
            order.standing, tokens - order.charged, order.caller.weight, expected=order.expected
        )
        order.charged, order.expected = tokens, 0.0


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _was_granted(granted: asyncio.Future[Placement]) -> bool:
    return granted.done() and not granted.cancelled() and granted.exception() is None
