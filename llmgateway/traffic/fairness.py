"""Who goes next: virtual token counters per user.

The Virtual Token Counter of Sheng et al., Fairness in Serving Large Language Models, OSDI 2024 (arXiv
2401.00588, algorithm 2): each user has a counter of the tokens served to them, divided by their weight; the
user with the lowest counter goes first. Idle time is not saved up: who comes back from idleness is lifted to
the lowest counter of the other active users or, if there are none, to that of the user who was active last. A
user is active while anything of theirs waits or is in flight.

What is in flight counts by its estimate until it is known. The lift leaves estimates out: one that turns out
too high would put who comes back behind all that the others have waiting.
"""

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

OUTPUT_WEIGHT: Final = 2.0  # an output token costs about two input tokens
FORGET_AFTER: Final = 10_000  # users that are remembered while idle


@dataclass(slots=True, eq=False)
class Standing:
    """How a user stands."""

    user: str
    served: float = 0.0  # virtual tokens per weight
    expected: float = 0.0  # the same, of what is in flight: an estimate
    active: int = 0
    last_grant: int = 0
    listed: bool = False
    """Whether it is among those of whom one is the lowest."""
    turns: dict[object, set["Standing"]] = field(default_factory=dict)
    """Where this user has something waiting, and who has moved there."""

    @property
    def rank(self) -> tuple[float, int]:
        """What users are ordered by: the lowest goes first."""
        return self.served + self.expected, self.last_grant

    def moved(self) -> None:
        """Note wherever something of this user waits that they stand otherwise."""
        for moved in self.turns.values():
            moved.add(self)


def cost(prompt_tokens: float, completion_tokens: float) -> float:
    """Weigh input and output tokens into one number of virtual tokens."""
    return prompt_tokens + OUTPUT_WEIGHT * completion_tokens


class FairShare:
    """The counters of all users. Synchronous, and knows no time: only order matters."""

    def __init__(self) -> None:
        self._active: dict[str, Standing] = {}
        self._idle: dict[str, Standing] = {}
        """The first of them is the one idle for longest."""
        self._last_active: Standing | None = None
        self._lowest: list[tuple[float, int, Standing]] = []
        """A heap of who is active, and of some who were, each by a counter that may since have grown."""
        self._grants = 0

    def enter(self, user: str) -> Standing:
        """Count one more request of this user as waiting or in flight; lift one who was idle.

        What is given holds until the request leaves.
        """
        standing = self._active.get(user)
        if standing is None:
            standing = self._idle.pop(user, None) or Standing(user)
            if standing.served < (floor := self._floor()):
                standing.served = floor
            self._active[user] = standing
            if not standing.listed:
                self._list(standing)
        standing.active += 1
        return standing

    def leave(self, standing: Standing) -> None:
        """Count one request less; pairs with `enter`."""
        standing.active -= 1
        if not standing.active:
            standing.expected = 0.0
            self._last_active = self._idle[standing.user] = self._active.pop(standing.user)
            if len(self._idle) > FORGET_AFTER:
                del self._idle[next(iter(self._idle))]

    def granted(self, standing: Standing, tokens: float, weight: float) -> None:
        """Note that this user has just been granted a slot, and charge an estimate in virtual tokens for it.

        Ties go to the user served least recently.
        """
        self._grants += 1
        standing.last_grant = self._grants
        standing.expected += tokens / weight
        if standing.turns:
            standing.moved()

    def charge(self, standing: Standing, tokens: float, weight: float, *, expected: float = 0.0) -> None:
        """Charge virtual tokens that were served, in the place of those that were expected."""
        standing.served += tokens / weight
        standing.expected -= expected / weight
        if standing.turns:
            standing.moved()
        if tokens < 0:
            self._list(standing)  # nothing else would bring it up

    def rank(self, user: str) -> tuple[float, int]:
        """Give what users are ordered by: the lowest goes first."""
        return self._active[user].rank

    def _list(self, standing: Standing) -> None:
        standing.listed = True
        heappush(self._lowest, (standing.served, id(standing), standing))
        if len(self._lowest) > 2 * (len(self._active) + FORGET_AFTER):  # most of them are forgotten
            for idle in self._idle.values():
                idle.listed = False
            self._lowest = [(each.served, id(each), each) for each in self._active.values()]
            heapify(self._lowest)

    def _floor(self) -> float:
        """Give what is lifted to: the lowest counter of those who are active, else of who was so last."""
        if not self._active:
            return 0.0 if self._last_active is None else self._last_active.served
        while True:
            served, number, standing = self._lowest[0]
            if not standing.active:
                heappop(self._lowest)
                standing.listed = False
            elif served != standing.served:
                heapreplace(self._lowest, (standing.served, number, standing))
            else:
                return served
