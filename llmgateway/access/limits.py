"""Rate limits and quotas, of a user with all their keys, of each person behind these, and of a single key.

Rules:

- Check all, then take all: a request that is refused has taken nothing.
- Requests count in a window that moves: never more than N in any 60 seconds. Tokens are known only when a
  request has ended; they are charged then, in a window that begins with the first charge, and block the next.
- What was used belongs to the name and not to the amount, so it outlives a change of the limit: a raised one
  helps at once, a lowered one bites at once.
- Where several gateways count together, elsewhere, what they let in here is counted here as well: each knows
  something to go by when it is alone.

The windows are those of the library `limits`, over the storage in `counters`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self, assert_never

from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from llmgateway.access.counters import Counters, SteadyClock
from llmgateway.access.rules import Holder, Rule, Wish, rules_of
from llmgateway.config.users import LimitsConfig
from llmgateway.errors import RATE_LIMITED, GatewayError

PARALLEL_RETRY_S: Final = 1.0  # nobody knows when a request will end
MAX_TERMS: Final = 4096  # keys whose rules are kept at hand

Headers = tuple[tuple[str, str], ...]
_Key = tuple[str, str, str | None, str]  # user, key id, key name, person


@dataclass(frozen=True, slots=True)
class _Terms:
    """The rules for one key, and the settings that they were made of."""

    user_limits: LimitsConfig
    key_limits: LimitsConfig
    all_of: Wish
    requests_of: Wish


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule says now: for how long it refuses (0: it does not), and until when it is used at all."""

    used: int
    opens_in_s: float
    whole_in_s: float


@dataclass(frozen=True, slots=True)
class LimitState:
    """A row of the live page. `key` is None for a limit of the user, `person` for one that is of no person.

    `resets_in_s` is 0 for `parallel`.
    """

    user: str
    person: str | None
    key: str | None
    name: str
    limit: int
    used: int
    resets_in_s: float


# --- The decision ---------------------------------------------------------------------------------


