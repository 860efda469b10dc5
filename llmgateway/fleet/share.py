"""How many of a provider's slots are this gateway's, where several gateways share the providers.

Rules:

- The shares of all gateways never add up to more than the provider has. What does not divide evenly goes to
  some of them, one each, by their numbers; at each provider it begins with another one.
- No gateway has none, unless there are more gateways than slots. Then they have turns, by the clock, which
  ought to be the same everywhere. A request that outlasts its turn meets those of the next one at the
  provider, which has a queue of its own: gateways that do not ask one another can give no better promise.
- A gateway whose name has no number cannot know its turn: what does not divide evenly is left over, and where
  there are too few slots it draws lots, anew each turn.
"""

import re
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from llmgateway.config.settings import ClusterConfig

TURN_S: Final = 2.0
"""How long a gateway has its turn: the wait of who comes to an idle provider at the wrong time."""
_NUMBER: Final = re.compile(r"[0-9]{1,9}$")


@dataclass(frozen=True, slots=True)
class Share:
    """Which of so many gateways this is; without a `place` nobody knows."""

    instances: int = 1
    place: int | None = None
    turn: int = 0
    """Counts turns, in step with the other gateways."""
    lot: int = 0
    """Chance, for who has no place."""

    def of(self, slots: int, provider: str) -> int:
        """Tell how many of a provider's slots are ours now."""
        if self.instances == 1:
            return slots
        each, left_over = divmod(slots, self.instances)
        if self.place is None:
            drawn = crc32(f"{self.lot} {self.turn} {provider}".encode()) % self.instances
            return each or int(drawn < left_over)
        turn = 0 if each else self.turn
        return each + ((self.place + crc32(provider.encode()) + turn) % self.instances < left_over)


ALL: Final = Share()


def share_of(config: ClusterConfig, *, lot: int = 0) -> Share:
    """Give what a config says; `lot` is chance."""
    if config.instances == "own" or config.instances == 1:
        return ALL
    number = _NUMBER.search(config.name or "")
    place = None if number is None else int(number[0]) % config.instances
    return Share(config.instances, place, lot=lot)
