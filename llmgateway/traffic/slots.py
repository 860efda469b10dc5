"""Fair leases on the providers' capacity, and the queue for them.

One order per request, one lease at a time per order, given back on every way out. Decisions are synchronous:
`_dispatch` runs whenever a slot may have become free or a waiter's prospects may have changed, and grants
until nothing more can be granted, so no slot is idle while somebody who may use it waits. If that is a great
deal, it goes on in the next turn of the loop, and who comes meanwhile waits. A waiter is served by whichever
of its candidates has a slot first.

The one trap: a slot granted to a waiter that was cancelled but has not run yet. Such a grant is given back by
the waiter itself, in `_wait`, on its way out.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Final

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.config.settings import Config, QueueConfig
from llmgateway.errors import GatewayError, ProviderFailed
from llmgateway.fleet.absence import keeper_serves_not, nobody_serves
from llmgateway.fleet.breaker import Breaker
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.naming import first_served, instead, meant, permitted_name
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.fairness import FairShare, cost
from llmgateway.traffic.keepers import Keepers
from llmgateway.traffic.line import Line, NoCandidate, was_granted
from llmgateway.traffic.order import Doubt, Order
from llmgateway.traffic.router import Placement, candidates, place, prospects

_LOOK_S: Final = 1.0
_AT_ONCE: Final = 20  # waiters told in one turn of the loop: some ms, where 500 have free slots


class Slots:
    """Who is served next, and where.

    It is long as all that takes, grants or gives back a slot has to be read together.
    """

    def __init__(
        self,
        fleet: Fleet,
        affinity: Affinity,
        queue: QueueConfig,
        chance: Random,
        *,
        clock: Callable[[], float],
        wake: Callable[[Sequence[Provider]], None] = lambda asleep: None,
    ) -> None:
        """Lease the slots of a fleet. `clock` is the loop's; `wake` is told of providers that sleep."""
        self._fleet = fleet
        self._affinity = affinity
        self._queue = queue
        self._chance = chance
        self._wake = wake
        self._now = clock
        self.aliases = fleet.aliases
        """Names that may mean a model of another name; all others mean themselves."""
        self._fair = FairShare()
        self.line = Line(fleet, affinity, clock)
        self.keepers = Keepers(fleet)
        self.affinity_results: Counter[str] = Counter()
        self._arrivals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._goes_on = False
        fleet.on_change(self._adapt)

    def adopt(self, config: Config) -> None:
        """Take over new settings; who waits already keeps the place and the time they were given."""
        self._queue, self.aliases = config.queue, config.aliases
        self._affinity.keep(self._fleet.providers)

    # -- one request

    def order(
        self,
        caller: Caller,
        model: str,
        thread: Thread,
        estimate: float,
        request_id: str = "",
        endpoint: str = "",
    ) -> Order:
        """Let a request take part: its user is active until it leaves. Pairs with `leave`.

        What `correct` has not corrected by then stays charged as it was estimated.
        """
        self._arrivals += 1
        return Order(
            caller,
            model,
            thread,
            endpoint,
            estimate=estimate,
            standing=self._fair.enter(caller.party),
            request_id=request_id,
            arrival=self._arrivals,
        )

    def permitted_name(self, caller: Caller, model: str) -> str:
        """Give the name by which a caller may have a model. Raises GatewayError (403)."""
        return permitted_name(self._fleet, caller, model) if caller.models and model else model

    def meaning(self, caller: Caller, name: str, endpoint: str) -> str:
        """Give the model that a name means to a caller: itself, or what it stands for."""
        return meant(self._fleet, caller, name, endpoint)

    def instead(self, order: Order, asked: str) -> list[str]:
        """Give what else an order may be for, now that nobody serves what the client has asked for."""
        return instead(self._fleet, order.caller, asked, order.model)

    def turn(self, order: Order, names: Iterable[str]) -> str:
        """Have an order be for the first of these models that is served; gives its name, "" if none is."""
        found = first_served(self._fleet, order.caller, names, order.endpoint)
        if found is None:
            return ""
        order.model = permitted_name(self._fleet, order.caller, found)
        order.tried.clear()
        return found

    def leave(self, order: Order) -> None:
        """Let an order take part no longer."""
        if order.doubts:
            self._settle(order)
        if order.expected:
            self._charge(order, order.charged + order.expected)
        self._fair.leave(order.standing)

    def correct(self, order: Order, tokens: Tokens) -> None:
        """Correct the estimate that was charged, now that it is known what the answer cost."""
        self._charge(order, cost(tokens.prompt, tokens.completion))

    def refund(self, order: Order) -> None:
        """Take the estimate back: the provider failed, and served nothing."""
        self._charge(order, order.charged)

    def answered(self, order: Order, provider: Provider) -> None:
        """Learn that a provider has begun to answer an order."""
        provider.answered(order.model)
        if order.thread.system is not None:
            self._affinity.computed(order.thread, provider.name, now=self._now())

    def doubt(self, order: Order, provider: Provider, failure: ProviderFailed) -> None:
        """Learn of a failure that may be the fault of the order's request: whether it is, others will tell.

        What every candidate fails at is nobody's fault but the request's.
        """
        order.doubts += (Doubt(provider, failure, order.trials),)
        order.trials = ()

    def blame(self, order: Order) -> None:
        """Learn that a provider can serve the order: those who could not have failed by themselves."""
        now = self._now()
        for doubt in order.doubts:
            doubt.provider.blamed(doubt.failure, order.model, now=now)
        self._settle(order)

    def _settle(self, order: Order) -> None:
        for doubt in order.doubts:
            _abandon(doubt.trials)
        order.doubts = ()

    def is_served(self, order: Order) -> bool:
        """Tell whether anybody serves this order, though all may be busy."""
        return bool(candidates(self._fleet, order, now=self._now()))

    def hopeful(self, order: Order) -> bool:
        """Tell whether somebody serves this order, or is about to."""
        return self.is_served(order) or bool(prospects(self._fleet, order))

    def nobody_serves(self, order: Order) -> GatewayError:
        """Say that nobody serves an order, and who did or what they lack."""
        if order.only:
            return keeper_serves_not(order.only, order.model, self._fleet, wall=time.time())
        return nobody_serves(order.model, self._fleet, order.caller, order.endpoint, wall=time.time())

    def keeper_is_away(self, provider: Provider) -> GatewayError:
        """Say that a provider which is needed is not online; if it sleeps, it is woken for the next try."""
        if provider.promising:
            self._wake([provider])
        return keeper_serves_not(provider.name, "", self._fleet, wall=time.time())

    def allow_again(self, order: Order, provider: Provider) -> None:
        """Let an order go back to a provider that was only warming up, unless it has waited long enough."""
        if order.waited_s < self._queue.timeout:
            order.tried.discard(provider.name)

    async def lease(self, order: Order) -> "Lease":
        """Give a slot of a provider, at once or after a wait, to be held by `with`.

        Raises NoCandidate, or Overloaded if the queue is full or slow.
        """
        return Lease(self, order, self._take(order) or await self._wait(order))

    def _take(self, order: Order) -> Provider | None:
        """Give a slot that is free, and nobody else's turn, at once."""
        # What tells nobody, the end of a pause, must not favour who comes just then. And where anybody waits
        # still for the same, there is nothing for this one.
        if self.line.orders and (not self._dispatch() or self.line.lane_of(order) is not None):
            return None
        now = self._now()
        among = candidates(self._fleet, order, now=now)
        placement = place(among, order, self._affinity, self._chance, now=now) if among else None
        if placement is None:
            return None
        self._grant(order, placement, now)
        return placement.provider

    def give_back(self, order: Order, provider: Provider) -> None:
        """Give the slot of an order back; the next waiter gets it at once.

        A trial that has told nothing by now, and leaves no doubt, frees the way for another.
        """
        provider.gave_back(order.model)
        if order.trials:
            _abandon(order.trials)
            order.trials = ()
        if self.line.orders:
            self.line.freed(provider)
            self._dispatch()

    def waiting_by_provider(self) -> Counter[str]:
        """Count for each provider the waiters that it could serve; one may be counted at several."""
        waiting: Counter[str] = Counter()
        for lane, count in Counter(self.line.orders.values()).items():
            for provider in candidates(self._fleet, lane.wish, now=self._now()):
                waiting[provider.name] += count
        return waiting

    # -- waiting

    async def _wait(self, order: Order) -> Provider:
        """Wait for a slot. Raises NoCandidate, or Overloaded if the queue is full or slow."""
        alone = self.line.lane_of(order) is None
        if alone and not self.hopeful(order):
            raise NoCandidate
        since = self._now()
        if self.line.depth(order.model) >= self._queue.size:
            self._make_room(order, since)
        granted = self.line.join(order, now=since)
        if alone:
            self._keep_looking()
        try:
            async with asyncio.timeout(max(0.0, self._queue.timeout - order.waited_s)):
                return (await granted).provider
        except TimeoutError:
            if was_granted(granted):
                return granted.result().provider
            words = f"No slot for {_wish(order)} became free in time."
            if not self.is_served(order):
                words = f"No provider had {_wish(order)} ready in time."
            raise self.line.overloaded(order.model, words, now=self._now()) from None
        except BaseException:
            if was_granted(granted):
                self._take_back(order, granted.result().provider)
            raise
        finally:
            if order in self.line.orders:
                self.line.leave(order)
            order.waited_s += self._now() - since
            order.granted = None

    def _take_back(self, order: Order, provider: Provider) -> None:
        """Undo a grant of which its waiter never learnt."""
        self.refund(order)
        self.give_back(order, provider)

    def _make_room(self, order: Order, now: float) -> None:
        """In a full queue, have the newest waiter of whoever has the most give way to one who has fewer.

        Raises Overloaded.
        """
        newest = self.line.newest_of_the_crowd(order)
        full = f"The queue for {_wish(order)} is full"
        if newest is None:
            raise self.line.overloaded(order.model, f"{full}.", now=now)
        answer = self.line.leave(newest)
        if not answer.done():
            words = f"{full}, and you have the most requests in it."
            answer.set_exception(self.line.overloaded(order.model, words, now=now))

    def _keep_looking(self) -> None:
        """While anybody waits, look every second for what tells nobody: the end of a pause, a sleeper."""
        for lane in self.line.lanes.values():
            if not lane.able:
                self._wake(prospects(self._fleet, lane.wish))
        if self._timer is None and self.line.orders:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._dispatch()
        self._keep_looking()

    # -- deciding

    def _adapt(self) -> None:
        """Take it that the fleet has changed: who can serve whom, and who has a free slot."""
        self.line.look()
        if self.line.orders:
            self._dispatch()

    def _dispatch(self) -> bool:
        """Grant until nothing more can be granted; tell those who have nothing left to wait for.

        False if that is too much for now, so that it goes on in the next turn of the loop.
        """
        for _ in range(_AT_ONCE):
            if not self._grant_one() and not self._turn_one_away():
                return True
        if not self._goes_on:
            self._goes_on = True
            asyncio.get_running_loop().call_soon(self._go_on)
        return False

    def _go_on(self) -> None:
        self._goes_on = False
        self._dispatch()

    def _grant_one(self) -> bool:
        now = self._now()
        order = self.line.first(now=now)
        if order is None:
            return False
        conversation = self._affinity.find(order.thread, now=now)
        home = None if conversation is None else conversation.home
        among = self.line.orders[order].among(home, now=now)
        placement = place(among, order, self._affinity, self._chance, now=now)
        assert placement is not None, "the line has found somebody with a free slot"
        self._grant(order, placement, now)
        self.line.moved(order, now=now)
        self.line.leave(order).set_result(placement)
        return True

    def _turn_one_away(self) -> bool:
        order = self.line.first_in_vain()
        if order is not None:
            self.line.leave(order).set_exception(NoCandidate())
        return order is not None

    def _grant(self, order: Order, placement: Placement, now: float) -> None:
        provider = placement.provider
        order.trials = provider.took(order.model, now=now)
        order.affinity = placement.affinity
        self.affinity_results[placement.affinity] += 1
        if order.thread.links:
            self._affinity.remember(order.thread, provider.name, now=now, match=placement.match)
            if self.line.orders:
                self.line.remembered(order.thread, placement.match)
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


class Lease(msgspec.Struct, gc=False):
    """A slot that was taken. An `async with` would cost a request three times as much as this `with`."""

    slots: Slots
    order: Order
    provider: Provider

    def __enter__(self) -> Provider:
        return self.provider

    def __exit__(self, *_: object) -> None:
        self.slots.give_back(self.order, self.provider)


def _abandon(trials: Iterable[Breaker]) -> None:
    for breaker in trials:
        breaker.abandoned()


def _wish(order: Order) -> str:
    return f"model '{order.model}'" if order.model else "requests without a model"