class Limits:
    """What everybody has used; lives as long as the process, whatever becomes of the config."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Measure time by `clock`, in epoch seconds."""
        self._clock = SteadyClock(clock)
        self._counters = Counters(self._clock)
        self._requests = MovingWindowRateLimiter(self._counters)
        self._tokens = FixedWindowRateLimiter(self._counters)
        self._parallel: dict[tuple[str, ...], int] = {}  # only of those who have something in flight
        self._terms: dict[_Key, _Terms] = {}
        self._unlimited = Admission(self, Wish((), ()))

    def wish(
        self,
        user: str,
        user_limits: LimitsConfig,
        key_id: str,
        key_limits: LimitsConfig,
        *,
        key_name: str | None = None,
        person: str = "",
        costs: bool = True,
    ) -> Wish:
        """Give what a request asks for: at the expense of the user and the key; made anew for other settings.

        If it is by a person, that is at the expense of the person instead of the user.
        `key_id` tells the key from all others; `key_name` is what people call it. What most likely `costs`
        nothing, neither tokens nor a place, is counted all the same.
        """
        key = user, key_id, key_name, person
        terms = self._terms.get(key)
        if terms is None or terms.user_limits is not user_limits or terms.key_limits is not key_limits:
            rules = (
                *rules_of(Holder(user, person=person), user_limits),
                *rules_of(Holder(user, key_id, key_name), key_limits),
            )
            if len(self._terms) >= MAX_TERMS:
                self._terms.clear()
            of_requests = tuple(rule for rule in rules if rule.kind.counts == "requests")
            terms = _Terms(user_limits, key_limits, Wish(rules, rules), Wish(rules, of_requests))
            self._terms[key] = terms
        return terms.all_of if costs else terms.requests_of

    def admit(self, wish: Wish, stake: "Stake | None" = None) -> "Admission":
        """Let a request in, by what is counted here; the caller must release the admission.

        Raises GatewayError (429), with a Retry-After that holds for all limits at once.
        """
        if not wish.rules:
            return self._unlimited
        self._clock.tick()
        if not all(map(self._allows, wish.holding)):
            raise self._refusal([(rule, self._read(rule)) for rule in wish.holding])
        self._take(wish.holding)
        return Admission(self, wish, stake)

    def follow(
        self, wish: Wish, readings: Sequence[Reading], *, admitted: bool, stake: "Stake"
    ) -> "Admission":
        """Let a request in, or not, by what was decided elsewhere. Raises GatewayError (429).

        `readings` are those of the rules, with the request in them if it is admitted.
        """
        if not admitted:
            read = zip(wish.rules, readings, strict=True)
            raise self._refusal([(rule, reading) for rule, reading in read if rule in wish.holding])
        self._clock.tick()
        self._take(wish.holding)
        return Admission(self, wish, stake, readings)

    def state(
        self,
        user: str,
        limits: LimitsConfig,
        *,
        key_id: str | None = None,
        key_name: str | None = None,
        person: str = "",
    ) -> list[LimitState]:
        """Tell how far the limits of a user are used, or those of a person or, with `key_id`, of a key."""
        self._clock.tick()
        rows = []
        for rule in rules_of(Holder(user, key_id, key_name, person), limits):
            now = self._read(rule)
            key = rule.holder.key
            rows.append(
                LimitState(user, person or None, key, rule.kind.name, rule.amount, now.used, now.whole_in_s)
            )
        return rows

    def _read(self, rule: Rule) -> Reading:
        match rule.kind.counts:
            case "requests":
                return self._read_requests(rule)
            case "tokens":
                return self._read_tokens(rule)
            case "parallel":
                used = self._parallel.get(rule.who, 0)
                return Reading(used, PARALLEL_RETRY_S if used >= rule.amount else 0.0, 0.0)
            case _ as never:
                assert_never(never)

    def _read_requests(self, rule: Rule) -> Reading:
        """Read a moving window: the oldest of its newest N entries blocks, and the newest leaves last."""
        opens_at, remaining = self._requests.get_window_stats(rule.item, *rule.who)
        whole_at, _ = self._requests.get_window_stats(rule.newest, *rule.who)
        used = rule.amount - remaining
        return Reading(
            used,
            0.0 if remaining > 0 else opens_at - self._clock.now,
            whole_at - self._clock.now if used else 0.0,
        )

    def _read_tokens(self, rule: Rule) -> Reading:
        ends_at, remaining = self._tokens.get_window_stats(rule.item, *rule.who)
        ends_in_s = ends_at - self._clock.now
        used = self._counters.get(rule.item.key_for(*rule.who))  # may be more than the limit
        return Reading(used, 0.0 if remaining > 0 else ends_in_s, ends_in_s)

    def _allows(self, rule: Rule) -> bool:
        """Tell whether a rule lets a request in. So would `_read`, in three times the time."""
        match rule.kind.counts:
            case "requests":
                return self._requests.test(rule.item, *rule.who)
            case "tokens":
                return self._tokens.test(rule.item, *rule.who)
            case "parallel":
                return self._parallel.get(rule.who, 0) < rule.amount
            case _ as never:
                assert_never(never)

    def _refusal(self, read: Sequence[tuple[Rule, Reading]]) -> GatewayError:
        """Say which rule refuses; of several, the one that does so the longest."""
        refusing, reading = max(read, key=lambda each: each[1].opens_in_s)
        retry_s = max(1, math.ceil(reading.opens_in_s))
        again = f"in {in_words(retry_s)}"
        if refusing.kind.counts == "parallel":
            again = "when one of them has ended"
        return GatewayError(
            RATE_LIMITED,
            f"Limit reached: {refusing}. Try again {again}.",
            (("Retry-After", str(retry_s)), *_headers(read)),
        )

    def _take(self, rules: tuple[Rule, ...]) -> None:
        for rule in rules:
            if rule.kind.counts == "parallel":
                self._parallel[rule.who] = self._parallel.get(rule.who, 0) + 1
            elif rule.kind.counts == "requests":
                self._requests.hit(rule.item, *rule.who)

    def _give_back(self, rules: tuple[Rule, ...]) -> None:
        for rule in rules:
            if rule.kind.counts == "parallel":
                self._parallel[rule.who] -= 1
                if not self._parallel[rule.who]:
                    del self._parallel[rule.who]

    def _charge(self, rules: tuple[Rule, ...], tokens: int) -> None:
        self._clock.tick()
        for rule in rules:
            if rule.kind.counts == "tokens":
                self._tokens.hit(rule.item, *rule.who, cost=tokens)


