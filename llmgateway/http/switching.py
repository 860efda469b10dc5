"""Connections that change to another protocol, a WebSocket's, until their end: a provider's, above all.

Up to the answer it is a connection like any other, and any answer but 101 is an answer. After that its bytes
are heard by an ear as they come. Rules:

- A 101 must fit what was asked; else it is no valid answer.
- Bounded: what comes before somebody listens. Then nothing more is read.
- It serves once, and goes back to no pool.
"""

from collections.abc import Callable
from typing import Protocol

from llmgateway.http.connection import Connection
from llmgateway.http.exchange import BUFFER_BYTES
from llmgateway.http.handshake import SWITCHING, fault_of
from llmgateway.http.headers import answer_head


class Ear(Protocol):
    """Hears what a provider says in the other protocol."""

    def from_provider(self, data: bytes) -> None:
        """Hear what just came."""

    def provider_left(self) -> None:
        """Hear that nothing more will come, nor go."""

    def hold_client(self) -> None:
        """Hear that the provider does not read as fast as it is written to."""

    def release_client(self) -> None:
        """Hear that the provider reads on."""


class Switching(Connection):
    """One connection that changes its protocol, if the provider grants it."""

    __slots__ = ("_accept", "_ear", "_early", "_early_bytes", "switched")

    def __init__(self, accept: bytes, on_lost: Callable[[Connection], None]) -> None:
        """Expect to be granted the change with this Sec-WebSocket-Accept."""
        super().__init__(Connection.abort, on_lost)
        self.switched = False
        """True once the other protocol is spoken."""
        self._accept = accept
        self._ear: Ear | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0

    # -- for whoever relays

    def listen(self, ear: Ear) -> None:
        """Let an ear hear all that comes, and what has come before."""
        self._ear = ear
        early, self._early = b"".join(self._early), []
        if early:
            ear.from_provider(early)
        self.resume_reading()
        if self._transport is None:
            ear.provider_left()

    def write(self, data: bytes) -> None:
        """Send bytes as they are; to one that has left nothing is sent."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Hand on what came, in whichever protocol."""
        if self._ear is not None:
            self._ear.from_provider(data)
        elif self.switched:
            self._keep(data)
        else:
            super().data_received(data)
            self._part_from_http()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever listens."""
        super().connection_lost(exc)
        if self._ear is not None:
            self._ear.provider_left()

    def pause_writing(self) -> None:
        """Hold the client back."""
        if self._ear is not None:
            self._ear.hold_client()

    def resume_writing(self) -> None:
        """Let the client go on."""
        if self._ear is not None:
            self._ear.release_client()

    def _part_from_http(self) -> None:
        if self.switched and self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.switched()

    def _keep(self, data: bytes) -> None:
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > BUFFER_BYTES:
            self.pause_reading()

    # -- the answer

    def on_message_complete(self) -> None:
        """Judge a 101; any other answer ends as it would elsewhere."""
        exchange = self.exchange
        if self._status != SWITCHING or self._head_done or self._fault or exchange is None:
            super().on_message_complete()
            return
        fields = tuple(self._fields)
        self._fault = fault_of(fields, self._accept)
        if not self._fault:
            self.switched = True
            exchange.status, exchange.reason, exchange.head = SWITCHING, b"", answer_head(fields)

    def _behind_head(self, rest: bytes) -> None:
        if self.switched and rest:
            self._keep(rest)

    def _count_barren(self, size: int) -> None:
        if not self.switched:
            super()._count_barren(size)


class InPlaceOfParser:
    """What stands in aiohttp's connection for a parser of the other protocol, and hands on all that comes."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Hand on what came; there is more to come, and nothing is left over."""
        self._hear(data)
        return False, b""

    def feed_eof(self) -> None:
        """Learn that nothing more comes; whoever serves the client is cancelled then."""
