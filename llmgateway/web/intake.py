"""How many requests are begun in one turn of the event loop; who is one too many waits for another turn.

So turns are short: what comes by itself, such as the answers of providers, and what must not wait, such as
the gateway's own pages, is behind a few beginnings, and not behind all. Rules:

- Whoever comes first begins first.
- Where many wait, nobody else may: there is a bound.
- To be the only one costs a callback in the next turn.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

AT_A_TURN: Final = 16
"""A few milliseconds' work."""
BEGIN_EVERY_S: Final = 0.001
"""So many at least of those that wait, however long everything else makes a turn."""
MOST_WAITING: Final = 1_500
"""More than come at once by themselves; an ordinary machine has begun them within a second."""


class Intake:
    """Those who begin, and those who wait for it. `clock` is the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._left = AT_A_TURN
        self._all_wait = False
        self._has_turn = False
        self._turn_at = 0.0
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
        self._left = 0 if all_wait or self._line else AT_A_TURN

    def begins(self) -> bool:
        """Count a request that begins; False if it has to wait for a turn."""
        if not self._left:
            return False
        self._left -= 1
        self._have_a_turn()
        return True

    def turn(self) -> asyncio.Future[None]:
        """Give the turn to wait for."""
        now = self._clock()
        if not self._line:
            self._turn_at = now
        self._left = 0
        self._have_a_turn()
        turn = self._loop.create_future()
        self._line.append((turn, now))
        return turn

    def _have_a_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._has_turn = False
        if self._line:
            before, self._turn_at = self._turn_at, self._clock()
            self._begin(max(AT_A_TURN, int((self._turn_at - before) / BEGIN_EVERY_S)))
        if self._line:
            self._have_a_turn()
        else:
            self.have_all_wait(self._all_wait)

    def _begin(self, many: int) -> None:
        while many and self._line:
            turn, _ = self._line.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                many -= 1
