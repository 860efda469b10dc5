"""Who is refused, again and again: each of them is told so more slowly, for a while.

Rules:

- A good key is never kept waiting: whether it is one is asked first, every time.
- Some tries are free, as people mistype, and programs come with the key of yesterday.
- Only so many wait at once, in all and of one; who comes then is told at once.
- What is remembered is bounded, and forgiven with time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FREE: Final = 10
FIRST_S: Final = 0.05
LONGEST_S: Final = 1.0  # enough to slow a search down, and within the patience of any client
FORGIVEN_EVERY_S: Final = 10.0
MOST_COUNTED: Final = 30
MOST_REMEMBERED: Final = 10_000
MOST_WAITING: Final = 1_000
MOST_WAITING_OF_ONE: Final = 20


class Tries:
    """How often each was refused, by the address or network that it counts under."""

    def __init__(self) -> None:
        self._refused: dict[str, tuple[float, float]] = {}
        """How many tries are not forgiven, and when that was so; the latest at the end."""
        self._waiting: dict[str, int] = {}
        self._waiting_in_all = 0

    def __len__(self) -> int:
        return len(self._refused)

    def refuse(self, name: str, *, now: float) -> float:
        """Count a try; gives for how long its answer is to wait, in seconds. `now` is monotonic."""
        count, at = self._refused.pop(name, (0.0, now))
        count = min(MOST_COUNTED, max(0.0, count - (now - at) / FORGIVEN_EVERY_S) + 1)
        if len(self._refused) >= MOST_REMEMBERED:
            del self._refused[next(iter(self._refused))]
        self._refused[name] = count, now
        beyond = count - FREE
        return min(LONGEST_S, FIRST_S * 2 ** (beyond - 1)) if beyond > 0 else 0.0

    @contextmanager
    def waiting(self, name: str) -> Iterator[bool]:
        """Tell whether one more may wait, for as long as it does."""
        of_it = self._waiting.get(name, 0)
        if self._waiting_in_all >= MOST_WAITING or of_it >= MOST_WAITING_OF_ONE:
            yield False
            return
        self._waiting_in_all += 1
        self._waiting[name] = of_it + 1
        try:
            yield True
        finally:
            self._waiting_in_all -= 1
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
