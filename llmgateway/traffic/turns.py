"""What waits, in the order in which it is served, in O(log n) whatever comes, goes or is charged.

Each user's own wait by arrival; between users decides how they stand (`fairness`): the lowest counter first,
then who was served least recently. The counters of those who wait change at any time, so a standing knows
the turns in which it takes part, and notes in them that it has moved.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import chain
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from llmgateway.traffic.fairness import Standing

_SPARE: Final = 16
Turn: TypeAlias = tuple[float, int, int]
"""The counter of a user, their last grant, and an arrival: the lowest goes first."""


class Waiter(Protocol):
    """What waits. Its arrival is its own."""

    @property
    def standing(self) -> Standing:
        """How its user stands."""

    @property
    def arrival(self) -> int:
        """Its number among all that ever came."""


W = TypeVar("W", bound=Waiter)
_arrival = attrgetter("arrival")


class ByArrival(list[W]):
    """Waiters by arrival. To move its tail is one copy of memory, 2 us where 10,000 wait."""

    def add(self, waiter: W) -> None:
        """Have a waiter stand where it belongs: at the end, unless it has waited before."""
        insort(self, waiter, key=_arrival)

    def discard(self, waiter: W) -> None:
        """Take a waiter out, if it is there."""
        at = self.before(waiter)
        if at < len(self) and self[at] is waiter:
            del self[at]

    def before(self, waiter: W) -> int:
        """Count those who came before a waiter."""
        return bisect_left(self, waiter.arrival, key=_arrival)


class Turns(Generic[W]):
    """Waiters by whose turn it is."""

    def __init__(self) -> None:
        self._queues: dict[Standing, ByArrival[W]] = {}
        self._moved: set[Standing] = set()
        """Who stands otherwise than any entry of theirs says."""
        self._heap: list[tuple[Turn, Standing]] = []
        """An entry for everybody who has not moved, and some that are out of date."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[W]:
        return chain.from_iterable(self._queues.values())

    def add(self, waiter: W) -> None:
        """Have a waiter take part."""
        standing = waiter.standing
        queue = self._queues.get(standing)
        if queue is None:
            queue = self._queues[standing] = ByArrival()
            standing.turns[self] = self._moved
        queue.add(waiter)
        if queue[0] is waiter:
            self._enter(standing)

    def discard(self, waiter: W) -> None:
        """Have a waiter take part no longer, if it does."""
        standing = waiter.standing
        queue = self._queues.get(standing)
        if queue is None:
            return
        queue.discard(waiter)
        if queue:
            self._moved.add(standing)
        else:
            del self._queues[standing], standing.turns[self]
            self._moved.discard(standing)

    def first(self) -> W | None:
        """Give the waiter whose turn it is."""
        for standing in self._moved:
            self._enter(standing)
        self._moved.clear()
        while self._heap:
            turn, standing = self._heap[0]
            if standing in self._queues and turn == self._turn(standing):
                return self._queues[standing][0]
            heappop(self._heap)
        return None

    def _enter(self, standing: Standing) -> None:
        heappush(self._heap, (self._turn(standing), standing))
        if len(self._heap) > 2 * len(self._queues) + _SPARE:
            self._heap = [(self._turn(each), each) for each in self._queues]
            heapify(self._heap)

    def _turn(self, standing: Standing) -> Turn:
        return *standing.rank, self._queues[standing][0].arrival
