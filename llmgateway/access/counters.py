"""What was taken of limits, counted in windows of time: a storage in memory for the library `limits`.

The library's own has threads and a clock of its own, hence this one.

Rules:

- Time is an argument, and never goes back: a clock that was put back keeps nobody waiting for longer.
- Counters that have run out are dropped, so nothing grows with time.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limits.storage.base import MovingWindowSupport, Storage

MIN_SWEPT: Final = 64  # counters; fewer are not worth a sweep


class SteadyClock:
    """A clock that stands still where the one behind it is put back, and goes on from there.

    `now` changes with `tick` only, so that a decision and what follows from it happen at one moment.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told = self.now = clock()
        self._ahead_s = 0.0

    def tick(self) -> None:
        """Read the clock."""
        told = self._clock()
        self._ahead_s += max(0.0, self._told - told)
        self._told = told
        self.now = max(self.now, told + self._ahead_s)


@dataclass(slots=True)
class _Sum:
    amount: int
    expires_at: float


class Counters(Storage, MovingWindowSupport):
    """The library's storage, in memory: no thread, no clock of its own, and no more than is in force.

    What was taken at `t` counts until just before `t + expiry`, so that to wait for as long as was told is
    enough.
    """

    STORAGE_SCHEME = None

    def __init__(self, clock: SteadyClock) -> None:
        super().__init__()
        self._clock = clock
        self._sums: dict[str, _Sum] = {}
        self._windows: dict[str, deque[float]] = {}  # when each entry expires, the oldest first
        self._sweep_at = MIN_SWEPT

    def __len__(self) -> int:
        return len(self._sums) + len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a sum; the window begins with the first amount."""
        if not self.get(key):
            self._sweep()
            self._sums[key] = _Sum(0, self._clock.now + expiry)
        self._sums[key].amount += amount
        return self._sums[key].amount

    def get(self, key: str) -> int:
        found = self._sums.get(key)
        return found.amount if found is not None and found.expires_at > self._clock.now else 0

    def get_expiry(self, key: str) -> float:
        return self._sums[key].expires_at if self.get(key) else self._clock.now

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if len(self._window(key)) + amount > limit:
            return False
        if key not in self._windows:
            self._sweep()
        self._windows.setdefault(key, deque()).extend([self._clock.now + expiry] * amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Give when the oldest of the newest `limit` entries was made, and how many they are."""
        window = self._window(key)
        count = min(len(window), limit)
        return (window[-count] - expiry if count else self._clock.now), count

    def _window(self, key: str) -> deque[float]:
        """Give the entries that still count."""
        window = self._windows.get(key, deque())
        while window and window[0] <= self._clock.now:
            window.popleft()
        return window

    def _sweep(self) -> None:
        """Drop what has run out, whenever the counters have doubled since the last time."""
        if len(self) < self._sweep_at:
            return
        self._sums = {key: kept for key, kept in self._sums.items() if self.get(key)}
        self._windows = {key: kept for key, kept in self._windows.items() if self._window(key)}
        self._sweep_at = max(MIN_SWEPT, 2 * len(self))

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        dropped = len(self)
        self._sums.clear()
        self._windows.clear()
        return dropped

    def clear(self, key: str) -> None:
        self._sums.pop(key, None)
        self._windows.pop(key, None)
