"""How many connections clients have, in all and from each address.

Rules:

- A few more than all are heard out: what tells whether the gateway is well has to work when it is full.
- A reverse proxy that is trusted to say for whom it asks is no address: those are, each with what it asks at
  the moment. Neither is a Unix socket.
- Whoever enters leaves, once, under the name that was given.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.http.peers import Network, address_of, is_in, origin_of
from llmgateway.log import Events

events = Events("downstream")

TELL_EVERY_S: Final = 60.0
SPARE: Final = 8
"""Connections beyond all that are let in to ask whether the gateway is well."""
SHARE: Final = 4
LEAST_OF_ONE: Final = 64
RETRY_S: Final = 5


class Crowd:
    """The connections of clients, counted. `clock` is monotonic, in seconds."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.refused = 0
        """How many connections were one too many."""
        self._most = most
        self._clock = clock
        self._in_all = 0
        self._of_each: dict[str, int] = {}
        self._told_at = {"": -math.inf, "address": -math.inf}
        self.bound(None, ())

    def bound(self, most_of_one: int | None, trusted: Sequence[Network]) -> None:
        """Let so many in from an address, from now on, but for trusted proxies; None is a share of all."""
        self._most_of_one = max(LEAST_OF_ONE, self._most // SHARE) if most_of_one is None else most_of_one
        self.trusted = trusted

    def name(self, connected: str) -> str:
        """Give the name under which a connection counts; none if it is not bounded by itself."""
        address = address_of(connected)
        return "" if address is None or is_in(address, self.trusted) else origin_of(address)

    def enter(self, name: str) -> GatewayError | None:
        """Count one more; gives why it may not stay, if it has too many."""
        self._in_all += 1
        return self.count(name)

    def full(self) -> GatewayError:
        """Say that there is no room, and count that."""
        self._tell("", most=self._most)
        return GatewayError(OVERLOADED, "There are too many connections.", _AGAIN)

    def leave(self, name: str) -> None:
        """Count one less."""
        self._in_all -= 1
        self.uncount(name)

    @property
    def is_full(self) -> bool:
        """True if who came last is one too many."""
        return self._in_all > self._most

    @property
    def overfull(self) -> bool:
        """True if who came last cannot even be heard out."""
        return self._in_all > self._most + SPARE

    def count(self, name: str) -> GatewayError | None:
        """Count one more of an address, in a connection that others share; gives why it may not ask."""
        if not name:
            return None
        of_it = self._of_each[name] = self._of_each.get(name, 0) + 1
        if of_it <= self._most_of_one:
            return None
        self._tell("address", most=self._most_of_one, address=name)
        return GatewayError(OVERLOADED, "There are too many connections from this address.", _AGAIN)

    def uncount(self, name: str) -> None:
        """Count one less of an address."""
        if name:
            left = self._of_each[name] - 1
            if left:
                self._of_each[name] = left
            else:
                del self._of_each[name]

    def _tell(self, of: str, **fields: object) -> None:
        self.refused += 1
        now = self._clock()
        if now - self._told_at[of] >= TELL_EVERY_S:
            self._told_at[of] = now
            what = "too many connections from one address" if of else "too many connections"
            events.warning(what, **fields, refused=self.refused)


_AGAIN: Final = (("Retry-After", str(RETRY_S)),)
