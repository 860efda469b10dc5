"""How fast each provider writes: output tokens in every minute of the last hour, and right now.

Tokens are spread over the time in which they came; what is in flight counts as far as it has come. Nothing
here looks at the clock by itself, and no more than MOST_PROVIDERS are remembered.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from llmgateway.api.usage import Meter
from llmgateway.books.entry import Ended, Entry

HISTORY_MINUTES: Final = 60
MOST_PROVIDERS: Final = 10_000
_SHORTEST_S: Final = 0.001

Answer = tuple[Meter, float]
"""The meter of an answer that is under way, and its age in seconds."""


@dataclass(slots=True)
class _Minutes:
    """Output tokens of one provider in each of the last minutes; `at` is the minute of the newest."""

    at: int
    tokens: deque[float] = field(default_factory=lambda: deque([0.0] * HISTORY_MINUTES, HISTORY_MINUTES))

    def move_to(self, minute: int) -> None:
        for _ in range(min(minute - self.at, HISTORY_MINUTES)):
            self.tokens.append(0.0)
        self.at = max(self.at, minute)

    def spread(self, tokens: float, start_s: float, end_s: float) -> None:
        """Add tokens evenly over the time in which they came, which ended in the newest minute or before."""
        if start_s >= self.at * 60.0:  # as for most: all of it came in this minute
            self.tokens[-1] += tokens
            return
        start_s = min(start_s, end_s - _SHORTEST_S)
        rate = tokens / (end_s - start_s)
        for age in range(HISTORY_MINUTES):
            minute_s = (self.at - age) * 60.0
            if minute_s + 60.0 <= start_s:
                return
            self.tokens[-1 - age] += rate * max(0.0, min(minute_s + 60.0, end_s) - max(minute_s, start_s))


class Speeds:
    """The speed of every provider."""

    def __init__(self, in_flight: Iterable[Entry]) -> None:
        """Count what has ended, as it is told, and what is in flight by now."""
        self._in_flight = in_flight
        self._minutes: dict[str, _Minutes] = {}

    def ended(self, provider: str, some: Sequence[Ended]) -> None:
        """Add the output of requests to the last hour of their provider."""
        minutes = self._minutes_of(provider, max(wall for *_, wall in some))
        for entry, now, wall in some:
            if entry.tokens is not None:
                minutes.spread(entry.tokens.completion, wall - now + (entry.first_byte_at or now), wall)

    def answering(self, *, now: float) -> Mapping[str, Sequence[Answer]]:
        """Give the answers that are under way, by provider."""
        answers: dict[str, list[Answer]] = {}
        for entry in self._in_flight:
            if entry.meter is not None and entry.first_byte_at is not None:
                answers.setdefault(entry.provider, []).append((entry.meter, now - entry.first_byte_at))
        return answers

    def hour(self, provider: str, answers: Iterable[Answer], *, wall: float) -> list[float]:
        """Give a provider's output in tokens a second for each of the last 60 minutes, the oldest first.

        The answers that it is giving count, spread over their time so far.
        """
        finished = self._minutes_of(provider, wall)
        minutes = _Minutes(finished.at, finished.tokens.copy())
        for meter, for_s in answers:
            minutes.spread(meter.output_so_far, wall - for_s, wall)
        return [round(tokens / 60.0, 3) if tokens else 0.0 for tokens in minutes.tokens]

    def _minutes_of(self, provider: str, wall: float) -> _Minutes:
        minutes = self._minutes.get(provider)
        if minutes is None:
            while len(self._minutes) >= MOST_PROVIDERS:
                del self._minutes[next(iter(self._minutes))]
            minutes = self._minutes[provider] = _Minutes(int(wall // 60))
        minutes.move_to(int(wall // 60))
        return minutes


def tokens_per_s(answers: Iterable[Answer]) -> float:
    """Give the speed of answers right now, each by its mean so far."""
    return sum(meter.output_so_far / max(for_s, _SHORTEST_S) for meter, for_s in answers)
