"""What usage adds up to, by account: a user's key on a model of a provider, on one day,
and the person behind it.

The ledger adds to it with every request that has ended; after a start, the day so far is read from the
request log. What has reached no provider is booked under no model: anybody can ask for any name. The map has
a bound.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

from llmgateway.api.usage import added_up
from llmgateway.books.history import History
from llmgateway.books.line import Line, moment

MOST_TOTALS: Final = 10_000
DAY_S: Final = 86_400.0
YIELD_LINES: Final = 200


@dataclass(slots=True)
class Totals:
    """What some requests cost together; `estimated` is how many of them are estimates."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: int = 0

    def add(self, requests: int, tokens: Sequence[int]) -> None:
        """Add some requests, and what they cost in all, as `usage.added_up` gives it."""
        prompt, completion, cached, reasoning, estimated = tokens
        self.requests += requests
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cached_tokens += cached
        self.reasoning_tokens += reasoning
        self.estimated += estimated

    def merge(self, other: "Totals") -> None:
        """Add what others cost."""
        for name, count in other.counts().items():
            setattr(self, name, getattr(self, name) + count)

    def counts(self) -> dict[str, int]:
        """Give all counts by name."""
        return asdict(self)


class Account(NamedTuple):
    """What usage is kept by; `day` is a date in UTC."""

    day: str
    user: str
    person: str
    key: str
    model: str
    provider: str


class Accounts(dict[Account, Totals]):
    """Totals by account; of more than MOST_TOTALS the oldest are forgotten."""

    def add(self, account: Account, requests: int, tokens: Sequence[int]) -> None:
        """Add some requests, and what they cost in all, as `usage.added_up` gives it."""
        self._of(account).add(requests, tokens)

    def merge(self, others: Mapping[Account, Totals]) -> None:
        """Add what was used elsewhere, or before."""
        for account, totals in others.items():
            self._of(account).merge(totals)

    def _of(self, account: Account) -> Totals:
        totals = self.get(account)
        if totals is None:
            while len(self) >= MOST_TOTALS:
                del self[next(iter(self))]
            totals = self[account] = Totals()
        return totals


def used_today(log: Path, before: float) -> Accounts:
    """Add up today's lines, in a thread that lets the event loop have its turns."""

    def lines() -> Iterator[Line]:
        now = moment(before)
        for number, line in enumerate(History(log).read(before - before % DAY_S)):
            if number % YIELD_LINES == 0:
                time.sleep(0.0001)
            if line.time < now:
                yield line

    return totals_of(lines())


def totals_of(lines: Iterable[Line]) -> Accounts:
    """Add up lines of the request log, as the ledger that wrote them did."""
    found = Accounts()
    for line in lines:
        if line.user:
            account = Account(line.day, line.user, line.person, line.key, line.model, line.provider)
            found.add(account, 1, added_up([line.tokens]))
    return found
