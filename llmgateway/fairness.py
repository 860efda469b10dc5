"""Who goes next: virtual token counters per user.

The Virtual Token Counter of Sheng et al., Fairness in Serving Large Language Models, OSDI 2024 (arXiv
2401.00588, algorithm 2): each user has a counter of the tokens served to them, divided by their weight; the
user with the lowest counter goes first. Idle time is not saved up: who comes back from idleness is lifted to
the lowest counter of the other active users or, if there are none, to that of the user who was active last. A
user is active while anything of theirs waits or is in flight.
"""

from dataclasses import dataclass
from typing import Final

OUTPUT_WEIGHT: Final = 2.0  # an output token costs about two input tokens
FORGET_AFTER: Final = 10_000  # users that are remembered while idle


@dataclass(slots=True)
class _Standing:
    counter: float = 0.0
    active: int = 0
    served: int = 0


def cost(prompt_tokens: float, completion_tokens: float) -> float:
    """Weigh input and output tokens into one number of virtual tokens."""
    return prompt_tokens + OUTPUT_WEIGHT * completion_tokens


class FairShare:
    """The counters of all users. Synchronous, and knows no time: only order matters."""

    def __init__(self) -> None:
        self._users: dict[str, _Standing] = {}
        self._last_active: _Standing | None = None
        self._grants = 0

    def enter(self, user: str) -> None:
        """Count one more request of this user as waiting or in flight; one who comes back from idleness is
        lifted.
        """
        standing = self._users.get(user)
        if standing is None:
            standing = self._users[user] = _Standing()
            self._forget_idle()
        if not standing.active:
            others = [other.counter for other in self._users.values() if other.active]
            floor = (
                min(others) if others else self._last_active.counter if self._last_active is not None else 0.0
            )
            standing.counter = max(standing.counter, floor)
        standing.active += 1

    def leave(self, user: str) -> None:
        """Count one request less; pairs with `enter`."""
        standing = self._users[user]
        standing.active -= 1
        if not standing.active:
            self._last_active = standing

    def charge(self, user: str, tokens: float, weight: float) -> None:
        """Add virtual tokens to a user's counter (or take some off, when an estimate was too high)."""
        standing = self._users.get(user)
        if standing is not None:
            standing.counter += tokens / weight

    def served(self, user: str) -> None:
        """Note that this user has just been granted a slot: ties go to the user served least recently."""
        self._grants += 1
        self._users[user].served = self._grants

    def rank(self, user: str) -> tuple[float, int]:
        """Give what users are ordered by: the lowest goes first."""
        standing = self._users[user]
        return standing.counter, standing.served

    def _forget_idle(self) -> None:
        if len(self._users) > FORGET_AFTER:
            idle = next((user for user, standing in self._users.items() if not standing.active), None)
            if idle is not None:
                del self._users[idle]