def _headers(read: Sequence[tuple[Rule, Reading]]) -> Headers:
    headers: list[tuple[str, str]] = []
    for counts in ("requests", "tokens"):
        readings = [(rule.amount, reading) for rule, reading in read if rule.kind.counts == counts]
        if not readings:
            continue
        limit, reading = min(readings, key=lambda each: _scarcity(*each))
        headers += (
            (f"x-ratelimit-limit-{counts}", str(limit)),
            (f"x-ratelimit-remaining-{counts}", str(max(0, limit - reading.used))),
            (f"x-ratelimit-reset-{counts}", as_openai_writes(reading.whole_in_s)),
        )
    return tuple(headers)


def _scarcity(limit: int, reading: Reading) -> tuple[float, float]:
    """Put first what has the least share left and, of equals, what stays so the longest."""
    return max(0, limit - reading.used) / limit, -reading.whole_in_s


class Stake(Protocol):
    """What a request has taken where several gateways count together."""

    def release(self) -> None:
        """Give back its place among the parallel requests."""

    def charge(self, tokens: int) -> None:
        """Book tokens."""


class Admission:
    """A request that was let in. Leaving the `with`, or `release`, gives its place back."""

    __slots__ = ("_limits", "_places", "_readings", "_rules", "_stake")

    def __init__(
        self, limits: Limits, wish: Wish, stake: Stake | None = None, readings: Sequence[Reading] = ()
    ) -> None:
        """Hold what was taken; `readings` are those of the rules, if they were read elsewhere."""
        self._limits = limits
        self._rules = wish.rules
        self._places = wish.holding
        self._stake = stake
        self._readings = readings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give back the place among the parallel requests; again does nothing."""
        places, self._places = self._places, ()
        self._limits._give_back(places)
        if self._stake is not None and places:
            self._stake.release()

    def charge(self, tokens: int) -> None:
        """Book tokens that the request has used, at any time, also after the release."""
        if self._rules and tokens > 0:
            self._limits._charge(self._rules, tokens)
            if self._stake is not None:
                self._stake.charge(tokens)

    def headers(self) -> Headers:
        """Give OpenAI's `x-ratelimit-` headers as things stand now, or stood when it was let in elsewhere.

        None where there is no limit.
        """
        if not self._rules:
            return ()
        if self._readings:
            return _headers(list(zip(self._rules, self._readings, strict=True)))
        self._limits._clock.tick()
        read = self._limits._read
        return _headers([(rule, read(rule)) for rule in self._rules if rule.kind.counts != "parallel"])


# --- Lengths of time in words ---------------------------------------------------------------------


def as_openai_writes(seconds: float) -> str:
    """Write a length of time as OpenAI's headers do: `59ms`, `1s`, `6m0s`, `23h59m1s`; rounded up."""
    ms = math.ceil(seconds * 1000)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, s = divmod(math.ceil(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m}m{s}s" if hours else f"{m}m{s}s" if minutes else f"{s}s"


def in_words(seconds: int) -> str:
    """Write a wait for people: `12 s`, `5 min`, `7 h 30 min`; rounded up."""
    if seconds < 120:
        return f"{seconds} s"
    hours, minutes = divmod(-(-seconds // 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
