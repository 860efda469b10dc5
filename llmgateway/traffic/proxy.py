"""The story of a forwarded request: lease, send, relay, account; failover before the first byte.

`forward` is the path of every request. A provider's answer is shown to the client only once its first byte is
there, so whatever fails before that can be tried on another candidate.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Final

from llmgateway.access.keys import Caller
from llmgateway.access.limits import Limits
from llmgateway.api.usage import Meter
from llmgateway.books.metrics import Metrics
from llmgateway.errors import (
    UPSTREAM_ERROR,
    GatewayError,
    ProviderErrored,
    ProviderFailed,
    ProviderRefused,
    ProviderTimedOut,
    ProviderUnreachable,
    ProviderWarming,
    no_provider,
)
from llmgateway.fleet.breaker import RetryBudget
from llmgateway.fleet.fleet import Provider
from llmgateway.fleet.health import Watch
from llmgateway.fleet.upstream import Upstream
from llmgateway.http.client import Client, Heartbeat
from llmgateway.http.exchange import Exchange
from llmgateway.http.headers import AnswerHead
from llmgateway.log import Events
from llmgateway.servers.models import is_loading, quote
from llmgateway.traffic.call import Call
from llmgateway.traffic.estimate import PromptSize
from llmgateway.traffic.fairness import cost
from llmgateway.traffic.slots import NoCandidate, Order, Slots

events = Events("proxy")

_TRY_ELSEWHERE: Final = (404, 429)
_REFUSED: Final = (401, 403)
_NO_ANSWER: Final = 300  # from here on a status says that no model has worked
_UNSUPPORTED: Final = 501  # says nothing bad about the provider's health
_QUOTED_BYTES: Final = 64 * 1024
_QUOTED_S: Final = 2.0
_HELD_BYTES: Final = 1 << 20
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32


@dataclass(frozen=True, slots=True)
class Held:
    """A whole 404 or 429, kept while other candidates are asked."""

    provider: Provider
    status: int
    reason: bytes
    head: AnswerHead
    body: bytes
    own_lines: bytes


class Proxy:
    """Carries calls to providers and their answers back."""

    def __init__(
        self,
        slots: Slots,
        upstream: Upstream,
        watch: Watch,
        budget: RetryBudget,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._slots = slots
        self._upstream = upstream
        self._watch = watch
        self._budget = budget
        self._limits = limits
        self._metrics = metrics
        self._prompts = PromptSize()

    def forward(self, call: Call, caller: Caller, client: Client) -> Awaitable[None]:
        """Carry one call to a provider and its answer back, byte for byte. Raises GatewayError.

        An error raised after the client has been sent bytes is to be told as the end of the stream.
        """
        if caller.models:
            caller.require(call.model)
        if call.prompt_bytes:
            call.entry.prompt_estimate = self._prompts.estimate(call.model, call.prompt_bytes)
        how = self._within_limits if caller.limited else self._take_part
        return how(call, caller, client)

    async def _within_limits(self, call: Call, caller: Caller, client: Client) -> None:
        with self._limits.admit(
            caller.user, caller.limits, caller.key_id, caller.key_limits, key_name=caller.key_name
        ) as admission:
            client.tell(admission.headers(), instead_of="x-ratelimit-")
            try:
                await self._take_part(call, caller, client)
            finally:
                if (tokens := call.entry.reckon()) is not None:
                    admission.charge(tokens.prompt + tokens.completion)

    async def _take_part(self, call: Call, caller: Caller, client: Client) -> None:
        entry = call.entry
        self._budget.deposit(monotonic())
        expected = cost(entry.prompt_estimate, self._slots.expected_output(call.model, call.output_limit))
        with self._slots.order(caller, call.model, call.thread, expected, entry.id) as order:
            heartbeat = _heart(call, client, order, self._slots) if call.keepalive_s else None
            try:
                await self._serve(call, client, order)
            finally:
                entry.queue_s, entry.affinity = order.waited_s, order.affinity
                if heartbeat is not None:
                    heartbeat.stop()

    async def _serve(self, call: Call, client: Client, order: Order) -> None:
        failures: list[ProviderFailed] = []
        held: Held | None = None
        while not order.tried or (self._slots.hopeful(order) and self._budget.take(monotonic())):
            try:
                provider = self._slots.take(order) or await self._slots.acquire(order)
            except NoCandidate:
                await self._watch.settled()  # another config may have brought somebody else
                if self._slots.hopeful(order):
                    continue
                break
            except GatewayError:
                if held is None and all(isinstance(failure, ProviderWarming) for failure in failures):
                    raise
                break  # there is a better answer than that the queue is full
            call.entry.queue_s = order.waited_s
            call.entry.sent(provider.name, monotonic())
            order.tried.add(provider.name)
            try:
                answer = await self._attempt(provider, call, client, order)
            except ProviderFailed as failure:
                self._learn(provider, failure, order)
                if client.answered:
                    raise GatewayError(UPSTREAM_ERROR, failure.message) from failure
                self._give_up_on(call, order, provider, failure.reason)
                failures.append(failure)
                continue
            finally:
                self._slots.end_attempt(order, provider)
            if answer is None:
                return
            self._give_up_on(call, order, provider, f"status_{answer.status}")
            held = answer
        if held is None:
            raise _none_left(call.model, failures)
        self._pass_on(held, call, client)

    async def _attempt(self, provider: Provider, call: Call, client: Client, order: Order) -> Held | None:
        """Ask one provider. Gives its answer back unsent if another candidate may have a better one."""
        with await self._upstream.open(provider, call.outgoing) as exchange:
            status = exchange.status
            if status >= _NO_ANSWER:
                self._take_nothing_for(call, order)
            if status in _REFUSED:
                raise ProviderRefused(
                    provider.name, f"refused the gateway's credentials ({status}); its api_key needs a look."
                )
            if status >= 500:
                raise await self._errored(provider, exchange)
            self._slots.answered(order, provider)
            if status in _TRY_ELSEWHERE and self._slots.hopeful(order):
                body, whole = await exchange.read(_HELD_BYTES, _QUOTED_S)
                if exchange.failure is not None:
                    raise exchange.failure
                if whole:
                    own_lines = _own_lines(provider.name, order.affinity, order.waited_s)
                    return Held(provider, status, exchange.reason, exchange.head, body, own_lines)
            call.outgoing.body = b""
            meter = Meter(sse=exchange.head.is_events, coding=exchange.head.coding)
            if status < _NO_ANSWER:
                call.entry.meter = meter
            try:
                if client.started and not (status == 200 and exchange.head.is_sse):
                    body, _ = await exchange.read(_QUOTED_BYTES, _QUOTED_S)
                    meter.feed(body)
                    raise _too_late(provider, status, exchange.head, body)
                _begin(call, client, exchange, _own_lines(provider.name, order.affinity, order.waited_s))
                client.watch = meter.feed
                if exchange.complete:
                    client.feed(exchange.whole(), final=True)
                else:
                    with client.holding(exchange):
                        await exchange.relay(client, provider.config.timeouts.idle)
            finally:
                self._settle(call, order)
        if not provider.breaker.spotless:
            provider.breaker.succeeded()
        return None

    async def _errored(self, provider: Provider, exchange: Exchange) -> ProviderFailed:
        body, _ = await exchange.read(_QUOTED_BYTES, _QUOTED_S)
        body = _readable(exchange.head, body)
        said = quote(body, provider.secrets)
        trouble = f"answered {exchange.status}{': ' if said else '.'}{said}"
        if is_loading(exchange.status, body):
            return ProviderWarming(provider.name, trouble)
        return ProviderErrored(provider.name, trouble, supported=exchange.status != _UNSUPPORTED)

    def _settle(self, call: Call, order: Order) -> None:
        """Let an answer that has ended cost what it has turned out to cost."""
        if (tokens := call.entry.reckon()) is not None:
            self._slots.settle(order, tokens)
            if call.prompt_bytes and not tokens.estimated:
                self._prompts.learn(call.model, call.prompt_bytes, tokens.prompt)

    def _give_up_on(self, call: Call, order: Order, provider: Provider, reason: str) -> None:
        """Look for another provider: this one has served nothing."""
        self._take_nothing_for(call, order)
        self._metrics.failed_over(provider.name, reason)

    def _take_nothing_for(self, call: Call, order: Order) -> None:
        """Let an attempt that brought no answer cost nothing, also if the client leaves now."""
        self._slots.refund(order)
        call.entry.came_back()

    def _pass_on(self, held: Held, call: Call, client: Client) -> None:
        call.entry.provider = held.provider.name
        call.entry.first_byte_at = monotonic()
        if client.started:
            raise _too_late(held.provider, held.status, held.head, held.body)
        client.begin(held.status, held.reason, held.head, held.own_lines)
        client.feed(held.body, final=True)

    def _learn(self, provider: Provider, failure: ProviderFailed, order: Order) -> None:
        """Draw what a failure of real traffic says about the provider."""
        events.warning(
            "exchange failed", provider=provider.name, reason=failure.reason, trouble=failure.message
        )
        match failure:
            case ProviderRefused():
                provider.refuse_credentials("it refuses the gateway's credentials", now=_now())
            case ProviderWarming():
                provider.warm("it is loading its model")
                self._watch.look_now(provider)
                self._slots.allow_again(order, provider)
            case ProviderErrored(supported=False):
                pass
            case ProviderUnreachable() | ProviderTimedOut(wait="connect") if provider.config.wake is not None:
                provider.fell_asleep(failure.message)
                self._watch.look_now(provider)
                self._slots.allow_again(order, provider)
            case ProviderUnreachable() | ProviderTimedOut(wait="connect"):
                self._watch.look_now(provider)
                provider.fared_badly(now=_now())
            case _:
                provider.fared_badly(now=_now())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _begin(call: Call, client: Client, exchange: Exchange, own_lines: bytes) -> None:
    """Begin the client's answer, or go on with the stream that a keepalive has begun."""
    if client.started:
        client.resume_stream()
    else:
        client.begin(exchange.status, exchange.reason, exchange.head, own_lines)
    call.entry.first_byte_at = monotonic()


