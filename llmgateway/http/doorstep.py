"""Requests that come while more come than can be served: refused before anything is made of them.

To take in a connection, and to understand a request, costs several times what a refusal does; that time is
for those that are let in. Rules:

- Only a request that is here as a whole, and plainly nothing but itself, is refused here. Everything else
  goes the ordinary way, and is served there, or refused.
- A connection on which such a request waits, of which nothing has been made, ends with the refusal, as to
  make something of it is most of what a refusal costs.
- Where nobody is refused, what asks for the same can wait (see lobby).
- Who has too many connections is told so, and is not let in in the place of somebody else.
- A new connection stands here only while it is refused. It counts in the crowd like any other.
"""

import asyncio
import enum
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from llmgateway.http.client import plain_error
from llmgateway.http.crowd import Crowd
from llmgateway.http.lobby import MOST_HELD, Lobby, OpenConnection, Pressure

LOOK_AGAIN_S: Final = 2.0
SPREAD: Final = 256
"""So many that came at once are looked at again at different times."""
MOST_TO_LOOK_AT: Final = 65_536
"""A request of that length is not refused here."""
MOST_OF_A_LINE: Final = 2_048
READS: Final = 4
"""So often what has come is taken in before the answer."""
_LINE: Final = re.compile(rb"POST ([!-~]{1,2000}) HTTP/1\.[01]\r\n")
_PLAIN: Final = re.compile(rb"POST ([!-~]{1,2000}) HTTP/1\.1\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r\n")
_KEPT: Final = b"\r\nconnection: keep-alive\r\n"
_SPECIAL: Final = (
    *(b"\ncontent-length", b"\ntransfer-encoding", b"\nexpect", b"\nupgrade"),  # its end is elsewhere
    *(b"\nconnection", b"\norigin", b"\nx-request-id"),  # it is to be told more than others
    *(b"\n ", b"\n\t"),  # lines that are folded
)


class Sight(enum.Enum):
    """What a connection is seen to ask, of which nothing has been made."""

    SILENT = enum.auto()
    """Nothing yet."""
    GONE = enum.auto()
    """Nothing: it has left."""
    CAN_WAIT = enum.auto()
    """A thing that can wait."""
    OTHER = enum.auto()


class Verdict(enum.Enum):
    """What is to become of a connection of which nothing has been made."""

    REFUSED = enum.auto()
    """It has its answer, and is to be closed."""
    LET_IN = enum.auto()
    """It is served, and was counted."""
    UNCLEAR = enum.auto()
    """It goes the ordinary way."""


