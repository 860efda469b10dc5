"""What an answer teaches of its provider: that it has not the path it was asked for.

Such an answer is looked at, and passes on as it came.
"""

from typing import Final

from llmgateway.fleet.provider import Provider
from llmgateway.http.exchange import Exchange
from llmgateway.servers.refusals import NOT_FOUND, REFUSALS, scope_of
from llmgateway.traffic.answers import QUOTED_BYTES, readable
from llmgateway.traffic.line import Order

_LOOK_S: Final = 2.0


async def says_it_has_not(
    provider: Provider, path: str, exchange: Exchange, order: Order, now: float
) -> bool:
    """Tell whether an answer says that its provider has not the path, and let the provider know it."""
    status = exchange.status
    if status not in REFUSALS or not order.endpoint:
        return False
    if order.only and status == NOT_FOUND:
        return False  # it may be what it was to go on from that is not found
    body, whole = await exchange.read(QUOTED_BYTES, _LOOK_S)
    if not whole:
        return False
    found = provider.find(order.model)
    names = {order.model} if found is None else {order.model, found.id, found.told_as}
    scope = scope_of(status, readable(exchange.head, body), path, filter(None, names))
    if scope is None:
        return False
    provider.said_it_lacks(order.endpoint, order.model, every=scope == "server", now=now)
    return True
