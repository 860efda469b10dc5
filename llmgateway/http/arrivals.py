"""New connections, accepted as they come, and begun in an order.

uvloop accepts one connection in each turn of its loop. Where turns are long, or many come, the others wait
with the system until it has no room for more, and then for seconds. So whenever one is accepted, those that
wait behind it are as well. To accept one costs little; to begin to serve it costs more. Rules:

- Of many only some are begun in a turn, and those last that the doorstep says can wait.
- In a rush most of these are refused before anything is made of them, and closed. A few are begun, and
  refused where they stand, as to refuse a client that keeps its connection costs less in the long run.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from llmgateway.http.doorstep import Doorstep

ACCEPTED_AT_ONCE: Final = 256
BEGUN_AT_ONCE: Final = 64
LATER_AT_ONCE: Final = 32
"""Of those that can wait, so many are begun in a turn as well, while none are refused."""
BEGUN_IN_A_RUSH: Final = 16
REFUSED_AT_ONCE: Final = 128
"""Each of these is a few milliseconds' work."""
STANDING_BY_ALWAYS: Final = 64
"""So many are accepted where there is room for nobody, as they have to be told."""

MakeProtocol = Callable[[], asyncio.Protocol]
Connect = Callable[[MakeProtocol, socket.socket], Coroutine[Any, Any, object]]
"""Begins to serve a connection that was accepted, as `connect_accepted_socket` of a loop does."""


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
        self._soon: deque[socket.socket] = deque()
        self._later: deque[tuple[socket.socket, str]] = deque()
        self._next_turn: asyncio.Handle | None = None
        self._connecting: set[asyncio.Task[object]] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make it."""
        self.take_in()
        return self._meet()

    @property
    def standing_by(self) -> int:
        """How many are accepted, and not begun."""
        return len(self._soon) + len(self._later)

    def take_in(self, most: int = ACCEPTED_AT_ONCE) -> None:
        """Accept those that wait, so that none of them is lost where nobody listens any more."""
        room = max(STANDING_BY_ALWAYS, self._doorstep.crowd.room) - self.standing_by
        for _ in range(min(most, room)):
            try:
                one, _address = self._listening.accept()
            except (
                OSError
            ):  # there are no more; or something is wrong, which the listener will find, and tell
                break
            target = self._doorstep.can_wait(one) if self._legible else None
            if target is None:
                self._soon.append(one)
            else:
                self._later.append((one, target))
        if self._next_turn is None:
            self._begin_some()

    def _begin_some(self) -> None:
        pressure, later = self._doorstep.pressure, self._later
        if later:
            pressure.arriving(len(later))
        for _ in range(min(BEGUN_AT_ONCE, len(self._soon))):
            self._begin(self._soon.popleft(), self._meet)
        for _ in range(min(BEGUN_IN_A_RUSH if pressure.rush else LATER_AT_ONCE, len(later))):
            self._begin(later.popleft()[0], self._meet)
        for _ in range(min(REFUSED_AT_ONCE, len(later)) if pressure.rush else 0):
            one, target = later.popleft()
            if not self._doorstep.refuses(one, target):
                self._begin(one, self._make)  # which was counted
        self._next_turn = self._loop.call_soon(self._begin_some) if self.standing_by else None

    def _begin(self, one: socket.socket, make: MakeProtocol) -> None:
        task = asyncio.ensure_future(self._connect(make, one))
        self._connecting.add(task)
        task.add_done_callback(partial(self._connected, one))

    def _connected(self, one: socket.socket, task: asyncio.Task[object]) -> None:
        self._connecting.discard(task)
        if task.cancelled() or task.exception():  # it has left, or its handshake failed: nothing to tell of
            one.close()

    def close(self) -> None:
        """Give up those that are not connected yet."""
        if self._next_turn is not None:
            self._next_turn.cancel()
        for one in (*self._soon, *(each for each, _ in self._later)):
            one.close()
        for task in self._connecting:
            task.cancel()
