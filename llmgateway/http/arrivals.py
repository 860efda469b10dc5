"""New connections, accepted as they come, and begun in an order.

uvloop accepts one connection in each turn of its loop. Where turns are long, or many come, the others wait
with the system until it has no room for more, and then for seconds. So whenever one is accepted, those that
wait behind it are as well. To accept one costs little; to begin to serve it costs more. Rules:

- Of many only some are begun in a turn: those first that ask for what cannot wait. What can wait goes to the
  lobby. Of those that have said nothing yet the oldest ones are begun. The one that uvloop has accepted is
  begun in any case.
- Who says something in the meantime is looked at again, all of them at the cost of one call of the system.
- Of those that are refused in the lobby nothing is made, and they are closed.
"""

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import islice
from typing import Any, Final

from llmgateway.http.doorstep import Doorstep, Sight, Verdict
from llmgateway.log import Events

events = Events("downstream")

ACCEPTED_AT_ONCE: Final = 256
"""Two milliseconds' work."""
BEGUN_AT_ONCE: Final = 64
SILENT_AT_ONCE: Final = 8
"""Of those that have said nothing, so many are begun in a turn as well."""
STANDING_BY_ALWAYS: Final = 64
"""So many are accepted where there is room for nobody, as they have to be told."""
BACKLOG: Final = 4_096
"""So many may wait with the system."""

MakeProtocol = Callable[[], asyncio.Protocol]
Connect = Callable[[MakeProtocol, socket.socket], Coroutine[Any, Any, tuple[asyncio.BaseTransport, object]]]
"""Begins to serve a connection that was accepted, as `connect_accepted_socket` of a loop does."""


class Arrival:
    """A connection that is accepted, and not begun, since `at`; or since something has come on it."""

    __slots__ = ("_arrivals", "address", "at", "socket")

    def __init__(self, arrivals: "Arrivals", one: socket.socket, address: object, at: float) -> None:
        self._arrivals = arrivals
        self.socket = one
        self.address = address
        """The peer's, as sockets tell it."""
        self.at = at

    def begin(self) -> None:
        """Begin to serve it."""
        self._arrivals.begin(self)

    def refuse(self) -> None:
        """Refuse what it asks, unless it is let in after all."""
        self._arrivals.refuse(self)

    def give_up(self) -> None:
        """Close it."""
        self._arrivals.drop(self)


