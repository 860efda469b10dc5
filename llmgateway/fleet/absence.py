"""What is said where nobody serves a model, or nobody who does has the endpoint that is wanted.

A name that no provider of the caller has ever had gets the words of the contract, and no more. Where one has,
the words go on: who that is, and since when it is away; and when it is worth another try. Nothing is told of
providers that the caller may not know of.
"""

import math
import time

from llmgateway.access.keys import Caller
from llmgateway.api.endpoints import BY_NAME
from llmgateway.errors import NO_PROVIDER, ErrorKind, GatewayError, no_provider, no_provider_that_has
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider


def nobody_serves(
    model: str, fleet: Fleet, caller: Caller, endpoint: str = "", *, wall: float
) -> GatewayError:
    """Say that nobody serves a model to a caller at an endpoint; `wall` is epoch seconds."""
    having = [p for p in fleet.usable_by(caller) if p.find(model)]
    able = [p for p in having if p.has_endpoint(endpoint, model)]
    lacking = len(able) < len(having) and (not able or any(p.online for p in having))
    unknown = no_provider_that_has(BY_NAME[endpoint].path, model) if lacking else no_provider(model)
    known = [p for p in able if not p.online]
    if not known:
        return unknown
    last = max(known, key=lambda provider: (provider.has_served, provider.since))
    had = "It was last served by" if last.has_served else "It is configured for"
    return _away(last, f"{unknown.message} {had} {_whereabouts(last, wall)}", fleet)


def keeper_serves_not(keeper: str, model: str, fleet: Fleet, *, wall: float) -> GatewayError:
    """Say that the one who keeps a response is away, or does not serve the model that is to go on from it."""
    provider = fleet.providers.get(keeper)
    if provider is None or provider.online:
        words = f"{no_provider(model).message} The response that it goes on from is kept by {keeper}."
        return GatewayError(NO_PROVIDER, words)
    return _away(provider, f"The response is kept by {_whereabouts(provider, wall)}", fleet)


def _away(provider: Provider, words: str, fleet: Fleet) -> GatewayError:
    kind = ErrorKind(fleet.unavailable_status, NO_PROVIDER.type)
    retry_after = str(max(1, math.ceil(provider.health.interval)))  # it will have been looked at by then
    return GatewayError(kind, words, (("Retry-After", retry_after),))


def _whereabouts(provider: Provider, wall: float) -> str:
    since = time.localtime(provider.since)
    is_of_today = since[:3] == time.localtime(wall)[:3]
    moment = time.strftime("%H:%M" if is_of_today else "%Y-%m-%d %H:%M", since)
    return f"{provider.name}, which is {provider.state.value} since {moment}."
