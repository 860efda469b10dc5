"""The requests of the API that are being served, and how they are ended before their time.

Whoever is cut off is told why, as the stream's last event or as the answer; the same words go to the books.
"""

import asyncio
from collections.abc import Callable

from llmgateway.books.entry import Entry
from llmgateway.errors import GatewayError
from llmgateway.http.client import Client


class Running:
    """Knows who is being served, and ends it when asked to."""

    def __init__(self) -> None:
        self._entries: dict[Client, Entry] = {}
        self._cut: dict[Client, GatewayError] = {}
        self._all_cut: GatewayError | None = None
        self._none: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, client: Client, entry: Entry) -> None:
        """Note that a request is served from now on."""
        self._entries[client] = entry
        if self._all_cut is not None:
            self._cut[client] = self._all_cut

    def over(self, client: Client) -> None:
        """Note that it is served no more."""
        del self._entries[client]
        if self._cut:
            self._cut.pop(client, None)
        if self._none is not None and not self._entries:
            self._none.set()

    def why_cut(self, client: Client) -> GatewayError | None:
        """Tell with which words a request was cut off; None if nobody here did before it had ended."""
        return self._cut.get(client)

    def end(self, error: GatewayError, which: Callable[[Entry], bool]) -> int:
        """End requests and tell their clients this error; tells how many those were."""
        chosen = [client for client, entry in self._entries.items() if not client.ended and which(entry)]
        for client in chosen:
            self._cut[client] = error
            _end(client, error)
        return len(chosen)

    def end_all(self, error: GatewayError) -> None:
        """End every request, also those that are yet to begin."""
        self._all_cut = error
        for client in list(self._entries):
            if not client.ended:
                self._cut[client] = error
            _end(client, error)

    async def none(self) -> None:
        """Wait until nothing is being served."""
        self._none = asyncio.Event()
        if self._entries:
            await self._none.wait()


def _end(client: Client, error: GatewayError) -> None:
    """Tell a client, and cancel whoever serves it; what is no HTTP any more ends by itself, being told."""
    client.fail(error)
    if client.farewell is None:
        client.cancel()