class Arrivals:
    """Makes the protocol of a connection that a listener has accepted, and accepts others itself.

    `make` makes the one that serves it, `let_in` one whose first request has waited. Where nothing can be
    read yet, as in TLS, connections are not `legible`.
    """

    def __init__(
        self,
        listening: socket.socket,
        doorstep: Doorstep,
        make: MakeProtocol,
        let_in: MakeProtocol,
        connect: Connect,
        *,
        legible: bool = True,
    ) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._doorstep = doorstep
        self._let_in = let_in
        self._meet = partial(doorstep.meet, make, let_in)
        self._meet_again = partial(doorstep.meet, let_in, let_in)
        self._connect = connect
        self._legible = legible
        self._loop = asyncio.get_running_loop()
        self._soon: deque[Arrival] = deque()
        self._silent = Silent() if legible and hasattr(select, "epoll") else None
        if self._silent is not None:
            self._loop.add_reader(self._silent.epoll, self._hear)
        self._next_turn: asyncio.Handle | None = None
        self._connecting: set[asyncio.Task[tuple[asyncio.BaseTransport, object]]] = set()
        self._closed = False

    def __call__(self) -> asyncio.Protocol:
        """Make it."""
        try:
            self.take_in()
        except Exception:  # uvloop would listen no more
            events.exception("accepting connections failed")
        return self._meet()

    @property
    def standing_by(self) -> int:
        """How many are accepted, and neither begun nor in the lobby."""
        return len(self._soon) + (len(self._silent) if self._silent is not None else 0)

    def take_in(self) -> None:
        """Accept of those that wait as many as there is room for, and begin with some."""
        crowd = self._doorstep.crowd
        self._accept(min(ACCEPTED_AT_ONCE, max(STANDING_BY_ALWAYS - crowd.expected, crowd.room)))
        if self._next_turn is None:
            self._begin_some()

    def take_in_all(self) -> None:
        """Accept all that wait, so that none is lost where nobody listens any more.

        All are begun but those in the lobby.
        """
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
            one.setblocking(False)
            self._sort(Arrival(self, one, address, now))

    def _sort(self, arrival: Arrival) -> None:
        """Have one wait where it belongs, by what it has said."""
        sight = self._doorstep.sight(arrival.socket) if self._legible else Sight.OTHER
        if sight is Sight.GONE:
            self.drop(arrival)
        elif sight is Sight.CAN_WAIT:
            self._doorstep.lobby.add(arrival)
        elif sight is not Sight.SILENT or self._silent is None or not self._silent.add(arrival):
            self._soon.append(arrival)

    def _hear(self) -> None:
        """Look again at those that have said something."""
        assert self._silent is not None
        now = self._loop.time()
        for arrival in self._silent.no_longer(ACCEPTED_AT_ONCE):
            arrival.at = now
            self._sort(arrival)
        if self._soon and self._next_turn is None:
            self._begin_some()

    def _begin_some(self) -> None:
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        try:
            for _ in range(min(BEGUN_AT_ONCE, len(self._soon))):
                self._begin(self._soon.popleft(), self._meet)
            if self._silent is not None:
                for arrival in self._silent.oldest(SILENT_AT_ONCE):
                    self._begin(arrival, self._meet)
        finally:
            if self.standing_by:
                self._next_turn = self._loop.call_soon(self._begin_some)

    def refuse(self, arrival: Arrival) -> None:
        """Refuse what a connection asks that has waited, unless it is let in after all."""
        verdict = self._doorstep.verdict(arrival.socket, arrival.address)
        if verdict is Verdict.REFUSED:
            self.drop(arrival)
        else:
            self._begin(arrival, self._let_in if verdict is Verdict.LET_IN else self._meet_again)

    def begin(self, arrival: Arrival) -> None:
        """Begin to serve a connection that has waited."""
        self._begin(arrival, self._meet_again)

    def _begin(self, arrival: Arrival, make: MakeProtocol) -> None:
        task = asyncio.ensure_future(self._connect(make, arrival.socket))
        self._connecting.add(task)
        task.add_done_callback(partial(self._connected, arrival.socket))

    def drop(self, arrival: Arrival) -> None:
        """Close a connection that was not begun."""
        arrival.socket.close()
        self._doorstep.crowd.expected -= 1

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
        if self._closed:
            return
        self._closed = True
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._doorstep.lobby.clear()
        for arrival in self._soon:
            self.drop(arrival)
        self._soon.clear()
        if self._silent is not None:
            self._loop.remove_reader(self._silent.epoll)
            for arrival in self._silent.oldest(len(self._silent)):
                self.drop(arrival)
            self._silent.epoll.close()
        if not self._legible:  # all else is connected in the next turn, and would be left half made
            for task in self._connecting:
                task.cancel()


class Silent:
    """Those that have said nothing yet, heard through one descriptor. Linux only."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        """Readable when one of them has said something, or has left."""
        self._them: dict[int, Arrival] = {}

    def __len__(self) -> int:
        return len(self._them)

    def add(self, arrival: Arrival) -> bool:
        """Listen to one; tells whether the system lets us."""
        number = arrival.socket.fileno()
        try:
            self.epoll.register(number, select.EPOLLIN)
        except OSError:  # there is a bound on them
            return False
        self._them[number] = arrival
        return True

    def no_longer(self, most: int) -> list[Arrival]:
        """Take out those that have said something, up to so many."""
        return [self._take(number) for number, _ in self.epoll.poll(0, most)]

    def oldest(self, most: int) -> list[Arrival]:
        """Take out those that have been here for longest, up to so many."""
        return [self._take(number) for number in list(islice(self._them, most))]

    def _take(self, number: int) -> Arrival:
        self.epoll.unregister(number)
        return self._them.pop(number)
