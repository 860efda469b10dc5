"""The story of a forwarded request: peek, lease, send, relay; failover before the first byte.

`forward` is the path of every request. A provider's answer is shown to the client only once its first byte is
there, so whatever fails before that can be tried on another candidate.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from llmgateway.discovery import is_loading, quote
from llmgateway.downstream import Client
from llmgateway.errors import (
    UPSTREAM_ERROR,
    GatewayError,
    ProviderErrored,
    ProviderFailed,
    ProviderRefused,
    ProviderTimedOut,
    ProviderUnreachable,
)
from llmgateway.exchange import Exchange
from llmgateway.fleet import Fleet, Provider
from llmgateway.headers import Field, answer_head, value_of
from llmgateway.health import Watch
from llmgateway.keys import Caller
from llmgateway.log import Events
from llmgateway.router import candidates, choose, no_provider
from llmgateway.upstream import Outgoing, Upstream

events = Events("proxy")

_TRY_ELSEWHERE: Final = (404, 429)
_REFUSED: Final = (401, 403)
_QUOTED_BYTES: Final = 64 * 1024
_QUOTED_S: Final = 2.0
_HELD_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Call:
    """One request to be forwarded, and how it went."""

    model: str
    outgoing: Outgoing
    provider: str = ""
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A whole 404 or 429, kept while other candidates are asked."""

    provider: str
    status: int
    reason: bytes
    fields: Sequence[Field]
    body: bytes


class Proxy:
    """Carries calls to providers and their answers back."""

    def __init__(self, fleet: Fleet, upstream: Upstream, watch: Watch, chance: Random) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._watch = watch
        self._chance = chance

    async def forward(self, call: Call, caller: Caller, client: Client) -> None:
        """Carry one call to a provider and its answer back, byte for byte. Raises GatewayError.

        An error raised after the client has been sent bytes is to be told as the end of the stream.
        """
        caller.require(call.model)
        if not candidates(self._fleet, caller, call.model):
            await self._watch.first_round.wait()
        tried: set[str] = set()
        failures: list[ProviderFailed] = []
        held: Held | None = None
        while among := candidates(self._fleet, caller, call.model, tried):
            provider = choose(among, caller, self._chance)
            tried.add(provider.name)
            call.provider = provider.name
            call.attempts += 1
            try:
                with provider.lease():
                    held = await self._attempt(provider, call, client, is_last=len(among) == 1) or held
                if client.started:
                    return
            except ProviderFailed as failure:
                self._learn(provider, failure)
                if client.started:
                    raise GatewayError(UPSTREAM_ERROR, failure.message) from failure
                failures.append(failure)
        if held is None:
            raise _none_left(call.model, failures)
        call.provider = held.provider
        client.begin(held.status, held.reason, answer_head(held.fields), held.provider)
        client.feed(held.body, final=True)

    async def _attempt(self, provider: Provider, call: Call, client: Client, *, is_last: bool) -> Held | None:
        """Ask one provider. Gives its answer back unsent if another candidate may have a better one."""
        async with self._upstream.exchange(provider, call.outgoing) as exchange:
            if exchange.status in _REFUSED:
                raise ProviderRefused(
                    provider.name,
                    f"refused the gateway's credentials ({exchange.status}); its api_key needs a look.",
                )
            if exchange.status >= 500:
                raise await self._errored(provider, exchange)
            if exchange.status in _TRY_ELSEWHERE and not is_last:
                body, whole = await exchange.read(_HELD_BYTES, _QUOTED_S)
                if exchange.failure is not None:
                    raise exchange.failure
                if whole:
                    return Held(provider.name, exchange.status, exchange.reason, exchange.fields, body)
            call.outgoing.body = b""
            await self._relay(provider, exchange, client)
        return None

    async def _errored(self, provider: Provider, exchange: Exchange) -> ProviderErrored:
        body, _ = await exchange.read(_QUOTED_BYTES, _QUOTED_S)
        if is_loading(exchange.status, body):
            provider.warm("it is loading its model")
            self._watch.look_now(provider)
        compressed = value_of(exchange.fields, b"content-encoding") not in (None, b"identity")
        said = "" if compressed else quote(body, provider.secrets)
        return ProviderErrored(provider.name, f"answered {exchange.status}{': ' if said else '.'}{said}")

    async def _relay(self, provider: Provider, exchange: Exchange, client: Client) -> None:
        client.begin(exchange.status, exchange.reason, answer_head(exchange.fields), provider.name)
        client.hold(exchange)
        try:
            await exchange.relay(client, provider.config.timeouts.idle)
        finally:
            client.hold(None)

    def _learn(self, provider: Provider, failure: ProviderFailed) -> None:
        """Draw what a failure of real traffic says about the provider's health."""
        events.warning(
            "exchange failed", provider=provider.name, reason=failure.reason, trouble=failure.message
        )
        match failure:
            case ProviderRefused():
                provider.refuse_credentials("it refuses the gateway's credentials", now=time.monotonic())
            case ProviderUnreachable() | ProviderTimedOut(wait="connect"):
                self._watch.look_now(provider)


def _none_left(model: str, failures: Sequence[ProviderFailed]) -> GatewayError:
    if not failures:
        return no_provider(model)
    return GatewayError(UPSTREAM_ERROR, "; ".join(failure.message.rstrip(".") for failure in failures) + ".")
