"""What a provider can be asked for: its endpoints, by their names.

- What the config says is so; without it, what the kind of server says.
- What nobody knows to be missing is had, and so is an endpoint that has no name.
"""

from collections.abc import Collection, Set
from functools import lru_cache

from llmgateway.api.endpoints import BY_NAME
from llmgateway.servers.kind import Kind


class Repertoire:
    """The endpoints of one provider, as far as is known."""

    _missing: Set[str] = frozenset()

    def adopt(self, kind: Kind, configured: Collection[str] | None) -> None:
        """Go by what a kind of server has, or by what the config says instead."""
        self._missing = missing_of(kind) if configured is None else BY_NAME.keys() - set(configured)

    def has(self, endpoint: str) -> bool:
        """Tell whether an endpoint may be asked for, by its name."""
        return endpoint not in self._missing


@lru_cache(32)
def missing_of(kind: Kind) -> frozenset[str]:
    """Give the endpoints that a kind of server is known not to have."""
    spoken = kind.speaks | kind.may_speak
    return frozenset(
        name for name, each in BY_NAME.items() if name in kind.lacks or each.dialect.name not in spoken
    )