@lru_cache(256)  # most have not waited at all
def _own_lines(provider: str, affinity: str, waited_s: float) -> bytes:
    line = f"x-gateway-affinity: {affinity}\r\n" if affinity else ""
    return f"x-gateway-provider: {provider}\r\n{line}x-gateway-queue-wait: {waited_s:.3f}\r\n".encode()


def _heart(call: Call, client: Client, order: Order, slots: Slots) -> Heartbeat:
    """Keep a stream from being silent for too long, from the request to the end of the answer."""

    def words() -> str:
        position = slots.position(order)
        return f"waiting, position {position} in the queue" if position else "waiting for the model"

    return Heartbeat(client, call.keepalive_s, words)


def _too_late(provider: Provider, status: int, head: AnswerHead, body: bytes) -> GatewayError:
    """Say what a status would have said, had a keepalive not committed the answer to be a stream."""
    said = quote(_readable(head, body), provider.secrets)
    return GatewayError(
        UPSTREAM_ERROR, f"Provider '{provider.name}' answered {status}{': ' if said else '.'}{said}"
    )


def _readable(head: AnswerHead, body: bytes) -> bytes:
    """Give the plain text of a body that is to be quoted; the client may have asked for a compressed one."""
    if head.coding in (b"", b"identity"):
        return body
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, _QUOTED_BYTES)
    except zlib.error:
        return b""


def _none_left(model: str, failures: Sequence[ProviderFailed]) -> GatewayError:
    if not failures:
        return no_provider(model)
    told = dict.fromkeys(failure.message.rstrip(".") for failure in failures)  # a model may load for long
    return GatewayError(UPSTREAM_ERROR, "; ".join(told) + ".")
