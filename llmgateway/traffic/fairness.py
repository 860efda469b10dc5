"""Who goes next: virtual token counters per user.

The Virtual Token Counter of Sheng et al., Fairness in Serving Large Language Models, OSDI 2024 (arXiv
2401.00588, algorithm 2): each user has a counter of the tokens served to them, divided by their weight; the
user with the lowest counter goes first. Idle time is not saved up: who comes back from idleness is lifted to
the lowest counter of the other active users or, if there are none, to that of the user who was active last. A
user is active while anything of theirs waits or is in flight.

What is in flight counts by its estimate until it is known. The lift leaves estimates out: one that turns out
too high would put who comes back behind all that the others have waiting.
"""

from dataclasses import dataclass
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


def cost(prompt_tokens: float, completion_tokens: float) -> float:
    """Weigh input and output tokens into one number of virtual tokens."""
    return prompt_tokens + OUTPUT_WEIGHT * completion_tokens


class FairShare:
    """The counters of all users. Synchronous, and knows no time: only order matters."""

    def __init__(self) -> None:
        self._users: dict[str, Standing] = {}
        self._last_active: Standing | None = None
        self._grants = 0

    def enter(self, user: str) -> Standing:
        """Count one more request of this user as waiting or in flight; lift one who was idle.

        What is given holds until the request leaves.
        """
        standing = self._users.get(user)
        if standing is None:
            self._forget_idle()
            standing = self._users[user] = Standing(user)
        if not standing.active:
            standing.served = max(standing.served, self._floor())
        standing.active += 1
        return standing

    def leave(self, standing: Standing) -> None:
        """Count one request less; pairs with `enter`."""
        standing.active -= 1
        if not standing.active:
            standing.expected = 0.0
            self._last_active = standing
            self._users[standing.user] = self._users.pop(
                standing.user
            )  # the first idle one is the one idle for longest

    def granted(self, standing: Standing, tokens: float, weight: float) -> None:
        """Note that this user has just been granted a slot, and charge an estimate in virtual tokens for it.

        Ties go to the user served least recently.
        """
        self._grants += 1
        standing.last_grant = self._grants
        standing.expected += tokens / weight

    def charge(self, standing: Standing, tokens: float, weight: float, *, expected: float = 0.0) -> None:
        """Charge virtual tokens that were served, in the place of those that were expected."""
        standing.served += tokens / weight
        standing.expected -= expected / weight

    def rank(self, user: str) -> tuple[float, int]:
        """Give what users are ordered by: the lowest goes first."""
        standing = self._users[user]
        return standing.served + standing.expected, standing.last_grant

    def _floor(self) -> float:
        """Give what is lifted to: the lowest counter of those who are active, else of who was so last."""
        last = 0.0 if self._last_active is None else self._last_active.served
        return min((other.served for other in self._users.values() if other.active), default=last)

    def _forget_idle(self) -> None:
        if len(self._users) >= FORGET_AFTER:
            idle = next((user for user, standing in self._users.items() if not standing.active), None)
            if idle is not None:
                del self._users[idle]
