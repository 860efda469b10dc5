"""Lists of models, rendered, and kept until the fleet changes: programs ask for them again and again.

Two callers share a list only if they are the same user with the same key's models. What else it depends on,
beside the fleet, its maker has to name. The one asked for least recently gives way.
"""

from collections.abc import Callable, Hashable
from typing import Final

from llmgateway.access.keys import Caller
from llmgateway.fleet.fleet import Fleet

MOST_LISTS: Final = 32


class Lists:
    """The lists asked for lately."""

    def __init__(self, fleet: Fleet) -> None:
        self._kept: dict[Hashable, bytes] = {}
        self.clear = self._kept.clear
        fleet.on_change(self.clear)

    def of(self, caller: Caller, what: Hashable, make: Callable[[], bytes]) -> bytes:
        """Give a list as it was made for this caller last, or have it made."""
        asked = caller.user, caller.groups, caller.route, caller.models, what
        body = self._kept.pop(asked, None)
        if body is None:
            body = make()
        self._kept[asked] = body
        if len(self._kept) > MOST_LISTS:
            del self._kept[next(iter(self._kept))]
        return body
