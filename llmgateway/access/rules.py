"""What is limited, and whose: the rules that a key is held to, made of the limits of the config."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from limits.limits import RateLimitItemPerSecond

from llmgateway.config.users import LimitsConfig


@dataclass(frozen=True, slots=True)
class Kind:
    """A setting of LimitsConfig: what it counts, in which window, and how people say it."""

    name: str
    counts: Literal["requests", "tokens", "parallel"]
    window_s: int
    noun: str
    per: str = ""


KINDS: Final = (
    Kind("parallel", "parallel", 0, "parallel request"),
    Kind("requests_per_minute", "requests", 60, "request", " per minute"),
    Kind("tokens_per_minute", "tokens", 60, "token", " per minute"),
    Kind("tokens_per_day", "tokens", 86_400, "token", " per day"),
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose limit: a user's, that of a person who uses their keys, or that of one of the keys."""

    user: str
    key_id: str | None = None
    key_name: str | None = None
    person: str = ""

    @property
    def key(self) -> str | None:
        """What the key is called; one without a name by the beginning of its id."""
        return None if self.key_id is None else self.key_name or self.key_id[:8]

    def __str__(self) -> str:
        user = f"user '{self.user}'"
        if self.person:
            return f"person '{self.person}' of {user}"
        return user if self.key is None else f"key '{self.key}' of {user}"


class _Item(RateLimitItemPerSecond):
    """A limit as the library knows it, counted under a name that the amount is no part of."""

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return "/".join((self.namespace, *map(str, identifiers)))


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit of one holder; `who` is what the holder is counted under."""

    kind: Kind
    holder: Holder
    who: tuple[str, ...]
    amount: int
    item: _Item
    newest: _Item  # the same window, of which it sees the newest entry only

    def __str__(self) -> str:
        plural = "" if self.amount == 1 else "s"
        return f"{self.amount:,} {self.kind.noun}{plural}{self.kind.per} for {self.holder}"


def _counted_under(holder: Holder) -> tuple[str, ...]:
    """Name a holder's counters. Names hold no slash but for a person's, the last, so no two share one."""
    if holder.key_id is not None:
        return ("key", holder.user, holder.key_id)
    return ("person", holder.user, holder.person) if holder.person else ("user", holder.user)


def rules_of(holder: Holder, config: LimitsConfig) -> Iterator[Rule]:
    who = _counted_under(holder)
    for kind in KINDS:
        amount: int | None = getattr(config, kind.name)
        if amount is not None:
            item, newest = (_Item(n, kind.window_s, kind.name) for n in (amount, 1))
            yield Rule(kind, holder, who, amount, item, newest)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request as limits see it: the rules for its key, and those of which it takes something."""

    rules: tuple[Rule, ...]
    holding: tuple[Rule, ...]
