"""What every request did: those in flight, those just finished, and the usage they add up to.

An `Entry` is opened with a request and closed in its `finally`, so that whoever leaves is accounted for as
well. What is closed is booked a moment later, with what else has ended by then: in the totals of the day, the
rates, the metrics, the request log. Many at a time cost less than as many one by one, as the code and the
tables are at hand then. Who wants to read calls `book` first, so that nobody sees the difference. Nothing
here looks at the clock by itself, and every map has a bound.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from llmgateway.api.usage import added_up
from llmgateway.books.entry import Ended, Entry
from llmgateway.books.line import DAY_CHARACTERS, Times, line_of, log_all
from llmgateway.books.metrics import Metrics
from llmgateway.books.speed import Speeds
from llmgateway.books.totals import Account, Accounts
from llmgateway.log import Events

events = Events("ledger")

RECENT: Final = 500
STRANGERS_A_MINUTE: Final = 20
"""Lines of the request log for requests without a good key; the metrics count them all."""
MOST_UNBOOKED: Final = 1_000
_WHY_CHARACTERS: Final = 300


class _Traits(NamedTuple):
    """What requests that are booked as one have in common."""

    endpoint: str
    model: str
    provider: str
    user: str
    person: str
    key: str
    status: int
    outcome: str
    tried: bool
    estimated: bool | None
    """None if no model has worked on them."""
    day: str


class Ledger:
    """Follows the requests of one gateway, and books them when they have ended."""

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
        self.instance = ""
        """What this gateway is called among several."""
        self.in_flight: dict[Entry, None] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.totals = Accounts()
        self.speeds = Speeds(self.in_flight)
        self._metrics = metrics
        self._write = write
        self._times = Times()
        self._strangers = (0, 0)
        self._later = later
        self._ended: list[Ended] = []

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

    def book(self) -> None:
        """Book all that has ended by now."""
        ended, self._ended = self._ended, []
        if not ended:
            return
        lines: list[dict[str, Any]] = []
        alike: defaultdict[_Traits, list[Ended]] = defaultdict(list)
        for each in ended:
            try:
                traits, line = self._facts_of(*each)
                alike[traits].append(each)
            except Exception:
                events.exception("booking failed", request=each[0].id)
                continue
            if line is not None:
                lines.append(line)
                why = each[0].why
                self.recent.append({**line, "why": why[:_WHY_CHARACTERS]} if why else line)
        _try(self._write, lines)
        for traits, some in alike.items():
            _try(self._book, traits, some)
        _try(log_all, ended)

    def _facts_of(self, entry: Entry, now: float, wall: float) -> tuple[_Traits, dict[str, Any] | None]:
        """Tell what a request is booked as, and its line in the request log if it has one."""
        tokens = entry.reckon()
        time = self._times.write(wall)
        traits = _Traits(
            entry.endpoint,
            entry.model,
            entry.provider,
            entry.user or "",
            entry.person or "",
            entry.key or "",
            entry.status,
            entry.outcome,
            entry.attempts > 0,
            None if tokens is None else tokens.estimated,
            time[:DAY_CHARACTERS],
        )
        heard = entry.user is not None or self._hears_strangers(wall)
        return traits, line_of(entry, tokens, time, now, self.instance) if heard else None

    def _book(self, traits: _Traits, ended: Sequence[Ended]) -> None:
        """Book requests that differ in nothing but their times and tokens."""
        entries = [entry for entry, *_ in ended]
        tokens = added_up(entry.tokens for entry in entries if entry.tokens is not None)
        if traits.user:
            asked = traits.model if traits.tried else ""  # else it may be any name
            account = Account(traits.day, traits.user, traits.person, traits.key, asked, traits.provider)
            self.totals.add(account, len(ended), tokens)
        if traits.estimated is not None:
            self.speeds.ended(traits.provider, ended)
        model = traits.model if traits.tried or self._is_known(traits.model) else ""
        self._metrics.finished(
            (traits.endpoint, model, traits.provider, traits.user, str(traits.status), traits.outcome),
            total_s=[now - entry.began for entry, now, _ in ended],
            first_byte_s=[e.first_byte_at - e.began for e in entries if e.first_byte_at is not None],
            queue_s=[e.queue_s for e in entries if e.overhead_s is not None],
            overhead_s=[e.overhead_s for e in entries if e.overhead_s is not None],
            tokens=() if traits.estimated is None else tokens,
            estimated=bool(traits.estimated),
        )

    def _hears_strangers(self, wall: float) -> bool:
        """Bound what callers without a key write down: else they could push out what the log is kept for."""
        minute = int(wall // 60)
        count = self._strangers[1] + 1 if self._strangers[0] == minute else 1
        self._strangers = minute, count
        return count <= STRANGERS_A_MINUTE


def _try(step: Callable[..., None], *arguments: object) -> None:
    """Take a step of booking; one that fails must not hinder the others."""
    try:
        step(*arguments)
    except Exception:
        events.exception("booking failed")
