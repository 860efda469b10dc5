"""Answers that come when a keepalive has committed the gateway to a stream of events already.

- A stream is known by its bytes, whatever its label; a compressed one is decompressed on the way, within a
  bound.
- A whole answer becomes events where the dialect knows of events that say the same, as for OpenAI's chats and
  completions. Else it is told as an error, in the words of the server.
"""

import zlib
from typing import Final

from llmgateway.api.inflate import Inflater, TooMuch
from llmgateway.api.usage import Meter
from llmgateway.errors import UPSTREAM_ERROR, GatewayError, ProviderBroke
from llmgateway.fleet.provider import Provider
from llmgateway.http.client import Client
from llmgateway.http.exchange import Exchange, Sink
from llmgateway.servers.kind import quote
from llmgateway.traffic.answers import QUOTED_BYTES, readable, too_late

_QUOTED_S: Final = 2.0
_TOLD_BYTES: Final = 16
_WHOLE_BYTES: Final = 4 << 20
_NO_CONTENT: Final = (204, 205)
_ALLOWANCE: Final = 64
"""How many bytes a compressed one may bring, beside what each answer may have."""


class Unpacked:
    """A sink that passes on in plain what it is fed compressed."""

    def __init__(self, sink: Sink, exchange: Exchange, coding: bytes) -> None:
        self._sink = sink
        self._exchange = exchange
        self._coding = coding.decode("latin-1")
        self._inflater = Inflater(coding, allowance=_ALLOWANCE)
        self.broken = False

    @property
    def full(self) -> bool:
        """True if the client wants no more for now."""
        return self._sink.full

    def feed(self, data: bytes, *, final: bool) -> None:
        """Take the next piece."""
        if self.broken:
            return
        plain: list[bytes] = []
        try:
            plain.extend(self._inflater.inflate(data))
        except (zlib.error, TooMuch):
            self.broken, final = True, False
        self._sink.feed(b"".join(plain), final=final)
        if self.broken:
            self._exchange.broke(self._trouble)

    def feed_chunk(self, data: bytes, framed: bytes, now: float) -> None:
        """Take the next piece, which came as one chunk."""
        self.feed(data, final=False)

    @property
    def _trouble(self) -> str:
        return f"sent an answer that is no {self._coding}, or far too much of it."

    def check(self) -> None:
        """Raise ProviderBroke if what came could not be decompressed."""
        if self.broken:
            raise ProviderBroke(self._exchange.provider, self._trouble)


async def fit(provider: Provider, exchange: Exchange, client: Client, meter: Meter) -> Sink | bytes:
    """Make an answer fit into the stream that has begun.

    Gives what to pass it on by, or the events that say the same as all of it. Raises GatewayError if that
    cannot be; `meter` has seen what came then.
    """
    head, status = exchange.head, exchange.status
    succeeded = 200 <= status < 300 and status not in _NO_CONTENT
    packed = head.coding not in (b"", b"identity")
    if succeeded and packed and head.coding not in Inflater.CODINGS:
        coding = quote(head.coding)
        words = (
            f"Provider '{provider.name}' answered in '{coding}', which cannot be read; it was asked not to."
        )
        raise GatewayError(UPSTREAM_ERROR, words)
    stream = client.dialect.stream
    if succeeded and head.framing is not stream:
        body, _ = await exchange.read(_TOLD_BYTES, _QUOTED_S)
        succeeded = bool(stream.begins(readable(head, body)))
        if not succeeded and exchange.failure is None:
            limit_s = provider.config.timeouts.idle
            body, whole = await exchange.read(_WHOLE_BYTES, limit_s)
            events = client.dialect.as_events(readable(head, body, _WHOLE_BYTES)) if whole else None
            if events is not None:
                meter.feed(body)
                return events
    if not succeeded:
        body, _ = await exchange.read(QUOTED_BYTES, _QUOTED_S)
        meter.feed(body)
        raise too_late(provider, status, head, body)
    return Unpacked(client, exchange, head.coding) if packed else client
