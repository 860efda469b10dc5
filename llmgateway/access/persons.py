"""Persons behind one key: whom a client names that is trusted to, as a chat page names those who use it.

Rules:

- A name is believed of a user with a `person_header` only. It is text for people: what does not print is left
  out of it, and what is long is cut.
- So many persons are known for each user; beyond that whoever is new counts as the user, until one has not
  been seen for as long as anything is counted against them.
"""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Final

from llmgateway.access.keys import Caller
from llmgateway.veil import veiled

MOST_PERSONS: Final = 1_000
IDLE_S: Final = 86_400.0  # the longest window of any limit
NAME_CHARACTERS: Final = 100


class Persons:
    """All persons that were named lately."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, float]] = {}  # by user; of these the least recently seen first

    def named(self, caller: Caller, named: Mapping[bytes, bytes], *, now: float) -> Caller:
        """Give the caller as the person whom a request names, by its header fields by lower-case name."""
        if caller.person_header not in named:
            return caller
        person = name_in(named[caller.person_header])
        if not person or not self._knows(caller.user, person, now):
            return caller
        return replace(caller, person=person)

    def _knows(self, user: str, person: str, now: float) -> bool:
        """Tell whether a person is known from now on."""
        seen = self._seen.setdefault(user, {})
        if seen.pop(person, None) is None and len(seen) >= MOST_PERSONS:
            oldest = next(iter(seen))
            if now - seen[oldest] <= IDLE_S:
                return False
            del seen[oldest]
        seen[person] = now
        return True

    def of(self, user: str) -> list[str]:
        """Give the persons who were named for a user, the one seen last first."""
        return [*reversed(self._seen.get(user, {}))]

    def keep(self, users: Container[str]) -> None:
        """Forget the persons of all but these users."""
        self._seen = {user: seen for user, seen in self._seen.items() if user in users}


def name_in(value: bytes) -> str:
    """Read a name as a header has it; empty if nothing of it can be shown."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    shown = "".join(each for each in veiled(text)[: 2 * NAME_CHARACTERS] if each.isprintable())
    return shown.strip()[:NAME_CHARACTERS].strip()