class Doorstep:
    """Where requests are refused.

    `can_wait` knows the targets for which that is so, and `shed` gives the answer to a request for one of
    them, or None if it is let in.
    """

    def __init__(
        self,
        pressure: Pressure,
        can_wait: Callable[[str], bool],
        shed: Callable[[str], bytes | None],
        crowd: Crowd,
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self.pressure = pressure
        self.lobby = Lobby(pressure)
        self.look_again_s = look_again_s
        """How long a new connection may stand here at least, unless it asks, and is refused."""
        self.crowd = crowd
        self.standing: set[Newcomer] = set()
        self._can_wait = can_wait
        self._looks = 0
        self._here = memoryview(bytearray(MOST_TO_LOOK_AT))
        self._shed = shed

    def answer_to(self, data: bytes) -> bytes | None:
        """Refuse what came first on a connection, or behind an answer; None if that is let in."""
        target = self._target_of(data) if self.pressure.rush else None
        return None if target is None else self._shed(target)

    def _target_of(self, data: bytes) -> str | None:
        """Give the target of a request that may be refused here; None if it may not."""
        target = target_of(data)
        return target if target is not None and self._can_wait(target) else None

    def stops(self, connection: OpenConnection, data: bytes, now: float) -> bool:
        """Refuse what came first behind an answer, or have it wait in the lobby; tells whether it did."""
        if self.pressure.rush:
            return connection.refuse(data)
        if self.lobby.lets_pass() or len(data) > MOST_HELD or not self.can_wait(data):
            return False
        self.lobby.hold(connection, data, now)
        return True

    def sight(self, one: socket.socket) -> Sight:
        """Look at what has come on a connection of which nothing was made."""
        try:
            size = one.recv_into(self._here, MOST_OF_A_LINE, socket.MSG_PEEK)
        except BlockingIOError:
            return Sight.SILENT
        except OSError:
            return Sight.GONE
        if not size:
            return Sight.GONE
        return Sight.CAN_WAIT if self._waits(_LINE.match(self._here, 0, size)) else Sight.OTHER

    def can_wait(self, data: bytes) -> bool:
        """Tell by its first line whether what comes first on a connection, or behind an answer, can wait."""
        return self._waits(_LINE.match(data))

    def _waits(self, line: re.Match[bytes] | None) -> bool:
        return line is not None and self._can_wait(line[1].decode())

    def verdict(self, one: socket.socket, address: object) -> Verdict:
        """Refuse what is plain on such a connection, unless it is let in."""
        try:
            size = one.recv_into(self._here, MOST_TO_LOOK_AT, socket.MSG_PEEK)
        except OSError:
            return Verdict.UNCLEAR
        target = self._target_of(bytes(self._here[:size])) if size < MOST_TO_LOOK_AT else None
        if target is None:
            return Verdict.UNCLEAR
        excess = self.crowd.excess(self.name_of(address))
        answer = plain_error(self.crowd.refusal(excess)) if excess else self._closing(target)
        if answer is None:
            return Verdict.LET_IN
        with suppress(OSError):  # it may have left
            for _ in range(READS):  # what is not read when it is closed would take the answer away
                if one.recv_into(self._here) < MOST_TO_LOOK_AT:
                    break
            one.send(answer)
        return Verdict.REFUSED

    def name_of(self, peer: object) -> str:
        """Give the name under which a connection counts in the crowd, by its peer as sockets tell it."""
        return self.crowd.name(peer[0] if isinstance(peer, tuple) else "")

    def _closing(self, target: str) -> bytes | None:
        answer = self._shed(target)
        return answer and answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

    def meet(
        self, make: Callable[[], asyncio.Protocol], let_in: Callable[[], asyncio.Protocol]
    ) -> asyncio.Protocol:
        """Make the protocol of a new connection: the one that serves it, unless it has to be let in first."""
        return Newcomer(self, let_in) if self.pressure.rush else make()

    def patience_s(self) -> float:
        """Tell for how long the next one may stand here; those that came at once are let in one by one."""
        self._looks = (self._looks + 1) % SPREAD
        return self.look_again_s * (1 + self._looks / SPREAD)

    def clear(self) -> None:
        """Send away who still stands here, or waits."""
        self.lobby.clear()
        for newcomer in tuple(self.standing):
            newcomer.transport.abort()


def target_of(data: bytes) -> str | None:
    """Give the target of a POST that is here as a whole; None if there is anything special about it."""
    begin, end = _PLAIN.match(data), data.find(b"\r\n\r\n") + 2
    if begin is None or end < begin.end():
        return None
    head = data[begin.end() - 2 : end].lower().replace(_KEPT, b"\r\n", 1)
    length = _LENGTH.search(head)
    if length is None or len(data) != end + 2 + int(length[1]):
        return None
    lines = head.count(b"\r\n")
    if head.count(b"\r") != lines or head.count(b"\n") != lines:
        return None
    others = head[: length.start()] + head[length.end() - 2 :]
    return None if any(each in others for each in _SPECIAL) else begin[1].decode()


class Newcomer(asyncio.Protocol):
    """A connection that is not let in yet."""

    __slots__ = ("_doorstep", "_let_in", "_name", "_refused", "_timer", "transport")

    def __init__(self, doorstep: Doorstep, let_in: Callable[[], asyncio.Protocol]) -> None:
        self._doorstep = doorstep
        self._let_in = let_in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request, for a little while."""
        self.transport = cast(asyncio.Transport, transport)
        self._name = self._doorstep.name_of(transport.get_extra_info("peername"))
        self._doorstep.standing.add(self)
        excess = self._doorstep.crowd.enter(self._name)
        self._look_later()
        if excess:  # it is told so in there
            self._enter(b"")

    def _look_later(self) -> None:
        self._refused = False
        self._timer = asyncio.get_running_loop().call_later(self._doorstep.patience_s(), self._look)

    def _look(self) -> None:
        if self._refused and self._doorstep.pressure.rush:
            self._look_later()
        else:
            self._enter(b"")

    def data_received(self, data: bytes) -> None:
        """Refuse a request, or let the connection in with it; in any case if its answers are not read."""
        answer = None if self.transport.get_write_buffer_size() else self._doorstep.answer_to(data)
        if answer is None:
            self._enter(data)
        else:
            self._refused = True
            self.transport.write(answer)

    def _enter(self, data: bytes) -> None:
        self._leave()
        if self.transport.is_closing():
            return
        protocol = self._let_in()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if data:
            protocol.data_received(data)

    def _leave(self) -> None:
        self._timer.cancel()
        self._doorstep.standing.discard(self)
        self._doorstep.crowd.leave(self._name, spare=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self in self._doorstep.standing:
            self._leave()
