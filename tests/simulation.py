"""A house of machines in virtual time: requests come and go, and take as long as they are told.

The event loop's clock leaps to the next thing that is due, so hours pass in milliseconds and every run is the
same. When everybody waits for something that cannot come, the loop says so instead of hanging.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

from llmgateway.access.keys import Caller
from llmgateway.api.usage import Tokens
from llmgateway.config.load import build
from llmgateway.config.settings import Config, QueueConfig
from llmgateway.errors import GatewayError
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Probe, Provider, State
from llmgateway.servers.models import Model
from llmgateway.traffic.affinity import Affinity, Thread
from llmgateway.traffic.estimate import Usual
from llmgateway.traffic.fairness import cost
from llmgateway.traffic.line import NoCandidate
from llmgateway.traffic.order import Order
from llmgateway.traffic.slots import Slots

T = TypeVar("T")


class _LeapingSelector(selectors.SelectSelector):
    """Never sleeps: what would have been a sleep is added up in `leapt_s`."""

    leapt_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits, and nothing is going to happen")
        if not ready and timeout is not None:
            self.leapt_s += max(timeout, 0.0)
        return ready


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at 0 and leaps."""

    def __init__(self) -> None:
        self._leaping = _LeapingSelector()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.leapt_s


@contextmanager
def taking_part(slots: Slots, order: Order) -> Iterator[Order]:
    """Let an order leave in the end, as the proxy does."""
    try:
        yield order
    finally:
        slots.leave(order)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a story in virtual time; what goes wrong in a callback, or is never asked for, is raised too."""
    trouble: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: trouble.append(context))
        result = runner.run(main)
    assert not trouble, trouble
    return result


def now() -> float:
    return asyncio.get_running_loop().time()


@lru_cache(maxsize=64)
def _config(providers: str) -> Config:
    users: dict[str, Any] = {name: {} for name in ("ann", "bob", "cat", "dan")}
    return build({"users": users, "providers": json.loads(providers)})


def online(*models: str, slots: int | None = None) -> Probe:
    return Probe(State.ONLINE, "", {model: Model(model) for model in models}, slots)


def fleet(providers: Mapping[str, Mapping[str, Any]], models: Sequence[str] = ("m",)) -> Fleet:
    """Online providers that serve these models; `told` are the slots that a server told of itself."""
    entries: dict[str, dict[str, Any]] = {
        name: {"url": "http://127.0.0.1:9", **entry} for name, entry in providers.items()
    }
    told = {name: entry.pop("told", None) for name, entry in entries.items()}
    made = Fleet(_config(json.dumps(entries)))
    for name, provider in made.providers.items():
        provider.observe(online(*models, slots=told[name]), now=0)
    return made


class House:
    """Slots and a queue in front of providers; and a book of who was served, when and where."""

    def __init__(self, *, size: int = 100, timeout_s: float = 300.0, seed: int = 1, **providers: Any) -> None:
        self.fleet = fleet(providers)
        self.affinity = Affinity()
        self.woken: list[tuple[float, str]] = []
        self.slots = Slots(
            self.fleet,
            self.affinity,
            QueueConfig(size=size, timeout=timeout_s),
            Random(seed),
            clock=now,
            wake=self._wake,
        )
        self.usual = Usual()
        self.served: list[str] = []
        """Who was granted a slot, as `user`, or as `name` where a request has one."""
        self.places: dict[str, str] = {}
        self.tokens: dict[str, float] = {}
        """The virtual tokens that each user has been served."""
        self.orders: dict[str, Order] = {}

    def __getitem__(self, name: str) -> Provider:
        return self.fleet.providers[name]

    def _wake(self, asleep: Sequence[Provider]) -> None:
        self.woken += [(now(), provider.name) for provider in asleep]

    @property
    def in_flight(self) -> int:
        return sum(provider.in_flight for provider in self.fleet.providers.values())

    async def ask(
        self,
        caller: Caller | str,
        *,
        name: str | None = None,
        model: str = "m",
        thread: Thread | None = None,
        seconds: float = 1.0,
        tokens: Tokens | None = None,
        estimate: float = 100.0,
        tried: Iterable[str] = (),
        only: str = "",
    ) -> str:
        """Be served like a request of the proxy; gives the provider, or what went wrong."""
        who = Caller(caller) if isinstance(caller, str) else caller
        name = name or who.user
        with taking_part(self.slots, self.slots.order(who, model, thread or Thread(), estimate)) as order:
            order.tried.update(tried)
            order.only = only
            self.orders[name] = order
            try:
                with await self.slots.lease(order) as provider:
                    self.served.append(name)
                    self.places[name] = provider.name
                    try:
                        await asyncio.sleep(seconds)
                    finally:
                        self._account(order, tokens)
            except (NoCandidate, GatewayError) as exc:
                return said(exc)
        return provider.name

    def _account(self, order: Order, tokens: Tokens | None) -> None:
        if tokens is not None:
            self.slots.correct(order, tokens)
            if not tokens.estimated:
                self.usual.learn(order.model, completion_tokens=tokens.completion)
            user = order.caller.user
            self.tokens[user] = self.tokens.get(user, 0.0) + cost(tokens.prompt, tokens.completion)

    def start(self, *args: Any, **kwargs: Any) -> asyncio.Task[str]:
        """Have a request come in, in the background."""
        return asyncio.create_task(self.ask(*args, **kwargs))


def said(trouble: NoCandidate | GatewayError) -> str:
    if isinstance(trouble, NoCandidate):
        return "no candidate"
    headers = dict(trouble.headers)
    return f"{trouble.kind.status} {trouble.kind.type}, retry after {headers.get('Retry-After')}"


async def steps(count: int = 8) -> None:
    """Let everything that can run do so, without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)
