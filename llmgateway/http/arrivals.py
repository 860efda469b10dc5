"""New connections, accepted as they come.

uvloop accepts one connection in each turn of its loop. Where turns are long, or many come, the others wait
with the system until it has no room for more, and then for seconds. So whenever one is accepted, those that
wait behind it are as well.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

MOST_AT_ONCE: Final = 128
"""Some milliseconds' work."""

MakeProtocol = Callable[[], asyncio.Protocol]
Connect = Callable[[MakeProtocol, socket.socket], Coroutine[Any, Any, object]]
"""Begins to serve a connection that was accepted, as `connect_accepted_socket` of a loop does."""


class Arrivals:
    """Makes the protocol of a connection that a listener has accepted, and accepts others itself."""

    def __init__(self, make: MakeProtocol, listening: socket.socket, connect: Connect) -> None:
        listening.setblocking(False)
        self._make = make
        self._listening = listening
        self._connect = connect
        self._connecting: set[asyncio.Task[object]] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make it."""
        self.take_in()
        return self._make()

    def take_in(self) -> None:
        """Accept those that wait, so that none of them is lost where nobody listens any more."""
        for _ in range(MOST_AT_ONCE):
            try:
                one, _address = self._listening.accept()
            except (
                OSError
            ):  # there are no more; or something is wrong, which the listener will find, and tell
                break
            task = asyncio.ensure_future(self._connect(self._make, one))
            self._connecting.add(task)
            task.add_done_callback(partial(self._connected, one))

    def _connected(self, one: socket.socket, task: asyncio.Task[object]) -> None:
        self._connecting.discard(task)
        if task.cancelled() or task.exception():  # it has left, or its handshake failed: nothing to tell of
            one.close()

    def close(self) -> None:
        """Give up those that are not connected yet."""
        for task in self._connecting:
            task.cancel()
