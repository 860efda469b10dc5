"""Whatever happens, in whatever order: no slot is lost or doubled, and nobody waits for a slot that is idle.

Random schedules in virtual time: requests arrive, finish, fail over and are cancelled at any moment, also
between a grant and the next step of its waiter; providers gain and lose slots and models, come and go. The
rules are checked after every step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.config.settings import QueueConfig
from llmgateway.errors import (
    GatewayError,
    ProviderBroke,
    ProviderErrored,
    ProviderFailed,
    ProviderLooped,
    ProviderUnreachable,
    ProviderWarming,
)
from llmgateway.fleet.breaker import FAILURES_IN_A_ROW
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.line import MAX_OVERTAKEN, NoCandidate
from llmgateway.traffic.order import Order
from llmgateway.traffic.router import candidates
from llmgateway.traffic.slots import Slots
from tests.simulation import fleet, now, online, run, taking_part

SIZE: Final = 8
TIMEOUT_S: Final = 60.0
MODELS: Final = ("m", "n")
CALLERS: Final = (Caller("ann"), Caller("bob", weight=2), Caller("cat", route="prefer_own"))
PROVIDERS: Final[dict[str, dict[str, Any]]] = {
    "a": {"told": 1},
    "b": {"told": 2, "wake": {"mac": "aa:bb:cc:dd:ee:ff"}},
    "c": {"owner": "cat"},
}
STATES: Final = (State.OFFLINE, State.ONLINE, State.WARMING, State.MISCONFIGURED, State.OFFLINE, State.ONLINE)
FAILURES: Final[tuple[ProviderFailed, ...]] = (
    ProviderUnreachable("a", "is unreachable."),
    ProviderBroke("a", "broke."),
    ProviderErrored("a", "answered 500."),
    ProviderWarming("a", "loads its model."),
    ProviderLooped("a", "is a ring."),
)

Step = tuple[str, int, int]
STEPS: Final = st.tuples(
    st.sampled_from("arrive arrive arrive end end cancel cancel run run capacity state models pass".split()),
    st.integers(0, 11),
    st.integers(0, 11),
)


@dataclass(eq=False)
class Request:
    """One request, its task, and what lets its provider finish."""

    order: Order
    task: asyncio.Task[None]
    end: asyncio.Future[ProviderFailed | None]
    """Done when its provider has answered, or failed."""
    provider: Provider | None = None
    overtaken: int = 0
    failed: bool = False
    """Whether a provider has failed it, so that it may have come to wait late for its age."""
    outcome: str = ""

    @property
    def waits(self) -> bool:
        return self.order.granted is not None and not self.order.granted.done()

    @property
    def holds(self) -> Provider | None:
        """The provider whose slot it has, whether it knows that already or not."""
        granted = self.order.granted
        if granted is None or not granted.done() or granted.cancelled() or granted.exception():
            return self.provider
        return granted.result().provider

    @property
    def line(self) -> tuple[object, ...] | None:
        """Requests with the same line could take each other's place."""
        return None if self.order.tried or self.failed else (self.order.caller, self.order.model)


