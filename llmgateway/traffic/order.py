"""A request on its way: what it wishes, what it has been charged, and what it waits for."""

import asyncio

import msgspec

from llmgateway.errors import ProviderFailed
from llmgateway.fleet.breaker import Breaker
from llmgateway.fleet.provider import Provider
from llmgateway.traffic.fairness import Standing
from llmgateway.traffic.router import Placement, Wish


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
