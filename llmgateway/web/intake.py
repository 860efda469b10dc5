"""How many requests are begun in one turn of the event loop; who is one too many waits for another turn.

So turns are short: what comes by itself, such as the answers of providers, and what must not wait, such as
the gateway's own pages, is behind a few beginnings, and not behind all. Rules:

- Whoever comes first begins first.
- Where many wait, nobody else may: there is a bound.
- To be the only one costs a look at the clock. That of uvloop stands still for the whole of a turn, and for a
  millisecond at least; asyncio's own goes on, so nobody waits there.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Final

AT_A_TURN: Final = 16
"""A few milliseconds' work, and more than an ordinary machine does in the shortest turn."""
BEGIN_EVERY_S: Final = 0.001
"""So many at least of those that wait, however long everything else makes a turn."""
MOST_WAITING: Final = 1_500
"""More than come at once by themselves; an ordinary machine has begun them within a second."""


class Intake:
    """Those who begin, and those who wait for it. `clock` is the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._most = self._left = AT_A_TURN
        self._all_wait = False
        self._began_at = self._turn_at = -math.inf
        self._line: deque[tuple[asyncio.Future[None], float]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def full(self) -> bool:
        """True while nobody else may wait."""
        return len(self._line) >= MOST_WAITING

    def late_s(self, now: float) -> float:
        """Tell for how long the first has waited."""
        return now - self._line[0][1] if self._line else 0.0

    def have_all_wait(self, all_wait: bool) -> None:
        """Let nobody begin without a turn, or only those who are too many."""
        self._all_wait = all_wait
        self._most = 0 if all_wait or self._line else AT_A_TURN

    def begins(self) -> bool:
        """Count a request that begins; False if it has to wait for a turn."""
        now = self._clock()
        if now != self._began_at:
            self._began_at, self._left = now, self._most
        if not self._left:
            return False
        self._left -= 1
        return True

    def turn(self) -> asyncio.Future[None]:
        """Give the turn to wait for."""
        now = self._clock()
        if not self._line:
            self._loop.call_soon(self._next_turn)
            self._turn_at = now
        self._most = self._left = 0
        turn = self._loop.create_future()
        self._line.append((turn, now))
        return turn

    def _next_turn(self) -> None:
        before, self._turn_at = self._turn_at, self._clock()
        left = max(AT_A_TURN, int((self._turn_at - before) / BEGIN_EVERY_S))
        while left and self._line:
            turn, _ = self._line.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                left -= 1
        if self._line:
            self._loop.call_soon(self._next_turn)
        else:
            self.have_all_wait(self._all_wait)