class Story:
    """Takes steps, and checks the rules after each."""

    def __init__(self, *, failures: bool = False) -> None:
        self.fleet = fleet(PROVIDERS, models=MODELS)
        self.failures = failures
        self.slots = Slots(
            self.fleet, Affinity(), QueueConfig(size=SIZE, timeout=TIMEOUT_S), Random(3), clock=now
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.requests: list[Request] = []
        self.waited: list[Request] = []
        self.before: Counter[str] = Counter()

    # -- what may happen

    async def take(self, step: Step) -> None:
        what, which, how = step
        acts: dict[str, Callable[[int, int], None]] = {
            "arrive": self.arrive, "end": self.end, "cancel": self.cancel, "capacity": self.capacity,
            "state": self.state, "models": self.models,
        }  # fmt: skip
        if what in acts:
            acts[what](which, how)
        else:
            await asyncio.sleep(0 if what == "run" else (which + 1) * (0.3 if how else 7.0))
        self.check()

    def arrive(self, which: int, how: int) -> None:
        thread = Thread((bytes([how]),)) if how < 4 else Thread()
        self.begin(CALLERS[which % 3], MODELS[which // 3 % 2], thread, how)

    def begin(self, caller: Caller, model: str, thread: Thread, how: int) -> None:
        self.tasks.append(asyncio.create_task(self._enter(caller, model, thread, how)))

    async def _enter(self, caller: Caller, model: str, thread: Thread, how: int) -> None:
        with taking_part(self.slots, self.slots.order(caller, model, thread, 10.0 + how)) as order:
            task = asyncio.current_task()
            assert task is not None
            request = Request(order, task, asyncio.get_running_loop().create_future())
            self.requests.append(request)
            try:
                await self._live(request)
            except asyncio.CancelledError:
                request.outcome = "cancelled"
                raise

    async def _live(self, request: Request) -> None:
        while not request.outcome:
            try:
                with await self.slots.lease(request.order) as provider:
                    request.provider = provider
                    try:
                        await self._be_served(request, provider)
                    finally:
                        request.provider = None
            except NoCandidate:
                request.outcome = "no candidate"
            except GatewayError as exc:
                request.outcome = exc.kind.type

    async def _be_served(self, request: Request, provider: Provider) -> None:
        failure = await request.end
        if failure is None:
            if request.order.doubts:
                self.slots.blame(request.order)
            self.slots.answered(request.order, provider)
            self.slots.correct(request.order, Tokens(5, 5, estimated=False))
            provider.fared_well(request.order.model)
            request.outcome = "served"
            return
        request.failed = True
        request.order.tried.add(provider.name)
        request.end = asyncio.get_running_loop().create_future()
        if self.failures:
            self._learn(request.order, provider, failure)

    def _learn(self, order: Order, provider: Provider, failure: ProviderFailed) -> None:
        """Have so many of these failures that the provider may be taken out, as the proxy hears of them."""
        for _ in range(FAILURES_IN_A_ROW):
            sequel = provider.fared(failure, now=now())
            if sequel.try_again:
                self.slots.allow_again(order, provider)
            if sequel.in_doubt:
                self.slots.doubt(order, provider, failure)

    def end(self, which: int, how: int) -> None:
        """Let a running request finish, or fail over."""
        running = [request for request in self.requests if request.provider and not request.end.done()]
        if running:
            failure = FAILURES[which % len(FAILURES)] if how % (2 if self.failures else 4) == 0 else None
            running[which % len(running)].end.set_result(failure)

    def cancel(self, which: int, how: int) -> None:
        """Cancel a request: preferably one that does not know yet that it was granted a slot, or a trial."""
        self.tasks = [task for task in self.tasks if not task.done()]
        unaware = [request.task for request in self.requests if request.holds and not request.provider]
        on_trial = [request.task for request in self.requests if request.order.trials]
        among = (how % 3 == 2 and on_trial) or (how % 2 and unaware) or self.tasks
        if among:
            among[which % len(among)].cancel()

    def _provider(self, which: int) -> Provider:
        return list(self.fleet.providers.values())[which % 3]

    def capacity(self, which: int, how: int) -> None:
        provider = self._provider(which)
        provider.observe(Probe(provider.state, provider.reason, slots=1 + how % 4), now=now())

    def state(self, which: int, how: int) -> None:
        for _ in range(2):
            self._provider(which).observe(Probe(STATES[how % 6], "so it is"), now=now())

    def models(self, which: int, how: int) -> None:
        provider = self._provider(which)
        models = online(*[model for bit, model in enumerate(MODELS, 1) if how & bit]).models
        provider.observe(Probe(provider.state, provider.reason, models), now=now())

    # -- what must hold

    def check(self) -> None:
        self.check_slots()
        self.check_trials()
        self.check_queue()
        self.check_turns()

    def check_slots(self) -> None:
        held = Counter(request.holds.name for request in self.requests if request.holds)
        for name, provider in self.fleet.providers.items():
            assert provider.in_flight == held[name], (name, "slots are lost or doubled")
            capacity = provider.capacity
            assert capacity is None or provider.in_flight <= max(capacity, self.before[name])
        self.before = held

    def check_trials(self) -> None:
        """A provider that is on trial is so for somebody: else it would be left out for ever."""
        tried = [breaker for request in self.requests for breaker in request.order.trials]
        doubted = [doubt for request in self.requests for doubt in request.order.doubts]
        tried += [breaker for doubt in doubted for breaker in doubt.trials]
        for provider in self.fleet.providers.values():
            for breaker in (provider.conduct.machine, *provider.conduct.models.values()):
                idle = breaker.out and not breaker.lets_through(breaker.open_until)
                assert not idle or breaker in tried, "a trial is nobody's"

    def check_queue(self) -> None:
        for model in MODELS:
            assert self.slots.line.depth(model) <= SIZE
        for request in self.requests:
            if request.waits:
                assert self.slots.hopeful(request.order), "somebody waits for nothing"
                assert 1 <= self.slots.line.position(request.order) <= SIZE
                if not self.failures:
                    self.check_work_is_conserved(request)

    def check_work_is_conserved(self, request: Request) -> None:
        order = request.order
        able = candidates(self.fleet, order, now=now())
        assert not [provider.name for provider in able if provider.has_room_for(order.model)], (
            "somebody waits for an idle slot"
        )

    def check_turns(self) -> None:
        """Hold against those who still wait that younger ones of their user were granted a slot."""
        granted = [request for request in self.waited if request.holds]
        self.waited = [request for request in self.requests if request.waits]
        for request in self.waited:
            younger = [
                one for one in granted if one.order.arrival > request.order.arrival and same(one, request)
            ]
            request.overtaken += len(younger)
            assert request.overtaken <= MAX_OVERTAKEN, "it is overtaken for ever"
            if not request.order.thread.known:
                assert all(one.order.thread.known for one in younger), "not first in, first out"

    async def finish(self) -> None:
        """Let everybody be served, and see that nothing is left behind."""
        for provider in self.fleet.providers.values():
            for _ in range(2):
                provider.observe(online(*MODELS), now=now())
        for _ in range(1_000):  # of 0.3 s: a provider may be taken out for a minute, and again
            for request in self.requests:
                if request.provider and not request.end.done():
                    request.end.set_result(None)
            await asyncio.sleep(0.3)
            if all(task.done() for task in self.tasks):
                break
        self.check()
        assert all(task.done() for task in self.tasks)
        assert all(request.outcome for request in self.requests), "somebody was never told"
        assert not any(provider.in_flight for provider in self.fleet.providers.values())
        assert not any(request.order.trials or request.order.doubts for request in self.requests)
        assert not any(self.slots.line.depth(model) for model in MODELS)

    async def quiesce(self) -> None:
        """With failures, the end of a pause tells nobody; it is seen within a second."""
        await asyncio.sleep(2.0)
        self.check()
        for request in self.requests:
            if request.waits:
                self.check_work_is_conserved(request)


def same(one: Request, other: Request) -> bool:
    return one.line is not None and one.line == other.line


async def tell(steps: list[Step], *, failures: bool = False) -> Story:
    story = Story(failures=failures)
    for number, step in enumerate(steps):
        await story.take(step)
        if number % 20 == 19:
            await story.quiesce()
    await story.finish()
    return story


@settings(max_examples=150)
@given(st.lists(STEPS, min_size=25, max_size=75))
def test_no_slot_is_lost_or_doubled_and_none_is_idle_while_somebody_may_use_it(steps: list[Step]) -> None:
    run(tell(steps))


@settings(max_examples=75)
@given(st.lists(STEPS, min_size=25, max_size=75))
def test_the_same_holds_while_providers_fail_and_are_taken_out(steps: list[Step]) -> None:
    run(tell(steps, failures=True))


def schedule(chance: Random, length: int) -> list[Step]:
    kinds = "arrive arrive arrive arrive end end end cancel run run capacity state models pass".split()
    return [(chance.choice(kinds), chance.randrange(12), chance.randrange(12)) for _ in range(length)]


@pytest.mark.parametrize("seed", [*range(6), 15, 33])
def test_it_holds_over_a_long_run(seed: int) -> None:
    story = run(tell(schedule(Random(seed), 1_500), failures=seed % 2 == 1))
    outcomes = Counter(request.outcome for request in story.requests)
    assert set(outcomes) == {"served", "cancelled", "no candidate", "overloaded"}, outcomes
    assert max(request.overtaken for request in story.requests) > 0
