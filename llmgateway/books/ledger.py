"""What every request did: those in flight, those just finished, and the usage they add up to.

An `Entry` is opened with a request and closed in its `finally`, so that whoever leaves is accounted for as
well. What is closed is booked a moment later, with what else has ended by then: in the totals of the day, the
rates, the metrics, the request log. Many at a time cost less than as many one by one, as the code and the
tables are at hand then. Who wants to read calls `book` first, so that nobody sees the difference. Nothing
here looks at the clock by itself, and every map has a bound.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from llmgateway.api.usage import Meter, Tokens, added_up
from llmgateway.books.metrics import Metrics
from llmgateway.log import Events

events = Events("ledger")

RECENT: Final = 500
STRANGERS_A_MINUTE: Final = 20
"""Lines of the request log for requests without a good key; the metrics count them all."""
MOST_UNBOOKED: Final = 1_000
MOST_TOTALS: Final = 10_000
HISTORY_MINUTES: Final = 60
_DAY_CHARACTERS: Final = len("2026-11-25")
_SHORTEST_S: Final = 0.001


@dataclass(slots=True, eq=False)
class Entry:
    """One request from its head to its end.

    Durations are in seconds, moments those of `time.monotonic`: uvloop's clock has milliseconds, and stands
    still while anything runs.
    """

    id: str
    endpoint: str
    began: float
    user: str | None = None
    key: str | None = None
    model: str = ""
    provider: str = ""
    affinity: str = ""
    streams: bool = False
    attempts: int = 0
    body_s: float = 0.0
    """How long the request's body took to arrive."""
    queue_s: float = 0.0
    sent_at: float | None = None
    """When it was sent to the provider that has it now; None while it waits."""
    overhead_s: float | None = None
    """The gateway's own time before it was first sent."""
    first_byte_at: float | None = None
    meter: Meter | None = None
    tokens: Tokens | None = None
    """What it has cost; None before it is settled."""
    prompt_estimate: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    address: str = ""
    """Whose key was not good; empty for all others."""
    status: int = 0
    outcome: str = ""

    @property
    def phase(self) -> str:
        """Tell how far it is, in a word."""
        if self.first_byte_at is not None:
            return "streaming"
        if self.sent_at is not None:
            return "sent"
        return "waiting" if self.model else "reading"

    def settle(self) -> Tokens | None:
        """Give what it has cost, once it is over; None if no provider has worked on it.

        One that was cut off before its first byte has had its prompt read, as far as anybody knows.
        """
        if self.tokens is None:
            if self.meter is not None:
                self.tokens = self.meter.tokens(self.prompt_estimate)
            elif self.sent_at is not None:
                self.tokens = Tokens(self.prompt_estimate, estimated=True)
        return self.tokens

    def sent(self, provider: str, now: float) -> None:
        """Note that it goes to a provider now."""
        self.provider = provider
        self.attempts += 1
        self.sent_at = now
        if self.overhead_s is None:
            overhead_s = now - self.began - self.body_s - self.queue_s
            self.overhead_s = max(0.0, overhead_s)

    def came_back(self) -> None:
        """Note that the provider has refused it, or failed before the first byte: it has cost nothing."""
        self.sent_at = self.meter = None


Ended = tuple[Entry, float, float]
"""A request that has ended, and when: on the monotonic clock, and in epoch seconds."""


class _Kind(NamedTuple):
    """What requests that are booked as one have in common."""

    endpoint: str
    model: str
    provider: str
    user: str
    key: str
    status: int
    outcome: str
    tried: bool
    estimated: bool | None
    """None if no model has worked on them."""
    day: str


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
    key: str
    model: str
    provider: str


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


