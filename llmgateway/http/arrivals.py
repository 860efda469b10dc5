"""New connections, accepted as they come, and begun in an order.

uvloop accepts one connection in each turn of its loop. Where turns are long, or many come, the others wait
with the system until it has no room for more, and then for seconds. So whenever one is accepted, those that
wait behind it are as well. To accept one costs little; to begin to serve it costs more. Rules:

- Of many only some are begun in a turn, and those last that the doorstep says can wait; but the one that
  uvloop has accepted is begun in any case.
- In a rush most of these are refused before anything is made of them, and closed. A few are begun, and
  refused where they stand, as to refuse a client that keeps its connection costs less in the long run.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, NamedTuple

from llmgateway.http.doorstep import Doorstep, Verdict

ACCEPTED_AT_ONCE: Final = 256
BEGUN_AT_ONCE: Final = 64
LATER_AT_ONCE: Final = 8
"""Of those that can wait, so many are begun in a turn as well, while none are refused."""
BEGUN_IN_A_RUSH: Final = 4
REFUSED_AT_ONCE: Final = 32
"""Each of these is a millisecond's work; with what comes by itself a turn takes some times as long."""
STANDING_BY_ALWAYS: Final = 64
"""So many are accepted where there is room for nobody, as they have to be told."""
BACKLOG: Final = 4_096
"""So many may wait with the system."""

MakeProtocol = Callable[[], asyncio.Protocol]
Connect = Callable[[MakeProtocol, socket.socket], Coroutine[Any, Any, tuple[asyncio.BaseTransport, object]]]
"""Begins to serve a connection that was accepted, as `connect_accepted_socket` of a loop does."""


class Arrival(NamedTuple):
    """A connection that is accepted, and not begun."""

    socket: socket.socket
    address: object
    """The peer's, as sockets tell it."""
    at: float
    """When, by the loop's clock."""


class Arrivals:
    """Makes the protocol of a connection that a listener has accepted, and accepts others itself.

    `make` makes the one that serves it. Where nothing can be read yet, as in TLS, connections are not
    `legible`.
    """

    def __init__(
        self,
        listening: socket.socket,
        doorstep: Doorstep,
        make: MakeProtocol,
        connect: Connect,
        *,
        legible: bool = True,
    ) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._doorstep = doorstep
        self._make = make
        self._meet = partial(doorstep.meet, make)
        self._connect = connect
        self._legible = legible
        self._loop = asyncio.get_running_loop()
        self._soon: deque[Arrival] = deque()
        self._later: deque[Arrival] = deque()
        self._next_turn: asyncio.Handle | None = None
        self._connecting: set[asyncio.Task[tuple[asyncio.BaseTransport, object]]] = set()
        self._closed = False

    def __call__(self) -> asyncio.Protocol:
        """Make it."""
        self.take_in()
        return self._meet()

    @property
    def standing_by(self) -> int:
        """How many are accepted, and not begun."""
        return len(self._soon) + len(self._later)

    def take_in(self) -> None:
        """Accept of those that wait as many as there is room for, and begin with some."""
        room = max(STANDING_BY_ALWAYS - self.standing_by, self._doorstep.crowd.room)
        self._accept(min(ACCEPTED_AT_ONCE, room))
        if self._next_turn is None:
            self._begin_some()

    def take_in_all(self) -> None:
        """Accept all that wait, and begin with all, so that none is lost where nobody listens any more."""
        self._accept(BACKLOG)
        while self.standing_by:
            self._begin_some()

    def _accept(self, most: int) -> None:
        now = self._loop.time()
        for _ in range(most):
            try:
                one, address = self._listening.accept()
            except OSError:  # there are no more; or something is wrong: the listener will find it, and tell
                break
            self._doorstep.crowd.expected += 1
            can_wait = self._legible and self._doorstep.can_wait(one)
            (self._later if can_wait else self._soon).append(Arrival(one, address, now))

    def _begin_some(self) -> None:
        pressure, later = self._doorstep.pressure, self._later
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        try:
            if later:
                pressure.arriving(len(later), self._loop.time() - later[0].at)
            for _ in range(min(BEGUN_AT_ONCE, len(self._soon))):
                self._begin(self._soon.popleft(), self._meet)
            for _ in range(min(BEGUN_IN_A_RUSH if pressure.rush else LATER_AT_ONCE, len(later))):
                self._begin(later.popleft(), self._meet)
            for _ in range(min(REFUSED_AT_ONCE, len(later)) if pressure.rush else 0):
                self._refuse(later.popleft())
        finally:
            if self.standing_by:
                self._next_turn = self._loop.call_soon(self._begin_some)

    def _refuse(self, arrival: Arrival) -> None:
        """Refuse what a connection asks, unless it is let in after all."""
        verdict = self._doorstep.verdict(arrival.socket, arrival.address)
        if verdict is Verdict.REFUSED:
            arrival.socket.close()
            self._doorstep.crowd.expected -= 1
        else:
            self._begin(arrival, self._make if verdict is Verdict.LET_IN else self._meet)

    def _begin(self, arrival: Arrival, make: MakeProtocol) -> None:
        task = asyncio.ensure_future(self._connect(make, arrival.socket))
        self._connecting.add(task)
        task.add_done_callback(partial(self._connected, arrival.socket))

    def _connected(
        self, one: socket.socket, task: asyncio.Task[tuple[asyncio.BaseTransport, object]]
    ) -> None:
        self._connecting.discard(task)
        self._doorstep.crowd.expected -= 1
        if task.cancelled() or task.exception():  # it has left, or its handshake failed: nothing to tell of
            one.close()
        elif self._closed:
            task.result()[0].close()

    async def all_connected(self) -> None:
        """Wait for those that are begun now; a handshake is not waited for."""
        if self._legible and self._connecting:
            await asyncio.wait(self._connecting)

    def close(self) -> None:
        """Give up those that are not connected yet."""
        self._closed = True
        if self._next_turn is not None:
            self._next_turn.cancel()
        for one, *_ in (*self._soon, *self._later):
            one.close()
        self._doorstep.crowd.expected -= self.standing_by
        self._soon.clear()
        self._later.clear()
        if not self._legible:  # all else is connected in the next turn, and would be left half made
            for task in self._connecting:
                task.cancel()
