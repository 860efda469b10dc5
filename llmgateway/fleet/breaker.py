"""Limits on trying again: taking out what keeps failing, and a budget for failovers.

Pure: time is an argument. `Breaker` is outlier ejection as Envoy knows it: what fails real requests again and
again, though its provider's probes succeed, is taken out for a growing, bounded pause and let back with one
trial request. `Conduct` has one for a provider's machine, and one for each of its models: a broken model says
nothing about the others. `RetryBudget` is Finagle's: failovers may be a share of recent traffic, so that a
dying fleet is not finished off by retries.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

FAILURES_IN_A_ROW: Final = 5
FIRST_PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 300.0
MOST_MODELS: Final = 1_000  # with failures, of one provider

RETRY_SHARE: Final = 0.5  # of the requests
RETRY_RESERVE: Final = 100.0  # failovers a minute that are always granted
RETRY_MOST: Final = 1_000.0


class Breaker:
    """Judges a machine, or a model on it, by how real requests fare there."""

    def __init__(self) -> None:
        self.open_until = 0.0
        self.pause_s = 0.0
        """How long the present pause is, or was."""
        self.why = ""
        """What the last failure was, in a few words."""
        self.spotless = True
        """True while there is nothing that an answer could change."""
        self._failures = 0
        self._pauses = 0
        self._out = False
        self._on_trial = False

    @property
    def out(self) -> bool:
        """True from when it is taken out until a trial has gone well."""
        return self._out

    def lets_through(self, now: float) -> bool:
        """Tell whether a request may be sent: always, while paused never, and after a pause one at a time."""
        return not self._out or (now >= self.open_until and not self._on_trial)

    def started(self, now: float) -> bool:
        """Note a request; tells whether it is the trial after a pause."""
        is_trial = self._out and now >= self.open_until and not self._on_trial
        self._on_trial = self._on_trial or is_trial
        return is_trial

    def answered(self) -> None:
        """Note that an answer has begun: a trial is over, and good, though the next pause grows still."""
        self._out = False
        self._on_trial = False

    def succeeded(self) -> None:
        """Note a whole answer: all failures are forgotten, and all pauses."""
        self._failures = 0
        self._pauses = 0
        self.spotless = not self._out

    def failed(self, now: float, why: str = "") -> bool:
        """Note a failure; tells whether it is taken out by it."""
        self.spotless = False
        self.why = why
        was_on_trial, self._on_trial = self._on_trial, False
        if self._out and not was_on_trial:
            return False  # one more of those for which it is out already
        self._failures += 1
        if not was_on_trial and self._failures < FAILURES_IN_A_ROW:
            return False
        self._failures = 0
        self._pauses += 1
        self._out = True
        self.pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._pauses - 1, 16), LONGEST_PAUSE_S)
        self.open_until = now + self.pause_s
        return True

    def abandoned(self) -> None:
        """Note that the trial ended without telling anything."""
        self._on_trial = False


class Conduct:
    """How real requests fare with one provider: with the machine, and with each model that it has failed."""

    def __init__(self) -> None:
        self.spotless = True
        """True while there is nothing that an answer could change."""
        self.machine = Breaker()
        self.models: dict[str, Breaker] = {}

    def lets_through(self, model: str, now: float) -> bool:
        """Tell whether a request for a model may be sent."""
        return all(breaker.lets_through(now) for breaker in self._of(model))

    def started(self, model: str, now: float) -> tuple[Breaker, ...]:
        """Note a request; gives the breakers whose trial it is."""
        return tuple(breaker for breaker in self._of(model) if breaker.started(now))

    def answered(self, model: str) -> None:
        """Note that an answer has begun."""
        for breaker in self._of(model):
            breaker.answered()

    def succeeded(self, model: str) -> None:
        """Note a whole answer."""
        for breaker in self._of(model):
            breaker.succeeded()
        if model in self.models and self.models[model].spotless:
            del self.models[model]
        self.spotless = self.machine.spotless and not self.models

    def failed(self, model: str | None, now: float, why: str = "") -> Breaker | None:
        """Note a failure of a model, or with None of the machine; gives its breaker if that takes it out."""
        self.spotless = False
        breaker = self.machine if model is None else self.models.setdefault(model, Breaker())
        if len(self.models) > MOST_MODELS:
            del self.models[next(iter(self.models))]
        return breaker if breaker.failed(now, why) else None

    def _of(self, model: str) -> Iterator[Breaker]:
        yield self.machine
        if model in self.models:
            yield self.models[model]


class Sequel(NamedTuple):
    """What follows from a failure."""

    probe: bool = False
    """Whether a look at the provider would tell more."""
    try_again: bool = False
    """Whether the same request may come back to it."""
    in_doubt: bool = False
    """Whether it may as well be the fault of the request; another provider's answer to it tells."""


class RetryBudget:
    """Counts what failovers may still cost."""

    def __init__(self) -> None:
        self._balance = RETRY_RESERVE
        self._as_of = 0.0

    def deposit(self, now: float) -> None:
        """Note a new request."""
        if self._balance < RETRY_RESERVE:
            self._refill(now)
        self._as_of = now
        if self._balance < RETRY_MOST:
            self._balance += RETRY_SHARE

    def take(self, now: float) -> bool:
        """Ask for one failover."""
        self._refill(now)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _refill(self, now: float) -> None:
        if self._balance < RETRY_RESERVE:
            owed = (now - self._as_of) * RETRY_RESERVE / 60.0
            self._balance = min(RETRY_RESERVE, self._balance + owed)
        self._as_of = now
