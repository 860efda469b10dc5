"""Signs of life in a silent stream, so that nothing in between takes it for dead."""

import asyncio
from collections.abc import Callable

from llmgateway.http.client import Client


class Heartbeat:
    """Says something on a stream that has been silent for too long, so that nothing in between cuts it."""

    def __init__(self, client: Client, every_s: float, words: Callable[[], str]) -> None:
        self._client = client
        self._every_s = every_s
        self._words = words
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer = self._loop.call_at(self._began + every_s, self._beat)

    def _beat(self) -> None:
        due = max(self._client.last_write, self._began) + self._every_s
        now = self._loop.time()
        if now >= due:
            self._client.say(self._words())
            due = now + self._every_s
        self._timer = self._loop.call_at(due, self._beat)

    def stop(self) -> None:
        """Say nothing more."""
        self._timer.cancel()
