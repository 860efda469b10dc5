"""How far the event loop is behind with its work, and whether new requests are turned away for that.

Rules:

- A moment is nothing: only who is behind again and again, for seconds, begins to turn requests away.
- From then on they are turned away while the loop is behind, and no longer: that is looked at many times a
  second, so that what was let in is answered, and everything else of the gateway stays prompt.
- It ends when nobody had to be turned away for a while.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.log import Events

events = Events("app")

LOOK_EVERY_S: Final = 0.25
BEHIND_S: Final = (
    0.5  # a thousand requests that come at once take it 0.2 s, and nobody is to be turned away for that
)
LOOKS: Final = 3
"""So many in a row have to find it behind, over so long at least."""
BEHIND_FOR_S: Final = 2.0
LOOK_CLOSELY_EVERY_S: Final = 0.02
TARGET_S: Final = 0.03
"""How far it may be behind where it is looked at closely."""
CALM_S: Final = 5.0
SMOOTH: Final = 0.2
RETRY_S: Final = 2


class Pressure:
    """What the loop's lag is, and what follows from it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lag_s = 0.0
        """How late the loop is with what was due, smoothed."""
        self.sheds = False
        """True while new requests are turned away."""
        self.shed = 0
        """How many were."""
        self._clock = clock
        self._behind = 0
        self._behind_since = -math.inf
        self._watched_closely = False
        self._calm_since = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def refusal(self) -> GatewayError:
        """Turn a request away."""
        self.shed += 1
        words = "The gateway has more requests than it can carry."
        return GatewayError(OVERLOADED, words, (("Retry-After", str(RETRY_S)),))

    def look(self, late_s: float, *, now: float) -> None:
        """Learn how late the loop is."""
        self.lag_s += SMOOTH * (late_s - self.lag_s)
        if self._watched_closely:
            self.sheds = late_s > TARGET_S
            if self.sheds:
                self._calm_since = now
            elif now - self._calm_since >= CALM_S:
                self._watched_closely, self._behind, self._behind_since = False, 0, now
                events.info("requests are no longer turned away", shed=self.shed)
            return
        if late_s < BEHIND_S:
            self._behind, self._behind_since = 0, now
            return
        self._behind += 1
        if self._behind >= LOOKS and now - self._behind_since >= BEHIND_FOR_S:
            self._watched_closely = self.sheds = True
            self._calm_since = now
            events.warning("too many requests: they are turned away while others are late", lag_s=self.lag_s)

    @contextmanager
    def watching(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Look at a loop from time to time."""
        self._look_later(loop)
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._clock() + (LOOK_CLOSELY_EVERY_S if self._watched_closely else LOOK_EVERY_S)
        self._timer = loop.call_at(self._due, self._look_at, loop)

    def _look_at(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock()
        self.look(max(0.0, now - self._due), now=now)
        self._look_later(loop)
