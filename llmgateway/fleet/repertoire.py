"""What a provider can be asked for: its endpoints, by their names.

- What the config says is so. Without it, an endpoint is missing if no server of that kind has it, or if this
  one has said so: that is believed for an hour, unless it is forgotten before.
- What has worked is not missing on the whole server, whatever is said: something in front of it may say so
  while it restarts. That is believed of the model, and until the server is looked at again.
- What nobody knows to be missing is had, and so is an endpoint that has no name.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import Final

from llmgateway.api.endpoints import BY_NAME
from llmgateway.servers.kind import Kind

BELIEVED_S: Final = 3600.0
ALL: Final = ""
"""In the place of a model's name: whichever is asked for."""
_MOST_LEARNT: Final = 1_000


class Repertoire:
    """The endpoints of one provider, as far as is known."""

    def __init__(self) -> None:
        self._missing: frozenset[str] = frozenset()
        self._is_told = False
        self._learnt: dict[tuple[str, str], float] = {}
        self.worked: set[str] = set()
        """The endpoints at which it has answered a request well."""

    def adopt(self, kind: Kind, told: Collection[str] | None) -> None:
        """Go by what a kind of server has, or by what the config says instead."""
        self._is_told = told is not None
        self._missing = missing_of(kind) if told is None else frozenset(BY_NAME.keys() - set(told))
        if self._is_told:
            self.forget()

    def has(self, endpoint: str, model: str = ALL) -> bool:
        """Tell whether an endpoint, by its name, may be asked for a model."""
        if endpoint in self._missing:
            return False
        learnt = self._learnt
        return not learnt or ((endpoint, ALL) not in learnt and (endpoint, model) not in learnt)

    def missing(self, model: str) -> frozenset[str]:
        """Give all that is known to be missing for a model."""
        learnt = {endpoint for endpoint, of in self._learnt if of in (ALL, model)} if self._learnt else None
        return self._missing | learnt if learnt else self._missing

    @property
    def learnt(self) -> Collection[tuple[str, str]]:
        """What it has said that it has not, of what it might have: endpoint, and model or ALL."""
        return self._learnt.keys()

    def learn(self, endpoint: str, model: str, *, every: bool, now: float) -> bool:
        """Take it that an endpoint is missing, for a model or for `every` one; tells whether that is news."""
        doubtful = every and endpoint in self.worked
        of = ALL if every and not doubtful else model
        if self._is_told or not self.has(endpoint, of):
            return False
        self._learnt[endpoint, of] = now if doubtful else now + BELIEVED_S
        if len(self._learnt) > _MOST_LEARNT:
            del self._learnt[next(iter(self._learnt))]
        return True

    def expire(self, now: float) -> None:
        """Believe no longer what was said too long ago."""
        if any(until <= now for until in self._learnt.values()):
            self._learnt = {what: until for what, until in self._learnt.items() if until > now}

    def forget(self) -> bool:
        """Know no more than what config and kind say, as it may be another version now.

        Tells whether anything is had again by that.
        """
        learnt, self._learnt = self._learnt, {}
        self.worked.clear()
        return bool(learnt)


@lru_cache(32)
def missing_of(kind: Kind) -> frozenset[str]:
    """Give the endpoints that a kind of server is known not to have."""
    spoken = kind.speaks | kind.may_speak
    return frozenset(
        name for name, each in BY_NAME.items() if name in kind.lacks or each.dialect.name not in spoken
    )
