"""How many connections clients have, in all and from each address.

Rules:

- A few that are too many are heard out: what tells whether the gateway is well has to work when it is full.
- A reverse proxy that is trusted to say for whom it asks is no address: those are, each with what it asks at
  the moment. Neither is a Unix socket; nor, unless a bound is set, this machine itself, where a proxy may
  stand that nobody has told of.
- Whoever enters leaves, once, under the name that was given.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from llmgateway.errors import OVERLOADED, GatewayError
from llmgateway.http.peers import Network, address_of, is_in, origin_of
from llmgateway.log import Events

events = Events("downstream")

TELL_EVERY_S: Final = 60.0
SPARE: Final = 8
"""Connections that are too many, and are let in to ask whether the gateway is well."""
SHARE: Final = 4
LEAST_OF_ONE: Final = 64
RETRY_S: Final = 5

Excess = Literal["", "connections", "connections from this address"]


class Crowd:
    """The connections of clients, counted. `clock` is monotonic, in seconds."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.refused = 0
        """How many connections were one too many."""
        self.expected = 0
        """How many are accepted, and have not entered yet."""
        self._most = most
        self._clock = clock
        self._in_all = 0
        self._of_each: dict[str, int] = {}
        self._spare_taken = 0
        self._told_at: dict[str, float] = {}
        self.bound(None, ())

    @property
    def room(self) -> int:
        """How many more may come."""
        return self._most - self._in_all - self.expected

    def bound(self, most_of_one: int | None, trusted: Sequence[Network]) -> None:
        """Let so many in from an address, from now on, but for trusted proxies; None is a share of all."""
        self._most_of_one = max(LEAST_OF_ONE, self._most // SHARE) if most_of_one is None else most_of_one
        self._bounds_itself = most_of_one is not None
        self.trusted = trusted

    def name(self, connected: str) -> str:
        """Give the name under which a connection counts; none if it is not bounded by itself."""
        address = address_of(connected)
        if address is None or is_in(address, self.trusted):
            return ""
        return "" if address.is_loopback and not self._bounds_itself else origin_of(address)

    def is_proxy(self, connected: str) -> bool:
        """Tell whether a connection is one of those that are trusted to say for whom they ask."""
        address = address_of(connected)
        return address is not None and is_in(address, self.trusted)

    def enter(self, name: str) -> Excess:
        """Count one more; tells of what there are too many now, if of anything."""
        self._in_all += 1
        excess = self.count(name)
        return excess or ("connections" if self._in_all > self._most else "")

    def excess(self, name: str) -> Excess:
        """Tell of what there would be too many with one more, if of anything."""
        if name and self._of_each.get(name, 0) >= self._most_of_one:
            return "connections from this address"
        return "connections" if self._in_all >= self._most else ""

    def leave(self, name: str, *, spare: bool) -> None:
        """Count one less; it had a place among the spare ones, or not."""
        self._in_all -= 1
        self._spare_taken -= spare
        self.uncount(name)

    def take_spare(self) -> bool:
        """Tell whether one that is too many may be heard out, which takes a place until it leaves."""
        if self._spare_taken >= SPARE:
            return False
        self._spare_taken += 1
        return True

    def count(self, name: str) -> Excess:
        """Count one more of an address, in a connection that others share; tells whether it has too many."""
        if not name:
            return ""
        of_it = self._of_each[name] = self._of_each.get(name, 0) + 1
        return "connections from this address" if of_it > self._most_of_one else ""

    def uncount(self, name: str) -> None:
        """Count one less of an address."""
        if name:
            left = self._of_each[name] - 1
            if left:
                self._of_each[name] = left
            else:
                del self._of_each[name]

    def refusal(self, excess: Excess) -> GatewayError:
        """Turn one away, and tell of it."""
        self.refused += 1
        now = self._clock()
        if now - self._told_at.get(excess, -math.inf) >= TELL_EVERY_S:
            self._told_at[excess] = now
            most = self._most if excess == "connections" else self._most_of_one
            events.warning(f"too many {excess.replace('this', 'one')}", most=most, refused=self.refused)
        return GatewayError(OVERLOADED, f"There are too many {excess}.", (("Retry-After", str(RETRY_S)),))
