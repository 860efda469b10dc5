"""How far the gateway is behind with its work, and whether new requests are turned away for that.

Rules:

- A moment is nothing, nor are many that come at once: only who is behind again and again, for seconds, begins
  to turn requests away; or who has many waiting, and no fewer after a while.
- That is a rush. It is looked at many times a second, and so many requests are let in between two looks that
  the gateway is not behind: half as many where it is, more by a quarter where all were taken. So what was let
  in is answered, and everything else of the gateway stays prompt.
- Some are always let in: a gateway that is late with nothing but turning away would serve nobody.
- The rush is over when the gateway was not behind for a while. Where more come than it can carry it is behind
  again and again, as more and more are let in.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.log import Events
from llmgateway.web.intake import MOST_WAITING, Intake

events = Events("app")

LOOK_EVERY_S: Final = 0.25
BEHIND_S: Final = (
    0.5  # a thousand requests that come at once take it 0.3 s, and nobody is to be turned away for that
)
LOOKS: Final = 3
"""So many in a row have to find it behind, over so long at least."""
BEHIND_FOR_S: Final = 2.0
LOOK_CLOSELY_EVERY_S: Final = 0.02
TARGET_S: Final = 0.03
"""How far it may be behind in a rush."""
LEAST: Final = 4
"""So many are let in between two looks, whatever there is to do."""
OVER: Final = 2
"""So many times what is let in may begin: it may have been let in before the last look."""
MOST_ARRIVING: Final = 2 * MOST_WAITING
"""Requests that wait unread, with those that wait for a turn."""
CALM_S: Final = 5.0
SMOOTH: Final = 0.2
RETRY_S: Final = 2


def too_many() -> GatewayError:
    """Say that the gateway has more to do than it can."""
    words = "The gateway has more requests than it can carry."
    return GatewayError(OVERLOADED, words, (("Retry-After", str(RETRY_S)),))


class Pressure:
    """How late the gateway is, and what follows from it."""

    def __init__(self, intake: Intake, clock: Callable[[], float]) -> None:
        self.intake = intake
        self.lag_s = 0.0
        """How late the loop is with what was due, or with requests that wait to be begun, smoothed."""
        self.rush = False
        """True while so many come that some are turned away."""
        self.sheds = False
        """True while none may begin, until the next look."""
        self.shed = 0
        """How many were."""
        self._clock = clock
        self._arriving_s = 0.0
        self._many, self._many_at = math.inf, -math.inf
        self._behind = 0
        self._behind_since = -math.inf
        self._quota = self._left = LEAST
        self._begun = 0
        self._calm_since = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def refusal(self) -> GatewayError:
        """Turn a request away."""
        self.shed += 1
        return too_many()

    def turn(self) -> asyncio.Future[None]:
        """Give a request that may not begin the turn it has to wait for. Raises GatewayError."""
        if self.rush:
            self._begun += 1
            if self._begun >= OVER * self._quota:
                self.sheds = True
        elif self.intake.full:
            self._rush_from(self._clock())
        if self.intake.full:
            raise self.refusal()
        return self.intake.turn()

    def arriving(self, many: int, late_s: float) -> None:
        """Learn how many requests wait unread, and for how long the first has."""
        self._arriving_s = max(self._arriving_s, late_s)
        now = self._clock()
        if self._grows(many + self.intake.waiting, now) and not self.rush:
            self._rush_from(now)

    def _grows(self, waiting: int, now: float) -> bool:
        """Tell whether many wait, and no fewer than a while ago."""
        if waiting < MOST_ARRIVING:
            self._many, self._many_at = math.inf, -math.inf
            return False
        if now - self._many_at < LOOK_EVERY_S:
            return False
        before, self._many, self._many_at = self._many, waiting, now
        return waiting >= before

    def lets_in(self) -> bool:
        """Tell whether one more may be let in before the next look, which counts it."""
        self._left -= 1
        return self._left >= 0

    def look(self, late_s: float, *, now: float) -> None:
        """Learn how late the loop is."""
        late_s = max(late_s, self.intake.late_s(now), self._arriving_s)
        self._arriving_s = 0.0
        self.lag_s += SMOOTH * (late_s - self.lag_s)
        if self.rush:
            self._look_closely(late_s, now)
        elif late_s < BEHIND_S:
            self._behind, self._behind_since = 0, now
        else:
            self._behind += 1
            if self._behind >= LOOKS and now - self._behind_since >= BEHIND_FOR_S:
                self._rush_from(now)

    def _look_closely(self, late_s: float, now: float) -> None:
        if late_s > TARGET_S:
            self._quota, self._calm_since = max(LEAST, self._quota // 2), now
        elif now - self._calm_since >= CALM_S:
            self.rush, self._behind, self._behind_since = False, 0, now
            self.intake.have_all_wait(False)
            events.info("requests are no longer turned away", shed=self.shed)
        elif self._left <= 0 or self.sheds:
            self._quota += 1 + self._quota // 4
        self.sheds, self._left, self._begun = False, self._quota, 0

    def _rush_from(self, now: float) -> None:
        self.rush = self.sheds = True
        self.intake.have_all_wait(True)  # and be counted
        self._quota, self._left = LEAST, 0
        self._calm_since = now
        events.warning("too many requests: they are turned away while others are late", lag_s=self.lag_s)
        if self._timer is not None:
            self._look_later()

    @contextmanager
    def watching(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Look at a loop from time to time."""
        self._loop = loop
        self._look_later()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._clock() + (LOOK_CLOSELY_EVERY_S if self.rush else LOOK_EVERY_S)
        self._timer = self._loop.call_at(self._due, self._look_at)

    def _look_at(self) -> None:
        now = self._clock()
        self.look(max(0.0, now - self._due), now=now)
        self._look_later()
