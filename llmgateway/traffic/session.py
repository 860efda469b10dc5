"""A WebSocket session, from the provider's 101 to its end, and what is written down of it.

It holds its slot for as long as it is open. What it has cost is what the provider's events tell, added up.
A browser takes no answer that chooses none of the subprotocols which it offers: where the provider chooses
none, the gateway chooses the one that was meant for it, the key's.
"""

import asyncio
import re
from collections.abc import Callable
from time import monotonic
from typing import Final

from llmgateway.errors import UPSTREAM_ERROR, GatewayError, ProviderFailed
from llmgateway.fleet.provider import Provider
from llmgateway.http.exchange import Exchange
from llmgateway.http.handshake import SWITCH, SWITCHING
from llmgateway.http.switching import Switching
from llmgateway.http.tunnel import Tunnel
from llmgateway.traffic.naming import own_lines_of
from llmgateway.traffic.overheard import Overheard
from llmgateway.traffic.slots import Slots
from llmgateway.traffic.story import Story

_CHOICE: Final = re.compile(rb"(?mi)^sec-websocket-protocol:")


async def converse(
    provider: Provider,
    exchange: Exchange,
    story: Story,
    *,
    slots: Slots,
    learn: Callable[[Provider, ProviderFailed, Story], None],
) -> None:
    """Join a client and a provider that has granted a WebSocket, until one of them leaves.

    Raises ProviderFailed; and GatewayError if the gateway has ended it, which the client has been told.
    `learn` is told of a failure that the client has answered by leaving.
    """
    call, client, entry = story.call, story.client, story.call.entry
    line = exchange.wire
    assert isinstance(line, Switching)
    ear = Overheard(exchange.head.lines)
    idle_s = provider.config.timeouts.idle
    tunnel = Tunnel(
        client,
        line,
        provider.name,
        idle_s=idle_s,
        ping_s=call.ping_s,
        listen=ear.hear,
        check=call.check,
    )
    granted = own_lines_of(provider, story) + SWITCH
    if call.key_protocol and not _CHOICE.search(exchange.head.lines):
        granted += b"Sec-WebSocket-Protocol: %b\r\n" % call.key_protocol
    client.begin(SWITCHING, b"", exchange.head, granted)
    client.feed(b"", final=False)
    entry.first_byte_at = monotonic()
    try:
        await tunnel.run()
    except GatewayError as error:
        entry.outcome = _outcome_of(error)
        raise
    except asyncio.CancelledError:
        if tunnel.failure is not None:
            learn(provider, tunnel.failure, story)
        if (told := tunnel.parting) is not None:
            entry.outcome, entry.why = _outcome_of(told), told.brief
        elif tunnel.closed:
            entry.outcome = "ok"
        raise
    finally:
        entry.bytes_in, entry.tokens = tunnel.bytes_in, ear.tokens
        if (tokens := entry.reckon()) is not None:
            slots.correct(story.order, tokens)


def _outcome_of(error: GatewayError) -> str:
    return "truncated" if error.kind is UPSTREAM_ERROR else error.kind.type
