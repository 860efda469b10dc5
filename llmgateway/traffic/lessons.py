"""What an answer that is no success teaches: that its provider has failed, or that it has not the path.

A 404, 405, 429 or 501 is looked at, and passes on as it came.
"""

from enum import IntEnum
from typing import Final

from llmgateway.errors import (
    ProviderErrored,
    ProviderFailed,
    ProviderLooped,
    ProviderRefused,
    ProviderWarming,
)
from llmgateway.fleet.provider import Provider
from llmgateway.http.exchange import Exchange
from llmgateway.http.via import is_loop
from llmgateway.servers.kind import quote
from llmgateway.servers.known import is_loading
from llmgateway.servers.refusals import NOT_FOUND, REFUSALS, scope_of
from llmgateway.traffic.answers import LOOK_S, QUOTED_BYTES, UNAUTHORIZED, about_the_key, readable
from llmgateway.traffic.call import Call
from llmgateway.traffic.order import Order

UNSUPPORTED: Final = 501  # says nothing bad about the provider's health
_TRY_ELSEWHERE: Final = (NOT_FOUND, 429, UNSUPPORTED)
_FORBIDDEN: Final = 403
_NO_METHOD: Final = 405  # where no model says who should have the path, another may have it
_NO_ANSWER: Final = 300
_OK: Final = 200
_BEGINNING_BYTES: Final = 64


def is_refusal(status: int, call: Call) -> bool:
    """Tell whether a status may say that the gateway's credentials are not good.

    Servers built on ASGI (vLLM and many others) answer 403 to a WebSocket at any path that they have not.
    """
    return status == UNAUTHORIZED or (status == _FORBIDDEN and not call.outgoing.accept)


class Worth(IntEnum):
    """How much an answer says, so that of several the client gets one that says the most."""

    FINAL = 0
    """It is the client's, and nobody else is asked."""
    LITTLE = 1
    """Its provider has not what was asked for."""
    SOME = 2
    """It is about the model, or the provider has too much to do."""


async def worth_of(exchange: Exchange, provider: Provider, call: Call, order: Order, now: float) -> Worth:
    """Tell what an answer is worth, and let its provider know what it says of it."""
    status = exchange.status
    if status < _NO_ANSWER or status == _FORBIDDEN:
        return Worth.LITTLE
    if await _says_it_has_not(provider, call.outgoing.path, exchange, order, now):
        return Worth.LITTLE
    if status not in _TRY_ELSEWHERE and (status != _NO_METHOD or call.model):
        return Worth.FINAL
    return Worth.LITTLE if status == UNSUPPORTED else Worth.SOME


async def is_disguised(exchange: Exchange, provider: Provider, order: Order, now: float) -> bool:
    """Tell whether an answer only looks as if an endpoint had worked for the first time, and note whether."""
    repertoire, disowns = provider.repertoire, provider.kind.disowns
    if disowns and order.endpoint and exchange.status == _OK and exchange.head.framing is None:
        body, _ = await exchange.read(_BEGINNING_BYTES, LOOK_S)
        if disowns in readable(exchange.head, body)[:_BEGINNING_BYTES]:
            provider.said_it_lacks(order.endpoint, order.model, every=True, now=now)
            return True
    repertoire.worked.add(order.endpoint)
    return False


async def _says_it_has_not(
    provider: Provider, path: str, exchange: Exchange, order: Order, now: float
) -> bool:
    status = exchange.status
    if status not in REFUSALS or not order.endpoint:
        return False
    if order.only and status == NOT_FOUND:
        return False  # it may be what it was to go on from that is not found
    body, whole = await exchange.read(QUOTED_BYTES, LOOK_S)
    said = readable(exchange.head, body)
    if not whole or len(body) > QUOTED_BYTES or (body and not said):
        return False
    found = provider.find(order.model)
    names = {order.model} if found is None else {order.model, found.id, found.told_as}
    scope = scope_of(status, said, path, filter(None, names))
    if scope is None:
        return False
    provider.said_it_lacks(order.endpoint, order.model, every=scope == "server", now=now)
    return True


async def failure_told(provider: Provider, exchange: Exchange, call: Call) -> ProviderFailed:
    """Say what a refusal or a 5xx tells of its provider; it is not for the client."""
    status = exchange.status
    body, _ = await exchange.read(QUOTED_BYTES, LOOK_S)
    body = readable(exchange.head, body)
    said = quote(body, provider.secrets)
    brief = f"answered {status}"
    trouble = f"{brief}{': ' if said else '.'}{said}"
    if is_refusal(status, call):
        trouble = trouble.rstrip(". ") + about_the_key(provider, status)
        return ProviderRefused(provider.name, trouble, brief)
    if is_loop(status, body):
        return ProviderLooped(provider.name, trouble, brief)
    if is_loading(provider.kind, status, body):
        return ProviderWarming(provider.name, trouble, brief)
    return ProviderErrored(provider.name, trouble, brief)
