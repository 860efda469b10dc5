"""Requests that can wait, in line, unread: on connections that are begun, or on such that are not.

To understand a request costs several times what it costs to put it here, and to begin with a connection costs
as much again. So a thousand that come in one turn of the event loop do not make that turn a long one, and
what cannot wait, such as the gateway's own pages, is behind a few of them, and not behind all. Rules:

- Whoever comes first begins first, a few in a turn. On connections that are begun nobody waits while no more
  than these come.
- In a rush most are refused where they stand. A few are begun, and refused in there, as to refuse a client
  that keeps its connection costs less in the long run.
- What is long does not wait, so that little is held here.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

BEGUN_AT_ONCE: Final = 16
"""Two milliseconds' work; with what comes by itself a turn takes some times as long."""
BEGUN_IN_A_RUSH: Final = 4
REFUSED_AT_ONCE: Final = 32
MOST_HELD: Final = 65_536
"""So many bytes of a request wait."""


class Pressure(Protocol):
    """Whoever knows how many come."""

    rush: bool
    """True while there are more than can be served."""

    def arriving(self, many: int, late_s: float) -> None:
        """Learn how many requests wait unread, and for how long the first has."""


class Calm:
    """Where fewer come."""

    rush = False

    def arriving(self, many: int, late_s: float) -> None:
        """Know that they are few."""


class Waiting(Protocol):
    """One that waits."""

    at: float
    """Since when, by the loop's clock."""

    def begin(self) -> None:
        """Serve it."""

    def refuse(self) -> None:
        """Refuse it, unless it is let in after all."""

    def give_up(self) -> None:
        """Forget it: it is over."""


class OpenConnection(Protocol):
    """A connection that is begun."""

    held: "Held | None"
    """What waits of it."""

    def hear(self, data: bytes) -> None:
        """Take in what came."""

    def refuse(self, data: bytes) -> bool:
        """Refuse a request, unless it is let in; tells whether it was refused."""


class Held:
    """What came on a connection, from the moment `at` on; nothing any more once that is done with."""

    __slots__ = ("_connection", "_data", "at")

    def __init__(self, connection: OpenConnection, data: bytes, at: float) -> None:
        self._connection = connection
        self._data = data
        self.at = at

    def add(self, data: bytes) -> None:
        """Take in what else has come; what is long does not wait."""
        self._data += data
        if len(self._data) > MOST_HELD:
            self.begin()

    def begin(self) -> None:
        """Have it heard."""
        if self._connection.held is self:
            data, self._data = self._data, b""
            self._connection.held = None
            self._connection.hear(data)

    def refuse(self) -> None:
        """Refuse it, unless it is let in."""
        if self._connection.held is self and self._connection.refuse(self._data):
            self._connection.held = None
        else:
            self.begin()

    def give_up(self) -> None:
        """Leave it to its connection, which ends."""


class Mark:
    """One that serves nobody, and tells when it is its turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.at = loop.time()
        self.reached: asyncio.Future[None] = loop.create_future()

    def begin(self) -> None:
        """Tell so, unless nobody wants to know any more."""
        if not self.reached.done():
            self.reached.set_result(None)

    refuse = give_up = begin


class Lobby:
    """Where they wait."""

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self._line: deque[Waiting] = deque()
        self._left = BEGUN_AT_ONCE
        self._next_turn: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._line)

    def lets_pass(self) -> bool:
        """Count a request that comes; tells whether it need not wait."""
        if self._line or not self._left:
            return False
        self._left -= 1
        self._have_a_turn()
        return True

    def hold(self, connection: OpenConnection, data: bytes, now: float) -> None:
        """Have a connection wait with what came on it."""
        connection.held = Held(connection, data, now)
        self.add(connection.held)

    def add(self, one: Waiting) -> None:
        """Have one wait behind all others."""
        self._line.append(one)
        self._have_a_turn()

    def _have_a_turn(self) -> None:
        if self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._next_turn, self._left = None, BEGUN_AT_ONCE
        if self._line:
            try:
                self._go_on(asyncio.get_running_loop().time())
            finally:
                self._have_a_turn()

    def _go_on(self, now: float) -> None:
        line, pressure = self._line, self._pressure
        pressure.arriving(len(line), now - line[0].at)
        for _ in range(min(len(line), BEGUN_IN_A_RUSH if pressure.rush else BEGUN_AT_ONCE)):
            line.popleft().begin()
        for _ in range(min(len(line), REFUSED_AT_ONCE) if pressure.rush else 0):
            line.popleft().refuse()

    def begin_all(self) -> None:
        """Let nobody wait any longer."""
        while self._line:
            self._line.popleft().begin()

    async def all_before(self) -> None:
        """Wait until nobody waits any more of those that do now."""
        if self._line:
            mark = Mark(asyncio.get_running_loop())
            self.add(mark)
            await mark.reached

    def clear(self) -> None:
        """Give up all that wait."""
        while self._line:
            self._line.popleft().give_up()