class Ledger:
    """The books of one gateway."""

    def __init__(
        self,
        metrics: Metrics,
        write: Callable[[Sequence[Mapping[str, Any]]], None],
        is_known: Callable[[str], bool],
        later: Callable[[Callable[[], None]], object] = lambda function: function(),
    ) -> None:
        """Keep books. `write` takes lines of the request log, `later` calls a function in a moment.

        `is_known` tells whether a provider has a model: anybody can ask for any name, and one that nobody has
        is no label.
        """
        self._is_known = is_known
        self.in_flight: dict[Entry, None] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.totals: dict[Account, Totals] = {}
        self._metrics = metrics
        self._write = write
        self._minutes: dict[str, _Minutes] = {}
        self._second = (0, "")
        self._strangers = (0, 0)
        self._later = later
        self._ended: list[Ended] = []
        self._listener: Callable[[Sequence[Ended]], None] = lambda ended: None

    def open(self, entry: Entry) -> None:
        """Begin to follow a request."""
        self.in_flight[entry] = None

    def close(self, entry: Entry, *, now: float, wall: float) -> None:
        """Take a request that has ended, to be booked. `now` is monotonic, `wall` in epoch seconds."""
        self.in_flight.pop(entry, None)
        self._ended.append((entry, now, wall))
        if len(self._ended) == 1:
            self._later(self.book)
        elif len(self._ended) >= MOST_UNBOOKED:
            self.book()

    def on_booked(self, listener: Callable[[Sequence[Ended]], None]) -> None:
        """Have a function called with the requests that are booked together."""
        self._listener = listener

    def book(self) -> None:
        """Book all that has ended by now."""
        ended, self._ended = self._ended, []
        if not ended:
            return
        lines: list[dict[str, Any]] = []
        alike: defaultdict[_Kind, list[Ended]] = defaultdict(list)
        for each in ended:
            try:
                kind, line = self._look_at(*each)
                alike[kind].append(each)
            except Exception:
                events.exception("booking failed", request=each[0].id)
                continue
            if line is not None:
                lines.append(line)
        self.recent.extend(lines)
        _try(self._write, lines)
        for kind, some in alike.items():
            _try(self._book, kind, some)
        _try(self._listener, ended)

    def _look_at(self, entry: Entry, now: float, wall: float) -> tuple[_Kind, dict[str, Any] | None]:
        """Tell what a request is booked as, and its line in the request log if it has one."""
        tokens = entry.tokens or entry.settle()
        time = self._moment(wall)
        kind = _Kind(
            entry.endpoint,
            entry.model,
            entry.provider,
            entry.user or "",
            entry.key or "",
            entry.status,
            entry.outcome,
            entry.attempts > 0,
            None if tokens is None else tokens.estimated,
            time[:_DAY_CHARACTERS],
        )
        heard = entry.user is not None or self._hears_strangers(wall)
        return kind, _line(entry, tokens, time, now) if heard else None

    def _book(self, kind: _Kind, ended: Sequence[Ended]) -> None:
        """Book requests that differ in nothing but their times and tokens."""
        entries = [entry for entry, *_ in ended]
        tokens = added_up(entry.tokens for entry in entries if entry.tokens is not None)
        if kind.user:
            account = _account(kind.day, kind.user, kind.key, kind.model, kind.provider, tried=kind.tried)
            self._totals_of(account).add(len(ended), tokens)
        if kind.estimated is not None:
            self._spread(kind.provider, ended)
        model = kind.model if kind.tried or self._is_known(kind.model) else ""
        self._metrics.finished(
            (kind.endpoint, model, kind.provider, kind.user, str(kind.status), kind.outcome),
            total_s=[now - entry.began for entry, now, _ in ended],
            first_byte_s=[e.first_byte_at - e.began for e in entries if e.first_byte_at is not None],
            queue_s=[e.queue_s for e in entries if e.overhead_s is not None],
            overhead_s=[e.overhead_s for e in entries if e.overhead_s is not None],
            tokens=() if kind.estimated is None else tokens,
            estimated=bool(kind.estimated),
        )

    def _spread(self, provider: str, ended: Sequence[Ended]) -> None:
        """Add the output of requests to the last hour of their provider."""
        minutes = self._pace(provider, max(wall for *_, wall in ended))
        for entry, now, wall in ended:
            if entry.tokens is not None:
                minutes.spread(entry.tokens.completion, wall - now + (entry.first_byte_at or now), wall)

    def _hears_strangers(self, wall: float) -> bool:
        """Bound what callers without a key write down: else they could push out what the log is kept for."""
        minute = int(wall // 60)
        count = self._strangers[1] + 1 if self._strangers[0] == minute else 1
        self._strangers = minute, count
        return count <= STRANGERS_A_MINUTE

    def _moment(self, wall: float) -> str:
        """Write a time as `moment` does, without doing all of the work more than once a second."""
        second = int(wall)
        if self._second[0] != second:
            self._second = second, moment(second)[: -len("000Z")]
        return f"{self._second[1]}{str(1000 + int((wall - second) * 1000))[1:]}Z"

    def restore(self, before: Mapping[Account, Totals]) -> None:
        """Add what had been used before the start."""
        for account, totals in before.items():
            self._totals_of(account).merge(totals)

    def hour(self, provider: str, *, now: float, wall: float) -> list[float]:
        """Give a provider's output in tokens a second for each of the last 60 minutes, the oldest first.

        What is in flight counts, spread over its time so far.
        """
        finished = self._pace(provider, wall)
        minutes = _Minutes(finished.at, finished.tokens.copy())
        for meter, for_s in self._answering(provider, now):
            minutes.spread(meter.output_so_far, wall - for_s, wall)
        return [round(tokens / 60.0, 3) for tokens in minutes.tokens]

    def tokens_per_s(self, provider: str, *, now: float) -> float:
        """Give the speed of what a provider is answering right now, each answer by its mean so far."""
        return sum(
            meter.output_so_far / max(for_s, _SHORTEST_S) for meter, for_s in self._answering(provider, now)
        )

    def _answering(self, provider: str, now: float) -> Iterator[tuple[Meter, float]]:
        """Give the meter and the age in seconds of each answer that a provider is giving."""
        for entry in self.in_flight:
            if entry.meter is not None and entry.first_byte_at is not None and entry.provider == provider:
                yield entry.meter, now - entry.first_byte_at

    def _pace(self, provider: str, wall: float) -> _Minutes:
        minutes = self._minutes.get(provider)
        if minutes is None:
            while len(self._minutes) >= MOST_TOTALS:
                del self._minutes[next(iter(self._minutes))]
            minutes = self._minutes[provider] = _Minutes(int(wall // 60))
        minutes.move_to(int(wall // 60))
        return minutes

    def _totals_of(self, account: Account) -> Totals:
        totals = self.totals.get(account)
        if totals is None:
            while len(self.totals) >= MOST_TOTALS:
                del self.totals[next(iter(self.totals))]
            totals = self.totals[account] = Totals()
        return totals


def _try(step: Callable[..., None], *arguments: object) -> None:
    """Take a step of booking; one that fails must not hinder the others."""
    try:
        step(*arguments)
    except Exception:
        events.exception("booking failed")


def totals_of(lines: Iterable[Mapping[str, Any]]) -> dict[Account, Totals]:
    """Add up lines of the request log, as the ledger that wrote them did."""
    found: dict[Account, Totals] = {}
    for line in lines:
        account = _account_of(line)
        if account is not None and (account in found or len(found) < MOST_TOTALS):
            found.setdefault(account, Totals()).add(1, added_up(_tokens_in(line)))
    return found


def _account_of(line: Mapping[str, Any]) -> Account | None:
    """Tell from its line in the request log by what a request is booked; None for nobody's."""
    if not line.get("user"):
        return None
    names = (line.get(name) or "" for name in ("user", "key", "model", "provider"))
    return _account(line["time"][:_DAY_CHARACTERS], *names, tried=bool(line.get("attempts")))


def _account(day: str, user: str, key: str, model: str, provider: str, *, tried: bool) -> Account:
    """Book what has reached no provider under no model: anybody can ask for any name."""
    return Account(day, user, key, model if tried else "", provider)


def _tokens_in(line: Mapping[str, Any]) -> Iterator[Tokens]:
    counts = [line.get(f"{name}_tokens") for name in ("prompt", "completion", "cached", "reasoning")]
    if type(counts[0]) is int:
        prompt, completion, cached, reasoning = (each if type(each) is int else 0 for each in counts)
        yield Tokens(prompt, completion, cached, reasoning, bool(line.get("estimated")))


def _line(entry: Entry, tokens: Tokens | None, time: str, now: float) -> dict[str, Any]:
    """Give a request's line in the request log: never a prompt, an answer or a key."""
    first_byte_at = entry.first_byte_at
    return {
        "time": time,
        "id": entry.id,
        "user": entry.user,
        "key": entry.key,
        "model": entry.model or None,
        "provider": entry.provider or None,
        "endpoint": entry.endpoint,
        "status": entry.status,
        "outcome": entry.outcome,
        "queue_ms": milliseconds(entry.queue_s) if entry.queue_s else 0.0,
        "first_byte_ms": None if first_byte_at is None else milliseconds(first_byte_at - entry.began),
        "total_ms": milliseconds(now - entry.began),
        "prompt_tokens": None if tokens is None else tokens.prompt,
        "completion_tokens": None if tokens is None else tokens.completion,
        "cached_tokens": None if tokens is None else tokens.cached,
        "reasoning_tokens": None if tokens is None else tokens.reasoning,
        "estimated": tokens is not None and tokens.estimated,
        "bytes_in": entry.bytes_in,
        "bytes_out": entry.bytes_out,
        "attempts": entry.attempts,
        "stream": entry.streams,
        "affinity": entry.affinity,
    }


def milliseconds(seconds: float) -> float:
    """Round a duration to what is told of it. It takes a third of what `round` takes."""
    return int(seconds * 10_000 + 0.5) / 10


def moment(wall: float) -> str:
    """Write epoch seconds as the request log does: UTC, to the millisecond."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
